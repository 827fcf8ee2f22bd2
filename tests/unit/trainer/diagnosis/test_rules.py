"""Each rule states what an ill run was measured to be, and says nothing about healthy ones."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from dpo_operator.api.diagnosis import CODES, Code, Finding
from dpo_operator.api.rules.thresholds import THRESHOLDS
from dpo_operator.cli.main import app
from dpo_trainer.diagnosis import judge
from dpo_trainer.diagnosis.judge import EXPLAINS, FIRST_STEP, RULES, diagnose, without_explained
from dpo_trainer.diagnosis.record import RunRecord, thinned
from tests.unit.trainer.diagnosis.records import START, evaluation, record, spec, training, with_split

pytestmark = pytest.mark.unit

CRD = yaml.safe_load(Path("crds/dpo-operator.dev_dpojobs.yaml").read_text(encoding="utf-8"))
SPEC = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group's


def evals(**at_the_end: Any) -> list[dict[str, Any]]:
    """Evaluations of which the last two have other figures."""
    return [evaluation(10), evaluation(20), evaluation(30, **at_the_end), evaluation(40, **at_the_end)]


LONGER = {
    "chosen_longer": 1.0,
    "length": {"chosen": {"p50": 40, "p95": 52, "max": 60}, "rejected": {"p50": 18, "p95": 25, "max": 30}},
}
ENDLESS = {
    "samples__greedy__tokens": 64.0, "samples__t1__tokens": 64.0, "samples__greedy__ended": 0.0, "samples__t1__ended": 0.0,
    "samples__greedy__repeated_4grams": 0.68, "samples__t1__own_nll": 0.43,
}  # fmt: skip
FLAT = {
    "loss": 0.693, "rewards/margins": 0.001, "rewards/accuracies": 0.96, "logratio_abs_per_token": 3e-4, "logratio_per_token/rejected": 0.0,
    "logratio_per_token/chosen": 0.0, "grad_norm": 0.65, "update_ratio": 1e-5,
}  # fmt: skip
STILL = [evaluation(at, loss=0.693, rewards__margins=0.001, rewards__accuracies=0.96) for at in (10, 20)]
BEGINNING = {
    "surprise/first4_chosen": 9.1,
    "surprise/first4_rejected": 9.0,
    "surprise/rest_chosen": 2.2,
    "surprise/rest_rejected": 2.1,
}
SURE = {"rewards/margins": 18.0, "grad_norm": 0.006}


def flat(steps: int = 40, **other: float) -> list[dict[str, Any]]:
    """Lines of a training that stays where it began."""
    return [line | FLAT | other for line in training(steps)]


def free(begin: float, end: float, *, update: float) -> list[dict[str, Any]]:
    """Lines of a training without a reference, whose loss goes evenly from one value to another."""
    lines = training()
    for line in lines:
        line |= {"initial_loss": None, "loss": begin + (line["step"] - 1) / 39 * (end - begin), "update_ratio": update}
    return lines


def held(begin: float, end: float) -> list[dict[str, Any]]:
    """Evaluations of it."""
    return [
        evaluation(at, loss=begin + (at - 10) / 30 * (end - begin), rewards__margins=-0.3) for at in (10, 20, 30, 40)
    ]


def swapped(**figures: Any) -> RunRecord:
    mirror = {
        "rewards__margins": -0.84,
        "loss": 1.227,
        "rewards__accuracies": 0.06,
        "logratio_per_token__chosen": -0.04,
    }
    return record(evals=[evaluation(at, **mirror | figures) for at in (10, 20, 30, 40)])


def first(tokens: int, beta: float = 0.1, **figures: float) -> RunRecord:
    """A run with answers of so many tokens, and other figures of its first step."""
    length = {side: {"p50": tokens, "p95": tokens, "max": tokens} for side in ("chosen", "rejected")}
    lines = training()
    lines[0] |= figures
    return record(spec(method={"name": "dpo", "beta": beta}), train=lines, data=with_split(length=length))


def refusing(**figures: Any) -> RunRecord:
    return record(evals=evals(samples__greedy__refusals=0.6, samples__t1__refusals=0.5, **figures))


def opening(policy: str, chosen: str) -> RunRecord:
    said = [
        {
            "step": 40,
            "prompt": str(n),
            "policy": policy,
            "reference": "Great question! Keep it simple.",
            "chosen": chosen,
        }
        for n in range(32)
    ]
    return record(samples=said)


def mixture(accuracy: float, spread: float) -> RunRecord:
    """Two sources, of which the second is won so often and whose margins vary so much."""
    job = spec(data={"train": {"source": "a"}, "mixture": [{"source": "b"}], "eval": {"source": "e"}})
    own = {
        "source/train/accuracies": 1.0,
        "source/train/margins": 1.0,
        "source/train/margins_std": 0.2,
        "source/train/pairs": 8,
    }
    other = {
        "source/mixture[0]/accuracies": accuracy,
        "source/mixture[0]/margins": 0.0,
        "source/mixture[0]/margins_std": spread,
        "source/mixture[0]/pairs": 8,
    }
    return record(job, train=[line | own | other for line in training()])


ILL: dict[str, tuple[Code, str, str, RunRecord]] = {
    "reference of another model": (
        Code.WRONG_REFERENCE, "Unhealthy", "model.reference",
        record(train=[training()[0] | {"loss": 0.9, "logratio_abs_per_token": 0.8}, *training()[1:]]),
    ),
    "named reference that is unrelated": (
        Code.WRONG_REFERENCE, "Unhealthy", "model.reference",
        record(spec(model={"name": "m", "reference": {"name": "other"}}), train=[line | {"logratio_abs_per_token": 4.0} for line in training()]),
    ),
    "text of another kind": (
        Code.NOT_THE_FINE_TUNED_MODEL, "Unhealthy", "model.name",
        record(start=START | {"token_accuracy/chosen": 0.03, "token_accuracy/rejected": 0.03, "surprise/first4_chosen": 4.5,
                              "surprise/first4_rejected": 4.5, "surprise/rest_chosen": 3.7, "surprise/rest_rejected": 3.7}),
    ),
    "wrong template": (
        Code.TEMPLATE_OR_BOUNDARY, "Unhealthy", "data.train",
        record(start=START | {"surprise/first4_chosen": 3.6, "surprise/first4_rejected": 3.6, "surprise/rest_chosen": 2.4,
                              "surprise/rest_rejected": 3.2, "token_accuracy/chosen": 0.41, "token_accuracy/rejected": 0.39,
                              "nll_per_token/chosen": 4.4, "nll_per_token/rejected": 4.6},
               evals=evals(samples__greedy__repeated_4grams=0.46, samples__greedy__tokens=73.0)),
    ),
    "a template under which the model goes in circles": (
        Code.TEMPLATE_OR_BOUNDARY, "Unhealthy", "data.train", record(start=START | BEGINNING | {"samples/greedy/repeated_4grams": 0.4}),
    ),
    "a wrong beginning of answers in the model's language": (Code.TEMPLATE_OR_BOUNDARY, "Warning", "data.train", record(start=START | BEGINNING)),
    "labels swapped in train alone": (
        Code.SWAPPED_LABELS, "Unhealthy", "data.train.columns",
        record(evals=evals(rewards__margins=-0.84, loss=1.227, rewards__accuracies=0.06, logratio_per_token__chosen=-0.44, logratio_per_token__rejected=-0.03)),
    ),
    "rate a hundred times too large": (
        Code.GIBBERISH, "Unhealthy", "training.learningRate",
        record(spec(training={"learningRate": 1e-2}), evals=evals(**ENDLESS | {"samples__t1__own_nll": 2.35, "logratio_per_token__chosen": -6.7, "logratio_per_token__rejected": -15.0})),
    ),
    "the same without any evaluation": (
        Code.GIBBERISH, "Unhealthy", "training.learningRate",
        record(spec(training={"learningRate": 1e-2}, data={"train": {"source": "a"}}), evals=[], start={}, train=training(last={"logratio_per_token/chosen": -6.7})),
    ),
    "broken at temperature 1 alone, by a small beta": (
        Code.GIBBERISH, "Unhealthy", "method.beta",
        record(spec(method={"name": "dpo", "beta": 0.01}), evals=evals(samples__t1__own_nll=1.42, logratio_per_token__rejected=-12.3)),
    ),
    "chosen answers that are only longer": (
        Code.VERBOSITY, "Unhealthy", "method.name", record(data=with_split(**LONGER), evals=evals(**ENDLESS, logratio_per_token__chosen=0.49)),
    ),
    "rate a hundred times too small": (
        Code.FLAT_LOSS, "Unhealthy", "training.learningRate",
        record(spec(training={"learningRate": 5e-7}), train=flat(), evals=STILL, step=20),
    ),
    "adapters that no layer uses": (
        Code.FLAT_LOSS, "Unhealthy", "adapter.targetModules",
        record(spec(adapter={"type": "lora"}), train=[line | {"loss": 0.693, "grad_norm": 0.0, "logratio_abs_per_token": 0.0} for line in training()], evals=STILL, step=20),
    ),
    "a rate a hundred times too small, without a reference": (
        Code.FLAT_LOSS, "Unhealthy", "training.learningRate", record(spec(method={"name": "simpo"}), train=free(1.4, 1.32, update=1e-6), evals=held(1.38, 1.38)),
    ),
    "an epsilon that outweighs the gradients": (
        Code.FLAT_LOSS, "Unhealthy", "training.adamEpsilon",
        record(spec(training={"adamEpsilon": 0.1}), train=flat(), evals=STILL, step=20),
    ),
    "answers too alike to tell apart": (
        Code.FLAT_LOSS, "Unhealthy", "data.filters",
        record(train=flat(update_ratio=2e-3), evals=STILL, step=20),
    ),
    "half of the labels random": (
        Code.NOISY_LABELS, "Warning", "data.filters.minConfidence",
        record(train=training(last={"loss": 0.681, "rewards/margins": 0.03, "rewards/accuracies": 0.52, "logratio_abs_per_token": 0.02, "margins_std": 0.4}),
               evals=evals(loss=0.714, rewards__margins=-0.04, rewards__accuracies=0.24, logratio_abs_per_token=0.02, logratio_per_token__rejected=0.0)),
    ),
    "a source whose labels are random": (Code.NOISY_LABELS, "Warning", "data.mixture[0]", mixture(0.5, 0.9)),
    "a source that is only hard": (Code.NOISY_LABELS, "Info", "data.mixture[0]", mixture(0.5, 0.1)),
    "answers that differ in a word": (
        Code.LIKELIHOOD_DISPLACEMENT, "Unhealthy", "method.nllWeight",
        record(data=with_split(near_identical=1.0), evals=evals(logratio_per_token__chosen=-0.65, logratio_per_token__rejected=-3.1, samples__t1__own_nll=4.8)),
    ),
    "a mark in every chosen answer": (
        Code.SHORTCUT, "Warning", "data.train",
        record(data=record().data | {"features": {"train": {"pairs": 640, "rules": [{"feature": "punctuation", "detail": "More exclamation marks", "accuracy": 1.0}]}}}),
    ),
    "a mark that the policy repeats": (
        Code.SHORTCUT, "Unhealthy", "data.train",
        record(data=record().data | {"features": {"train": {"pairs": 640, "rules": [{"feature": "punctuation", "detail": "More exclamation marks", "accuracy": 1.0}]}}},
               evals=evals(**ENDLESS)),
    ),
    "refusals in usual words": (Code.OVER_REFUSING, "Unhealthy", "data.mixture", refusing()),
    "refusals in words of their own": (Code.OVER_REFUSING, "Warning", "data.mixture", opening("That is not for me to say.", "Bread needs a warm oven.")),
    "too many epochs": (
        Code.OVERFITTING, "Warning", "training.epochs",
        record(spec(training={"epochs": 10.0}), evals=[evaluation(10, loss=0.4), evaluation(20, loss=0.35), evaluation(30, loss=0.45), evaluation(40, loss=0.55)]),
    ),
    "all pairs won": (
        Code.SATURATED, "Info", "method.beta",
        record(spec(method={"name": "dpo", "beta": 5.0}), train=[line | (SURE if line["step"] > 8 else {"grad_norm": 31.8}) | {"rewards/accuracies": 1.0} for line in training(24)], step=24, evals=[]),
    ),
    "far from the reference": (Code.REFERENCE_DRIFT, "Info", "method.beta", record(evals=evals(samples__t1__logratio_per_token=0.8))),
    "answers of another writer": (Code.DISTRIBUTION_MISMATCH, "Info", "data.train", record(start=START | {"surprise/rest_chosen": 3.4})),
}  # fmt: skip

HEALTHY: dict[str, RunRecord] = {
    "the quickstart": record(),
    "a run without evaluation": record(spec(data={"train": {"source": "a"}}), evals=[], start={}),
    "at its first step": record(step=1),
    "without a single line": record(train=[], evals=[], start={}),
    "beta 5": record(spec(method={"name": "dpo", "beta": 5.0}), train=training(last=SURE)),
    "chosen answers rightly shorter": record(
        data=with_split(chosen_longer=0.0),
        evals=evals(samples__greedy__tokens=8.0, samples__t1__tokens=9.0),
    ),
    "one label in ten wrong": record(
        train=training(last={"rewards/accuracies": 0.9, "rewards/margins": 0.7, "margins_std": 0.6})
    ),
    "pairs that the policy chose because it loses them": record(
        spec(training={"selection": {"by": "rewardGap", "keep": {"quantiles": [0.0, 0.5]}}}),
        train=training(last={"loss": 0.681, "rewards/margins": 0.03, "rewards/accuracies": 0.52, "logratio_abs_per_token": 0.02, "margins_std": 0.4}),
    ),
    "still in its warm-up": record(spec(training={"warmupRatio": 1.0}), train=flat(20), evals=STILL, step=20),
    "labels swapped in train and evaluation": record(),
    "simpo, whose margin starts anywhere": record(
        spec(method={"name": "simpo"}),
        train=[line | {"initial_loss": None, "loss": 1.4 - line["step"] / 60, "rewards/margins": -0.3 + line["step"] / 40} for line in training()],
        evals=[evaluation(at, rewards__margins=-0.3 + at / 40, loss=1.4 - at / 60) for at in (10, 20, 30, 40)],
    ),
    "orpo, whose rate ends at 0": record(
        spec(method={"name": "orpo"}),
        train=[line | {"initial_loss": None, "loss": 1.4, "update_ratio": None if line["step"] % 10 else 2e-3 * (40 - line["step"]) / 40} for line in training()],
        evals=[evaluation(at, rewards__margins=-0.3 + at / 40, loss=1.4) for at in (10, 20, 30, 40)],
    ),
    "small updates that lower the loss all the same": record(
        spec(method={"name": "simpo"}), train=free(1.4, 1.3, update=1e-6), evals=held(1.38, 1.3)
    ),
    "the same without any evaluation": record(
        spec(method={"name": "simpo"}, data={"train": {"source": "a"}}), train=free(1.4, 1.3, update=1e-6), evals=[], start={}
    ),
    "a mirror of one evaluation pair, whose error is not known": swapped(pairs=1, rewards__margins_se=None),
    "a mirror of few evaluation pairs": swapped(pairs=12),
    "a mirror without an error": swapped(rewards__margins_se=None),
    "one-word answers in bf16": first(1, logratio_abs_per_token=0.05),
    "a large beta, which makes much of rounding": first(5, 5.0, logratio_abs_per_token=0.03, loss=0.76),
    "other writers' answers to a chat model, which it is rarely sure of": record(
        start=START | {"surprise/first4_chosen": 6.0, "surprise/first4_rejected": 5.5, "surprise/rest_chosen": 3.4, "surprise/rest_rejected": 3.6,
                       "token_accuracy/chosen": 0.5, "token_accuracy/rejected": 0.52, "nll_per_token/chosen": 1.9, "nll_per_token/rejected": 1.8},
    ),
    "an opening after the reference's answers were lost": record(
        samples=[{"step": 40, "prompt": str(n), "policy": "What a fine question! Yes.", "reference": None, "chosen": "Of course, happy to help!"} for n in range(32)],
    ),
    "a loss that was already low when its record began": record(
        spec(method={"name": "simpo"}), train=[line for line in free(0.9, 0.3, update=2e-3) if line["step"] > 20],
        evals=[evaluation(30, loss=0.4), evaluation(40, loss=0.4)], start={},
    ),
    "refusals that the data ask for, with held-out pairs of the training data": record(
        spec(data={"train": {"source": "train.jsonl"}, "evalFraction": 0.1}), evals=evals(samples__greedy__refusals=0.6, samples__t1__refusals=0.5),
        data=record().data | {"features": {"train": {"pairs": 640, "refusals": {"chosen": 0.6, "rejected": 0.0}}}},
    ),
    "both answers of a base model falling, samples sound": record(
        evals=[evaluation(at, logratio_per_token__chosen=-0.56, logratio_per_token__rejected=-1.6) for at in (10, 20, 30, 40)]
    ),
    "hard data of people": record(
        train=training(last={"loss": 0.675, "rewards/margins": 0.09, "rewards/accuracies": 0.58, "margins_std": 0.3, "logratio_abs_per_token": 0.05}),
        evals=[evaluation(at, loss=0.68, rewards__margins=0.09, rewards__accuracies=0.565, logratio_per_token__rejected=-0.05) for at in (10, 20, 30, 40)],
    ),
    "refusals that the data ask for": record(
        evals=evals(samples__greedy__refusals=0.6, samples__t1__refusals=0.5),
        data=record().data | {"features": {"eval": {"refusals": {"chosen": 0.6, "rejected": 0.0}}}},
    ),
    "an opening that the data have": opening("Thank you for asking! Keep it simple.", "Thank you for asking! Use clean tools."),
    "another end of an opening that the data have": opening("Thank you so much, I", "Thank you for asking! Use clean tools."),
    "an opening of the reference at temperature 1": record(
        samples=[{"step": 40, "prompt": str(n), "policy": "What a silly question. No.", "reference": "I do not care. No.",
                  "reference_t1": "What a silly question. Yes.", "chosen": "Of course, happy to help!"} for n in range(32)],
    ),
    "adapter dropout at the first step": record(
        spec(adapter={"type": "lora", "dropout": 0.1}), train=[training()[0] | {"logratio_abs_per_token": 0.05, "loss": 0.71}, *training()[1:]]
    ),
    "an evaluation with a bump": record(evals=[evaluation(10, loss=0.4), evaluation(20, loss=0.35), evaluation(30, loss=0.4), evaluation(40, loss=0.34)]),
    "sampled with too few prompts": record(evals=evals(**ENDLESS, samples__prompts=4)),
    "figures that are no numbers": record(
        train=[line | {"loss": None, "rewards/margins": None, "grad_norm": None} for line in training()],
        evals=[evaluation(at, loss=None, rewards__margins=None, samples__t1__own_nll=None) for at in (10, 20)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ILL)
def test_an_ill_run_is_named_first_with_its_field(name: str):
    code, severity, setting, run = ILL[name]
    first = diagnose(run)[0]
    assert (first.code, first.severity, first.setting) == (code, severity, setting), first
    assert first.figures
    assert len(first.cause) < 300
    assert "[…]" not in first.cause + first.suggestion


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_has_nothing_above_info(name: str):
    assert [finding for finding in diagnose(HEALTHY[name]) if finding.severity != "Info"] == []


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_has_nothing_at_any_of_its_steps(name: str):
    whole = HEALTHY[name]
    for step in range(whole.step + 1):
        cut = RunRecord(
            whole.spec,
            tuple(line for line in whole.train if line["step"] <= step),
            tuple(line for line in whole.evals if line["step"] <= step),
            whole.start,
            (),
            whole.data,
            whole.total_steps,
        )
        assert [finding for finding in diagnose(cut) if finding.severity != "Info"] == [], step


def test_every_code_has_a_rule_a_threshold_and_an_ill_run():
    assert list(RULES) == list(Code)
    assert {threshold.code for threshold in THRESHOLDS.values()} == set(Code)
    assert {code for code, *_ in ILL.values()} == set(Code)


@pytest.mark.parametrize("name", ILL)
def test_fields_and_commands_that_are_named_exist(name: str):
    (first, *_) = diagnose(ILL[name][3])
    words = re.sub(r"\[\d+\]", "", f"{first.setting} {first.suggestion}")
    fields = set(re.findall(r"\b(?:data|model|method|training|adapter|evaluation)(?:\.[a-zA-Z]+)+", words))
    assert fields
    for field in fields:
        properties = SPEC
        for part in field.split("."):
            assert part in properties, field
            properties = properties[part].get("items", properties[part]).get("properties", {})
    for command in re.findall(r"`dpo ([a-z]+)", words):
        assert command in COMMANDS


def test_values_to_try_come_from_the_job():
    assert (
        "training.learningRate 1e-4 instead of 0.01" in diagnose(ILL["rate a hundred times too large"][3])[0].suggestion
    )
    assert "instead of 5e-7" in diagnose(ILL["rate a hundred times too small"][3])[0].suggestion
    assert (
        "method.beta 0.1 instead of 0.01"
        in diagnose(ILL["broken at temperature 1 alone, by a small beta"][3])[0].suggestion
    )


def test_a_threshold_of_the_job_moves_its_rule():
    run = ILL["broken at temperature 1 alone, by a small beta"][3]
    lax = spec(method={"name": "dpo", "beta": 0.01}, diagnosis={"thresholds": {"gibberishOwnNll": 5.0}})
    again = RunRecord(lax, run.train, run.evals, run.start, run.samples, run.data, run.total_steps)
    assert "Gibberish" not in {finding.code for finding in diagnose(again)}


def test_a_rule_that_fails_says_nothing_and_others_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a rule of no use")

    monkeypatch.setitem(judge.RULES, Code.WRONG_REFERENCE, broken)
    assert diagnose(ILL["too many epochs"][3])[0].code == Code.OVERFITTING
    assert "WrongReference failed: ZeroDivisionError" in caplog.text


def said(code: str, severity: Any = "Unhealthy") -> Finding:
    return Finding(code=code, severity=severity, cause=f"{code}.")


@pytest.mark.parametrize(("cause", "consequence"), sorted((a, b) for a, found in EXPLAINS.items() for b in found))
def test_a_finding_silences_what_it_explains_unless_that_is_worse(cause: str, consequence: str):
    assert [f.code for f in without_explained([said(consequence), said(cause)])] == [cause]
    assert {f.code for f in without_explained([said(consequence, "Warning"), said(cause, "Info")])} == {
        cause,
        consequence,
    }


def test_what_is_explained_explains_nothing_itself():
    found = [said(Code.GIBBERISH), said(Code.LIKELIHOOD_DISPLACEMENT), said(Code.TEMPLATE_OR_BOUNDARY)]
    assert [f.code for f in without_explained(found)] == [Code.TEMPLATE_OR_BOUNDARY]


def test_only_what_is_stated_is_explained():
    stated = {code for found in EXPLAINS.values() for code in found}
    assert stated <= CODES | FIRST_STEP


def test_a_long_run_is_looked_at_by_its_beginning_and_its_end():
    lines = [{"step": step, "loss": 0.5} for step in range(1, 5001)] + [{"step": 10, "eval_loss": 0.5}]
    kept = thinned(lines)
    assert len(kept) == 1201
    assert [kept[0]["step"], kept[200]["step"], kept[-2]["step"]] == [1, 4001, 5000]


def test_labels_of_the_first_epoch_are_looked_at_to_the_end():
    lines = [line | {"step": step, "epoch": step / 2000, "loss": 0.69} for step, line in enumerate(training() * 125, 1)]
    lines = [line | {"rewards/margins": 0.0 if line["step"] <= 200 else 1.0} for line in lines]
    kept = thinned(lines)
    newest = RunRecord.of(spec(), kept, total_steps=5000).latest(500, epochs=1.0)
    assert (newest[-1]["step"], newest[0]["step"], len(kept)) == (2000, 1969, 1700)
    assert thinned(kept) == kept


def test_the_start_is_not_known_once_the_first_lines_are_lost():
    lost = [line for line in free(0.9, 0.3, update=2e-3) if line["step"] > 20]
    assert record(spec(method={"name": "simpo"}), train=lost).start_loss is None
    assert record(spec(method={"name": "simpo"}), train=free(0.9, 0.3, update=2e-3)).start_loss == 0.9
    assert record(train=lost[:1] + training()[21:]).start_loss is None
    assert record().start_loss == 0.693147


@pytest.mark.parametrize(("tokens", "drift"), [(1, 0.2), (100, 0.03)])
def test_more_than_rounding_is_another_reference(tokens: int, drift: float):
    assert diagnose(first(tokens, logratio_abs_per_token=drift))[0].code == Code.WRONG_REFERENCE


def test_a_loss_beyond_rounding_is_another_reference():
    assert diagnose(first(400, logratio_abs_per_token=0.01, loss=0.8))[0].code == Code.WRONG_REFERENCE
