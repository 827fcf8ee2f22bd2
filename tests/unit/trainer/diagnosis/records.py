"""Records of runs as they were measured on the quickstart's model and data: a healthy one, from which ill ones differ."""

from typing import Any

from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.diagnosis.record import RunRecord

Line = dict[str, Any]
TOTAL = 40
START = {
    "surprise/pairs": 640, "surprise/first4_chosen": 0.9, "surprise/first4_rejected": 0.88, "surprise/rest_chosen": 0.8,
    "surprise/rest_rejected": 0.8, "token_accuracy/chosen": 0.86, "token_accuracy/rejected": 0.86, "nll_per_token/chosen": 0.31,
    "samples/prompts": 32, "samples/greedy/tokens": 18.7, "samples/greedy/ended": 1.0, "samples/greedy/repeated_4grams": 0.0,
    "samples/greedy/refusals": 0.0, "samples/t1/tokens": 19.0, "samples/t1/ended": 1.0, "samples/t1/own_nll": 0.48,
    "samples/t1/refusals": 0.0,
}  # fmt: skip
DATA: dict[str, Any] = {
    "splits": {
        name: {
            "pairs": pairs, "chosen_longer": 0.55, "near_identical": 0.0,
            "length": {"chosen": {"p50": 19, "p95": 26, "max": 30}, "rejected": {"p50": 18, "p95": 25, "max": 30}},
        }
        for name, pairs in (("train", 640), ("eval", 96))
    },
    "features": {
        "train": {
            "pairs": 640, "refusals": {"chosen": 0.0, "rejected": 0.0},
            "rules": [{"feature": "first word", "detail": "The first word", "accuracy": 0.97},
                      {"feature": "punctuation", "detail": "More exclamation marks", "accuracy": 0.94}],
        },
        "eval": {"pairs": 96, "rules": [], "refusals": {"chosen": 0.0, "rejected": 0.0}},
    },
}  # fmt: skip


def spec(**parts: Any) -> DPOJobSpec:
    """The quickstart's settings. parts: sections of the spec, in YAML's words."""
    training = {"learningRate": 1e-4, "globalBatchSize": 16, "precision": "fp32"} | parts.pop("training", {})
    whole = {
        "model": {"name": "quickstart-model"},
        "data": {"train": {"source": "train.jsonl"}, "eval": {"source": "eval.jsonl"}},
        "training": training,
        "evaluation": {"everySteps": 10},
    }
    return DPOJobSpec.model_validate(whole | parts)


def training(steps: int = TOTAL, *, last: Line | None = None) -> list[Line]:
    """Lines of a healthy training. last: figures of the end, to which those of the start move evenly."""
    begin = {
        "loss": 0.693, "rewards/margins": 0.0, "rewards/accuracies": 0.5, "logratio_per_token/chosen": 0.0,
        "logratio_per_token/rejected": 0.0, "logratio_abs_per_token": 0.0, "margins_std": 0.05, "grad_norm": 2.0, "update_ratio": 2e-3,
    }  # fmt: skip
    end = {
        "loss": 0.327, "rewards/margins": 1.0, "rewards/accuracies": 1.0, "logratio_per_token/chosen": 0.007,
        "logratio_per_token/rejected": -0.59, "logratio_abs_per_token": 0.3, "margins_std": 0.3, "grad_norm": 1.0, "update_ratio": 2e-3,
    } | (last or {})  # fmt: skip
    lines = []
    for step in range(1, steps + 1):
        share = (step - 1) / (TOTAL - 1)
        line: Line = {key: value + share * (end[key] - value) for key, value in begin.items()}
        lines.append({"step": step, "epoch": step / TOTAL, "pairs": 16, "learning_rate": 1e-4} | line)
    lines[0] |= {"initial_loss": 0.693147, "loss": 0.693147}
    return lines


def evaluation(step: int, **figures: Any) -> Line:
    """An evaluation line of a healthy run. figures: others, with / written as __."""
    share = step / TOTAL
    line: Line = {
        "step": step, "epoch": share, "loss": 0.693 - 0.39 * share, "rewards/margins": 1.1 * share, "rewards/accuracies": 1.0,
        "rewards/margins_se": 0.02, "loss_se": 0.005, "pairs": 96, "logratio_per_token/chosen": 0.007 * share,
        "logratio_per_token/rejected": -0.59 * share, "logratio_abs_per_token": 0.3 * share,
    } | START | {"samples/greedy/tokens": 18.3, "samples/t1/own_nll": 0.44, "samples/t1/tokens": 21.0}  # fmt: skip
    return line | {key.replace("__", "/"): value for key, value in figures.items()}


def record(
    job: DPOJobSpec | None = None,
    *,
    train: list[Line] | None = None,
    evals: list[Line] | None = None,
    start: Line | None = None,
    data: dict[str, Any] | None = None,
    samples: list[Line] | None = None,
    step: int = TOTAL,
) -> RunRecord:
    """The healthy run, with what is given in place of its own parts. step: how far it is."""
    lines = training() if train is None else train
    held = [evaluation(at) for at in (10, 20, 30, 40)] if evals is None else evals
    figures = START if start is None else start
    before = [{"step": 0, "epoch": 0.0} | figures] if figures else []
    written = [
        *({(key if key in ("step", "epoch") else f"eval_{key}"): value for key, value in line.items()} for line in (*before, *held)),
        *lines,
    ]  # fmt: skip
    return RunRecord.of(
        job or spec(),
        [line for line in written if line["step"] <= step],
        total_steps=TOTAL,
        samples=samples or (),
        data=DATA if data is None else data,
    )


def with_split(**figures: Any) -> dict[str, Any]:
    """The data report with other statistics of the training pairs."""
    splits = {**DATA["splits"], "train": DATA["splits"]["train"] | figures}
    return DATA | {"splits": splits}
