"""A leg of a sweep: a training that ends well also when it was ended because it was unhealthy, so that the next leg can begin."""

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.sweep.grid import Sweep
from dpo_operator.api.sweep.report import Outcome
from dpo_operator.api.types import DPOJob
from dpo_trainer.legs.figures import report_of
from dpo_trainer.legs.record import write_report
from dpo_trainer.runtime import stop as stopping
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.stop import StopRequest
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.training import train

# Endings that are about a leg's values. Every rank has them at the same step.
_UNHEALTHY = (ExitCode.STOPPED_BY_DIAGNOSIS, ExitCode.NON_FINITE)


def run(
    job: DPOJob, work: WorkDir, sweep: Sweep, *, telemetry: Telemetry, attempt: int, stop: StopRequest
) -> stopping.Outcome:
    """Train a leg as train.run does, and commit its figures once it has ended, on rank 0. job, work: of the leg.

    Raises as train.run does, except for endings that are about the leg's values.
    """
    outcome: Outcome = "Trained"
    try:
        ended = train.run(job, work, telemetry=telemetry, attempt=attempt, stop=stop)
    except TrainerError as error:
        if error.exit_code not in _UNHEALTHY:
            raise
        outcome, ended = "Unhealthy", stopping.Outcome("Succeeded", str(error))
        telemetry.activity("this leg was ended: it is unhealthy")
    if ended.status == "Succeeded" and telemetry.rank == 0:
        # Behind the outputs, which write in the background.
        telemetry.sync()
        label = sweep.label(work.sweep_number)
        write_report(work, report_of(job.spec, work, label, outcome, ended.message))
    return ended
