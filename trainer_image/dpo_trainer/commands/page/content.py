"""What the page shows of a run, from the files in its work folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dpo_operator.api import exitcodes
from dpo_operator.api.access import REGISTRY_URL, hub_repository, is_registry
from dpo_operator.api.diagnosis import Finding, worst_first
from dpo_operator.api.reports import PushReport, Termination
from dpo_operator.api.types import DPOJob
from dpo_trainer.commands.page.charts import Chart, Series, chart
from dpo_trainer.commands.rounds_table import Round
from dpo_trainer.commands.run_log import Run, points_of
from dpo_trainer.legs import record
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry.metrics_file import Line

PROMPTS, CHARACTERS = 8, 1500
MAX_REPORT_CHARACTERS = 20_000
_MFU = "model_flops_utilization"
# Buckets of answers by tokens, as the metrics name them.
_LENGTHS = {"le_64": "to 64", "le_256": "65 to 256", "le_1024": "257 to 1,024", "gt_1024": "more"}


@dataclass(frozen=True)
class Sample:
    """A prompt with the answers to it; before, after: (title, answer)."""

    prompt: str
    chosen: str
    answers: list[tuple[str, str]]


def findings(work: WorkDir) -> list[Finding]:
    """Of the figures and of the data, worst first; what can't be read is left out."""
    raw = [*_listed(_json(work.diagnosis)), *_listed(_json(work.data_report))]
    found = []
    for each in raw:
        try:
            found.append(Finding.model_validate(each))
        except ValidationError:
            continue
    # diagnosis.json begins with what prepare found.
    return worst_first({(each.code, each.sentence): each for each in found}.values())


def charts(run: Run) -> list[Chart]:
    """The curves. The margin stands before the accuracy, which says nothing without it."""
    marks = [(float(step), "restart") for step in run.restarts]
    if run.best is not None:
        marks.append((float(run.best.step), "best evaluation"))
    pictures = [
        chart("Loss", [*_split(run, "loss"), *_start(run)], marks),
        chart("Reward margin, nats", _split(run, "rewards/margins"), marks),
        chart("Reward accuracy", _split(run, "rewards/accuracies"), marks, share=True),
        chart("Rewards, nats", _sides(run, "rewards"), marks),
        chart("Drift: log-ratio to the reference, nats a token", _sides(run, "logratio_per_token"), marks),
        chart(
            "Tokens of sampled answers",
            [
                _series(run.evaluations, "eval_generation_tokens/policy", "policy", "train", dots=True),
                _series(run.evaluations, "eval_generation_tokens/reference", "reference", "quiet", dots=True),
            ],
            marks,
        ),
    ]
    return [picture for picture in pictures if picture is not None]


def round_charts(rounds: Sequence[Round]) -> list[Chart]:
    """What the policy of each round is worth, and how far it is from the initial one. Against itself a policy wins one half."""
    numbers = [float(each.report.round) for each in rounds]
    even = [(number, 0.5) for number in numbers]

    def by_round(values: Sequence[float | None]) -> list[tuple[float, float]]:
        return [(number, value) for number, value in zip(numbers, values, strict=True) if value is not None]

    previous = by_round([each.report.win_rate_previous for each in rounds])
    initial = by_round([each.report.win_rate_initial for each in rounds])
    # A report's divergence is of the policy that the round began with.
    reports = {report.round: report for each in rounds for report in (each.report, each.after) if report is not None}
    divergence = [(float(n - 1), one.kl_to_initial) for n, one in reports.items() if one.kl_to_initial is not None]
    pictures = [
        chart(
            "Win rate of the round's policy",
            [
                Series("against the one before", "train", previous, dots=True),
                Series("against the initial one", "eval", initial, dots=True),
                *([Series("no difference", "quiet", even)] if previous or initial else []),
            ],
            share=True,
        ),
        chart("KL from the initial policy, nats an answer", [Series("policy", "train", divergence, dots=True)]),
    ]
    return [picture for picture in pictures if picture is not None]


