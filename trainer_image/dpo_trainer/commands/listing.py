"""`dpo checkpoints`: what is in a folder of checkpoints, and whether it can be used. Needs no torch."""

import json
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.checkpoint import layout, verification
from dpo_trainer.checkpoint.manifest import read_manifest
from dpo_trainer.checkpoint.plain_files import BadCheckpoint
from dpo_trainer.checkpoint.verification import kinds_of, verify_shards
from dpo_trainer.checkpoint.volume import readable
from dpo_trainer.runtime.errors import input_not_found
from dpo_trainer.telemetry.selection import METRICS

# Console width; the table needs about 80 columns.
_WIDTH = 160


@dataclass(frozen=True)
class CheckpointRow:
    """One checkpoint, or an entry that is named like one.

    problem: why it can't be used; empty when nothing was found. verified: every byte was read, not only names and sizes.
    bytes: of all its files. time: seconds since the epoch. loss: of the step, nats. evaluation: value of metric, by which the
    best is chosen. best: the best of the usable ones. last: the newest usable one, from which a job resumes.
    """

    name: str
    problem: str
    verified: bool
    bytes: int
    step: int | None = None
    time: float | None = None
    attempt: int | None = None
    world_size: int | None = None
    digest: str = ""
    loss: float | None = None
    evaluation: float | None = None
    metric: str = ""
    finished: bool = False
    best: bool = False
    last: bool = False


def run(folder: Path, *, verify: bool, as_json: bool) -> ExitCode:
    """Print the checkpoints of a run, newest first. Returns VOLUME_ERROR when the newest can't be used.

    folder: a run's work folder, or its folder of checkpoints. verify: read every byte.
    Raises TrainerError INPUT_NOT_FOUND when there are none, OSError.
    """
    root = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    rows = inspect(root, verify=verify)
    left_over = sorted(path.name for path in layout.temporary_folders(root))
    if as_json:
        document = {"folder": str(root), "checkpoints": [asdict(row) for row in rows], "unfinished": left_over}
        print(json.dumps(document, indent=1))
    elif rows or left_over:
        _show(rows, left_over, verify=verify)
    if not rows:
        raise input_not_found(f"{root}: expected checkpoints, folders such as {layout.folder_name(50)}, found none")
    return ExitCode.VOLUME_ERROR if rows[0].problem else ExitCode.OK


def inspect(root: Path, *, verify: bool) -> list[CheckpointRow]:
    """Every checkpoint in a folder, newest first; entries that are removed meanwhile are skipped. Raises OSError for the folder itself."""
    read = [(_inspect(folder, verify=verify), folder) for _, folder in layout.committed(root)]
    rows = [row for row, folder in read if not _is_gone(folder)]
    good = [row for row in rows if not row.problem]
    # Ties go to the later one, as in the export.
    scored = [row for row in good if row.evaluation is not None]
    best = min(scored, key=lambda row: (_sign(row.metric) * (row.evaluation or 0.0), -(row.step or 0)), default=None)
    last = good[0].name if good else ""
    return [replace(row, best=row is best, last=row.name == last) for row in rows]


def _inspect(folder: Path, *, verify: bool) -> CheckpointRow:
    size = 0
    try:
        size = _size(folder)
        manifest, digest = read_manifest(folder)
    except BadCheckpoint as error:
        return CheckpointRow(folder.name, str(error), False, size)
    except OSError as error:
        return CheckpointRow(folder.name, _unreadable(error), False, size)
    problem = ""
    try:
        if verify:
            verify_shards(folder, manifest, range(manifest.world_size), kinds=kinds_of(manifest))
        else:
            for name, file in sorted(manifest.files.items()):
                verification.verify_size(folder, name, file)
    except BadCheckpoint as error:
        problem = str(error)
    except OSError as error:
        problem = _unreadable(error)
    metric, cost = manifest.state.selection_metric, manifest.selection_cost
    return CheckpointRow(
        folder.name,
        problem,
        verify and not problem,
        size,
        step=manifest.step,
        time=manifest.time,
        attempt=manifest.attempt,
        world_size=manifest.world_size,
        digest=digest,
        loss=manifest.metrics.get("loss"),
        evaluation=None if cost is None else _sign(metric) * cost,
        metric=metric,
        finished=bool(manifest.state.finished),
    )


def _sign(metric: str) -> int:
    """Sign between a metric and its cost in the manifest; a lower cost is better."""
    return -1 if metric in METRICS and METRICS[metric][1] else 1


def _is_gone(folder: Path) -> bool:
    """Whether a running job has removed a checkpoint since it was listed."""
    try:
        folder.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def _unreadable(error: OSError) -> str:
    return f"can't be read: {error.strerror or error}"


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; a link's are not those that it leads to. Raises OSError."""
    size = 0
    with suppress(FileNotFoundError):  # removed meanwhile
        if stat.S_ISDIR(folder.lstat().st_mode):
            for path in folder.iterdir():
                with suppress(FileNotFoundError):
                    entry = path.lstat()
                    size += entry.st_size if stat.S_ISREG(entry.st_mode) else 0
    return size


def _show(rows: Sequence[CheckpointRow], left_over: Sequence[str], *, verify: bool) -> None:
    console = Console(highlight=False)
    # A squeezed table loses text; a terminal wraps a table that is too wide, and a log has no width.
    console.width = max(console.width, _WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("step", "state", "committed (UTC)", "size", "attempt", "ranks", "loss", "eval", ""):
        table.add_column(title, justify="left" if title in ("state", "committed (UTC)", "") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, _cells(row, verify=verify)))
    console.print(table)
    for row in rows:
        if row.problem:
            console.print(f"{row.name}: refused: {row.problem}", markup=False, soft_wrap=True)
    if metric := next((row.metric for row in rows if row.metric and row.evaluation is not None), ""):
        console.print(f"eval: {metric}", markup=False, soft_wrap=True)
    if left_over:
        console.print(f"unfinished: {', '.join(left_over)}", markup=False, soft_wrap=True)
    if not verify:
        console.print("Names, manifests and sizes were checked; --verify reads every byte.", soft_wrap=True)


def _cells(row: CheckpointRow, *, verify: bool) -> tuple[str, ...]:
    marks = " ".join(word for word, is_so in (("last", row.last), ("best", row.best)) if is_so)
    state = "refused" if row.problem else ("verified" if verify else "complete")
    return (
        str(int(row.name.removeprefix("step-"))),
        state,
        datetime.fromtimestamp(row.time, UTC).strftime("%Y-%m-%d %H:%M")
        if row.time is not None and _is_date(row.time)
        else "–",
        readable(row.bytes),
        str(row.attempt or "–"),
        str(row.world_size or "–"),
        _number(row.loss),
        _number(row.evaluation),
        marks,
    )


def _is_date(time: float | None) -> bool:
    return time is not None and 0 <= time < 253_402_300_800  # the year 10000


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
