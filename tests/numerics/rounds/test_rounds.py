"""Two rounds on a real small model: what each phase makes, where training starts, and that kills change nothing."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import Termination, UnitsReport
from dpo_trainer.batches import rankings
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry.metrics_file import read_metrics
from tests.numerics.phases import PROMPTS, Job, a_job, generate_until, judge_until, train_until
from tests.numerics.ranks import RankFailed, on_ranks

pytestmark = pytest.mark.numerics

LORA = {"adapter": {"type": "lora", "rank": 4, "alpha": 16, "targetModules": ["q_proj", "v_proj"]}}
CLOCK = ("time", "step_seconds")


@pytest.fixture(scope="module")
def judged(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job whose first round is judged."""
    root = tmp_path_factory.mktemp("judged")
    job = Job(root / "job", a_job(shared, root))
    job.run("prepare")
    job.run("generate", 1)
    job.run("judge", 1)
    return job


@pytest.fixture(scope="module")
def whole(judged: Job, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, dict[str, Termination]]:
    """The same job to its end, and what the judges and the export said."""
    job = judged.copied(tmp_path_factory.mktemp("whole") / "job")
    said: dict[str, Termination] = {}
    for number in (1, 2):
        if number > 1:
            job.run("generate", number)
            said[f"judge {number}"] = job.run("judge", number)
        job.run("train", number)
        job.run("export", number)
    said["generate 3"] = job.run("generate", 3, ranks=2)
    said["judge 3"] = job.run("judge", 3)
    said["export"] = job.run("export")
    return job, said


def test_two_rounds_and_the_export_of_the_last(whole: tuple[Job, dict[str, Termination]]):
    job, said = whole
    second, last = said["judge 2"], said["judge 3"]
    assert [said[one].progress.units for one in ("generate 3", "judge 2")] == [  # type: ignore[union-attr]
        UnitsReport(done=2, total=2, answers=5), UnitsReport(done=3, total=3, answers=4 * PROMPTS),
    ]  # fmt: skip
    assert second.round is not None
    assert second.compared is not None
    assert last.compared is not None
    assert (second.round.prompts, second.round.answers) == (PROMPTS, 4 * PROMPTS)
    assert second.round.pairs + sum(second.round.left_out.values()) == PROMPTS
    assert second.round.kl_to_initial is not None
    assert second.round.kl_to_initial > 0.01
    assert last.compared.win_rate_previous is not None
    assert last.compared.win_rate_initial is not None
    assert (second.compared.round, last.compared.round) == (1, 2)
    # In two rounds of three steps each the policy learns to be kind.
    assert last.compared.win_rate_initial > 0.5
    assert said["export"].export_path == "export"
    exported, root = job.work / "rounds" / "0002" / "export", job.work / "export"
    assert {path.name: path.read_bytes() for path in root.iterdir()} == {
        path.name: path.read_bytes() for path in exported.iterdir()
    }
    assert (root / "model.safetensors").samefile(exported / "model.safetensors")
    assert (job.work / "report" / "report.txt").is_file()


def test_pairs_are_sampled_ids_of_two_disjoint_sets_of_prompts(whole: tuple[Job, dict[str, Termination]]):
    job, _ = whole
    asked = []
    for number in (1, 2):
        leg = WorkDir(job.work).round(number)
        pairs = PairDataset.open(leg.train_data)
        sampled = {answer.tobytes() for answer in _answers(job, number)}
        assert {pairs[i].chosen.tobytes() for i in range(len(pairs))} <= sampled
        assert {pairs[i].rejected.tobytes() for i in range(len(pairs))} <= sampled
        asked.append({pairs[i].prompt.tobytes() for i in range(len(pairs))})
    assert asked[0].isdisjoint(asked[1])


def test_the_second_round_goes_on_from_the_first(whole: tuple[Job, dict[str, Termination]]):
    """Its first step sees the policy that generated the pairs, and rewards against the initial model."""
    job, _ = whole
    leg = WorkDir(job.work).round(2)
    first, pairs = _steps(leg)[0], PairDataset.open(leg.train_data)
    assert first["pairs"] == len(pairs)
    generated = np.load(leg.generator_logps)
    assert first["logps/chosen"] == pytest.approx(generated[:, 0].mean(), abs=1e-3)
    assert first["logps/rejected"] == pytest.approx(generated[:, 1].mean(), abs=1e-3)
    assert abs(first["logratio_per_token/chosen"]) > 1e-3
    assert "initial_loss" not in first
    assert _steps(WorkDir(job.work).round(1))[0]["initial_loss"] == pytest.approx(math.log(2))
    # The reference of the first round's pairs is one table, that of the second's another, in one folder.
    assert len(list((job.work / "reference").iterdir())) == 2


