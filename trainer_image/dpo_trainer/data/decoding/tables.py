"""Rows of Parquet and Arrow files."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from dpo_trainer.data.formats import Rejection
from dpo_trainer.data.formats.pairs import Reason
from dpo_trainer.runtime.errors import bad_dataset, first_line

# Bytes of rows that are decoded at once.
BATCH = 32 * 2**20


def read_parquet(file: IO[bytes], name: str) -> Iterator[Any]:
    """Rows of a Parquet file, and Rejections. Raises TrainerError BAD_DATASET."""
    import pyarrow.parquet

    with _readable(name, "Parquet"):
        table = pyarrow.parquet.ParquetFile(file)
        _check_names(table.schema_arrow.names, name)
        groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
        largest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=1)
        for batch in table.iter_batches(batch_size=_rows_at_once(largest)):
            yield from _rows(batch)


def read_arrow(file: IO[bytes], name: str) -> Iterator[Any]:
    """Rows of an Arrow file, as save_to_disk of datasets writes it (a stream), or of a Feather file. Raises TrainerError BAD_DATASET."""
    import pyarrow.ipc

    with _readable(name, "Arrow"):
        begin = file.read(6)
        file.seek(0)
        if begin == b"ARROW1":
            table = pyarrow.ipc.open_file(file)
            batches: Iterable[Any] = (table.get_batch(i) for i in range(table.num_record_batches))
        else:
            batches = table = pyarrow.ipc.open_stream(file)
        _check_names(table.schema.names, name)
        for batch in batches:
            # A file that was made to do harm may have offsets that lie outside of it.
            batch.validate(full=True)
            step = _rows_at_once(batch.nbytes // max(1, batch.num_rows))
            for start in range(0, batch.num_rows, step):
                yield from _rows(batch.slice(start, step))


def _rows_at_once(size: int) -> int:
    """How many rows are decoded at once. size: bytes of one."""
    return min(512, max(1, BATCH // max(1, size)))


def _check_names(names: list[str], file: str) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise bad_dataset(f"{file}: column {twice[0][:64]} is there twice; leave one of them out")


@contextmanager
def _readable(name: str, kind: str) -> Iterator[None]:
    import pyarrow as arrow

    try:
        yield
    except MemoryError:
        raise
    except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:
        # What Arrow can't decode may be an OSError too, of no system call; others are those of the file or the store. The names of
        # the columns may be no text.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise bad_dataset(
            f"{name}: expected {'an' if kind == 'Arrow' else 'a'} {kind} file, found: {first_line(error, 200) or type(error).__name__}; "
            "write it again"
        ) from error


def _rows(batch: Any) -> list[Any]:
    try:
        found: list[Any] = batch.to_pylist(maps_as_pydicts="lossy")
    except (ValueError, OverflowError):
        return [_row(batch, i) for i in range(batch.num_rows)]
    return found


def _row(batch: Any, index: int) -> Any:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[index].as_py(maps_as_pydicts="lossy")
        except UnicodeDecodeError as error:
            return Rejection(Reason.NOT_UTF8, f"byte {error.start} of column {name[:64]} is not UTF-8")
        except (ValueError, OverflowError):  # a time that Python can't hold; no column that is read has times
            row[name] = None
    return row
