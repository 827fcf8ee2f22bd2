"""The report of a run: a picture of its curves, a table of its first and last values, and a few of its answers."""

import io
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpo_operator.api.access import hub_repository, is_registry
from dpo_operator.api.reports import PushReport, ResumeReport
from dpo_operator.api.types import DPOJob
from dpo_trainer.commands.legs_table import legs_table
from dpo_trainer.commands.page.content import class_of, of_registry
from dpo_trainer.commands.page.html import PAGE, page
from dpo_trainer.commands.rounds_table import chosen_leg, rounds_table
from dpo_trainer.commands.run_log import Run, read_run
from dpo_trainer.commands.run_picture import PICTURE, draw
from dpo_trainer.commands.selected import selected
from dpo_trainer.runtime.errors import input_not_found
from dpo_trainer.runtime.files import commit
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry.console import duration
from dpo_trainer.telemetry.margins import note
from dpo_trainer.telemetry.metrics_file import Line

# Rows without any value are left out: no method has all metrics.
_TABLE = (
    ("loss", "loss", "{:.4f}"),
    ("rewards/margins", "reward margin", "{:z.4f}"),
    ("rewards/accuracies", "reward accuracy", "{:.1%}"),
    ("length_baseline_accuracy", "  by length alone", "{:.1%}"),
    ("rewards/chosen", "reward, chosen", "{:z.4f}"),
    ("rewards/rejected", "reward, rejected", "{:z.4f}"),
    ("logratio_per_token/chosen", "drift, chosen", "{:z.4f}"),
    ("nll_loss", "likelihood loss", "{:.4f}"),
    ("kl", "KL divergence", "{:.4f}"),
    ("generation_tokens/policy", "tokens of samples", "{:.1f}"),
    ("generation_tokens/reference", "  of the reference", "{:.1f}"),
)
_PROMPTS, _CHARACTERS = 3, 600
# The text file has a fixed width: a pod has no terminal.
TEXT, _WIDTH = "report.txt", 100
# Facts at the head of the page; the others have a place of their own there.
_SUMMARY = ("training time", "ending", "best evaluation", "restarts")


def report(work: WorkDir) -> None:
    """Print the report of a run, and write it as report.txt, report.png and report.html.

    Raises TrainerError INPUT_NOT_FOUND when the folder is not that of a run.
    """
    if not any(path.is_file() for path in (work.metrics, work.prepared, work.root / "job.json")):
        raise input_not_found(
            f"{work.root}: expected the work folder of a run, such as runs/quickstart, found no metrics.jsonl, prepared.json or "
            "job.json in it"
        )
    work = chosen_leg(work)
    run = read_run(work)
    console = Console(highlight=False)
    if run.train:
        _print(console, run, work)
    if without := write(run, work):
        print(without, file=sys.stderr)
    else:
        console.print(f"picture: {work.report / PICTURE}", markup=False, soft_wrap=True)
        console.print(f"page: {work.report / PAGE}", markup=False, soft_wrap=True)


def write(run: Run, work: WorkDir, job: DPOJob | None = None) -> str:
    """Write report.txt, report.png and report.html. Returns what is missing and why, "" when nothing is.

    job: what was run; job.json in the work folder is used without it.
    """
    if not run.train:
        return f"{work.metrics}: no steps yet, so there is nothing to report."
    work.report.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    _print(Console(file=text, width=_WIDTH, color_system=None, highlight=False), run, work)
    commit(work.report / TEXT, text.getvalue().encode())
    missing = []
    try:
        draw(run, work.report)
    except ImportError:
        missing.append("No picture: matplotlib is not installed (pip install matplotlib).")
    try:
        write_page(run, work, job)
    except ImportError:
        missing.append("No page: jinja2 is not installed (pip install jinja2).")
    return " ".join(missing)


def write_page(run: Run, work: WorkDir, job: DPOJob | None = None) -> None:
    """Write report.html. job: as for write. Raises ImportError without jinja2."""
    work.report.mkdir(parents=True, exist_ok=True)
    titles = [title.replace("\n", ", ") for title, _, _ in _columns(run)]
    facts = [f"{name}: {text.rstrip('.')}" for name, text in _facts(run, work) if name in _SUMMARY]
    whole = page(run, work, job, titles, _rows(run), "; ".join(facts))
    commit(work.report / PAGE, whole.encode("utf-8", errors="replace"))


def _print(console: Console, run: Run, work: WorkDir) -> None:
    for overview in (rounds_table(work), legs_table(work)):
        if overview is not None:
            console.print(overview)
    console.print(_table(run))
    for name, text in _facts(run, work):
        console.print(f"{name}: {text}", markup=False, soft_wrap=True)
    for table in _answers(run):
        console.print(table)


def _table(run: Run) -> Table:
    table = Table(title="Result", title_justify="left", title_style="bold")
    table.add_column("")
    for title, _, _ in _columns(run):
        table.add_column(title, justify="right")
    for name, texts in _rows(run):
        table.add_row(name, *texts)
    return table


