"""What `dpo plan` prints: tables for people, one object for programs."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpo_operator.api.model import AdapterType
from dpo_operator.api.quantity import gibibytes, to_bytes
from dpo_operator.api.sweep.grid import legs_of
from dpo_operator.cli.modelsource import Found
from dpo_operator.sizing.proposal import Job, Option, fastest, lines, smallest_change, too_many_gpus
from dpo_operator.sizing.trained import adapted, trained_parameters

# Of a GPU's memory, what weights may take with room left for keys and values of answers. Assumed.
GENERATING = 0.85


def document(job: Job, found: Found) -> dict[str, Any]:
    """Everything as JSON: bytes, seconds, tokens."""
    memory, time, limit = job.memory(), job.time(), job.limit
    return {
        "model": {
            "family": job.shape.family, "exact": job.shape.exact, "from": found.origin, "parameters": job.shape.parameters,
            "trained": trained_parameters(job.shape, job.spec.adapter),
        },
        "pairs": asdict(job.pairs),
        "device": asdict(job.device),
        "memory": {
            "peak": round(memory.peak), "phase": memory.peak_phase, "limit": None if limit is None else round(limit),
            "fits": job.fits(), "parts": {name: round(size) for name, size in memory.parts.items()},
            "phases": {name: round(memory.total(name)) for name in memory.phases},
            "host": {name: round(size) for name, size in memory.host.items()},
        },
        "step": asdict(time) | {
            "seconds": time.seconds, "tokens_per_second": time.tokens / time.seconds,
            "pairs_per_second": job.spec.training.global_batch_size / time.seconds,
        },
        "sampling": asdict(job.sampling()),
        "stored": {name: round(size) for name, size in asdict(job.stored()).items()},
        "sweep": None if (sweep := job.cost_of_legs()) is None else asdict(sweep),
        "rounds": None if (rounds := job.cost_of_rounds()) is None else asdict(rounds),
        "too_many_gpus": too_many_gpus(job) or None,
        "smallest_change": None if job.fits() else _option(smallest_change(job)),
        "fastest": _option(fastest(job)),
    }  # fmt: skip


def _option(option: Option | None) -> dict[str, Any] | None:
    if option is None:
        return None
    return {"changes": option.changes, "peak": round(option.memory.peak), "step_seconds": option.time.seconds}


def show(job: Job, found: Found, console: Console) -> None:
    """Print the tables and the proposals. Text is not wrapped: it holds paths, and lines to paste."""
    for part in (_head(job, found), _memory(job), _time(job), *_rounds(job), *_sweep(job), *_proposals(job)):
        console.print(part, soft_wrap=isinstance(part, Text))


def _head(job: Job, found: Found) -> Text:
    shape, spec = job.shape, job.spec
    trained = trained_parameters(shape, spec.adapter)
    what = "all weights" if spec.adapter.type is AdapterType.NONE else f"{spec.adapter.type}, {_count(trained)} trained"
    ranks = f"{spec.world_size} × {job.device.name}"
    text = [
        f"model: {_count(shape.parameters)} parameters ({shape.family}), {what}, {spec.training.precision}; from {found.origin}",
        f"ranks: {ranks}, {spec.nodes} node{'s' if spec.nodes > 1 else ''}",
        f"pairs: {job.pairs.prompt:,.0f} + {job.pairs.chosen:,.0f} + {job.pairs.rejected:,.0f} tokens (prompt, chosen, rejected), "
        f"the longest {job.pairs.longest:,.0f}; "
        + (
            "as prepared" if job.pairs.known else "assumed from data.maxLength, see --prompt-tokens and --answer-tokens"
        ),
    ]
    if spec.adapter.type is not AdapterType.NONE:
        text.append(_coverage(job))
    if not shape.exact:
        text.append(f"The family {shape.family} is not known and is treated as Llama: the numbers are a rough guess.")
    return Text("\n".join(text))


def _coverage(job: Job) -> str:
    """Which matrices get an adapter, as far as the family is known."""
    names = {matrix.name: False for matrix in job.shape.matrices}
    names |= {matrix.name: True for matrix in adapted(job.shape, job.spec.adapter)}
    covered, rest = ([name for name, is_covered in names.items() if is_covered is wanted] for wanted in (True, False))
    without = ", ".join([*rest, "the output layer"])
    if not covered:
        return f"adapter: targetModules name none of its matrices ({', '.join(rest)}), and prepare will refuse that"
    return f"adapter: on {', '.join(covered)}; not on {without}"


def _table(title: str) -> Table:
    """A table of names and figures."""
    table = Table(title=title, title_justify="left", min_width=60, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    return table


def _memory(job: Job) -> Table:
    memory, limit = job.memory(), job.limit
    table = _table(f"Memory of a rank, largest in: {memory.peak_phase}")
    for name, size in memory.parts.items():
        table.add_row(name, gibibytes(size))
    table.add_section()
    table.add_row("total", gibibytes(memory.peak), style="bold")
    if limit is not None:
        left = limit - memory.peak
        style = "green" if left >= 0 else "red"
        words = f"fits, {gibibytes(left)} left" if left >= 0 else f"does not fit, {gibibytes(-left)} too much"
        table.add_row(f"of {gibibytes(limit)}", words, style=style)
    for name in memory.phases:
        if name != memory.peak_phase:
            table.add_row(f"in {name}", gibibytes(memory.total(name)), style="dim")
    if memory.host:
        table.add_row("host's memory, each rank", gibibytes(sum(memory.host.values())), style="dim")
    stored = job.stored()
    table.add_section()
    table.add_row("a checkpoint, all ranks", gibibytes(stored.checkpoint * job.spec.world_size), style="dim")
    table.add_row("the export, on the volume", gibibytes(stored.export), style="dim")
    table.add_row("memory of the export's pod", gibibytes(stored.memory), style="dim")
    return table


def _time(job: Job) -> Table:
    time, spec = job.time(), job.spec
    table = _table("Time of a step")
    parts = {
        "layers": time.body, "output layer": time.head, "optimizer": time.optimizer, "overhead of layers": time.overhead,
        "waiting for other ranks": time.waiting,
    }  # fmt: skip
    for name, seconds in parts.items():
        table.add_row(name, f"{seconds:,.3g} s")
    table.add_section()
    table.add_row("total", f"{time.seconds:,.3g} s", style="bold")
    pairs = spec.training.global_batch_size
    table.add_row(
        "pairs/s, tokens/s through the model", f"{pairs / time.seconds:,.3g}, {time.tokens / time.seconds:,.0f}"
    )
    table.add_row("micro-batches of a rank", f"{time.micro_batches:,}")
    once = None if job.pairs.count is None else job.pairs.count / pairs  # steps of an epoch
    if time.reference and (once or not spec.training.max_steps):
        passes = spec.training.epochs if not spec.training.max_steps or not once else spec.training.max_steps / once
        share = time.reference / (time.reference + passes * time.seconds)
        table.add_row("reference, share of the run", f"{share:.0%}")
    if ranking := job.ranking():
        table.add_row("ranking the pairs, in all", _duration(ranking))
    if once:
        legs = job.spec.sweep.legs if job.spec.sweep is not None else 1
        whole = legs * ((job.steps() or 0.0) * time.seconds + ranking) + once * time.reference
        name = "whole run, without evaluations" if legs == 1 else f"{legs} legs, without evaluations"
        table.add_row(name, _duration(whole))
    sampled = job.sampling()
    if sampled.seconds:
        name = "sample answers, each time" if sampled.whole else f"sample answers of {sampled.tokens} tokens, each time"
        table.add_row(name, f"{sampled.seconds:,.3g} s", style="dim")
    peak = job.device.peak(spec.training.precision)
    table.caption = f"assuming {job.device.mfu:.0%} of {peak / 1e12:,.3g} TFLOP/s ({spec.training.precision})"
    return table


def _rounds(job: Job) -> list[Table]:
    """What rounds cost, as a table; none without rounds."""
    cost = job.cost_of_rounds()
    if cost is None:
        return []
    table = _table(f"{cost.rounds} rounds, at most")
    table.add_row("prompts of a round", "1,000 assumed" if cost.prompts is None else f"{cost.prompts:,}")
    table.add_row("answers of the policies", f"{cost.answers:,}")
    table.add_row("their tokens, if all are as long as they may be", _count(cost.tokens))
    if cost.calls is not None:
        table.add_row("requests to the judge, without retries", f"{cost.calls:,}")
    table.add_row("room on the volume, beside the job's export", gibibytes(cost.disk))
    parallel = job.spec.iterative.generation.tensor_parallel if job.spec.iterative is not None else 1
    where = f"each of its {parallel} GPUs" if parallel > 1 else "its GPU" if job.spec.gpus_per_node else "the host"
    table.add_row(f"weights of a copy that generates, on {where}", gibibytes(cost.weights))
    return [table]


def _sweep(job: Job) -> list[Table]:
    """What a sweep costs, as a table; none without one."""
    cost = job.cost_of_legs()
    if cost is None:
        return []
    table = _table(f"{cost.legs} legs of a sweep")
    table.add_row("trainings, one after another", str(cost.legs))
    table.add_row("reference passes", "1" if any(leg.method.needs_reference for leg in legs_of(job.spec)) else "0")
    table.add_row("room on the volume for their checkpoints", gibibytes(cost.disk))
    return [table]


def _proposals(job: Job) -> list[Text]:
    made: list[Text] = []
    if warning := too_many_gpus(job):
        made.append(Text(f"\n{warning}"))
    most = job.spec.pod.prepare_resources.limits.get("memory")
    if most is not None and (needed := job.stored().memory) > to_bytes(most):
        made.append(
            Text(
                f"\nThe export is predicted to need {gibibytes(needed)}, and spec.pod.prepareResources.limits.memory is {most}."
            )
        )
    if (cost := job.cost_of_rounds()) is not None and job.limit is not None and cost.weights > GENERATING * job.limit:
        made.append(
            Text(
                f"A copy of the model that generates needs {gibibytes(cost.weights)} for its weights alone, more than {GENERATING:.0%} of {gibibytes(job.limit)}: use "
                "iterative.generation.engine vllm, and raise tensorParallel."
            )
        )
    if not job.fits():
        change = smallest_change(job)
        if change is None:
            made.append(Text("Nothing that is known here makes it fit: use a smaller model or larger GPUs."))
        else:
            made.append(_option_text("The smallest change that makes it fit", change))
    best = fastest(job) if job.limit is not None else None
    if best is not None and best.time.seconds < job.time().seconds * 0.98:
        made.append(_option_text("The fastest setting that fits these ranks", best))
    elif best is not None and job.fits():
        made.append(
            Text("No other setting of these ranks is predicted to be faster and to leave a tenth of the memory.")
        )
    return made


def _option_text(title: str, option: Option) -> Text:
    host = f" and {gibibytes(sum(option.memory.host.values()))} of the host" if option.memory.host else ""
    size = f"{gibibytes(option.memory.peak)} of a rank's device{host}" if host else gibibytes(option.memory.peak)
    text = Text(f"\n{title}, {size}, {option.time.seconds:,.3g} s a step:\n", style="bold")
    return text.append("\n".join(f"  {line}" for line in lines(option).splitlines()), style="not bold")


def _count(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
