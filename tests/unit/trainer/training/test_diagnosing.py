"""The rules' way into the training: which lines of a run's files they see after a restart."""

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.telemetry.metrics_file import MetricsFile
from dpo_trainer.training.diagnosing import Diagnosing
from tests.unit.trainer.diagnosis.records import DATA, evaluation, spec, training

pytestmark = pytest.mark.unit

REFUSAL, KIND = "That is not for me to say.", "Keep it simple, and take your time."


def answers(step: int, policy: str) -> list[dict[str, Any]]:
    return [{"step": step, "prompt": str(n), "policy": policy, "reference": KIND, "chosen": KIND} for n in range(32)]


def test_samples_of_lost_steps_are_not_looked_at_after_a_restart(tmp_path: Path):
    work = WorkDir(tmp_path)
    evaluations = [
        {f"eval_{key}" if key not in ("step", "epoch") else key: value for key, value in evaluation(20).items()}
    ]
    work.metrics.write_text("".join(json.dumps(line) + "\n" for line in [*training(20), *evaluations]))
    work.data_report.parent.mkdir(parents=True)
    work.data_report.write_text(json.dumps(DATA))
    of_lost_steps = [line for step in (30, 40) for line in answers(step, REFUSAL)]
    work.samples.write_text("".join(json.dumps(line) + "\n" for line in answers(20, KIND) + of_lost_steps))
    telemetry = Telemetry("train", 2, work)
    diagnosing = Diagnosing(spec(), work, Ranks(), telemetry, 40, resumed_step=20)

    def codes(step: int) -> list[str]:
        diagnosing.look(step)
        return [finding["code"] for finding in json.loads(work.diagnosis.read_text())["findings"]]

    assert "OverRefusing" not in codes(20)
    # The first new answers cut the lines of lost steps, so that the file is a shorter one.
    file = MetricsFile(work.samples, resumed_step=20, key=lambda line: (line["step"], line["prompt"]))
    for line in answers(30, KIND):
        file.write(line)
    assert "OverRefusing" not in codes(30)
    for line in answers(40, REFUSAL):
        file.write(line)
    assert "OverRefusing" in codes(40)
    file.close()
    telemetry.close()
