"""README.md of an export: what was trained, on what, how, and with which result."""

import json
from dataclasses import dataclass
from typing import Any

from dpo_operator.api.access import is_registry
from dpo_operator.api.method import Loss, Method, MethodName
from dpo_operator.api.model import Adapter, AdapterType, Model
from dpo_operator.api.reports import ResumeReport
from dpo_operator.api.types import DPOJob, DPOJobSpec
from dpo_trainer.checkpoint.full import FullCheckpoint
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.model.adapters import FROZEN, TRAINED
from dpo_trainer.runtime.versions import own_version
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry.metrics_file import Line, read_metrics, training_and_evaluations

_ROWS = (
    ("loss", "loss"),
    ("rewards/margins", "reward margin"),
    ("rewards/accuracies", "reward accuracy"),
    ("rewards/chosen", "reward, chosen"),
    ("rewards/rejected", "reward, rejected"),
)
# The paper of each loss: title and arXiv number.
_PAPERS = {
    MethodName.DPO: ("Direct Preference Optimization", "2305.18290"),
    MethodName.LD_DPO: ("Length Desensitization in DPO", "2409.06411"),
    MethodName.LN_DPO: ("Tülu 3", "2411.15124"),
    MethodName.IPO: ("A General Theoretical Paradigm to Understand Learning from Human Preferences", "2310.12036"),
    MethodName.HINGE: ("SLiC-HF", "2305.10425"),
    MethodName.KTO: ("Model Alignment as Prospect Theoretic Optimization", "2402.01306"),
    MethodName.ORPO: ("Monolithic Preference Optimization without Reference Model", "2403.07691"),
    MethodName.SIMPO: ("Simple Preference Optimization", "2405.14734"),
    MethodName.REWARD_MODEL: ("Training language models to follow instructions with human feedback", "2203.02155"),
}


@dataclass(frozen=True)
class ExportedFolder:
    """One folder of an export.

    why: reason why its checkpoint was chosen, such as "the last step". whole: it holds a whole model, not an adapter.
    merged: the export has the adapter and the merged model. difference: largest difference of log-probs after reloading, nats;
    None without reference values. pairs: number of pairs compared. engine: the reference values are the training engine's, not
    those of the adapter before merging.
    """

    why: str
    whole: bool
    merged: bool
    difference: float | None = None
    pairs: int = 0
    engine: bool = True


def model_card(job: DPOJob, work: WorkDir, checkpoint: FullCheckpoint, part: ExportedFolder) -> str:
    """Markdown with the hub's metadata block."""
    spec = job.spec
    adapter = not part.whole
    step = checkpoint.manifest.step
    parts = [
        _metadata(job, adapter),
        f"# {_text(job.metadata.name)}",
        f"{f'A {_kind(spec.adapter)} adapter for' if adapter else 'A fine-tuned version of'} `{_text(spec.model.name)}`"
        f"{f' at revision `{_text(spec.model.revision)}`' if spec.model.revision else ''}, trained with "
        f"{_cited(spec.method)} by dpo-operator.",
        *_about_start(spec.model, part),
        *_about_merging(part),
        "## Use",
        _usage(spec, adapter),
        "## Result",
        _results([line for line in read_metrics(work.metrics) if line["step"] <= step]),
        f"Step 1 is measured before the first update. {_about_rewards(spec.method)}",
        "## Training",
        _table("Setting", "Value", [("exported", f"step {step}: {part.why}"), *_settings(job, work, checkpoint)]),
        "## Check",
        f"After writing, this folder was loaded with {'PEFT' if adapter else 'transformers'}: {_compared(part)} "
        "`dpo_provenance.json` has the checkpoint's digest and every setting.",
    ]
    return "\n\n".join(parts) + "\n"


def _cited(method: Method) -> str:
    """The losses by name, each with its paper, once."""
    names = dict.fromkeys(loss.name for loss in method.losses)
    return " and ".join(
        f"{name.value.upper()} ([{_PAPERS[name][0]}](https://arxiv.org/abs/{_PAPERS[name][1]}))" for name in names
    )


def describe_loss(method: Method) -> str:
    """Every term of the loss with its weight and its settings."""
    terms = [_term(loss) for loss in method.losses]
    if method.likelihood_weight:
        whole = "prompt and chosen answer" if method.nll_over == "all" else "the chosen answer"
        terms.append(f"{method.likelihood_weight:g} × negative log-likelihood of {whole}")
    return " + ".join(terms)


