"""One source of the data: rows in, tokenized pairs and counts out."""

import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

from dpo_operator.api.data import Data, Dataset
from dpo_operator.api.method import MethodName
from dpo_trainer.data import filters
from dpo_trainer.data.asking import Asked
from dpo_trainer.data.boundaries import is_unseparated, repeats_prompt
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.data.features import Features
from dpo_trainer.data.formats import Format, Pair, Rejection, detect, hint, read_rows
from dpo_trainer.data.formats.pairs import Reason
from dpo_trainer.data.formats.values import lookup
from dpo_trainer.data.rows import Rows
from dpo_trainer.data.tally import SHOWN_COLUMNS, Tally, listed, no_pair, too_many_bad
from dpo_trainer.data.tokens.templated import turn_in
from dpo_trainer.data.tokens.tokenization import Counts, PairTokenizer
from dpo_trainer.runtime.errors import bad_dataset, invalid_configuration

# Rows from which the format is detected.
DETECTION_ROWS = 64
# Limit on the characters of a pair: max(CHARACTERS, CHARACTERS_PER_TOKEN * data.maxLength). Tokenizing far more than is kept
# would take minutes and gigabytes for one row.
CHARACTERS_PER_TOKEN = 16
CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Reading:
    """State that all sources of a job share.

    dropped: file of the rows that are left out, as JSON lines. seen: hashes of the pairs so far, for filters.dropDuplicates, of
        the training sources (False) and of eval (True).
    asked: collects the prompts of the training sources; None where rounds don't need them.
    """

    data: Data
    method: MethodName
    tokenizer: PairTokenizer
    dropped: IO[str]
    seen: dict[bool, set[bytes]] = field(default_factory=lambda: {False: set(), True: set()})
    asked: Asked | None = None


@dataclass(frozen=True)
class Split:
    """A source that passed its checks.

    rows: rows that were read. dropped: rows left out, by reason. columns: those of the first rows.
    unseparated, prompt_repeated: pairs of plain text with nothing between prompt and answers, and with answers that repeat the prompt.
    evaluated, applicable: filters that were applied to a row, and those that found the value they need in one.
    features: of the answers' text.
    """

    dataset: PairDataset
    format: Format
    rows: int
    dropped: dict[str, int]
    counts: Counts
    columns: tuple[str, ...]
    evaluated: frozenset[str]
    applicable: frozenset[str]
    features: Features
    unseparated: int = 0
    prompt_repeated: int = 0


@dataclass(frozen=True)
class Glance:
    """What the first rows of a source are.

    rows: how many were looked at. dropped: of those, rows left out, by reason. first: where the first of these stands, and why it is
    left out; empty without one.
    """

    format: Format
    rows: int
    pairs: int
    dropped: dict[str, int]
    first: str


def read_split(name: str, rows: Rows, spec: Dataset, reading: Reading) -> Split:
    """Normalize, filter and tokenize the rows of one source.

    name: train, mixture[0], … or eval, as the dropped rows and the messages call it.
    Raises TrainerError: BAD_DATASET when no format fits, when more rows than filters.maxBadRows are unusable or none is left;
    INVALID_CONFIGURATION when a filter has no column to read, or the data are not for the method.
    """
    data, tokenizer = reading.data, reading.tokenizer
    tally = Tally(name, rows, reading.dropped)
    items = iter(rows)
    head = list(itertools.islice(items, min(DETECTION_ROWS, spec.limit or DETECTION_ROWS)))
    columns = _columns(head)
    row_format = _format(name, [_read(row, spec) for row in head], spec, columns)
    _check_format(name, row_format, spec, reading.method, head)
    mixed = bool(data.mixture) and name != "eval"
    chain = filters.RowFilters(data.filters, spec.columns, reading.seen[name == "eval"], lenient=mixed)
    limited = itertools.islice(itertools.chain(head, items), spec.limit)
    tokenizer.counts = Counts()
    most = max(CHARACTERS, CHARACTERS_PER_TOKEN * data.max_length)
    asked = reading.asked if name != "eval" else None
    pairs = _pairs(limited, row_format, spec, chain, partial(_refused, tokenizer, most), tally, asked)
    dataset = PairDataset.from_pairs(_kept(tokenizer.run(pairs), chain, tally, asked))
    split = Split(
        dataset,
        row_format,
        tally.rows,
        tally.by_reason,
        tokenizer.counts,
        columns,
        frozenset(chain.evaluated),
        frozenset(chain.applicable),
        tally.features,
        tally.unseparated,
        tally.prompt_repeated,
    )
    if not mixed or not len(dataset):
        check_filters({name: (spec, split)}, data, _not_needed(name, data, mixed=mixed))
    _check_rows(name, split, data, spec, tally)
    return split