def _rows(run: Run) -> list[tuple[str, list[str]]]:
    """Name and values of each metric that the run has."""
    columns, rows = _columns(run), []
    for key, name, form in _TABLE:
        values = [line.get(prefix + key) for _, prefix, line in columns]
        if any(isinstance(value, int | float) for value in values):
            texts = [form.format(v) if isinstance(v, int | float) else "–" for v in values]
            if key == "rewards/accuracies":
                texts = [_with_note(text, line, prefix) for text, (_, prefix, line) in zip(texts, columns, strict=True)]
            rows.append((name, texts))
    return rows


def _with_note(accuracy: str, line: Line, prefix: str) -> str:
    """An accuracy counts signs: it says nothing where the margin is within noise or near 0."""
    # Two short lines: the columns are narrow.
    why = note(line, prefix).replace(" ", "\n", 1)
    return f"{accuracy}\n({why})" if why else accuracy


def _columns(run: Run) -> list[tuple[str, str, Line]]:
    """Title, prefix of the keys and line: the ends of training, the ends of the evaluations and the best of them."""
    ends = [run.train[0], run.train[-1]] if len(run.train) > 1 else run.train
    columns = [(f"train\nstep {line['step']}", "", line) for line in ends]
    best = run.best.step if run.best else None
    for number, line in enumerate(run.evaluations):
        if number in (0, len(run.evaluations) - 1) or line["step"] == best:
            mark = ", best" if line["step"] == best and len(run.evaluations) > 1 else ""
            columns.append((f"held out\nstep {line['step']}{mark}", "eval_", line))
    return columns


def _facts(run: Run, work: WorkDir) -> list[tuple[str, str]]:
    facts = [
        ("training time", f"{duration(run.seconds)} in {len(run.train)} logged step{'s' if len(run.train) > 1 else ''}")
    ]
    if run.seconds > 0 and run.pairs:
        facts[0] = (facts[0][0], f"{facts[0][1]}, {run.pairs / run.seconds:.3g} pairs/s")
    if work.resumed.is_file():
        first = ResumeReport.model_validate_json(work.resumed.read_bytes())
        facts.append(("began with", f"step {first.checkpoint.step} of {first.source}, SHA-256 {first.digest}"))
    if run.ending:
        facts.append(("ending", run.ending))
    if run.best is not None:
        facts.append(("best evaluation", f"step {run.best.step}, {run.best.metric} {run.best.value:.4f}"))
    if run.restarts:
        facts.append(("restarts", f"{len(run.restarts)}, from step {', '.join(map(str, run.restarts))}"))
    facts += selected(work)
    if work.export.is_dir():
        facts.append(("export", str(work.export)))
    if work.pushed.is_file():
        facts += _pushed(work)
    facts.append(("metrics", str(work.metrics)))
    if run.samples:
        facts.append(("answers", str(work.samples)))
    return facts


def _pushed(work: WorkDir) -> list[tuple[str, str]]:
    """Where the export was copied to, and how servers read it there."""
    found = PushReport.model_validate_json(work.pushed.read_bytes())
    facts = [("pushed", f"{found.to}, dpo_provenance.json with the SHA-256 {found.digest}")]
    if is_registry(found.to):
        return [
            *facts,
            ("  manifest", str(found.manifest)),
            *of_registry(found.to, artifact=found.format == "artifact"),
        ]
    repo = hub_repository(found.to)
    if (work.export / "config.json").is_file():
        facts.append(("  KServe", f"storageUri: {found.to}"))
        facts.append(("  vLLM", _vllm(found.to) if repo is None else f"vllm serve {repo}"))
    if (work.export / "merged" / "config.json").is_file():
        if repo is not None:  # neither server reads a folder of a repository
            kind = class_of(work.export / "merged")
            facts.append(("  merged", f'{kind}.from_pretrained("{repo}", subfolder="merged")'))
        else:
            facts.append(("  KServe", f"storageUri: {found.to}/merged"))
            facts.append(("  vLLM", _vllm(f"{found.to}/merged")))
    return facts


def _vllm(address: str) -> str:
    return f"vllm serve {address} --load-format runai_streamer"


def _answers(run: Run) -> list[Table]:
    """The first prompts with the answers of the reference, the first and the last evaluation side by side."""
    steps = sorted({line["step"] for line in run.samples})
    shown = list(
        dict.fromkeys([step for step in steps if step == 0] + [step for step in steps if step > 0][:1] + steps[-1:])
    )
    tables = []
    for prompt in list(dict.fromkeys(line.get("prompt") for line in run.samples))[:_PROMPTS]:
        lines = {line["step"]: line for line in run.samples if line.get("prompt") == prompt}
        table = Table(title=_readable(f"Prompt: {prompt}"), title_justify="left", caption_justify="left", expand=True)
        for step in shown:
            table.add_column("reference" if step == 0 else f"policy, step {step}", ratio=1, overflow="fold")
        table.add_row(*(_readable(lines.get(step, {}).get("policy")) for step in shown))
        if chosen := next(iter(lines.values())).get("chosen"):
            table.caption = _readable(f"In the data: {chosen}")
        tables.append(table)
    return tables


def _readable(text: str | None) -> Text:
    """A model's answer, safe for a terminal: shortened, without markup or control sequences."""
    shown = "".join(c if c.isprintable() or c == "\n" else "�" for c in text or "–")
    shown = shown.strip()
    return Text(shown if len(shown) <= _CHARACTERS else f"{shown[:_CHARACTERS]} […]")
