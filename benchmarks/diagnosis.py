"""Does diagnosis name what is planted, and is it silent about healthy runs? `make bench-diagnosis`, or `python -m benchmarks.diagnosis`.

Each run is `dpo run` on the quickstart's model with data of the quickstart's kind, another draw for each seed. A plant counts only when
it shows in its own samples, of which this file knows what they should be. benchmarks/README.md has the last table.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.diagnosis_data import Answers, Maker, Rows, kind, write
from benchmarks.methods import LORA
from dpo_operator.api.diagnosis import Code
from dpo_operator.api.types import DPOJob
from dpo_trainer.diagnosis.judge import diagnose
from dpo_trainer.diagnosis.record import RunRecord
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry.metrics_file import read_metrics
from tests import tied

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL = REPOSITORY / "runs" / "quickstart-model"
STEPS = 40
# Bars: seeds of a plant that must be named first, and the part of the run in which half of the plants must be stated.
NAMED, EARLY = 2 / 3, 0.4

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Shows = Callable[[Answers], tuple[bool, str]]


@dataclass(frozen=True)
class Case:
    """A run. codes: any of these must come first; none for a healthy one. shows: whether its answers show the plant, and in what figure.

    spec: what its spec differs in.
    """

    name: str
    rows: Maker = kind
    spec: dict[str, Any] = field(default_factory=dict, hash=False)
    codes: tuple[Code, ...] = ()
    shows: Shows = lambda _: (True, "")
    stopped_at: int = 0


PLANTS = (
    Case("wrong chat template", Rows.messages, {"model": {"chatTemplate": CHATML}}, (Code.TEMPLATE_OR_BOUNDARY,), Answers.unsound),
    Case("text of another language", Rows.shifted, codes=(Code.NOT_THE_FINE_TUNED_MODEL,), shows=Answers.not_of_the_data),
    Case("labels swapped in train", Rows.swapped, codes=(Code.SWAPPED_LABELS,), shows=Answers.curt),
    Case("rate 1e-2", spec={"training": {"learningRate": 1e-2}}, codes=(Code.GIBBERISH,), shows=Answers.unsound),
    Case("rate 5e-7", spec={"training": {"learningRate": 5e-7}}, codes=(Code.FLAT_LOSS,), shows=Answers.unchanged),
    Case("half of the labels random", Rows.half_random, codes=(Code.NOISY_LABELS,), shows=Answers.no_kinder),
    Case("chosen only longer", Rows.only_longer, codes=(Code.VERBOSITY,), shows=Answers.longer),
    Case("one word changed, rate 1e-3", Rows.one_word, {"training": {"learningRate": 1e-3}}, (Code.LIKELIHOOD_DISPLACEMENT,),
         Answers.unsound_at_1),
    Case("rate 1e-3, beta 0.01", spec={"training": {"learningRate": 1e-3}, "method": {"name": "dpo", "beta": 0.01}},
         codes=(Code.GIBBERISH, Code.REFERENCE_DRIFT), shows=Answers.unsound_at_1),
    Case("a mark ends every chosen answer", Rows.marked, {"training": {"learningRate": 3e-4}}, (Code.SHORTCUT,), Answers.marked),
)  # fmt: skip
HEALTHY = (
    Case("dpo"),
    Case("simpo", spec={"method": {"name": "simpo"}}),
    Case("orpo", spec={"method": {"name": "orpo"}}),
    Case("kto", spec={"method": {"name": "kto"}}),
    Case("LoRA", spec={"adapter": LORA, "training": {"learningRate": 3e-4}}),
    Case("24 evaluation pairs", Rows.small_evaluation),
    Case("resumed after step 20", stopped_at=20),
    Case("chosen rightly shorter", Rows.rightly_shorter),
    Case("10% of the labels wrong", Rows.a_tenth_wrong),
    Case("beta 0.5", spec={"method": {"name": "dpo", "beta": 0.5}}),
    Case("swapped in train and evaluation", Rows.swapped_everywhere),
)


@dataclass(frozen=True)
class Result:
    """What a run showed. first: worst finding above Info, or for a plant of any severity. stated: step of the first right statement."""

    case: Case
    seed: int
    shown: bool
    evidence: str
    first: str
    step: int | None
    above_info: tuple[str, ...]

    @property
    def is_named(self) -> bool:
        """Whether the plant was named first."""
        return self.first in self.case.codes


def job(case: Case, seed: int, data: Path) -> dict[str, Any]:
    """The DPOJob of a case."""
    own = case.spec
    training = {
        "epochs": 1.0, "learningRate": 1e-4, "globalBatchSize": 16, "microBatchSize": 8, "precision": "fp32",
        "gradientCheckpointing": False, "seed": seed,
    }  # fmt: skip
    spec: dict[str, Any] = {
        "model": {"name": str(MODEL)} | own.get("model", {}),
        "data": {
            "train": {"source": str(data / "train.jsonl")},
            "eval": {"source": str(data / "eval.jsonl")},
            "maxLength": 192,
        },
        "method": own.get("method", {"name": "dpo", "beta": 0.1}),
        "training": training | own.get("training", {}),
        "evaluation": {"everySteps": 10},
        "checkpoint": {"everySteps": 10, "keepLast": 1},
        "nodes": 1,
        "gpusPerNode": 0,
    }
    if "adapter" in own:
        spec["adapter"] = own["adapter"]
    return {"apiVersion": "dpo-operator.dev/v1alpha1", "kind": "DPOJob", "metadata": {"name": "bench"}, "spec": spec}


def run(case: Case, seed: int, folder: Path) -> None:
    """Run a case as a user does. Raises subprocess.CalledProcessError; the log is in the folder."""
    write(case.rows, seed, folder / "data")
    file = folder / "job.yaml"
    file.write_text(json.dumps(job(case, seed, folder / "data")), encoding="utf-8")
    argv = [str(Path(sys.executable).with_name("dpo")), "run", str(file), "--work-dir", str(folder / "work")]
    with (folder / "log").open("wb") as log:
        if case.stopped_at:
            _stop_after(argv, case.stopped_at, folder, log)
        tied.run(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)


def _stop_after(argv: list[str], step: int, folder: Path, log: Any) -> None:
    """Run it until a checkpoint of the step is there, and end it with SIGTERM."""
    with tied.popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True) as first:
        while first.poll() is None and not (folder / "work" / "checkpoints" / f"step-{step:08}").is_dir():
            time.sleep(0.2)
        first.terminate()
        first.wait()


def judged(case: Case, seed: int, folder: Path, *, again: bool) -> Result:
    """What a finished run said. again: by today's rules, from its files, as the run would have looked at them."""
    work = WorkDir(folder / "work")
    found = _again(work) if again else json.loads(work.diagnosis.read_text(encoding="utf-8"))
    shown, evidence = case.shows(Answers.read(work, folder / "data"))
    steps = [one["finding"]["step"] for one in found["history"] if one["finding"]["code"] in case.codes]
    rules = [finding for finding in found["findings"] if finding["code"] in set(Code) or finding["severity"] != "Info"]
    stated = {(one["finding"]["severity"], one["finding"]["code"], one["finding"]["step"]) for one in found["history"]}
    above = tuple(f"{code} ({severity}, step {step})" for severity, code, step in sorted(stated) if severity != "Info")
    return Result(case, seed, shown, evidence, rules[0]["code"] if rules else "", min(steps, default=None), above)


