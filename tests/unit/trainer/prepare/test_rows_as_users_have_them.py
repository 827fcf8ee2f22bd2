"""Rows of public datasets and bug reports, through the job file that the operator writes: all that they hold is in the tokens, or refused."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.types import DPOJob
from dpo_operator.builders.config import job_file
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.data.tokens.tokenization import load_tokenizer
from dpo_trainer.prepare import phase as prepare
from dpo_trainer.prepare.inputs import Inputs
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.workdir import WorkDir
from tests.unit.trainer.data.tokens import templates
from tests.unit.trainer.tiny import tiny_model, write_jsonl

pytestmark = pytest.mark.unit

USER, SYSTEM = {"role": "user", "content": "A fruit?"}, {"role": "system", "content": "Be terse."}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "d", "parameters": {"properties": {"city": {}}}},
}
CHATML_TEXT = "<|im_start|>user\nA fruit?<|im_end|>\n<|im_start|>assistant\n"
QWEN = (
    f"<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n{CHATML_TEXT}"
)
TERSE = f"<|im_start|>system\nBe terse.<|im_end|>\n{CHATML_TEXT}"


def bot(content: str, **extra: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **extra}


def messages(chosen: dict[str, Any], rejected: dict[str, Any], *prompt: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return {"prompt": [*(prompt or (USER,))], "chosen": [chosen], "rejected": [rejected], **extra}


def templated(begin: str, end: str) -> dict[str, Any]:
    return {"prompt": begin, "chosen": f"An apple.{end}", "rejected": f"A carrot.{end}"}


THOUGHTS = ("<think>\nRed.\n</think>\n\nAn apple.", "<think>\nNo.\n</think>\n\nAn apple.")
WITH_TOOLS = messages(bot("An apple."), bot("A carrot."), tools=[TOOL])
FUNCTION_CALL = {
    "conversations": [
        {"from": "human", "value": "A fruit?"}, {"from": "function_call", "value": '{"name": "get", "arguments": {"n": 1}}'},
        {"from": "observation", "value": "42"},
    ],
    "chosen": {"from": "gpt", "value": "An apple."}, "rejected": {"from": "gpt", "value": "A carrot."},
}  # fmt: skip
WHOLE = {"chosen": [USER, bot("An apple.")], "rejected": [USER, bot("A carrot.")]}


@dataclass(frozen=True)
class Kept:
    """A row, the template, settings of spec.data, and the text of its tokens: prompt, chosen, rejected."""

    row: dict[str, Any]
    template: str
    tokens: tuple[str, str, str]
    data: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """A row, the template, what the message says, and settings of spec.data.train."""

    row: dict[str, Any]
    template: str
    says: tuple[str, ...]
    train: dict[str, Any] = field(default_factory=dict)


KEPT = {
    "text that went through the template, as such": Kept(
        templated(CHATML_TEXT, "<|im_end|>"), "qwen2_5", (f"<s>{CHATML_TEXT}", "An apple.<|im_end|>", "A carrot.<|im_end|>"),
        {"template": {"specialTokens": "read"}},
    ),
    "the same with the beginning and without the end": Kept(
        templated(f"<s>{CHATML_TEXT}", ""), "qwen2_5", (f"<s>{CHATML_TEXT}", "An apple.</s>", "A carrot.</s>"),
        {"template": {"specialTokens": "read"}},
    ),
    "text that quotes a template": Kept(
        {"prompt": "What is <|im_start|>user?", "chosen": "A mark.", "rejected": "No."}, "qwen2_5",
        ("<s>What is <|im_start|>user?", "A mark.</s>", "No.</s>"), {"template": {"specialTokens": "spell"}},
    ),
    "reasoning_content": Kept(
        messages(bot("An apple.", reasoning_content="Red."), bot("A carrot.", reasoning_content="No.")), "qwen3",
        (CHATML_TEXT, "<think>\nRed.\n</think>\n\nAn apple.<|im_end|>", "<think>\nNo.\n</think>\n\nA carrot.<|im_end|>"),
    ),
    "thinking, for a template that reads reasoning_content": Kept(
        messages(bot("An apple.", thinking="Red."), bot("A carrot.", thinking="No.")), "qwen3",
        (CHATML_TEXT, "<think>\nRed.\n</think>\n\nAn apple.<|im_end|>", "<think>\nNo.\n</think>\n\nA carrot.<|im_end|>"),
    ),
    "thoughts in the content": Kept(
        messages(bot(THOUGHTS[0]), bot(THOUGHTS[1])), "qwen3", (CHATML_TEXT, f"{THOUGHTS[0]}<|im_end|>", f"{THOUGHTS[1]}<|im_end|>"),
    ),
    "thoughts that a setting allows the template to cut": Kept(
        messages(bot(THOUGHTS[0]), bot("<think>\nNo.\n</think>\n\nA carrot.")), "deepseek_r1_distill",
        ("<s><｜User｜>A fruit?<｜Assistant｜>", "\n\nAn apple.<｜end▁of▁sentence｜>", "\n\nA carrot.<｜end▁of▁sentence｜>"),
        {"template": {"keepReasoning": "none"}},
    ),
    "function_call and observation": Kept(
        FUNCTION_CALL, "qwen2_5",
        (f'{QWEN}<tool_call>\n{{"name": "get", "arguments": {{"n": 1}}}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n42'
         "\n</tool_response><|im_end|>\n<|im_start|>assistant\n", "An apple.<|im_end|>", "A carrot.<|im_end|>"),
    ),
    "the same as OpenAI wrote it": Kept(
        messages(
            bot("An apple."), bot("A carrot."), USER,
            {"role": "assistant", "content": None, "function_call": {"name": "get", "arguments": '{"n": 1}'}},
            {"role": "function", "name": "get", "content": "42"},
        ),
        "qwen2_5",
        (f'{QWEN}<tool_call>\n{{"name": "get", "arguments": {{"n": 1}}}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n42'
         "\n</tool_response><|im_end|>\n<|im_start|>assistant\n", "An apple.<|im_end|>", "A carrot.<|im_end|>"),
    ),
    "a function_call as JSON": Kept(
        messages(
            bot("An apple."), bot("A carrot."), USER, bot("", function_call='{"name": "get", "arguments": {"n": 1}}'),
            {"role": "function", "name": "get", "content": "42"},
        ),
        "qwen2_5",
        (f'{QWEN}<tool_call>\n{{"name": "get", "arguments": {{"n": 1}}}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n42'
         "\n</tool_response><|im_end|>\n<|im_start|>assistant\n", "An apple.<|im_end|>", "A carrot.<|im_end|>"),
    ),
    "earlier turns beside whole conversations": Kept(
        {"history": [SYSTEM], **WHOLE}, "qwen2_5", (TERSE, "An apple.<|im_end|>", "A carrot.<|im_end|>"),
    ),
    "an instruction and a conversation that whole conversations repeat": Kept(
        {"instruction": "A", "input": "fruit?", "messages": WHOLE["chosen"], **WHOLE}, "qwen2_5",
        (QWEN, "An apple.<|im_end|>", "A carrot.<|im_end|>"),
    ),
    "other columns that whole conversations repeat": Kept(
        {"question": "A fruit?", "messages": WHOLE["chosen"], **WHOLE}, "qwen2_5", (QWEN, "An apple.<|im_end|>", "A carrot.<|im_end|>"),
    ),
    "prompt messages that the conversations repeat": Kept(
        {"prompt": [SYSTEM, USER], **WHOLE}, "qwen2_5", (TERSE, "An apple.<|im_end|>", "A carrot.<|im_end|>"),
    ),
    "a system column": Kept(
        messages(bot("An apple."), bot("A carrot."), system="Be terse."), "qwen2_5", (TERSE, "An apple.<|im_end|>", "A carrot.<|im_end|>"),
    ),
    "a system column beside text, mapped": Kept(
        {"system": "Be terse.", "question": "A fruit?", "chosen": "An apple.", "rejected": "A carrot."}, "qwen2_5",
        (TERSE, "An apple.<|im_end|>", "A carrot.<|im_end|>"), {}, {"columns": {"system": "system"}},
    ),
    "a system column that is ignored": Kept(
        messages(bot("An apple."), bot("A carrot."), system="gpt-4"), "qwen2_5", (QWEN, "An apple.<|im_end|>", "A carrot.<|im_end|>"), {},
        {"ignoreColumns": ["system"]},
    ),
    "roles of LangChain": Kept(
        messages({"role": "AI", "content": "An apple."}, {"role": "AI", "content": "A carrot."}, {"role": "Human", "content": "A fruit?"}),
        "qwen2_5", (QWEN, "An apple.<|im_end|>", "A carrot.<|im_end|>"),
    ),
}  # fmt: skip
REFUSED = {
    "text that went through the template": Refused(
        templated(CHATML_TEXT, "<|im_end|>"), "qwen2_5", ("templated_text", r"<\|im_start\|>user", "data.template.specialTokens to read", "to spell"),
    ),
    "answers that end with a special token": Refused(templated("A fruit?", "</s>"), "qwen2_5", ("templated_text", "</s>", "specialTokens")),
    "text of another model's template": Refused(
        templated("<start_of_turn>user\nA fruit?<end_of_turn>\n<start_of_turn>model\n", ""), "qwen2_5",
        ("templated_text", "<start_of_turn>user", "another model", "give messages"),
    ),
    "whole texts that went through the template": Refused(
        {side: f"{CHATML_TEXT}{answer}<|im_end|>" for side, answer in (("chosen", "An apple."), ("rejected", "A carrot."))}, "qwen2_5",
        ("fit no format", r"hold <\|im_start\|>user, as a chat template writes it", "specialTokens: read"),
    ),
    "a function_call that is no call": Refused(
        {**FUNCTION_CALL, "conversations": [{"from": "human", "value": "A fruit?"}, {"from": "function_call", "value": "get it"}]}, "qwen2_5",
        ("role function_call", "expected a call as JSON"),
    ),
    "a function_call in text that is no call": Refused(
        messages(bot("An apple."), bot("A carrot."), USER, bot("Hm.", function_call="auto"), USER), "qwen2_5",
        ("function_call: expected a call as JSON",),
    ),
    "two different calls in one message": Refused(
        messages(
            bot("An apple."), bot("A carrot."), USER,
            bot("", function_call={"name": "get", "arguments": "{}"}, tool_calls=[{"name": "put", "arguments": {}}]),
        ),
        "qwen2_5", ("different calls in two places",),
    ),
    "one tool as JSON beside text": Refused(
        {"prompt": "A fruit?", "chosen": "An apple.", "rejected": "A carrot.", "tools": json.dumps(TOOL)}, "qwen2_5",
        ("unread_column", "tools beside plain text", "ignoreColumns"),
    ),
    "a mapped column of tools that are no JSON beside text": Refused(
        {"prompt": "A fruit?", "chosen": "An apple.", "rejected": "A carrot.", "offered": "get_weather(city)"}, "qwen2_5",
        ("unread_column", "offered: tools beside plain text"), {"columns": {"tools": "offered"}},
    ),
    "messages that went through the template": Refused(
        messages(bot("An apple.<|im_end|>"), bot("A carrot.<|im_end|>")), "qwen2_5", ("templated_text", r"<\|im_end\|>", "content"),
    ),
    "thoughts that the template cuts": Refused(
        messages(bot(THOUGHTS[0]), bot("A carrot.")), "deepseek_r1_distill",
        ("left_out_by_template", "template leaves out reasoning of the answer", "model.chatTemplate", "keepReasoning to none"),
    ),
    "answers that differ only in thoughts that the template cuts": Refused(
        messages(bot(THOUGHTS[0]), bot(THOUGHTS[1])), "deepseek_r1_distill", ("left_out_by_template", "template leaves out reasoning"),
    ),
    "thoughts of an earlier turn": Refused(
        messages(bot("An apple."), bot("A carrot."), USER, bot("A pear.", reasoning_content="Sweet."), USER), "qwen3",
        (r"reasoning of message 2 \(role assistant\)", "keepReasoning to answers"),
    ),
    "tools that the template ignores": Refused(WITH_TOOLS, "llama3", ("leaves out tools", "model.chatTemplate", "ignoreColumns")),
    "tools beside text": Refused(
        {"prompt": "A fruit?", "chosen": "An apple.", "rejected": "A carrot.", "tools": [TOOL]}, "qwen2_5",
        ("unread_column", "tools beside plain text", "ignoreColumns"),
    ),
    "tool calls that the template ignores": Refused(FUNCTION_CALL, "llama3", ("leaves out tool_calls", "model.chatTemplate")),
    "a role that the template leaves out": Refused(
        messages(bot("An apple."), bot("A carrot."), {"role": "developer", "content": "Be terse."}, USER), "qwen2_5",
        (r"leaves out message 1 \(role developer\)", "rename the role"),
    ),
    "an answer of another role": Refused(
        messages({"role": "expert", "content": "An apple."}, bot("A carrot.")), "qwen2_5", ("its role is expert", "rename the role"),
    ),
    "a system message that the template refuses": Refused(
        messages(bot("An apple."), bot("A carrot."), SYSTEM, USER), "gemma",
        ("System role not supported", "model.chatTemplate", "into the first user's"),
    ),
    "a system column beside text": Refused(
        {"system": "Be terse.", "question": "A fruit?", "chosen": "An apple.", "rejected": "A carrot."}, "qwen2_5",
        ("unread_column", "columns.system to system", "ignoreColumns"),
    ),
    "a system column of a user's message": Refused(
        messages(bot("An apple."), bot("A carrot."), system=[USER]), "qwen2_5", ("system: expected text", "role user", "ignoreColumns"),
    ),
    "a prompt of which the conversations repeat a part": Refused(
        {"prompt": [USER, bot("Hm."), SYSTEM], **WHOLE}, "qwen2_5", ("prompts_differ", "only some are in the conversations", "ignoreColumns"),
    ),
    "a prompt in text that the conversations lack": Refused(
        {"prompt": "Another?", **WHOLE}, "qwen2_5", ("prompts_differ", "in no message", "ignoreColumns"),
    ),
    "earlier turns that whole conversations lack": Refused(
        {"history": [["A pear?", "Yes."]], "prompt": "A fruit?", **WHOLE}, "qwen2_5", ("history: earlier turns beside prompt", "ignoreColumns"),
    ),
    "an instruction that whole conversations lack": Refused(
        {"instruction": "Be brief.", "input": "A fruit?", **WHOLE}, "qwen2_5", ("prompts_differ", "instruction: .*in no message", "ignoreColumns"),
    ),
    "one of several columns that whole conversations lack": Refused(
        {"question": "A fruit?", "context": "It is red.", **WHOLE}, "qwen2_5", ("prompts_differ", "context: .*in no message"),
    ),
    "a template by its name": Refused(
        messages(bot("An apple."), bot("A carrot.")), "chatml", ("model.chatTemplate", "found 'chatml'", "not a name or a path"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def run(folder: Path, model: Path, row: dict, template: str, data: dict, train: dict) -> WorkDir:
    """Prepare a row, by the file that the pods read."""
    path = templates.FOLDER / f"{template}.jinja"
    spec = {
        "model": {"name": str(model), "chatTemplate": path.read_text() if path.is_file() else template},
        "data": {"train": {"source": str(write_jsonl(folder / "rows.jsonl", [row])), **train}, **data},
    }
    written = job_file(DPOJob.model_validate({"metadata": {"name": "j"}, "spec": spec}))
    work = WorkDir(folder / "work")
    prepare.run(DPOJob.model_validate(json.loads(written)), work, Inputs(folder))
    return work


@pytest.mark.parametrize("name", KEPT)
def test_all_that_a_row_holds_is_in_the_tokens(tmp_path, model, name):
    case = KEPT[name]
    work = run(tmp_path, model, case.row, case.template, case.data, case.train)
    pair, tokenizer = PairDataset.open(work.train_data)[0], load_tokenizer(work.model, "model")
    found = [
        tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (pair.prompt, pair.chosen, pair.rejected)
    ]
    # The tiny model has no token for R1's end of a turn, so that EOS follows.
    assert [text.replace("｜></s>", "｜>") for text in found] == [*case.tokens]


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_that_would_lose_something_is_refused(tmp_path, model, name):
    case = REFUSED[name]
    with pytest.raises(TrainerError) as failure:
        run(tmp_path, model, case.row, case.template, {}, case.train)
    for says in case.says:
        assert failure.match(says)


@pytest.mark.parametrize(
    "tools", [[TOOL], json.dumps([TOOL]), [TOOL | {"strict": None}]], ids=["a list", "JSON", "Parquet"]
)
def test_tools_reach_the_template(tmp_path, model, tools):
    work = run(tmp_path, model, WITH_TOOLS | {"tools": tools}, "qwen3", {}, {})
    pair, tokenizer = PairDataset.open(work.train_data)[0], load_tokenizer(work.model, "model")
    expected = tokenizer.apply_chat_template([USER], tools=[TOOL], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(pair.prompt, clean_up_tokenization_spaces=False) == expected


def test_what_a_template_may_cut_is_counted(tmp_path, model):
    row = messages(bot(THOUGHTS[0]), bot("A carrot."))
    work = run(tmp_path, model, row, "deepseek_r1_distill", {"template": {"keepReasoning": "none"}}, {})
    assert "the chat template leaves reasoning out of 1 pair, which data.template.keepReasoning allows" in " ".join(
        work.data_report.with_suffix(".txt").read_text().split()
    )
