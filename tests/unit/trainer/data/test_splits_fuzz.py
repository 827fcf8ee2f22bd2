"""Files of any content: each row is used or counted with its reason and place, or one error names the file. Nothing else happens."""

import gzip
import io
import json
import random
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpo_operator.api.data import Data
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.method import MethodName
from dpo_trainer.data import rows, splits
from dpo_trainer.data.tokens.tokenization import PairTokenizer, load_tokenizer
from dpo_trainer.data.tokens.truncation import Limits
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.sources import resolve
from tests.unit.trainer.tiny import CHATML, tiny_model

pytestmark = [pytest.mark.unit, pytest.mark.fault(39, 48)]

ASK = [{"role": "user", "content": "Hi 👍"}]
SHAPES = {
    "pairs": [{"prompt": f"Q{i}:", "chosen": f" yes {i}", "rejected": " nö", "confidence": 0.9} for i in range(6)],
    "messages": [{"prompt": ASK, "chosen": [{"role": "assistant", "content": f"yes {i}"}],
                  "rejected": [{"role": "assistant", "content": "no"}]} for i in range(6)],
    "dialogue": [{"chosen": f"\n\nHuman: Q{i}\n\nAssistant: a", "rejected": f"\n\nHuman: Q{i}\n\nAssistant: b"} for i in range(6)],
    "scored": [{"prompt": f"Q{i}:", "responses": ["bad", "good"], "scores": [1.5, 5]} for i in range(6)],
    "votes": [{"prompt": f"Q{i}:", "response_a": "bad", "response_b": "good", "votes": ["b", "b", "a"]} for i in range(6)],
    "unpaired": [{"prompt": f"Q{i}:", "completion": "bad", "label": i % 2 == 0} for i in range(6)],
}  # fmt: skip


def lines(table: list) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in table)


def parquet(table: list, **options) -> bytes:
    out = io.BytesIO()
    arrow.parquet.write_table(arrow.Table.from_pylist(table), out, **options)
    return out.getvalue()