def leg_charts(work: WorkDir) -> list[Chart]:
    """What the legs of a sweep have reached, over how far they went for it: the upper left is the better side."""
    chosen, legs = record.chosen(work), record.read_reports(work)
    kinds = {
        "exported": ("train", [leg for leg in legs if leg.leg == chosen]),
        "trained": ("eval", [leg for leg in legs if leg.leg != chosen and leg.outcome == "Trained"]),
        "unhealthy": ("quiet", [leg for leg in legs if leg.outcome == "Unhealthy"]),
    }

    def dots(name: str) -> list[Series]:
        return [
            Series(label, style, [(leg.drift, value) for leg in some if leg.drift is not None and (value := getattr(leg, name)) is not None], dots=True, joined=False)
            for label, (style, some) in kinds.items()
        ]  # fmt: skip

    pictures = [
        chart("Held-out accuracy", dots("accuracy"), share=True, whole=False),
        chart("Held-out margin, nats; it grows with beta", dots("margin"), whole=False),
    ]
    return [picture for picture in pictures if picture is not None]


def _start(run: Run) -> list[Series]:
    if run.start is None or len(run.train) < 2:
        return []
    ends = [(float(run.train[0]["step"]), run.start), (float(run.train[-1]["step"]), run.start)]
    return [Series("start", "quiet", ends)]


def _split(run: Run, key: str) -> list[Series]:
    return [
        _series(run.train, key, "train", "train"),
        _series(run.evaluations, f"eval_{key}", "held out", "eval", dots=True),
    ]


def _sides(run: Run, key: str) -> list[Series]:
    return [
        _series(run.train, f"{key}/{side}", side, style) for side, style in (("chosen", "train"), ("rejected", "eval"))
    ]


def _series(lines: Sequence[Line], key: str, label: str, style: str, *, dots: bool = False) -> Series:
    return Series(label, style, points_of(lines, key), dots)


def by_length(run: Run) -> list[tuple[str, str]]:
    """Held-out accuracy of the last evaluation by the tokens of a pair's longer answer, and by length alone."""
    if not run.evaluations:
        return []
    last = run.evaluations[-1]
    rows = [(f"{text} tokens", last.get(f"eval_rewards/accuracies/{name}")) for name, text in _LENGTHS.items()]
    rows.append(("a rule that knows the lengths alone", last.get("eval_length_baseline_accuracy")))
    return [(name, f"{value:.1%}") for name, value in rows if isinstance(value, int | float)]


def samples(run: Run) -> list[Sample]:
    """The first prompts with the answers of the reference and of the last evaluation."""
    found = []
    for prompt in list(dict.fromkeys(line.get("prompt") for line in run.samples))[:PROMPTS]:
        lines = sorted((line for line in run.samples if line.get("prompt") == prompt), key=lambda line: line["step"])
        answers = [
            ("before" if line["step"] == 0 else f"after step {line['step']}", _short(line.get("policy")))
            for line in (lines[0], lines[-1])[: len(lines)]
        ]
        found.append(Sample(_short(prompt), _short(lines[0].get("chosen")), answers))
    return found


def restarts(work: WorkDir) -> list[tuple[str, str]]:
    """Attempts of training that failed: which, and why."""
    found = []
    for each in _terminations(work):
        if each.phase == "train" and each.outcome == "Failed":
            info = exitcodes.info(each.exit_code)
            step = f" after step {each.progress.step}" if each.progress else ""
            found.append((f"attempt {each.attempt}{step}", f"{info.reason}: {_short(each.message or info.meaning)}"))
    return found


def cost(run: Run, work: WorkDir, job: DPOJob | None) -> list[tuple[str, str]]:
    """Time, GPUs, tokens and speed; GPU-hours are those of the steps, without loading, evaluations and lost steps."""
    rows = [("time in optimizer steps", f"{run.seconds / 3600:.3g} h")]
    if job is not None and job.spec.gpus_per_node:
        gpus = job.spec.nodes * job.spec.gpus_per_node
        rows.append(
            ("GPU-hours of these steps", f"{run.seconds / 3600 * gpus:.3g} on {gpus} GPU{'s' if gpus > 1 else ''}")
        )
    tokens = next(
        (line["num_tokens"] for line in reversed(run.train) if isinstance(line.get("num_tokens"), int | float)), None
    )
    if tokens is not None:
        rows.append(("tokens trained on", f"{tokens:,.0f}"))
        if run.seconds:
            rows.append(("tokens per second", f"{tokens / run.seconds:,.0f}"))
    used = [line[_MFU] for line in run.train if isinstance(line.get(_MFU), int | float)]
    if used:
        rows.append(("model FLOPs utilization", f"{sum(used) / len(used):.1%}"))
    if run.pairs and run.seconds:
        rows.append(("pairs per second", f"{run.pairs / run.seconds:.3g}"))
    return rows


