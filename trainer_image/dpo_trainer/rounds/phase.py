"""The judge phase as a process: what it needs from its environment, and what it says at its end. Its libraries are imported when they are needed."""

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import Termination
from dpo_operator.api.types import DPOJob
from dpo_trainer.runtime.job import stop_on_request
from dpo_trainer.runtime.libraries import import_tokenizers_alone
from dpo_trainer.runtime.termination import build_termination
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry


def run(job: DPOJob, work: WorkDir, telemetry: Telemetry, attempt: int) -> Termination:
    """Judge a round. work: its leg. Raises TrainerError, and Stopped after a signal, when no call is left in flight."""
    telemetry.activity("opening the judge")
    telemetry.serve()
    from dpo_trainer.sources.access import from_environment

    access = from_environment(job.spec.way_out)
    access.apply(work.root / ".cache")
    assert job.spec.iterative is not None, "only jobs with rounds have this phase"
    if job.spec.iterative.judge.type != "rewardModel":
        import_tokenizers_alone()
    from dpo_trainer.rounds import judge

    # A judge's calls cost something: those in flight end before the phase does.
    found = judge.run_phase(job.spec, work, telemetry, access, stop_on_request())
    terms = {"round": found.report, "compared": found.before}
    return build_termination("judge", attempt, ExitCode.OK).model_copy(update=terms)