def glance(name: str, rows: Rows, spec: Dataset, data: Data, method: MethodName) -> Glance:
    """Read the first rows of a source, without tokens. Raises TrainerError as read_split does for the same rows."""
    head = list(itertools.islice(rows, min(DETECTION_ROWS, spec.limit or DETECTION_ROWS)))
    columns = _columns(head)
    row_format = _format(name, [_read(row, spec) for row in head], spec, columns)
    _check_format(name, row_format, spec, method, head)
    tally = Tally(name, rows, io.StringIO())
    chain = filters.RowFilters(data.filters, spec.columns, set(), lenient=True)
    most = max(CHARACTERS, CHARACTERS_PER_TOKEN * data.max_length)
    found = _pairs(iter(head), row_format, spec, chain, lambda pair: _too_big(pair, most), tally)
    pairs = sum(1 for _ in found)
    if tally.bad > data.filters.max_bad_rows * tally.rows:
        raise too_many_bad(name, data.filters.max_bad_rows, columns, tally)
    if not pairs and len(head) < DETECTION_ROWS:
        raise no_pair(name, spec, tally)
    return Glance(row_format, tally.rows, pairs, tally.by_reason, tally.first)


def check_filters(
    splits: Mapping[str, tuple[Dataset, Split]], data: Data, optional: frozenset[str] = frozenset()
) -> None:
    """Reject filters that found no value in any row of these splits. optional: filters that may find none.

    Raises TrainerError INVALID_CONFIGURATION.
    """
    evaluated = {name for _, split in splits.values() for name in split.evaluated}
    applicable = {name for _, split in splits.values() for name in split.applicable}
    if not (idle := sorted(evaluated - applicable - optional)):
        return
    spec, _ = next(iter(splits.values()))
    found = dict.fromkeys(column for _, split in splits.values() for column in split.columns)
    raise invalid_configuration(
        f"{' and '.join(splits)}: filters.{idle[0]} needs {filters.needs(idle[0], data.filters, spec.columns)}, and no row has one; "
        f"found columns {listed(found)}. Name the right column, or leave the filter out. The data are "
        f"{' and '.join(spec.source for spec, _ in splits.values())}"
    )


def _not_needed(name: str, data: Data, *, mixed: bool) -> frozenset[str]:
    """Filters that may find no value in one source.

    In a mixture, filters other than `where` may be satisfied by another source. Evaluation pairs may lack the column of a
    condition that is met without it.
    """
    if mixed:
        return frozenset(filters.NAMES)
    without = ("NotIn", "DoesNotExist") if name == "eval" else ()
    return frozenset(f"where[{i}]" for i, condition in enumerate(data.filters.where) if condition.operator in without)


def _format(name: str, head: list[Any], spec: Dataset, columns: tuple[str, ...]) -> Format:
    if spec.format != "auto":
        return spec.format
    found = detect(head, spec.columns)
    if found is not None:
        return found
    if not columns:  # nothing decodable at the start: the rows are counted one by one, and the error says why
        return "pairs"
    wanted = spec.columns
    known = f": {found_hint}" if (found_hint := hint(head)) else ""
    raise bad_dataset(
        f"{name}: the rows of {spec.source} fit no format{known}. Expected text or messages in columns {wanted.chosen} and {wanted.rejected}, with "
        f"{wanted.prompt or 'prompt'} (or instruction) beside them unless they are whole conversations; or a list in "
        f"{wanted.responses} with {wanted.scores}; or {wanted.answer_a} and {wanted.answer_b} with {wanted.votes}, or with "
        f"{wanted.signed_preference or f'{wanted.score_a} and {wanted.score_b}'}; or {wanted.completion} with {wanted.label}, or with a number in {wanted.scores}; found {_described(head, columns)}. Set columns, or format{_if_templated(head)}"
    )


