"""Data sets as they are stored, undecoded: hub names, image folders, Parquet.

In a module of its own, as the libraries that read them take seconds to import.
"""

import hashlib
import io
import math
import statistics
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError
from pyarrow import compute

from bignas.device_db.errors import DataError
from bignas.device_db.messages import first_line

__all__ = ["StoredSplit", "common_side", "read_stored"]

_LARGEST_SIDE = 320
_CHUNK = 2048  # images that a thread decodes at a time
_ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


class _Hashing(io.RawIOBase):
    """A file that only hashes what is written."""

    def __init__(self, digest: "hashlib._Hash") -> None:
        super().__init__()
        self._digest = digest

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return len(data)


@dataclass(frozen=True, eq=False)
class StoredSplit:
    """One undecoded split: table, the names of its two columns, and the class names."""

    origin: str
    table: Any  # pa.Table, which ships no types
    image_column: str
    label_column: str
    classes: tuple[str, ...]

    def add_to(self, digest: "hashlib._Hash") -> None:
        """Hash the undecoded images and labels; of images in files, how those look."""
        digest.update(repr((self.image_column, self.label_column, self.classes)).encode())
        table = self.table.select([self.image_column, self.label_column])
        table = table.replace_schema_metadata(None)
        with pa.ipc.new_stream(pa.PythonFile(_Hashing(digest), mode="w"), table.schema) as stream:
            stream.write_table(table)
        for path in self.files():
            with suppress(OSError):  # decoding says what is wrong with it
                status = Path(path).stat()
                digest.update(repr((path, status.st_size, status.st_mtime_ns)).encode())

    def files(self) -> list[str]:
        """The files of images that are not stored in the table itself."""
        content = self.table.column(self.image_column)
        elsewhere = compute.is_null(compute.struct_field(content, "bytes"))
        paths = compute.struct_field(content, "path").filter(elsewhere).to_pylist()
        return [path for path in paths if path]

    def open(self, row: Mapping[str, Any] | None, index: int) -> Image.Image:
        """Open an image without decoding it."""
        where = f"image {index} of {self.origin}"
        content = row or {}
        data, path = content.get("bytes"), content.get("path")
        try:
            if data is not None:
                image = Image.open(io.BytesIO(data))
            elif path:
                image = Image.open(io.BytesIO(Path(path).read_bytes()))
            else:
                raise DataError(f"{where} is empty")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise DataError(f"{where} cannot be read: {first_line(error)}") from None
        if image.mode not in ("RGB", "L"):
            raise DataError(
                f"{where} has mode {image.mode}: only RGB and greyscale images can be used,"
                " convert it"
            )
        return image

    def rows(self) -> list[Mapping[str, Any] | None]:
        """The stored images, as {"bytes", "path"}."""
        rows: list[Mapping[str, Any] | None] = self.table.column(self.image_column).to_pylist()
        return rows

    def decode(self, name: str, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Images, uint8 [N, side, side, 3], decoded in parallel, and labels, int64 [N]."""
        labels = self.table.column(self.label_column)
        if labels.null_count:
            raise DataError(f"{self.origin}: an image of split {name} has no label")
        rows = self.rows()
        images = np.empty((len(rows), side, side, 3), dtype=np.uint8)

        def work(start: int) -> None:
            for index in range(start, min(start + _CHUNK, len(rows))):
                images[index] = self._pixels(rows[index], index, side)

        with ThreadPoolExecutor() as pool:
            for _ in pool.map(work, range(0, len(rows), _CHUNK)):
                pass
        return images, labels.to_numpy().astype(np.int64)

    def _pixels(self, row: Mapping[str, Any] | None, index: int, side: int) -> np.ndarray:
        image = self.open(row, index)
        try:
            image = image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(
                f"image {index} of {self.origin} is corrupt: {first_line(error)}"
            ) from None
        if image.size != (side, side):
            width, height = image.size
            edge = min(width, height)
            left, top = (width - edge) // 2, (height - edge) // 2
            box = (left, top, left + edge, top + edge)
            image = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
        return np.asarray(image)


def read_stored(location: str, origin: str) -> dict[str, StoredSplit]:
    """The splits of a folder or hub name by our names, undecoded; errors tell of `origin`."""
    try:
        with _without_progress_bars():
            found = datasets.load_dataset(location)
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        datasets.exceptions.DatasetsError,
        pa.ArrowException,
    ) as error:
        raise DataError(f"cannot load data {origin!r}: {first_line(error)}") from None
    sources = {}
    for name, aliases in _ALIASES.items():
        present = [alias for alias in aliases if alias in found and found[alias].num_rows]
        if present:
            sources[name] = _source(found[present[0]], f"{origin} ({present[0]})")
    if "train" not in sources:
        raise DataError(f"data {origin!r} has no split 'train', only: {', '.join(found)}")
    for name, source in sources.items():
        if source.classes != sources["train"].classes:
            raise DataError(f"data {origin!r}: {name} has other classes than train")
    return sources


def _source(split: Any, origin: str) -> StoredSplit:
    images = [key for key, kind in split.features.items() if isinstance(kind, datasets.Image)]
    labels = {
        key: kind for key, kind in split.features.items() if isinstance(kind, datasets.ClassLabel)
    }
    columns = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in split.features.items())
    if not images:
        raise DataError(f"{origin} has no image column, only: {columns}")
    if len(images) > 1:
        raise DataError(f"{origin} has several image columns, keep one of: {', '.join(images)}")
    if not labels:
        raise DataError(f"{origin} has no class column (ClassLabel), only: {columns}")
    label = max(labels, key=lambda key: labels[key].num_classes)  # the finest, if there are several
    table = split.with_format("arrow")[:]
    return StoredSplit(origin, table, images[0], label, tuple(map(str, labels[label].names)))


def common_side(source: StoredSplit, origin: str) -> int:
    """The median shorter side of the images of a split in pixels, or the largest side allowed."""
    sizes = [source.open(row, index).size for index, row in enumerate(source.rows())]
    if not sizes:
        raise DataError(f"data {origin!r} has no training images")
    return min(_LARGEST_SIDE, math.floor(statistics.median(min(size) for size in sizes)))


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    if datasets.utils.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
