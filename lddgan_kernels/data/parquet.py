"""Parquet files of images, as Hugging Face data sets are stored."""

import re
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from lddgan_kernels._checks import fail
from lddgan_kernels.data.kinds import check_bytes, readable
from lddgan_kernels.data.source import Skipped

LABELS = ("label", "labels", "fine_label", "class")
NAMES = ("image", "img", "jpg", "png", "webp", "picture", "photo")


def training_files(paths: list[Path]) -> list[Path]:
    """Those of the split `train`, where the files are named `SPLIT-00000-of-00001`; else all."""
    named = [(re.match(r"(\w+)-\d+-of-\d+", path.name), path) for path in paths]
    train = [path for split, path in named if split and split[1] == "train"]
    return train or paths


class ParquetSource:
    """Images of one column: encoded ones, or `{"bytes": encoded, "path": ...}`, row by row.

    Labels are the integers of a column `label`, `labels`, `fine_label` or `class`.
    """

    def __init__(self, name: str, paths: list[Path]) -> None:
        self.name = name
        self.passed_over: Skipped = []
        # (file, row group, its rows), one after the other.
        self._groups: list[tuple[Path, int, int]] = []
        self._held: tuple[int, list[Any]] | None = None
        self._column = ""
        labels: list[Any] = []
        for path in paths:
            try:
                with _open(path) as file:
                    column = _find_column(file.schema_arrow)
                    rows = [
                        file.metadata.row_group(group).num_rows
                        for group in range(file.num_row_groups)
                    ]
                    labels += _read_labels(file)
            except ImportError:
                raise
            except Exception as error:  # pyarrow raises a different one for each kind of damage
                raise fail(
                    "open_images", "path", "a parquet file of images", f"{path}: {error}"
                ) from None
            if self._column not in ("", column):
                raise fail("open_images", "path", f"files with images in `{self._column}`", path)
            self._column = column
            self._groups += [(path, group, count) for group, count in enumerate(rows)]
        self._ends = list(accumulate(count for _, _, count in self._groups))
        # Where a part has none, or some of a test set are -1, there are none.
        whole = len(labels) == len(self) and min(labels, default=-1) >= 0
        self.labels = torch.tensor(labels) if whole else None

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def item_name(self, index: int) -> str:
        group, row = self._place(index)
        path, number, _ = self._groups[group]
        before = sum(count for other, n, count in self._groups if other == path and n < number)
        return f"{readable(path.name)}[{before + row}]"

    def read(self, index: int) -> bytes:
        group, row = self._place(index)
        # Rows of a group are stored together; the last group read is kept.
        if self._held is None or self._held[0] != group:
            path, number, _ = self._groups[group]
            with _open(path) as file:
                table = file.read_row_group(number, columns=[self._column], use_threads=False)
            self._held = group, table.column(0).to_pylist()
        value = self._held[1][row]
        if isinstance(value, dict):
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise ValueError("no image is stored in this row")
        check_bytes(len(value))
        return value

    def _place(self, index: int) -> tuple[int, int]:
        group = bisect_right(self._ends, index)
        return group, index - (self._ends[group - 1] if group else 0)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_held": None}


def _find_column(schema: Any) -> str:
    import pyarrow as pa

    def is_bytes(kind: Any) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = [
        field.name
        for field in schema
        if is_bytes(field.type)
        or (
            pa.types.is_struct(field.type)
            and any(part.name == "bytes" and is_bytes(part.type) for part in field.type)
        )
    ]
    for name in NAMES:
        if name in found:
            return name
    if len(found) != 1:
        raise ValueError(
            f"a column of images, {' or '.join(NAMES[:2])}, must be there, got {schema.names}"
        )
    return found[0]


def _read_labels(file: Any) -> list[int]:
    """The classes of a file's rows; none where it has none, or a row has none."""
    import pyarrow as pa

    for name in LABELS:
        if name in file.schema_arrow.names and pa.types.is_integer(
            file.schema_arrow.field(name).type
        ):
            found = file.read(columns=[name], use_threads=False).column(0)
            return [] if found.null_count else found.to_pylist()
    return []


def _open(path: Path) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f"open_images: {path} is a parquet file and the package pyarrow is not installed: "
            "run pip install 'lddgan_kernels[parquet]'"
        ) from error
    return pq.ParquetFile(path)
