"""Prompts that prepare makes for rounds, from pairs and from a source of their own."""

from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.data import Template
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.types import DPOJob
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.data.prompts import Prompt, PromptSet
from dpo_trainer.data.tokens.tokenization import PairTokenizer, load_tokenizer
from dpo_trainer.data.tokens.truncation import Limits
from dpo_trainer.prepare import phase as prepare
from dpo_trainer.prepare.inputs import Inputs
from dpo_trainer.prepare.record import spec_hash
from dpo_trainer.runtime.errors import TrainerError
from tests.unit.trainer.place import Place, rows
from tests.unit.trainer.tiny import CHATML, tiny_model, write_jsonl

pytestmark = pytest.mark.unit

JUDGE = {"type": "builtin", "builtin": {"name": "length", "tokens": 3}}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def job(place: Place, data: dict[str, Any] | None = None, **rounds: Any) -> DPOJob:
    iterative = {
        "rounds": 2, "judge": JUDGE, "winRate": {"prompts": 2}, "generation": {"maxNewTokens": 16}, **rounds,
    }  # fmt: skip
    found = place.job(**({"maxLength": 64} | (data or {})))
    document = found.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    document["spec"]["iterative"] = iterative
    return DPOJob.model_validate(document)


def made(place: Place, wanted: DPOJob) -> PromptSet:
    prepare.run(wanted, place.work, Inputs(place.root))
    return PromptSet.open(place.work.prompts)


def every(prompts: PromptSet) -> list[Prompt]:
    return prompts.read(range(len(prompts)))


def test_the_prompts_of_the_pairs_each_once(place: Place):
    write_jsonl(place.train, [*rows(20), *rows(3)])
    found = made(place, job(place))
    data = PairDataset.open(place.work.train_data)
    assert (len(found), found.per_round, len(found.compared)) == (20, 9, 2)
    assert [prompt.prompt for prompt in every(found)] == [f"Question {i}:" for i in range(20)]
    assert all((prompt.ids == data[prompt.row].prompt).all() for prompt in every(found))
    assert place.made["prompts"]["left_out"] == {}


def test_prompts_of_the_evaluation_are_left_out(place: Place):
    write_jsonl(place.root / "eval.jsonl", rows(4))
    found = made(place, job(place, {"eval": {"source": str(place.root / "eval.jsonl")}}))
    assert {prompt.prompt for prompt in every(found)}.isdisjoint(f"Question {i}:" for i in range(4))
    assert place.made["prompts"]["left_out"] == {"in_evaluation": 4}


def test_a_source_of_prompts_whose_answers_are_ignored(place: Place):
    asked = [{"question": f"Why {i}?", "answer": str(i), "chosen": "x" * 500} for i in range(8)]
    source = write_jsonl(place.root / "asked.jsonl", [*asked, asked[0], {"question": "long " * 40, "answer": "1"}])
    judge = {"type": "builtin", "builtin": {"name": "exactMatch", "answerColumn": "answer"}}
    found = made(place, job(place, prompts={"source": str(source), "column": "question"}, judge=judge))
    assert [(prompt.prompt, prompt.expected) for prompt in every(found)] == [(f"Why {i}?", str(i)) for i in range(8)]
    assert place.made["prompts"]["left_out"] == {"duplicate": 1, "too_long": 1}


def test_messages_as_prompts_have_the_tokens_of_pairs(place: Place, tmp_path: Path):
    place.model = tiny_model(tmp_path / "chat", template=CHATML)
    asked = [[{"role": "user", "content": f"Why {i}?"}] for i in range(8)]
    pairs = [{"prompt": chat, "chosen": [{"role": "assistant", "content": "so"}],
              "rejected": [{"role": "assistant", "content": "no"}]} for chat in asked]  # fmt: skip
    write_jsonl(place.train, pairs)
    from_pairs = every(made(place, job(place)))
    answered = [[*chat, {"role": "assistant", "content": "an old answer"}] for chat in asked]
    source = write_jsonl(tmp_path / "asked.jsonl", [{"chat": chat} for chat in answered])
    place.work = type(place.work)(tmp_path / "other")
    own = every(made(place, job(place, prompts={"source": str(source), "column": "chat"})))
    assert [prompt.ids.tolist() for prompt in own] == [prompt.ids.tolist() for prompt in from_pairs]
    assert own[3].prompt == asked[3]


