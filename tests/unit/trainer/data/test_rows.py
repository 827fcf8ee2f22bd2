"""Files become rows; what can't be read is counted in its place."""

import gzip
import json
from pathlib import Path

import datasets
import pyarrow as arrow
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.data import rows
from dpo_trainer.data.decoding import lines, packed, tables
from dpo_trainer.data.formats import Rejection
from dpo_trainer.data.formats.pairs import Reason
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.sources import resolve
from tests.unit.trainer.tiny import write_jsonl

pytestmark = pytest.mark.unit


def opened(path: Path) -> rows.FileRows:
    return rows.FileRows(resolve(str(path), claims=Path("/nowhere")))


def read(path: Path) -> list:
    return list(opened(path))


def read_bytes(folder: Path, name: str, data: bytes) -> list:
    (folder / name).write_bytes(data)
    return read(folder / name)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_json_lines(tmp_path, end):
    assert read_bytes(tmp_path, "a.jsonl", b'{"a": "\xc3\xa4"}' + end + end + b'{"a": 2}') == [{"a": "ä"}, {"a": 2}]


def test_a_byte_order_mark_is_not_part_of_the_first_row(tmp_path):
    assert read_bytes(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"a": 1}\n') == [{"a": 1}]


def test_line_separators_inside_text_do_not_end_a_row(tmp_path):
    assert read_bytes(tmp_path, "a.jsonl", '{"a": "x\u2028y\x85z"}\n'.encode()) == [{"a": "x\u2028y\x85z"}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": ', Reason.MALFORMED_JSON),
        (b'{"a": "caf\xe9"}', Reason.NOT_UTF8),
        (b"[" * 200_000, Reason.MALFORMED_JSON),
        (b"9" * 5000, Reason.MALFORMED_JSON),
        (b'{"a": "x\x00y"}', Reason.MALFORMED_JSON),
    ],
)
def test_a_bad_line_counts_as_one_row(tmp_path, line, reason):
    first, bad, last = read_bytes(tmp_path, "a.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    assert (first, last) == ({"a": 1}, {"a": 3})
    assert isinstance(bad, Rejection)
    assert bad.reason == reason


@pytest.mark.parametrize(
    "data",
    [
        b'[{"a": 1}, {"a": 2}]',
        b'\xef\xbb\xbf\n[\n{"a": 1},\n{"a": 2}\n]\n',
        b'{"a": 1}\n{"a": 2}\n',
        b'\n\n{"a": 1}\n\n{"a": 2}',
    ],
)
def test_json_is_a_list_or_json_lines(tmp_path, data):
    assert read_bytes(tmp_path, "a.json", data) == [{"a": 1}, {"a": 2}]


def test_json_lines_named_json_may_begin_with_a_bad_row(tmp_path):
    bad, good = read_bytes(tmp_path, "a.json", b'{"a": oops}\n{"a": 2}\n')
    assert bad.reason == Reason.MALFORMED_JSON
    assert good == {"a": 2}


@pytest.mark.parametrize("data", [b'{\n"data": [\n1]}', b'[{"a": 1}, ', b'["caf\xe9"]'])
def test_json_that_is_no_list_of_rows(tmp_path, data):
    with pytest.raises(TrainerError, match=r"a\.json: expected") as failure:
        read_bytes(tmp_path, "a.json", data)
    assert failure.value.exit_code == ExitCode.BAD_DATASET


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_an_empty_file_has_no_rows(tmp_path, name):
    assert read_bytes(tmp_path, name, b"") == read_bytes(tmp_path, name, b"\n \n") == []


def test_an_object_over_several_lines_is_named_with_its_keys(tmp_path):
    with pytest.raises(
        TrainerError, match=r"a\.json: expected a list .*found one object over several lines, with data, version"
    ):
        read_bytes(tmp_path, "a.json", b'{\n"data": [{"a": 1}],\n"version": 1}\n')


def test_a_too_long_line_is_skipped_without_keeping_it_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 100)
    first, big, last = read_bytes(tmp_path, "a.jsonl", b'{"a": 1}\n{"a": "' + b"x" * 1000 + b'"}\n{"a": 3}')
    assert (first, last) == ({"a": 1}, {"a": 3})
    assert (big.reason, big.detail) == (Reason.ROW_TOO_BIG, "a line of 1010 bytes; rows of up to 100 are read")