def loading(work: WorkDir) -> list[tuple[str, str]]:
    """How the model is loaded: title and code."""
    export = work.export
    if not export.is_dir():
        return []
    folder = "export/merged" if (export / "merged" / "config.json").is_file() else "export"
    whole = (work.root / folder / "config.json").is_file()
    report = PushReport.model_validate_json(work.pushed.read_bytes()) if work.pushed.is_file() else None
    pushed = report.to if report is not None else None
    name = json.dumps(folder)
    kind = class_of(work.root / folder)
    code = f"from transformers import {kind}, AutoTokenizer\n\nmodel = {kind}.from_pretrained({name})\n"
    # With peft installed, from_pretrained also loads a folder that holds an adapter.
    found = [
        ("transformers" + ("" if whole else ", with peft"), f"{code}tokenizer = AutoTokenizer.from_pretrained({name})")
    ]
    if whole:
        found.append(("vLLM", f"vllm serve {folder}"))
    if report is not None and pushed is not None:
        found.append(("pushed to", pushed))
        if is_registry(pushed):
            ways = of_registry(pushed, artifact=report.format == "artifact")
            return [*found, *((name.strip(), way) for name, way in ways)]
        where = pushed + ("/merged" if folder.endswith("merged") else "")
        if whole and hub_repository(pushed) is None:
            found.append(("vLLM, from the store", f"vllm serve {where} --load-format runai_streamer"))
            found.append(("KServe", f"storageUri: {where}"))
    return found


def of_registry(pushed: str, *, artifact: bool) -> list[tuple[str, str]]:
    """How a copy in a registry is used: names and commands or fields. pushed: its address."""
    reference = pushed.removeprefix(REGISTRY_URL)
    if artifact:
        return [("  oras", f"oras pull {reference}")]
    return [
        ("  image volume", f"image: {{reference: {reference}}}, with the files below /models"),
        # A ModelCar's container runs a shell, which this image lacks.
        ("  KServe", f"storageUri of an image that is built by: FROM busybox, COPY --from={reference} /models /models"),
    ]


def class_of(folder: Path) -> str:
    """The class of transformers that loads an exported folder: of a language model, or of a reward model."""
    found = [
        file.read_text(encoding="utf-8")
        for name in ("config.json", "adapter_config.json")
        if (file := folder / name).is_file()
    ]
    is_reward_model = any("ForSequenceClassification" in text or '"SEQ_CLS"' in text for text in found)
    return "AutoModelForSequenceClassification" if is_reward_model else "AutoModelForCausalLM"


def settings(job: DPOJob | None) -> str:
    """The job's spec as YAML, without defaults; "" if unknown."""
    if job is None:
        return ""
    spec = job.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return _visible(yaml.safe_dump(spec, sort_keys=False, allow_unicode=True, width=100))


def data_report(work: WorkDir) -> str:
    """Prepare's report as text; "" without one."""
    return _visible(_text(work.data_report.with_suffix(".txt"))[:MAX_REPORT_CHARACTERS])


def job_of(work: WorkDir) -> DPOJob | None:
    """The job of `dpo run`; None where the folder has none that can be read."""
    try:
        return DPOJob.model_validate(_json(work.root / "job.json"))
    except ValidationError:
        return None


def _terminations(work: WorkDir) -> list[Termination]:
    found = [Termination.from_text(_text(path)) for path in work.root.glob("termination-*-*-*.json")]
    return sorted((each for each in found if each is not None), key=lambda each: (each.attempt, each.rank))


def _listed(document: Any) -> list[Any]:
    found = document.get("findings") if isinstance(document, dict) else None
    return found if isinstance(found, list) else []


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path) or "null")
    except (ValueError, RecursionError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _short(text: object) -> str:
    """A text of data or of a model, bounded."""
    whole = text if isinstance(text, str) else "–"
    clean = _visible(whole[: CHARACTERS + 1]).strip()
    return clean if len(whole) <= CHARACTERS else f"{clean[:CHARACTERS]} […]"


def _visible(text: str) -> str:
    """Without what turns the direction of writing or can't be seen."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)