def test_it_is_kept_whether_the_evaluation_pairs_are_plain_text(place: Place, tmp_path: Path):
    """Whatever the prompts are: only of plain text do the tokens say all."""
    place.model = tiny_model(tmp_path / "chat", template=CHATML)
    chat = [{"role": "user", "content": "Why?"}]
    turns = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    sources = {True: rows(4), False: [{"prompt": chat, **turns}]}
    for plain, pairs in sources.items():
        source = write_jsonl(tmp_path / f"eval-{plain}.jsonl", pairs)
        made(place, job(place, {"eval": {"source": str(source)}}))
        assert place.made["prompts"].get("plain_evaluation", False) is plain


def test_rows_without_a_prompt_count_as_bad(place: Place):
    source = write_jsonl(place.root / "asked.jsonl", [{"prompt": f"Why {i}?"} for i in range(8)] + [{"prompt": ""}] * 4)
    with pytest.raises(TrainerError, match="prompts: 4 of 12 rows") as failure:
        made(place, job(place, prompts={"source": str(source)}))
    assert failure.value.exit_code == ExitCode.BAD_DATASET
    assert sum(row["split"] == "prompts" for row in place.dropped) == 4


def test_too_few_prompts_fail_before_anything_is_generated(place: Place):
    with pytest.raises(TrainerError, match="expected 15 prompts for each of 2 rounds") as failure:
        made(place, job(place, promptsPerRound=15))
    assert failure.value.exit_code == ExitCode.BAD_DATASET


def test_more_rounds_keep_the_shares(place: Place):
    first = made(place, job(place))
    more = job(place, rounds=4)
    assert spec_hash(more.spec) == spec_hash(job(place).spec)
    assert made(place, more).digest == first.digest
    assert spec_hash(job(place, winRate={"prompts": 3}).spec) != spec_hash(more.spec)


def test_a_changed_prompt_is_noticed_and_prepared_again(place: Place):
    first = made(place, job(place))
    texts = place.work.prompts / "texts.jsonl"
    texts.write_text(texts.read_text().replace("Question", "Answer"))
    assert made(place, job(place)).digest == first.digest


WHOLE = (
    "{%- if tools %}{{- tools | tojson + '\\n' }}{%- endif %}{%- for message in messages %}{{- '<|im_start|>' + message['role'] }}"
    "{%- for key in ('name', 'tool_call_id', 'reasoning_content') if message[key] %}{{- ' ' + message[key] }}{%- endfor %}"
    "{{- '\\n' + (message['content'] or '') + (message['tool_calls'] | tojson if message['tool_calls'] else '') + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
CALL = {"type": "function", "id": "call-7", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "name": "Ada", "content": "Is it cold?"},
    {"role": "assistant", "content": "", "reasoning_content": "Ask the tool.", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "tool_call_id": "call-7", "content": "minus 9"},
    {"role": "user", "content": "So?"},
]
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}}}  # fmt: skip


def test_judges_read_all_of_a_prompt(place: Place, tmp_path: Path):
    from dpo_trainer.judging import Question
    from dpo_trainer.judging.endpoint.requests import written
    from dpo_trainer.judging.reward_model import as_pair

    place.model = tiny_model(tmp_path / "chat", template=WHOLE)
    answers = {
        name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "Yes."), ("rejected", "No."))
    }
    write_jsonl(
        place.train,
        [
            {"prompt": [*CHAT[:-1], {"role": "user", "content": f"So {i}?"}], "tools": [TOOL]} | answers
            for i in range(8)
        ],
    )
    [prompt] = made(place, job(place, {"maxLength": 1024})).read([3])
    question = Question(prompt.prompt, ("Yes.",), (1,), tools=prompt.tools)

    shown = written(question.prompt, question.tools)
    for words in ("weather", "Tells it.", "Be brief.", "Ada", "Is it cold?", "Ask the tool.", "Oslo", "minus 9"):
        assert words in shown, words
    assert shown.count("call-7") == 2
    # The reward model reads it in its own template: what that is given is what the policy's is given.
    tokenizer = PairTokenizer(load_tokenizer(place.model, "spec.model"), Limits(1024, None, "drop"), (260,), Template())
    [(_, pair)] = tokenizer.run([(0, as_pair(question, "Yes."))])
    assert isinstance(pair, TokenPair)
    assert pair.prompt.tolist() == prompt.ids.tolist()
