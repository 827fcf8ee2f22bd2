"""`dpo preview`: the report, then the first examples as tokens with the answer mask, for every shape of data."""

import pytest

from dpo_operator.api.types import DPOJob
from dpo_trainer.commands import preview
from dpo_trainer.prepare import phase as prepare
from dpo_trainer.prepare.inputs import Inputs
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.workdir import WorkDir
from tests.unit.trainer.tiny import CHATML, tiny_model, write_jsonl

pytestmark = pytest.mark.unit

ASK = [{"role": "user", "content": "Hi"}]
CHAT = "|<|im_start|>|u|s|e|r|⏎|H|i|<|im_end|>|⏎|<|im_start|>|a|s|s|i|s|t|a|n|t|⏎|"
ROWS = {
    "pairs": (
        {"prompt": "Q:", "chosen": " yes", "rejected": " no"},
        ["prompt   mask 0     3 tokens |<s>|Q|:|", "chosen   mask 1     5 tokens | |y|e|s|</s>|",
         "rejected mask 1     4 tokens | |n|o|</s>|"],
    ),
    "messages": (
        {"prompt": ASK, "chosen": [{"role": "assistant", "content": "yes"}], "rejected": [{"role": "assistant", "content": "no"}]},
        [f"prompt   mask 0    21 tokens {CHAT}", "chosen   mask 1     4 tokens |y|e|s|<|im_end|>|",
         "rejected mask 1     3 tokens |n|o|<|im_end|>|"],
    ),
    "dialogue": (
        {"chosen": "\n\nHuman: Q\n\nAssistant: a", "rejected": "\n\nHuman: Q\n\nAssistant: b"},
        ["prompt   mask 0    23 tokens |<s>|⏎|⏎|H|u|m|a|n|:| |Q|⏎|⏎|A|s|s|i|s|t|a|n|t|:|", "chosen   mask 1     3 tokens | |a|</s>|",
         "rejected mask 1     3 tokens | |b|</s>|"],
    ),
    "scored": (
        {"prompt": "Q:", "responses": ["bad", "good"], "scores": [1, 5]},
        ["prompt   mask 0     3 tokens |<s>|Q|:|", "chosen   mask 1     5 tokens |g|o|o|d|</s>|",
         "rejected mask 1     4 tokens |b|a|d|</s>|"],
    ),
    "votes": (
        {"prompt": "Q:", "response_a": "bad", "response_b": "good", "votes": ["b", "b", "a"]},
        ["prompt   mask 0     3 tokens |<s>|Q|:|", "chosen   mask 1     5 tokens |g|o|o|d|</s>|",
         "rejected mask 1     4 tokens |b|a|d|</s>|"],
    ),
    "unpaired": (
        {"prompt": "Q:", "completion": "bad", "label": False},
        ["prompt   mask 0     3 tokens |<s>|Q|:|", "rejected mask 1     4 tokens |b|a|d|</s>|"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Prepares one row, and gives its folder."""
    root = tmp_path_factory.mktemp("preview")
    model = tiny_model(root / "tiny", template=CHATML)

    def made(name: str, row: dict, **data) -> WorkDir:
        source = write_jsonl(root / f"{name}.jsonl", [row])
        spec = {"model": {"name": str(model)}, "data": {"train": {"source": str(source), "format": name}, **data}}
        spec |= {"method": {"name": "kto"}} if name == "unpaired" else {}
        work = WorkDir(root / name)
        job = DPOJob.model_validate({"metadata": {"name": "j"}, "spec": spec})
        prepare.run(job, work, Inputs(root))
        return work

    return made


@pytest.mark.parametrize("name", ROWS)
def test_the_report_comes_first_and_then_tokens_with_the_mask(prepared, name):
    row, expected = ROWS[name]
    shown = list(preview.lines(prepared(name, row)))
    start = shown.index("pair 0 (row 0)")
    assert shown[0] == "Data report"
    assert shown[start - 2 : start] == ["picture: data/report.png", ""]
    assert [line.strip() for line in shown[start + 1 :]] == expected


def test_truncated_pairs_are_marked_and_a_missing_report_is_an_error(prepared):
    work = prepared("pairs", {"prompt": "Q" * 10, "chosen": "yes", "rejected": "no"}, maxLength=8)
    assert "pair 0 (row 0), truncated" in list(preview.lines(work, 1))
    work.data_report.with_suffix(".txt").unlink()
    with pytest.raises(TrainerError, match="expected a dataset report; run prepare again"):
        list(preview.lines(work))


def test_the_spaces_of_sentencepiece_are_shown(shared, tmp_path):
    source = write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "Once upon", "chosen": " a time", "rejected": " no"}])
    spec = {"model": {"name": str(shared / "models/stories260K")}, "data": {"train": {"source": str(source)}}}
    job = DPOJob.model_validate({"metadata": {"name": "j"}, "spec": spec})
    prepare.run(job, WorkDir(tmp_path / "work"), Inputs(tmp_path))
    shown = [line for line in preview.lines(WorkDir(tmp_path / "work")) if "tokens |" in line]
    assert [line.partition("tokens ")[2].replace("|", "") for line in shown] == [
        "<s> Once upon",
        " a time</s>",
        " no</s>",
    ]


def test_a_mixture_shows_the_first_pairs_of_each_source(prepared, tmp_path):
    own = [{"prompt": f"P{i}:", "chosen": " yes", "rejected": " no"} for i in range(5)]
    voted = [{"prompt": f"V{i}:", "response_a": " good", "response_b": " bad", "votes": "a"} for i in range(5)]
    mixture = [
        {"source": str(write_jsonl(tmp_path / "own.jsonl", own)), "weight": 2.0},
        {"source": str(write_jsonl(tmp_path / "voted.jsonl", voted)), "limit": 1},
    ]
    work = prepared("pairs", {"prompt": "Q:", "chosen": " yes", "rejected": " no"}, mixture=mixture)
    shown = [line.strip() for line in preview.lines(work, 2)]
    pairs = {line: shown[i + 1][-len("|<s>|Q|0|:|") :] for i, line in enumerate(shown) if line.startswith("pair ")}
    assert pairs == {
        "pair 0 (train row 0)": "s |<s>|Q|:|",
        "pair 1 (mixture[0] row 0)": "|<s>|P|0|:|",
        "pair 2 (mixture[0] row 1)": "|<s>|P|1|:|",
        "pair 11 (mixture[1] row 0)": "|<s>|V|0|:|",
    }