def test_a_row_number_maps_to_file_and_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"a": 1}\n\n\n{"a": oops\n{"a": 3}\n')
    (tmp_path / "b.json").write_text('[{"a": 4}, {"a": 5}]')
    arrow.parquet.write_table(arrow.table({"a": [6, 7]}), tmp_path / "c.parquet")
    found = opened(tmp_path)
    assert len(list(found)) == 7
    assert [found.where(row) for row in range(7)] == [
        "a.jsonl line 2", "a.jsonl line 5", "a.jsonl line 6", "b.json row 1", "b.json row 2", "c.parquet row 1", "c.parquet row 2",
    ]  # fmt: skip


def test_gzip(tmp_path):
    assert read_bytes(tmp_path, "a.jsonl.gz", gzip.compress(b'{"a": 1}\n')) == [{"a": 1}]
    assert read_bytes(tmp_path, "a.json.gz", gzip.compress(b'[{"a": 1}]')) == [{"a": 1}]


@pytest.mark.parametrize("name", ["a.ndjson", "a.jsonlines", "a.jsonl"])
def test_json_lines_have_several_names(tmp_path, name):
    assert read_bytes(tmp_path, name, b'{"a": 1}\n{"a": 2}\n') == [{"a": 1}, {"a": 2}]


def zst(data: bytes) -> bytes:
    return arrow.compress(data, codec="zstd", asbytes=True)


def test_zstd(tmp_path):
    assert read_bytes(tmp_path, "a.jsonl.zst", zst(b'{"a": 1}\n') + zst(b'{"a": 2}\n')) == [{"a": 1}, {"a": 2}]
    assert read_bytes(tmp_path, "a.json.zst", zst(b'[{"a": 1}]')) == [{"a": 1}]
    assert read_bytes(tmp_path, "a.csv.zst", zst(b"a,b\n1,2\n")) == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize("data", [b"no zstd", zst(b"".join(b'{"a": %d}\n' % n for n in range(999)))[:-20]])
def test_damaged_zstd(tmp_path, data):
    with pytest.raises(TrainerError, match=r"a\.jsonl\.zst: the zstd file is damaged or cut short") as failure:
        read_bytes(tmp_path, "a.jsonl.zst", data)
    assert failure.value.exit_code == ExitCode.BAD_DATASET


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_objects_over_several_lines(tmp_path, name):
    objects = [{"a": 1, "b": [{"c": "}\n{"}]}, {"a": 2}]
    content = "\n".join(json.dumps(item, indent=2) for item in objects)
    assert read_bytes(tmp_path, name, content.encode()) == objects
    found = opened(tmp_path / name)
    assert len(list(found)) == 2
    assert [found.where(row)[-2:] for row in range(2)] == [" 1", " 9"]
    first, bad, last = read_bytes(tmp_path, name, b'{\n"a": 1\n}\n{\n"a": oops\n}\n{\n"a": 3\n}\n')
    assert (first, bad.reason, last) == ({"a": 1}, Reason.MALFORMED_JSON, {"a": 3})


def test_a_list_of_rows_over_several_lines_may_be_named_jsonl(tmp_path):
    assert read_bytes(tmp_path, "a.jsonl", json.dumps([{"a": 1}, {"a": 2}], indent=1).encode()) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_list_of_rows_on_one_line(tmp_path, name):
    assert read_bytes(tmp_path, name, b'[{"a": 1}, {"a": 2}]\n') == [{"a": 1}, {"a": 2}]


def test_json_lines_whose_first_line_is_cut_short_keep_the_others(tmp_path):
    bad, good = read_bytes(tmp_path, "a.jsonl", b'{"a":\n{"a": 2}\n')
    assert (bad.reason, good) == (Reason.MALFORMED_JSON, {"a": 2})


@pytest.mark.parametrize("indent", [None, 1])
def test_of_an_object_of_splits_one_is_read(tmp_path, indent):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"train": [{"a": 1}, {"a": 2}], "test": [{"a": 3}]}, indent=indent))
    source = resolve(str(path), claims=tmp_path)
    assert list(rows.FileRows(source)) == [{"a": 1}, {"a": 2}]
    assert list(rows.FileRows(source, split="test")) == [{"a": 3}]
    with pytest.raises(
        TrainerError, match=r"a\.json: an object of the splits train, test, and no split dev; set split"
    ):
        list(rows.FileRows(source, split="dev"))