def _check_format(name: str, row_format: Format, spec: Dataset, method: MethodName, head: list[Any]) -> None:
    if spec.columns.annotators and "votes" in spec.columns.mapped:
        raise invalid_configuration(
            f"{name}: columns.votes and columns.annotators both name the votes; leave one of them out"
        )
    if row_format == "unpaired" and method is not MethodName.KTO:
        raise invalid_configuration(
            f"{name}: the data are unpaired (column {spec.columns.completion} with {spec.columns.label}), and method.name is "
            f"{method.value}, which compares two answers to a prompt; set method.name to kto, or use paired data"
        )
    system = spec.columns.system
    if system is None:
        return
    if row_format in ("pairs", "dialogue"):
        raise invalid_configuration(
            f"{name}: columns.system is for chat messages, and the data are read as {row_format}; set format to messages, or "
            "leave columns.system out"
        )
    rows = [row for row in head if isinstance(row, Mapping)]
    if rows and all(lookup(row, system) is None for row in rows):
        raise invalid_configuration(
            f"{name}: columns.system is {system}, and none of the first {len(head)} rows has it; found columns "
            f"{listed(_columns(head))}"
        )


def _described(head: list[Any], columns: tuple[str, ...]) -> str:
    """Columns with the kinds of their values in the first row, for a message."""
    first = next((row for row in head if isinstance(row, Mapping)), {})
    return ", ".join(f"{column} ({type(first.get(column)).__name__})" for column in columns[:SHOWN_COLUMNS]) or "none"


def _if_templated(head: list[Any]) -> str:
    """What to say of texts that went through a chat template."""
    texts = (value for row in head if isinstance(row, Mapping) for value in row.values() if isinstance(value, str))
    found = next((turn for text in texts if (turn := turn_in(text)) is not None), None)
    if found is None:
        return ""
    return (
        f". The texts hold {found}, as a chat template writes it: give messages, or the prompt in a column of its own and "
        "data.template.specialTokens: read"
    )


def _columns(head: list[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(key)[:64] for row in head if isinstance(row, Mapping) for key in row))


def _pairs(
    rows: Iterator[Any],
    row_format: Format,
    spec: Dataset,
    chain: filters.RowFilters,
    refused: Callable[[Pair], Rejection | None],
    tally: Tally,
    asked: Asked | None = None,
) -> Iterator[tuple[int, Pair]]:
    wanted = _wanted(rows, chain, spec, tally)
    for number, row, found in read_rows(wanted, row_format, spec.columns):
        if not isinstance(found, Rejection):
            found = chain.after(row, found) or refused(found) or found
        if isinstance(found, Rejection):
            tally.drop(number, found)
        else:
            tally.unseparated += is_unseparated(found)
            tally.prompt_repeated += repeats_prompt(found)
            tally.features.add(found)
            if asked is not None:
                asked.note(number, row, found)
            yield number, found


def _wanted(rows: Iterator[Any], chain: filters.RowFilters, spec: Dataset, tally: Tally) -> Iterator[tuple[int, Any]]:
    """Number and row of those that can be decoded and meet the conditions."""
    for number, row in enumerate(rows):
        tally.rows = number + 1
        rejection = row if isinstance(row, Rejection) else chain.before(row)
        if rejection is None:
            yield number, _read(row, spec)
        else:
            tally.drop(number, rejection)


def _read(row: Any, spec: Dataset) -> Any:
    """The row without the columns that are not to be read."""
    if not spec.ignore_columns or not isinstance(row, Mapping):
        return row
    return {key: value for key, value in row.items() if key not in spec.ignore_columns}


def _refused(tokenizer: PairTokenizer, most: int, pair: Pair) -> Rejection | None:
    """Why a pair is not tokenized. most: characters."""
    return _too_big(pair, most) or tokenizer.templated.check(pair)


def _too_big(pair: Pair, most: int) -> Rejection | None:
    if pair.characters <= most:
        return None
    return Rejection(
        Reason.ROW_TOO_BIG,
        f"prompt and answers have {pair.characters} characters; up to {most} are read ({CHARACTERS_PER_TOKEN} for each token of "
        f"data.maxLength, and at least {CHARACTERS})",
    )


def _kept(
    found: Iterable[tuple[int, TokenPair | Rejection]],
    chain: filters.RowFilters,
    tally: Tally,
    asked: Asked | None,
) -> Iterator[TokenPair]:
    for row, item in found:
        item = item if isinstance(item, Rejection) else chain.of_tokens(item) or item
        if isinstance(item, Rejection):
            tally.drop(row, item)
        else:
            if asked is not None:
                asked.take(row, item.prompt)
            yield item
    if asked is not None:
        asked.end()


def _check_rows(name: str, split: Split, data: Data, spec: Dataset, tally: Tally) -> None:
    if tally.bad > data.filters.max_bad_rows * tally.rows:
        raise too_many_bad(name, data.filters.max_bad_rows, split.columns, tally)
    if len(split.dataset) == 0:
        raise no_pair(name, spec, tally)