CONTAINERS = {
    "data.jsonl": lines,
    "data.json": lambda table: json.dumps(table, ensure_ascii=False, indent=1).encode(),
    "data.jsonl.gz": lambda table: gzip.compress(lines(table), mtime=0),
    "data.json.gz": lambda table: gzip.compress(json.dumps(table).encode(), mtime=0),
    "data.parquet": parquet,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    return Place(
        root,
        PairTokenizer(load_tokenizer(tiny_model(root / "tiny", template=CHATML), "tiny"), Limits(64, None, "keep_end")),
    )


class Place:
    """Reads bytes as a file of the given name, as prepare does."""

    def __init__(self, root: Path, tokenizer: PairTokenizer) -> None:
        self.root = root
        self.tokenizer = tokenizer

    def read(self, name: str, content: bytes, **settings) -> tuple[splits.Split, list[dict]]:
        """The split, and the rows left out."""
        path = self.root / name
        path.write_bytes(content)
        data = Data.model_validate({"train": {"source": str(path)}, "filters": {"maxBadRows": 1.0}} | settings)
        left_out = io.StringIO()
        found = rows.FileRows(resolve(str(path), claims=self.root))
        reading = splits.Reading(data, MethodName.KTO, self.tokenizer, left_out)
        split = splits.read_split("train", found, data.train, reading)
        return split, [json.loads(line) for line in left_out.getvalue().splitlines()]

    def holds(self, name: str, content: bytes, **settings) -> str:
        """Read, and check what must hold; returns the error's text, empty without one."""
        try:
            split, left_out = self.read(name, content, **settings)
        except TrainerError as error:
            return self.explains(name, error)
        assert len(split.dataset) + len(left_out) == split.rows
        assert sum(split.dropped.values()) == len(left_out)
        kept = [split.dataset[i].row for i in range(len(split.dataset))]
        assert sorted(kept + [row["row"] for row in left_out]) == list(range(split.rows))
        assert all(name in row["where"] and row["reason"] and row["detail"] for row in left_out)
        return ""

    @staticmethod
    def explains(name: str, error: TrainerError) -> str:
        """Check an error's text: it names the file, and can be written anywhere."""
        assert error.exit_code in (ExitCode.BAD_DATASET, ExitCode.INVALID_CONFIGURATION)
        assert name in str(error)
        assert str(error).encode()
        return str(error)


def mutated(content: bytes, seed: int, changes: int) -> bytes:
    """Bytes with some changed, lost, doubled or added; sometimes cut short."""
    chance = random.Random(seed)
    found = bytearray(content)
    for _ in range(changes):
        at = chance.randrange(len(found) + 1)
        size = chance.choice((1, 1, 2, 8, 64))
        match chance.randrange(6):
            case 0:
                found[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del found[at : at + size]
            case 2:
                found[at:at] = found[at : at + size]
            case 3:
                found[at:at] = chance.randbytes(size)
            case 4:
                found[at:at] = chance.choice(
                    (b"\0", b"\n", b'"', b"\\ud800", b"null", b"true", b"NaN", b"1e999", b"[[[", b"}{", b"\xff\xfe")
                )
            case _:
                found = found[: max(1, at)] if chance.random() < 0.2 else found
    return bytes(found)


_any_file = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("name", CONTAINERS)
@_any_file
@given(st.sampled_from(sorted(SHAPES)), st.integers(0, 1 << 32), st.integers(0, 6))
def test_any_damage_is_counted_or_named(place, name, shape, seed, changes):
    place.holds(name, mutated(CONTAINERS[name](SHAPES[shape]), seed, changes))


_scalar = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("\ud800") | st.just(10**400)
)
_value = st.recursive(
    _scalar,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_columns = st.sampled_from([
    "prompt", "chosen", "rejected", "instruction", "input", "responses", "scores", "response_a", "response_b", "votes", "completion",
    "label", "confidence", "score_chosen", "score_rejected", "language", "role", "content", "\ud800", "",
])  # fmt: skip
_row = st.sampled_from([row for table in SHAPES.values() for row in table[:1]]) | st.dictionaries(
    _columns, _value, max_size=5
)
_mixed = st.tuples(_row, st.dictionaries(_columns, _value, max_size=2)).map(lambda both: both[0] | both[1]) | _value
_filters = st.sampled_from([
    {}, {"minConfidence": 0.5}, {"minScoreGap": 1.0}, {"minAgreement": 0.6}, {"maxLengthRatio": 2.0}, {"dropDuplicates": True},
    {"where": [{"column": "language", "operator": "In", "values": ["en"]}]},
    {"where": [{"column": "prompt.role", "operator": "AtLeast", "values": ["1"]}]},
])  # fmt: skip


@_any_file
@given(
    st.lists(_mixed, min_size=1, max_size=6), _filters,
    st.sampled_from(["auto", "pairs", "messages", "dialogue", "scored", "votes", "unpaired"]),
)  # fmt: skip
def test_any_json_value_is_used_or_counted_as_a_row(place, table, filters, row_format):
    content = b"".join(json.dumps(row).encode() + b"\n" for row in table)
    source = {"source": str(place.root / "values.jsonl"), "format": row_format}
    place.holds("values.jsonl", content, train=source, filters={"maxBadRows": 1.0} | filters)


GOOD = lines(SHAPES["pairs"])


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (b'{"prompt": "Q", "chosen": ', "malformed_json", "Expecting value at character"),
        (b'{"prompt": "Q", "chosen": true, "rejected": "b"}', "wrong_type", "chosen: expected text, found a boolean"),
        (b'{"prompt": "Q", "chosen": 7, "rejected": "b"}', "wrong_type", "chosen: expected text, found a number"),
        (b'{"prompt": "Q", "chosen": NaN, "rejected": "b"}', "wrong_type", "chosen: expected text, found a number"),
        (b'{"prompt": "Q", "chosen": "a\0b", "rejected": "b"}', "malformed_json", "Invalid control character"),
        (b'{"prompt": "Q", "chosen": "\\ud800", "rejected": "b"}', "invalid_text", "chosen: the text holds half a surrogate pair"),
        (b'{"prompt": "Q", "chosen": "caf\xe9", "rejected": "b"}', "not_utf8", "is not UTF-8"),
        (b'{"prompt": "Q", "chosen": ' + b"9" * 5000 + b"}", "malformed_json", "integer"),
        (b'{"prompt": "Q", "chosen": ' + b"[" * 100_000, "malformed_json", "recursion"),
        (b'{"prompt": "Q", "chosen": "a"}', "missing_column", "no value in column rejected"),
        (b"[1, 2]", "not_an_object", "found a list"),
        (b"null", "not_an_object", "found null"),
        (b'"text"', "not_an_object", "found text"),
        (b'{"prompt": "Q", "completion": "a", "label": true}', "other_format", ""),
        (b"\x00" * 64, "malformed_json", ""),
    ],
)  # fmt: skip
def test_a_bad_row_is_counted_with_file_line_and_column(place, content, reason, detail):
    split, left_out = place.read("rows.jsonl", GOOD + b"\n" + content + b"\n" + GOOD)
    assert len(split.dataset) == 12
    (row,) = left_out
    assert (row["reason"], row["where"], row["row"]) == (reason, "rows.jsonl line 8", 6)
    assert detail in row["detail"]