def test_nothing_may_follow_an_object_of_splits(tmp_path):
    with pytest.raises(TrainerError, match="one object of splits in the whole file, found more after it") as failure:
        read_bytes(tmp_path, "a.json", b'{"train": [{"a": 1}]}\n\n{"train": [{"a": 2}]}\n')
    assert failure.value.exit_code == ExitCode.BAD_DATASET
    assert read_bytes(tmp_path, "b.json", b'{"train": [{"a": 1}]}\n\n') == [{"a": 1}]


def test_a_key_that_is_twice_in_an_object_of_splits_is_refused(tmp_path):
    twice = b'{"train": [{"a": 1, "a": 2}]}'
    (bad,) = read_bytes(tmp_path, "a.json", twice)
    assert (bad.reason, bad.detail) == (Reason.MALFORMED_JSON, "an object has the key a twice")
    with pytest.raises(TrainerError, match="an object has the key a twice") as failure:
        read_bytes(tmp_path, "b.json", twice.replace(b"[", b"[\n"))
    assert failure.value.exit_code == ExitCode.BAD_DATASET


def test_a_row_of_conversations_is_no_object_of_splits(tmp_path):
    row = {"test": [{"role": "user", "content": "Hi"}], "chosen": "a", "rejected": "b"}
    assert read_bytes(tmp_path, "a.json", json.dumps(row).encode()) == [row]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", 'a,b\r\n1,"x, ""y""\nz"\r\n\r\n,2\r\n', [{"a": "1", "b": 'x, "y"\nz'}, {"a": None, "b": "2"}]),
        ("a.csv", "\ufeffa;b\n1,5;2\n", [{"a": "1,5", "b": "2"}]),
        ("a.tsv", "a\tb\n1,5\t2", [{"a": "1,5", "b": "2"}]),
        ("a.csv", "a\n1\n", [{"a": "1"}]),
        ("a.csv", "", []),
        ("a.csv", "a,b\n", []),
    ],
)
def test_separated_values(tmp_path, name, content, expected):
    assert read_bytes(tmp_path, name, content.encode()) == expected


def test_separated_values_that_are_damaged(tmp_path):
    found = read_bytes(tmp_path, "a.csv", b'a,b\n1,2,3\n"x"y,2\ncaf\xe9,2\n1,2\n1,"never ends\n3,4\n')
    assert [row if isinstance(row, dict) else row.reason for row in found] == [
        Reason.MALFORMED_CSV, Reason.MALFORMED_CSV, Reason.NOT_UTF8, {"a": "1", "b": "2"}, Reason.MALFORMED_CSV, Reason.MALFORMED_CSV,
    ]  # fmt: skip
    for content, words in (
        (b"a,a\n1,2\n", "'a' twice"),
        ("a,b\n".encode("utf-16"), "expected text in UTF-8, found UTF-16"),
    ):
        with pytest.raises(TrainerError, match=words) as failure:
            read_bytes(tmp_path, "a.csv", content)
        assert failure.value.exit_code == ExitCode.BAD_DATASET


@pytest.mark.parametrize(
    ("content", "bad"),
    [
        ('a,b\n1,2\n3,"4\n5,6\n7,8\n', [3, 4, 5]),
        ('a,b\n1,2\n3,"4\n5,"6"\n7,8\n', [3, 4]),
        ('a,b\n1,2\n3,"4\n5",6\n7,8\n', [3, 4]),
        (f"a,b\n1,2\n3,{'x' * 100}\n7,8\n", [3]),
        (f'a,b\n1,2\n3,"4\n{"x" * 100}\n7,8\n', [3, 4]),
    ],
    ids=["never closed", "closed by another quote", "another number of cells", "a long line", "a long line in a cell"],
)
def test_each_line_that_a_bad_csv_row_takes_is_counted(tmp_path, monkeypatch, content, bad):
    monkeypatch.setattr(lines, "LONGEST_LINE", 90)
    (tmp_path / "a.csv").write_text(content)
    found = opened(tmp_path / "a.csv")
    read = list(found)
    lost = [found.where(row) for row, item in enumerate(read) if isinstance(item, Rejection)]
    assert lost == [f"a.csv line {line}" for line in bad]
    assert [row for row in read if isinstance(row, dict)] == [{"a": "1", "b": "2"}, {"a": "7", "b": "8"}][
        : 1 if bad[-1] == 5 else 2
    ]


