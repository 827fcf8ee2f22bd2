"""Rows of JSON files: JSON Lines, one list, objects over several lines, or an object of splits."""

import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from dpo_trainer.data.decoding import lines as text
from dpo_trainer.data.formats import Rejection
from dpo_trainer.data.formats.chats import is_chat
from dpo_trainer.data.formats.pairs import Reason
from dpo_trainer.runtime.errors import TrainerError, bad_dataset, first_line, input_not_found

# Keys by which an object of lists is known as one of splits.
SPLITS = ("train", "training", "test", "eval", "evaluation", "validation", "valid", "val", "dev")
_SPACE = re.compile(r"\s*")


def read_json(file: IO[bytes], name: str, most: int, split: str, *, whole: bool) -> Iterator[tuple[int, Any]]:
    """Place in the file, counting from 1, and row or Rejection. The place is the line, or the row's number in a list.

    most: bytes of a document that has to be read as a whole. split: the one that is read of an object of splits.
    whole: by its name (.json) the file is one document, and JSON Lines only where it begins with a whole object.
    Raises TrainerError: BAD_DATASET, INPUT_NOT_FOUND without that split; OtherEncodingError.
    """
    head = _first_line(file, name, most)
    text.check_encoding(head)
    start = head.removeprefix(text.BOM).lstrip()
    value = _parsed(start)
    if whole and isinstance(value, dict) and (rows := _split_of(value, split, name)) is not None:
        if _first_line(file, name, most).strip():
            raise bad_dataset(
                f"{name}: expected one object of splits in the whole file, found more after it; write the rows of each split as a "
                "list, or as .jsonl, with one object on each line"
            )
        yield from enumerate(rows, start=1)
    elif _is_table(value) or (whole and start.startswith(b"[")) or (value is None and _continues(start)):
        yield from _read_document(head + _rest(file, name, most), name, split)
    else:
        yield from _read_lines(itertools.chain(text.lines(io.BytesIO(head)), text.lines(file)))


def _is_table(value: Any) -> bool:
    """Whether a value is a list of rows, and not a chat."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(row, Mapping) for row in value)
        and not is_chat(value)
    )


def _first_line(file: IO[bytes], name: str, most: int) -> bytes:
    """The first line that is not blank, with the blank ones before it."""
    begin = bytearray()
    while line := file.readline(text.LONGEST_LINE):
        begin += line
        if (line if len(begin) > len(line) else line.removeprefix(text.BOM)).strip():
            break
        if len(begin) > most:
            raise _too_large(name, most)
    return bytes(begin)


def _continues(start: bytes) -> bool:
    """Whether a line begins a value that continues on the next one, as in indented JSON."""
    try:
        line = start.decode().rstrip()
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(line) and not error.msg.startswith("Unterminated")
    except (ValueError, RecursionError):
        pass
    return False


def _read_document(content: bytes, name: str, split: str) -> Iterator[tuple[int, Any]]:
    body = content.removeprefix(text.BOM)
    if body.lstrip().startswith(b"["):
        yield from enumerate(_list(body, name), start=1)
        return
    if isinstance(found := _whole(body, name), dict):
        rows = _split_of(found, split, name)
        if rows is None:
            keys = ", ".join(str(key)[:64] for key in list(found)[:8]) or "no columns"
            raise bad_dataset(
                f"{name}: expected a list of objects or JSON Lines, found one object over several lines, with {keys}; write "
                "the list of rows itself, or one row on each line"
            )
        yield from enumerate(rows, start=1)
        return
    objects = _objects(body)
    first = next(objects, None)
    if first is None or isinstance(first[1], Rejection):
        yield from _read_lines(text.lines(io.BytesIO(content)))
    else:
        yield from itertools.chain([first], objects)


def _whole(body: bytes, name: str) -> Any:
    """Value of a document of one object; None when it is cut short, or when others follow."""
    try:
        return _JSON.decode(body.decode())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return None
    except ValueError as error:  # a key that is there twice; an integer of thousands of digits
        raise _damaged(name, error) from error


def _objects(body: bytes) -> Iterator[tuple[int, Any]]:
    """Line and value of JSON values that follow each other. After one that is damaged, the next begins with a brace at a line's start."""
    try:
        document = body.decode()
    except UnicodeDecodeError as error:
        yield 1, Rejection(Reason.NOT_UTF8, f"byte {error.start} is not UTF-8")
        return
    line, counted, place = 1, 0, 0
    while (place := _after_space(document, place)) < len(document):
        line, counted = line + document.count("\n", counted, place), place
        try:
            value, place = _JSON.raw_decode(document, place)
            yield line, value
        except (ValueError, RecursionError) as error:
            yield line, _malformed(error)
            place = document.find("\n{", place + 1) + 1 or len(document)


def _after_space(document: str, place: int) -> int:
    found = _SPACE.match(document, place)
    return place if found is None else found.end()


def _split_of(document: Mapping[str, Any], split: str, name: str) -> list[Any] | None:
    """Rows of one split of an object of splits; None when it is something else."""
    splits = [key for key, rows in document.items() if _is_table(rows)]
    if split not in splits and not any(key in SPLITS for key in splits):
        return None
    if split not in splits:
        raise input_not_found(
            f"{name}: an object of the splits {', '.join(key[:64] for key in splits[:8])}, and no split {split}; set split"
        )
    found: list[Any] = document[split]
    return found


def _read_lines(found: Iterable[bytes | Rejection]) -> Iterator[tuple[int, Any]]:
    """JSON Lines: one value on each line, lines end with a newline byte and nothing else."""
    for number, line in enumerate(found, start=1):
        if isinstance(line, Rejection):
            yield number, line
            continue
        if number == 1:
            line = line.removeprefix(text.BOM)
        if line.strip():
            yield number, _decode(line)


def _decode(line: bytes) -> Any:
    try:
        return _JSON.decode(line.decode())
    except UnicodeDecodeError as error:
        return Rejection(Reason.NOT_UTF8, f"byte {error.start} is not UTF-8")
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; nesting without end
        return _malformed(error)


def _malformed(error: ValueError | RecursionError) -> Rejection:
    if isinstance(error, json.JSONDecodeError):
        return Rejection(Reason.MALFORMED_JSON, f"{error.msg} at character {error.pos}")
    return Rejection(Reason.MALFORMED_JSON, _reason(error))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Of two values for one key, Python would silently take the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"an object has the key {twice[:64]} twice")
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_object)


def _rest(file: IO[bytes], name: str, most: int) -> bytes:
    rest = file.read(most + 1)
    if len(rest) > most:
        raise _too_large(name, most)
    return rest


def _too_large(name: str, most: int) -> TrainerError:
    return bad_dataset(
        f"{name}: expected at most {most} bytes, unpacked, in a file that has to be read as a whole, found more; write it as .jsonl, with "
        "one object on each line"
    )


def _parsed(content: bytes) -> Any:
    """Value of a JSON text; None when it is none, or when it has a key twice."""
    try:
        return _JSON.decode(content.decode())
    except (ValueError, RecursionError):
        return None


def _list(body: bytes, name: str) -> Any:
    try:
        return _JSON.decode(body.decode())
    except (ValueError, RecursionError) as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: BaseException) -> TrainerError:
    return bad_dataset(
        f"{name}: expected JSON in UTF-8, found: {_reason(error)}; as .jsonl, with one object on each line, only "
        "the damaged rows would be lost"
    )


def _reason(error: BaseException) -> str:
    return first_line(error, 200) or type(error).__name__