def _term(loss: Loss) -> str:
    parts = [loss.name.value, f"beta {loss.strength:g}"]
    if loss.label_smoothing:
        parts.append(f"{'robust to flipped labels' if loss.robust else 'label smoothing'} {loss.label_smoothing:g}")
    match loss.name:
        case MethodName.LD_DPO:
            parts.append(f"alpha {loss.tail_weight:g}")
        case MethodName.IPO:
            parts.append(f"{loss.reduction or 'mean'} over tokens")
        case MethodName.SIMPO:
            parts.append(f"target margin {loss.target_margin:g}")
        case MethodName.REWARD_MODEL:
            parts = [f"Bradley-Terry, margin {loss.target_margin:g}"]
        case MethodName.KTO:
            weights = [1.0 if w is None else w for w in (loss.desirable_weight, loss.undesirable_weight)]
            parts.append(f"desirable {weights[0]:g}, undesirable {weights[1]:g}")
    text = ", ".join(parts)
    return text if loss.weight == 1 else f"{loss.weight:g} × ({text})"


def _about_rewards(method: Method) -> str:
    if method.trains_reward_model:
        return "Rewards are the model's output for the last token of prompt and answer; only their differences for one prompt mean something."
    return f"Rewards are beta times {describe_reward(method)}, in nats."


def describe_reward(method: Method) -> str:
    """The quantity that the first loss compares; rewards are beta times it."""
    ratio = "the log-ratio to the reference"
    match method.name:
        case MethodName.REWARD_MODEL:
            return "the model's score of an answer"
        case MethodName.ORPO | MethodName.SIMPO:
            return "the mean log-prob of an answer's tokens"
        case MethodName.LN_DPO:
            return f"the mean over an answer's tokens of {ratio}"
        case MethodName.IPO if method.reduction != "sum":
            return f"the mean over an answer's tokens of {ratio}"
        case MethodName.LD_DPO:
            return f"{ratio}, in which the longer answer's tail counts alpha times"
    return ratio


def _about_start(model: Model, part: ExportedFolder) -> list[str]:
    """What the weights stand on, when training started from an adapter."""
    start = model.adapter
    if start is None:
        return []
    name = f"`{_text(start.name)}`" + (f" at revision `{_text(start.revision)}`" if start.revision else "")
    began = f"Training started from the adapter {name} on that model, and the reference was the two together."
    if part.whole:
        return [f"{began} All of it is in these weights."]
    if start.train == "same":
        return [
            f"{began} This adapter is that one, trained on: it stands on the model alone and takes the other's place."
        ]
    return [
        f"{began} This adapter stands on both: the folder `{FROZEN}` has the other one, and the two are used together."
    ]


def _about_merging(part: ExportedFolder) -> list[str]:
    if not part.merged:
        return []
    if part.whole:
        return ["The adapter was merged into the model's weights; the folder above this one has the adapter alone."]
    return [
        "The folder `merged` has the whole model with this adapter merged into it, for programs that don't support adapters."
    ]


def _compared(part: ExportedFolder) -> str:
    """Result of the comparison, in a sentence. Merged weights are rounded, so they are not compared."""
    weights = "" if part.merged and part.whole else "its weights equal the checkpoint's"
    if part.difference is None:
        return f"{weights}. The checkpoint has no log-probs to compare with."
    source = "the training engine's" if part.engine else "those of the adapter before merging"
    return (
        f"{weights}{', and ' if weights else ''}the log-probs of {part.pairs} pairs differ from {source} by at most "
        f"{part.difference:.2g} nats."
    )


def _kind(adapter: Adapter) -> str:
    """Kind of adapter: LoRA, QLoRA, DoRA, rsLoRA."""
    kinds = (("QLoRA", adapter.type is AdapterType.QLORA), ("DoRA", adapter.dora), ("rsLoRA", adapter.rslora))
    names = [name for name, used in kinds if used]
    return " and ".join(names) or "LoRA"


def _metadata(job: DPOJob, adapter: bool) -> str:
    # JSON strings are YAML strings, whatever a name contains.
    classifier = job.spec.method.trains_reward_model
    about = "reward-model" if classifier else "dpo"
    lines = [
        f"base_model: {json.dumps(job.spec.model.name)}",
        f"library_name: {'peft' if adapter else 'transformers'}",
        f"tags: {json.dumps([about, 'preference-optimization', *(['lora'] if adapter else [])])}",
        f"pipeline_tag: text-{'classification' if classifier else 'generation'}",
    ]
    return "\n".join(["---", *lines, "---"])


def _usage(spec: DPOJobSpec, adapter: bool) -> str:
    model, name = spec.model, json.dumps(spec.model.name)
    kind, options = "CausalLM", ""
    if spec.method.trains_reward_model:
        kind, options = "SequenceClassification", ", num_labels=1" if adapter else ""
    if adapter:
        if model.adapter is not None and model.adapter.train == "new":
            loading = (
                f'model = PeftModel.from_pretrained(base, "this-folder/{FROZEN}", adapter_name="{FROZEN}")\n'
                f'model.load_adapter("this-folder", "{TRAINED}")\nmodel.base_model.set_adapter(["{FROZEN}", "{TRAINED}"])\n'
            )
        else:
            loading = 'model = PeftModel.from_pretrained(base, "this-folder")\n'
        code = (
            f"from peft import PeftModel\nfrom transformers import AutoModelFor{kind}, AutoTokenizer\n\n"
            f"base = AutoModelFor{kind}.from_pretrained({name}{options})\n{loading}"
            'tokenizer = AutoTokenizer.from_pretrained("this-folder")'
        )
    else:
        code = (
            f"from transformers import AutoModelFor{kind}, AutoTokenizer\n\n"
            f'model = AutoModelFor{kind}.from_pretrained("this-folder")\n'
            'tokenizer = AutoTokenizer.from_pretrained("this-folder")'
        )
    return f"```python\n{code}\n```"