def test_places_in_separated_values_are_lines(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n1,"x\ny"\n2,z\n')
    found = opened(tmp_path / "a.csv")
    assert len(list(found)) == 2
    assert [found.where(0), found.where(1)] == ["a.csv line 2", "a.csv line 4"]


def test_folders_that_save_to_disk_wrote(tmp_path):
    train, test = (
        datasets.Dataset.from_list([{"a": [{"role": "user"}], "n": n} for n in some]) for some in ((1, 2), (3,))
    )
    train.save_to_disk(tmp_path / "one")
    (tmp_path / "one" / "cache-1.arrow").write_bytes(b"what map left")
    expected = [{"a": [{"role": "user"}], "n": 1}, {"a": [{"role": "user"}], "n": 2}]
    assert read(tmp_path / "one") == expected
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "two")
    source = resolve(str(tmp_path / "two"), claims=tmp_path)
    assert list(rows.FileRows(source)) == expected
    assert [row["n"] for row in rows.FileRows(source, split="test")] == [3]
    with pytest.raises(TrainerError, match="a folder of the splits test, train, and no split dev; set split"):
        rows.data_files(source, "dev")


def test_feather_files_and_damaged_arrow_files(tmp_path):
    table = arrow.table({"a": ["x", "y"]})
    pyarrow.feather.write_feather(table, tmp_path / "a.arrow")
    assert read(tmp_path / "a.arrow") == [{"a": "x"}, {"a": "y"}]
    with arrow.OSFile(str(tmp_path / "b.arrow"), "wb") as file, arrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    whole = (tmp_path / "b.arrow").read_bytes()
    # An offset of the column that lies outside of its text.
    offsets = whole.index(bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]))
    outside = whole[: offsets + 8] + bytes([0, 0, 0, 127]) + whole[offsets + 12 :]
    for content in (b"no arrow", whole[: len(whole) // 2], outside):
        with pytest.raises(TrainerError, match=r"b\.arrow: expected an Arrow file, found") as failure:
            read_bytes(tmp_path, "b.arrow", content)
        assert failure.value.exit_code == ExitCode.BAD_DATASET


@pytest.mark.parametrize("data", [b"no gzip", gzip.compress(b'{"a": 1}\n' * 100)[:-20]])
def test_damaged_gzip(tmp_path, data):
    with pytest.raises(TrainerError, match="damaged or cut short") as failure:
        read_bytes(tmp_path, "a.jsonl.gz", data)
    assert failure.value.exit_code == ExitCode.BAD_DATASET


def test_parquet_with_messages(tmp_path):
    table = [{"chosen": [{"role": "user", "content": "Hi"}], "score": 0.5}, {"chosen": None, "score": None}]
    arrow.parquet.write_table(arrow.Table.from_pylist(table), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == table


def test_parquet_with_maps_and_nested_columns(tmp_path):
    kind = arrow.map_(arrow.string(), arrow.int64())
    votes = arrow.array([[("a", 3), ("b", 1)], None], kind)
    answers = arrow.array([[{"text": "x", "score": 1.5}], []])
    arrow.parquet.write_table(arrow.table({"votes": votes, "answers": answers}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [
        {"votes": {"a": 3, "b": 1}, "answers": [{"text": "x", "score": 1.5}]}, {"votes": None, "answers": []},
    ]  # fmt: skip


def test_big_parquet_rows_are_decoded_a_few_at_a_time(tmp_path, monkeypatch):
    asked = []
    batches = arrow.parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        arrow.parquet.ParquetFile,
        "iter_batches",
        lambda self, batch_size: asked.append(batch_size) or batches(self, batch_size=batch_size),
    )
    monkeypatch.setattr(tables, "BATCH", 20_000)
    for name, size in (("small", 1), ("big", 5000), ("huge", 50_000)):
        table = arrow.table({"a": [f"{i:010}" * (size // 10 + 1) for i in range(20)]})
        arrow.parquet.write_table(table, tmp_path / f"{name}.parquet", use_dictionary=False)
        assert len(read(tmp_path / f"{name}.parquet")) == 20
    assert asked == [512, 3, 1]


def test_parquet_text_that_is_not_utf8_is_one_bad_row(tmp_path):
    column = arrow.array([b"good", b"caf\xe9"], arrow.binary()).view(arrow.binary())
    text = arrow.StringArray.from_buffers(2, column.buffers()[1], column.buffers()[2])
    arrow.parquet.write_table(arrow.table({"a": text}), tmp_path / "a.parquet")
    good, bad = read(tmp_path / "a.parquet")
    assert good == {"a": "good"}
    assert bad.reason == Reason.NOT_UTF8


def test_two_values_for_one_key_are_refused(tmp_path):
    _, bad, nested = read_bytes(
        tmp_path,
        "a.jsonl",
        b'{"chosen": 1}\n{"chosen": "a", "rejected": "b", "chosen": "c"}\n{"a": [{"b": 1, "b": 1}]}\n',
    )
    assert (bad.reason, bad.detail) == (Reason.MALFORMED_JSON, "an object has the key chosen twice")
    assert nested.detail == "an object has the key b twice"
    with pytest.raises(TrainerError, match=r"a\.json: .*an object has the key a twice"):
        read_bytes(tmp_path, "a.json", b'[{"a": 1, "a": 2}]')
    column = arrow.array(["x"])
    arrow.parquet.write_table(arrow.Table.from_arrays([column, column], ["chosen", "chosen"]), tmp_path / "a.parquet")
    with pytest.raises(TrainerError, match=r"a\.parquet: column chosen is there twice"):
        read(tmp_path / "a.parquet")


def test_damaged_parquet(tmp_path):
    with pytest.raises(TrainerError, match="expected a Parquet file") as failure:
        read_bytes(tmp_path, "a.parquet", b"PAR1 and nothing else")
    assert failure.value.exit_code == ExitCode.BAD_DATASET


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    write_jsonl(tmp_path / "b" / "part-1.jsonl", [{"n": 3}])
    write_jsonl(tmp_path / "a-2.jsonl", [{"n": 2}])
    (tmp_path / "a-1.json").write_text(json.dumps([{"n": 1}]))
    write_jsonl(tmp_path / "_hidden.jsonl", [{"n": 0}])
    write_jsonl(tmp_path / ".cache" / "x.jsonl", [{"n": 0}])
    (tmp_path / "README.md").write_text("# not data")
    (tmp_path / "dataset_infos.json").write_text(json.dumps({"default": {"features": {}}}, indent=1))
    assert [row["n"] for row in read(tmp_path)] == [1, 2, 3]


def test_a_folder_never_mixes_splits(tmp_path):
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"):
        write_jsonl(tmp_path / name, [{"n": name}])
    assert len(read(tmp_path)) == 2
    write_jsonl(tmp_path / "heldout.jsonl", [{"n": 0}])
    with pytest.raises(TrainerError, match=r"different splits \(heldout.jsonl and train-0") as failure:
        read(tmp_path)
    assert failure.value.exit_code == ExitCode.INVALID_CONFIGURATION


def test_a_folder_without_data_is_refused_with_its_content(tmp_path):
    (tmp_path / "data.txt").write_text("a,b\n")
    with pytest.raises(
        TrainerError, match=r"expected .*\.parquet.* files, text also packed as .*, found data\.txt"
    ) as failure:
        read(tmp_path)
    assert failure.value.exit_code == ExitCode.INPUT_NOT_FOUND


@pytest.mark.parametrize(
    ("name", "advice"), [("a.xlsx", "save them as .csv"), ("a.jsonl.bz2", "unpack"), ("a.zip", "unpack")]
)
def test_other_files_are_refused_with_what_to_do(tmp_path, name, advice):
    (tmp_path / name).write_text("x")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(TrainerError, match=f"expected .* found .*{name}.*{advice}"):
        read(tmp_path)


def test_progress_rises_to_the_bytes_read(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"n": "x" * 100}] * 3000)
    shares: list[float] = []
    assert len(list(rows.FileRows(resolve(str(tmp_path), claims=tmp_path), shares.append))) == 3000
    assert len(shares) > 3
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] <= 1


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n' * 2000)
    read = iter(opened(path))
    next(read)
    with path.open("a") as file:
        file.write('{"a": 1}\n' * 2000)
    with pytest.raises(TrainerError, match=r"a\.jsonl grows while it is read") as failure:
        list(read)
    assert failure.value.exit_code == ExitCode.SOURCE_UNAVAILABLE


@pytest.mark.parametrize(
    "document",
    [b'[{"a": 1},\n' + b" " * 2000 + b'{"a": 2}]', b'{"a":\n 1,' + b" " * 2000 + b"}", b"\n" * 2000 + b'{"a": 1}'],
)
def test_a_document_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, document):
    monkeypatch.setattr(packed, "UNPACKED", 1000)
    monkeypatch.setattr(packed, "UNPACKED_TIMES", 2)
    for name, data in (("a.json.gz", gzip.compress(document)), ("a.json.zst", zst(document))):
        with pytest.raises(TrainerError, match=r"at most 1000 bytes, unpacked.*write it as \.jsonl") as failure:
            read_bytes(tmp_path, name, data)
        assert failure.value.exit_code == ExitCode.BAD_DATASET