def test_another_policy_than_the_generators_is_refused(judged: Job, tmp_path: Path):
    job = judged.copied(tmp_path / "job")
    leg = WorkDir(job.work).round(1)
    np.save(leg.generator_logps, np.load(leg.generator_logps) - 0.5)
    ended = job.ended("train", 1)
    assert ended.exit_code == ExitCode.INVALID_CONFIGURATION
    assert "the trainer and the generator disagree about the generator's own answers by 0.0" in ended.message
    assert "chat template, BOS" in ended.message


def test_killed_generators_and_judges_make_the_same_pairs(judged: Job, tmp_path: Path):
    """SIGKILL at points of both phases, then two generators for the rest, as the commands of pods."""
    job, undisturbed = judged.copied(tmp_path / "job"), WorkDir(judged.work).round(1)
    leg = WorkDir(job.work).round(1)
    for folder in (leg.generated, leg.compared, leg.judged, leg.train_data):
        for path in folder.iterdir():
            path.unlink()
    kept: dict[Path, int] = {}
    for point in ("begun unit-00000", "committed unit-00000", "begun unit-00002", "committed unit-00002"):
        with pytest.raises(RankFailed):
            on_ranks(1, generate_until, str(job.file), str(job.work), 1, f"{point}.safetensors")
        now = {path: path.stat().st_mtime_ns for path in leg.generated.glob("unit-*")}
        assert kept.items() <= now.items(), f"a unit was made again after the kill at {point}"
        kept = now
    assert len(kept) == 3
    job.command("launch", "--phase", "generate", round_number=1, processes=2)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    for folder in ("generated", "compared"):
        assert _contents(getattr(leg, folder)) == _contents(getattr(undisturbed, folder))

    with pytest.raises(RankFailed):
        on_ranks(1, judge_until, str(job.file), str(job.work), 1, "committed unit-00001.jsonl")
    assert not (leg.train_data / "meta.json").exists()
    report = job.command("judge", round_number=1).round
    assert report is not None
    assert PairDataset.open(leg.train_data).digest == PairDataset.open(undisturbed.train_data).digest
    assert (leg.generator_logps.read_bytes(), leg.round_report.read_bytes()) == (
        undisturbed.generator_logps.read_bytes(), undisturbed.round_report.read_bytes(),
    )  # fmt: skip


def test_adapters_on_two_ranks_with_the_previous_reference(shared: Path, tmp_path: Path):
    """The second round's first loss is ln 2, and a round that was killed goes on as if it had not been."""
    job = Job(tmp_path / "job", a_job(shared, tmp_path, spec=LORA, reference="previous", evaluateLast=False))
    job.run("prepare")
    for number in (1, 2):
        job.run("generate", number)
        job.run("judge", number)
        if number == 1:
            job.run("train", number, ranks=2)
            job.run("export", number)
    other = job.copied(tmp_path / "other")
    job.run("train", 2, ranks=2)
    first = _steps(WorkDir(job.work).round(2))[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)

    with pytest.raises(RankFailed):
        on_ranks(2, train_until, str(other.file), str(other.work), 2, other.attempt + 1, 1, patience=5)
    other.attempt += 1
    resumed = other.run("train", 2, ranks=2)
    assert resumed.progress is not None
    assert resumed.progress.resumed_from_step == 1
    assert _bare(other) == _bare(job)
    job.run("export", 2)
    assert job.run("export").export_path == "export"
    assert (job.work / "export" / "adapter_model.safetensors").is_file()


@pytest.mark.exhaustive
def test_each_round_ranks_its_own_pairs(judged: Job, tmp_path: Path):
    job = judged.copied(tmp_path / "job")
    job.document["spec"]["training"] |= {"globalBatchSize": 2, "selection": {"by": "rewardGap", "warmup": 0.3}}
    job.file.write_text(json.dumps(job.document))
    job.run("train", 1)
    leg = WorkDir(job.work).round(1)
    [ranking] = rankings.read_all(leg.selection)
    assert ranking.pairs == len(PairDataset.open(leg.train_data))
    assert 0 < ranking.kept < ranking.ranked < ranking.pairs
    assert not WorkDir(job.work).selection.exists()


def _answers(job: Job, number: int) -> list[np.ndarray]:
    units = [load_file(path) for path in sorted(WorkDir(job.work).round(number).generated.glob("unit-*"))]
    assert sum(len(unit["rows"]) for unit in units) == PROMPTS
    return [answer for unit in units for answer in np.split(unit["ids"], unit["offsets"][1:-1])]


def _contents(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Keys and arrays of units by name; the order of a file's metadata is left to chance."""
    found = {}
    for path in folder.iterdir():
        with safe_open(path, framework="numpy") as file:
            arrays = b"".join(file.get_tensor(name).tobytes() for name in sorted(file.keys()))
            found[path.name] = (file.metadata()["key"], arrays)
    return found


def _steps(leg: WorkDir) -> list[dict[str, Any]]:
    return [line for line in read_metrics(leg.metrics) if "loss" in line]


def _bare(job: Job) -> list[dict[str, Any]]:
    leg = WorkDir(job.work).round(2)
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in read_metrics(leg.metrics)]