def _results(lines: list[Line]) -> str:
    train, evaluations = training_and_evaluations(lines)
    columns: list[tuple[str, str, Line]] = []
    if train:
        columns.append((f"train, step {train[0]['step']}", "", train[0]))
        columns.append((f"train, step {train[-1]['step']}", "", train[-1]))
    if evaluations:
        columns.append((f"held out, step {evaluations[-1]['step']}", "eval_", evaluations[-1]))
    if not columns:
        return "No metrics were kept."
    head = "| | " + " | ".join(title for title, _, _ in columns) + " |\n|---" + "|---:" * len(columns) + "|"
    rows = []
    for key, title in _ROWS:
        values = [_number(line.get(prefix + key)) for _, prefix, line in columns]
        rows.append(f"| {title} | " + " | ".join(values) + " |")
    return "\n".join([head, *rows])


def _settings(job: DPOJob, work: WorkDir, checkpoint: FullCheckpoint) -> list[tuple[str, str]]:
    spec, manifest = job.spec, checkpoint.manifest
    data = spec.data
    rows = [
        ("training data", f"{_source(data.train)}, {len(PairDataset.open(work.train_data)):,} pairs"),
        ("longest pair", f"{data.max_length} tokens"),
        ("loss", describe_loss(spec.method)),
        ("trained", _trained(job)),
        ("steps", f"{manifest.step} ({checkpoint.state.epoch:.2f} epochs)"),
        ("pairs in a step", str(spec.training.global_batch_size)),
        ("learning rate", f"{spec.learning_rate:g}, {spec.training.scheduler}, warm-up {spec.training.warmup_ratio:g}"),
        ("precision", spec.training.precision),
        ("seed", str(spec.training.seed)),
        ("parallelism", f"DeepSpeed ZeRO-{spec.training.zero_stage} on {manifest.world_size} ranks"),
        ("checkpoint", f"`{checkpoint.ref.digest}`"),
        (
            "versions",
            ", ".join(f"{n} {v}" for n, v in {**manifest.versions, "dpo-operator": own_version()}.items()),
        ),
    ]
    if (reference := spec.model.reference) is not None:
        revision = f" at `{_text(reference.revision)}`" if reference.revision else ""
        rows.insert(3, ("reference model", f"`{_text(reference.name)}`{revision}"))
    if work.resumed.is_file():
        first = ResumeReport.model_validate_json(work.resumed.read_bytes())
        whence = f"step {first.checkpoint.step} of `{_text(first.source)}`, checkpoint `{first.digest}`"
        rows.insert(next(place for place, row in enumerate(rows) if row[0] == "steps") + 1, ("began with", whence))
    if spec.export.push is not None:
        whole = "" if is_registry(spec.export.push.to) else ", whole when `dpo_pushed.json` is there"
        rows.append(("pushed to", f"`{_text(spec.export.push.to)}`{whole}"))
    if data.eval is not None:
        rows.insert(1, ("evaluation data", _source(data.eval)))
    elif data.eval_fraction:
        rows.insert(1, ("evaluation data", f"{data.eval_fraction:.0%} of the training data, held out"))
    return rows


def _trained(job: DPOJob) -> str:
    adapter = job.spec.adapter
    if adapter.type is AdapterType.NONE:
        return "all weights"
    start = job.spec.model.adapter
    if start is not None and start.train == "same":
        return f"the adapter {_text(start.name)} with its own rank and modules, dropout {adapter.dropout:g}"
    targets = ", ".join(adapter.target_modules)
    base = ", over a base in 4 bits (NF4)" if adapter.type is AdapterType.QLORA else ""
    return f"{_kind(adapter)} of rank {adapter.rank}, alpha {adapter.alpha:g}, dropout {adapter.dropout:g} on {targets}{base}"


def _source(dataset: Any) -> str:
    return f"`{_text(dataset.source)}`" + (f" at `{_text(dataset.revision)}`" if dataset.revision else "")


def _table(left: str, right: str, rows: list[tuple[str, str]]) -> str:
    return "\n".join([f"| {left} | {right} |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def _number(value: Any) -> str:
    return f"{value:z.4f}" if isinstance(value, int | float) else "–"


def _text(text: str) -> str:
    """Escape a name for a table or a code span."""
    return text.replace("`", "'").replace("|", "\\|")
