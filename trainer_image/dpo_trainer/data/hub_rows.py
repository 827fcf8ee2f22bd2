"""Rows of a hub dataset whose files need the datasets library."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_operator.api.data import Dataset
from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.data.formats import detect
from dpo_trainer.data.formats.detection import columns_read
from dpo_trainer.runtime.errors import TrainerError, bad_dataset, first_line, input_not_found, invalid_configuration
from dpo_trainer.runtime.untrusted import Untrusted
from dpo_trainer.sources.hub import Fetch, Snapshot, discard_download_state, snapshot_of
from dpo_trainer.sources.kinds import HubSource
from dpo_trainer.sources.retrying import GATED, no_space, retrying

# Files of a dataset that are fetched at the same time: some have thousands of small ones.
AT_ONCE = 8
# Rows from which the columns to decode are detected.
DETECTION_ROWS = 64


@dataclass(frozen=True)
class HubRows:
    """Rows of one split of a dataset, at one commit.

    media: its columns of images, sounds or films, as Arrow has them. They are not decoded: a row has True where one has a value.
    """

    commit: str
    columns: tuple[str, ...]
    table: Any
    media: Any = None

    def where(self, row: int) -> str:
        """Where a row stands, for messages."""
        return f"row {row} of the split"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = self.table.iter(batch_size=512)
        media = iter(()) if self.media is None else self.media.iter(batch_size=512)
        while True:
            with Untrusted("reading rows of the hub's dataset", code=ExitCode.SOURCE_UNAVAILABLE):
                batch = next(batches, None)
                beside = next(media, None)
            if batch is None:
                return
            if beside is not None:
                batch |= {name: _present(beside.column(name)) for name in beside.column_names}
            names = list(batch)
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(names, values, strict=True))


def _present(column: Any) -> list[bool | None]:
    """For each value of an Arrow column True, and None where there is none or an empty list."""
    import pyarrow.compute as compute
    from pyarrow import types

    there = column.is_valid()
    if types.is_list(column.type) or types.is_large_list(column.type):
        there = compute.fill_null(compute.greater(compute.list_value_length(column), 0), fill_value=False)
    return [found or None for found in there.to_pylist()]


def without_media(table: Any) -> tuple[Any, Any]:
    """A table of datasets without the columns whose values datasets would decode, and these; None when there are none."""
    names = [
        name for name, feature in table.features.items() if hasattr(getattr(feature, "feature", feature), "decode")
    ]
    if not names:
        return table, None
    return table.remove_columns(names), table.select_columns(names).with_format("arrow")


def dataset(
    source: HubSource, spec: Dataset, conditions: set[str], cache: Path, token: str | None, fetch: Fetch | None = None
) -> HubRows:
    """Download one split of a hub dataset into a cache folder.

    fetch: downloads through the shared cache; None downloads directly.
    conditions: columns that filters read, in addition to those of the formats. Other columns are not decoded, unless the first rows
        fit no format without them, so that a message can name all columns.
    Raises TrainerError: ACCESS_DENIED, INPUT_NOT_FOUND, SOURCE_UNAVAILABLE, INVALID_CONFIGURATION, BAD_DATASET, or
    UNSUPPORTED for a dataset that needs a script of its own.
    """
    import datasets
    from huggingface_hub import HfApi

    info = retrying(
        lambda: HfApi(token=token).dataset_info(
            source.repo, revision=source.revision, files_metadata=fetch is not None
        ),
        source.label,
    )
    datasets.disable_progress_bars()

    def call(load: Callable[..., Any], **options: Any) -> Any:
        try:
            return load(source.repo, spec.config, revision=info.sha, token=token, cache_dir=str(cache), **options)
        except (ValueError, RuntimeError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
            if (known := _explained(error, source, spec)) is None:
                raise
            raise known from error

    if fetch is not None:
        builder = retrying(lambda: call(datasets.load_dataset_builder), source.label)
        # URLs use the repository's current name; the job may use an older one.
        _provide(snapshot_of(info.id, info, "dataset"), builder.config.data_files or {}, fetch)
    table = retrying(lambda: call(datasets.load_dataset, split=spec.split), source.label)
    columns = tuple(table.column_names)
    table, media = without_media(table)
    narrow = table.select_columns(list(columns_read(table.column_names, spec.columns, conditions)))
    if detect(narrow.select(range(min(DETECTION_ROWS, len(narrow)))), spec.columns) is not None:
        table = narrow
    return HubRows(str(info.sha), columns, table, media)


def _provide(found: Snapshot, data_files: dict[str, list[str]], fetch: Fetch) -> None:
    """Put a dataset's files where load_dataset looks before it downloads them: huggingface_hub's own cache.

    data_files: URLs by split.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    of_repo = f"hf://datasets/{found.repo}@{found.commit}/"
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=found.repo, repo_type="dataset")
    snapshot = folder / "snapshots" / found.commit
    urls = dict.fromkeys(url for split in data_files.values() for url in split)
    names = [name for url in urls if (name := url.removeprefix(of_repo)) in found.sizes]
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        list(pool.map(lambda name: fetch(found, name, snapshot), names))  # raises what one of them raised
    discard_download_state(snapshot)


def _explained(error: Exception, source: HubSource, spec: Dataset) -> TrainerError | None:
    """TrainerError for an error that load_dataset has for a wrong dataset; None when it is none of those."""
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError, DatasetBuildError, DatasetNotFoundError

    text = first_line(error)
    if isinstance(error, RuntimeError) and "script" in text:
        return TrainerError(
            ExitCode.UNSUPPORTED,
            f"{source.label}: the dataset is made by a script of its repository, and code from a hub is never run; use its "
            "Parquet conversion (revision refs/convert/parquet) or files",
        )
    if isinstance(error, ValueError) and "BuilderConfig" in text:
        return invalid_configuration(f"{source.label}: no configuration {spec.config}; {text}")
    if isinstance(error, ValueError) and "Config name is missing" in text:
        return invalid_configuration(
            f"{source.label}: the dataset has several configurations; set config. {str(error)[:300]}"
        )
    if isinstance(error, ValueError) and ("split" in text.lower() or "slice" in text.lower()):
        return input_not_found(f"{source.label}: no split {spec.split}; {text}")
    if isinstance(error, DatasetNotFoundError) and "is a gated dataset" in text:
        return TrainerError(ExitCode.ACCESS_DENIED, f"{source.label}: {GATED}")
    if isinstance(error, DataFilesNotFoundError | EmptyDatasetError):
        return input_not_found(f"{source.label}: the repository has no data files that can be read; name files instead")
    if isinstance(error, DatasetBuildError) and no_space(error) is None:
        cause = str(error.__cause__ or error).strip()[:300]
        return bad_dataset(f"{source.label}: the repository's files can't be read as a dataset: {cause}")
    return None
