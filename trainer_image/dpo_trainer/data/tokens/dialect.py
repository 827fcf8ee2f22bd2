"""How a chat template takes what messages may hold beside text: found by trying it, once for each question."""

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from dpo_trainer.data.formats.chats import REASONING_KEYS, function_of

# Renders messages; raises what refused says when the template can't.
Write = Callable[[list[dict[str, Any]]], str]
_WORD, _NAME, _VALUE = "xqword", "xqname", "xqvalue"
_OBJECT = {"xqkey": _VALUE}
_TEXT = json.dumps(_OBJECT)


class Dialect:
    """What one template reads. write: renders messages. refused: what it raises when the template can't."""

    def __init__(self, write: Write, refused: type[Exception]) -> None:
        self._write = write
        self._refused = refused

    def content(self, text: str | None) -> Any:
        """A message's content: text, or parts where the template reads only these, as those of image models do."""
        return _parts(text) if self._reads_parts and text is not None else text

    @cached_property
    def reasoning_key(self) -> str:
        """The key under which the template reads an assistant's reasoning."""
        found = (key for key in REASONING_KEYS if self._shows({"content": self.content("yes"), key: _WORD}, _WORD))
        return next(found, REASONING_KEYS[0])

    @cached_property
    def no_content(self) -> str | None:
        """Content of a turn that only calls a tool: an empty text, or null where the template writes calls only beside that."""
        written = (
            empty for empty in ("", None) if self._takes_calls(_OBJECT, empty) or self._takes_calls(_TEXT, empty)
        )
        return next(written, "")

    def call(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        """A tool call, whose arguments are an object or its JSON: as given, unless the template takes only the other."""
        function = function_of(call)
        given = function.get("arguments")
        if isinstance(given, Mapping) and not self._takes_objects and self._takes_texts:
            arguments: Any = json.dumps(given, ensure_ascii=False)
        elif isinstance(given, str) and not self._takes_texts and self._takes_objects:
            arguments = _parsed(given)
        else:
            return call
        changed = {**function, "arguments": arguments}
        return changed if function is call else {**call, "function": changed}

    @cached_property
    def _reads_parts(self) -> bool:
        return not self._shows({"content": _WORD}, _WORD, question="?") and self._shows(
            {"content": _parts(_WORD)}, _WORD, question=_parts("?")
        )

    @cached_property
    def _takes_objects(self) -> bool:
        return self._takes_calls(_OBJECT, self.no_content)

    @cached_property
    def _takes_texts(self) -> bool:
        return self._takes_calls(_TEXT, self.no_content)

    def _takes_calls(self, arguments: Any, empty: str | None) -> bool:
        call = {"type": "function", "id": "xqcall001", "function": {"name": _NAME, "arguments": arguments}}
        wanted = (_NAME, arguments) if isinstance(arguments, str) else (_NAME, *_OBJECT, _VALUE)
        return self._shows({"content": self.content(empty), "tool_calls": [call]}, *wanted)

    def _shows(self, answer: dict[str, Any], *wanted: str, question: Any = None) -> bool:
        """Whether the template writes the wanted texts of an assistant's turn."""
        ask = {"role": "user", "content": question or self.content("?")}
        try:
            text = self._write([ask, {"role": "assistant", **answer}])
        except self._refused:
            return False
        return all(word in text for word in wanted)


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _parsed(arguments: str) -> Any:
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return found if isinstance(found, Mapping) else arguments