def test_a_row_with_two_values_of_one_key_is_malformed(place):
    content = GOOD + b'{"prompt": "Q", "chosen": 1, "chosen": "a", "rejected": "b"}'
    split, left_out = place.read("twice.jsonl", content)
    assert len(split.dataset) == 6
    assert [(row["reason"], row["detail"]) for row in left_out] == [
        ("malformed_json", "an object has the key chosen twice")
    ]


def test_nul_in_a_json_string_is_an_ordinary_character(place):
    split, left_out = place.read("nul.jsonl", b'{"prompt": "Q", "chosen": "a\\u0000b", "rejected": "b"}')
    assert (split.dataset.lengths.tolist(), left_out) == ([[2, 4, 2]], [])


def test_oversized_rows_are_dropped_and_the_largest_allowed_row_is_cut(place):
    table = [{"prompt": "Q:", "chosen": "a" * size, "rejected": "b"} for size in (10_000_000, 999_997)]
    split, left_out = place.read("big.jsonl", lines(table) + GOOD)
    assert [(row["reason"], row["where"]) for row in left_out] == [("row_too_big", "big.jsonl line 1")]
    assert split.dataset.lengths[0].tolist() == [3, 61, 2]
    assert split.counts.truncated == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["wide.jsonl", "wide.json"])
def test_other_encodings_are_named_with_the_file(place, name, encoding):
    text = place.holds(name, GOOD.decode().encode(encoding))
    assert "UTF-8" in text


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("e.jsonl", b"", "no usable pair in 0 rows"),
        ("e.json", b" \n ", "no usable pair in 0 rows"),
        ("e.jsonl.gz", gzip.compress(b""), "no usable pair in 0 rows"),
        ("e.parquet", parquet([]), "no usable pair in 0 rows"),
        ("e.json", b"[]", "no usable pair in 0 rows"),
        ("e.jsonl.gz", b"", "no usable pair in 0 rows"),
        ("e.parquet", b"", "expected a Parquet file"),
        ("e.jsonl.gz", gzip.compress(GOOD * 200)[:-9], "damaged or cut short"),
        ("e.jsonl.gz", GOOD, "damaged or cut short"),
        ("e.jsonl.gz", gzip.compress(GOOD) + b"tail", "damaged or cut short"),
        ("e.parquet", parquet(SHAPES["pairs"])[:-5], "expected a Parquet file"),
        ("e.parquet", parquet(SHAPES["pairs"])[5:], "expected a Parquet file"),
        ("e.json", b"[" * 100_000, "expected JSON"),
        ("e.json", b'{"rows": \n' + json.dumps(SHAPES["pairs"]).encode() + b"}", "found one object over several lines"),
        ("e.json", json.dumps(SHAPES["pairs"]).encode()[:-20], "expected JSON"),
        ("e.jsonl", lines([{"question": "Q", "good": "a", "bad": "b"}]), "found question (str), good (str), bad (str)"),
        ("e.jsonl", b'{"\\ud800": "Q"}\n', "found \\ud800 (str)"),
    ],
)  # fmt: skip
def test_a_file_without_data_is_named_with_its_content(place, name, content, expected):
    assert expected in place.holds(name, content)


def test_rows_of_another_format_are_counted_separately(place):
    split, left_out = place.read("mixed.jsonl", lines(SHAPES["pairs"] + SHAPES["unpaired"]))
    assert (split.format, len(split.dataset)) == ("pairs", 6)
    assert {row["reason"] for row in left_out} == {"other_format"}


def test_parquet_of_unusual_types_is_read_or_refused_by_name(place):
    columns = {
        "prompt": arrow.array(["Q"] * 3).dictionary_encode(),
        "chosen": arrow.array([b"bytes", b"\xff", None], arrow.binary()),
        "rejected": arrow.array(["b"] * 3, arrow.large_string()),
        "time": arrow.array([2**62, 0, -(2**62)], arrow.timestamp("ns")),
        "duration": arrow.array([2**62, 0, 1], arrow.duration("us")),
        "day": arrow.array([2**30, 0, 1], arrow.date32()),
    }
    out = io.BytesIO()
    arrow.parquet.write_table(arrow.table(columns), out)
    place.holds("odd.parquet", out.getvalue())


def test_parquet_with_two_equal_column_names_is_refused(place):
    out = io.BytesIO()
    table = arrow.Table.from_arrays(
        [arrow.array(["Q"]), arrow.array(["a"]), arrow.array(["b"])], ["prompt", "chosen", "chosen"]
    )
    arrow.parquet.write_table(table, out)
    place.holds("twice.parquet", out.getvalue())