def _again(work: WorkDir) -> dict[str, Any]:
    document = json.loads((work.root / "job.json").read_text(encoding="utf-8"))
    spec = DPOJob.model_validate(document).spec
    lines, samples = read_metrics(work.metrics), read_metrics(work.samples)
    data = json.loads(work.data_report.read_text(encoding="utf-8"))
    findings: list[Any] = []
    history = []
    for step in (0, 10, 20, 30, 40):
        record = RunRecord.of(
            spec,
            [line for line in lines if line["step"] <= step],
            total_steps=STEPS,
            samples=[line for line in samples if line["step"] <= step],
            data=data,
        )
        known = {finding["code"] for finding in findings}
        findings = [finding.model_dump(mode="json") for finding in diagnose(record)]
        history += [{"finding": finding | {"step": step}} for finding in findings if finding["code"] not in known]
    return {"findings": findings, "history": history}


def passed(results: Sequence[Result], console: Console) -> bool:
    """Print the tables and whether the bars are met."""
    plants = [result for result in results if result.case.codes]
    table = Table(title="Planted")
    for column in ("plant", "expected", "named first", "evidence", "stated at step"):
        table.add_column(column)
    fine, steps = True, []
    for case in dict.fromkeys(result.case for result in plants):
        of_case = [result for result in plants if result.case is case]
        named = sum(result.is_named and result.shown for result in of_case)
        fine &= named >= NAMED * len(of_case)
        steps += [STEPS if result.step is None else result.step for result in of_case]
        table.add_row(
            case.name,
            " or ".join(case.codes),
            f"{named} of {len(of_case)}" + "".join(f"; {r.first or 'nothing'}" for r in of_case if not r.is_named),
            "; ".join(f"{'' if r.shown else 'NOT SHOWN: '}{r.evidence}" for r in of_case),
            ", ".join("–" if r.step is None else str(r.step) for r in of_case),
        )
    if plants:
        console.print(table)
        early = statistics.median(steps) / STEPS
        console.print(f"Median first right statement: {early:.0%} of the run (bar: {EARLY:.0%})")
        fine &= early <= EARLY
    table = Table(title="Healthy")
    for column in ("run", "above Info"):
        table.add_column(column)
    healthy = [result for result in results if not result.case.codes]
    for case in dict.fromkeys(result.case for result in healthy):
        wrong = [text for result in healthy if result.case is case for text in result.above_info]
        fine &= not wrong
        table.add_row(case.name, "; ".join(wrong) or "nothing")
    if healthy:
        console.print(table)
    return fine


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 below a bar or when a run fails."""
    cases = {case.name: case for case in (*PLANTS, *HEALTHY)}
    parser = argparse.ArgumentParser(prog="benchmarks.diagnosis", description=__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="CASE",
        help=f"parts of names: {', '.join(cases)}; or plants, healthy".replace("%", "%%"),
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work-dir", type=Path, default=REPOSITORY / "runs" / "bench-diagnosis")
    parser.add_argument(
        "--again", action="store_true", help="train nothing: judge the runs that are there by today's rules"
    )
    given = parser.parse_args(argv)
    console, progress = Console(width=180, highlight=False), Console(stderr=True, highlight=False)
    if not (MODEL / "config.json").is_file():
        progress.print("The quickstart's model is missing: python examples/quickstart/make_model.py")
        return 1
    groups = {"plants": PLANTS, "healthy": HEALTHY}
    wanted = [
        case
        for case in cases.values()
        if not given.only or any(word in case.name or case in groups.get(word, ()) for word in given.only)
    ]
    results, failed = [], False
    for case in wanted:
        for seed in given.seeds:
            folder = given.work_dir / f"{case.name.replace(' ', '-').replace('%', '')}-{seed}"
            if given.again and not (folder / "work" / "export").is_dir():
                continue
            try:
                if not given.again:
                    _fresh(folder)
                    run(case, seed, folder)
                results.append(judged(case, seed, folder, again=given.again))
            except subprocess.CalledProcessError as error:
                failed = True
                progress.print(
                    f"{case.name}, seed {seed}: exit code {error.returncode}; see {folder / 'log'}", style="red"
                )
                continue
            last = results[-1]
            progress.print(
                f"{case.name}, seed {seed}: {last.first or 'nothing'} (step {last.step}); {last.evidence} {'; '.join(last.above_info)}"
            )
    return int(not passed(results, console) or failed)


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)


if __name__ == "__main__":
    sys.exit(main())
