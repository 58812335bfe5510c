"""Images for training, calibration, validation and test, and the one way they enter a network.

Decisions
- Everything is decoded once into uint8 arrays; augmentation and resizing work on whole batches.
  The arrays are kept in the cache folder, under the hash of the undecoded images, so that later
  commands on the same data start at once.
- `preprocess` is the only path from an image to a network's input. Training, evaluation, export
  and the checks of binaries call it.
- Validation and calibration images are carved from the training images with a fixed seed, so that
  nothing is selected on the images that are reported. Where a data set brings a validation split
  and no test split, that split is the test split; where it brings neither, both are carved.
- If the training images differ in size or are not square, each is cropped to its central square
  and resized to their median shorter side, at most 320 pixels. All splits follow the training
  images.
"""

import hashlib
import io
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import pyarrow as pa
import torch
from PIL import Image, UnidentifiedImageError
from pyarrow import compute
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from bignas.device_db.errors import DataError
from bignas.supernet.array_cache import CachedArrays, read_arrays, write_arrays

__all__ = ["DIGITS", "ImageData", "Split", "SplitName", "load_data", "preprocess"]

DIGITS = "digits"
_CACHE = "data"
_DECODING = "1"  # to be changed when the same files are decoded or split in another way
_DIGITS_SIDE = 32
_SPLIT_SEED = 20200824
_MOST_VALIDATION = 5000
_MOST_CALIBRATION = 2048
_FEWEST_TRAINING = 10
_LARGEST_SIDE = 320
_CHUNK = 2048  # images handled at once where whole arrays would need much memory
_ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


class SplitName(StrEnum):
    """The splits of `ImageData`."""

    TRAIN = "train"
    CALIBRATION = "calibration"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True, eq=False)
class Split:
    """Images, uint8 [N, H, W, 3], and their class indices, int64 [N]. Raises DataError."""

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[3] != 3:
            raise DataError("images must be uint8 arrays of shape [N, height, width, 3]")
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError("labels must be one int64 for each image")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Split":
        """The images at `indices`, copied."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set in memory.

    `mean` and `std` are those of the training images, per channel, on a scale from 0 to 1.
    `mirrorable` tells whether a mirrored image still shows its class (a digit does not). `digest`
    identifies classes, images and labels of all splits.
    """

    name: str
    train: Split
    calibration: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    mirrorable: bool = True

    def __post_init__(self) -> None:
        for name in SplitName:
            labels = self.split(name).labels
            if len(labels) == 0:
                raise DataError(f"data {self.name!r} has no {name} images")
            if labels.min() < 0 or labels.max() >= len(self.classes):
                raise DataError(
                    f"data {self.name!r}: a {name} label lies outside 0 to {len(self.classes) - 1}"
                )

    def split(self, name: str) -> Split:
        """The split of that name; DataError lists the names."""
        if name not in list(SplitName):
            raise DataError(f"no split {name!r}, there are: {', '.join(SplitName)}")
        split: Split = getattr(self, name)
        return split


def load_data(name_or_folder: str) -> ImageData:
    """Load "digits", a folder that `datasets` can read (parquet or image folder), or a hub name.

    The image column and the class column are found by their types. Greyscale images become RGB.
    Raises DataError in one line for a missing folder, no image or class column, images of other
    modes, corrupt images, labels out of range, and sets that do not fit into memory.
    """
    if name_or_folder == DIGITS:
        return _digits()
    sources = _read(name_or_folder)
    key = _fingerprint(sources)
    name = Path(name_or_folder).name or name_or_folder
    cached = _from_cache(name, key)
    if cached is not None:
        return cached
    train = sources["train"]
    side = _common_side(train, name_or_folder)
    _require_memory(sum(source.table.num_rows for source in sources.values()), side)
    splits = {name: source.decode(name, side) for name, source in sources.items()}
    data = _assemble(name, splits, train.classes, mirrorable=True)
    _to_cache(data, key)
    return data


def preprocess(
    images: np.ndarray, resolution: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Float32 input [N, 3, resolution, resolution] of images, uint8 [N, H, W, 3].

    Images of another size are resized (bilinear, antialiased). Then the mean is subtracted and the
    result divided by the standard deviation, channel by channel. The same images give the same
    values, in any batch.
    """
    x = torch.from_numpy(np.array(images, copy=True)).permute(0, 3, 1, 2).to(torch.float32)
    if tuple(x.shape[2:]) != (resolution, resolution):
        size = (resolution, resolution)
        x = functional.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
    shift = torch.tensor([255.0 * value for value in mean]).view(1, -1, 1, 1)
    scale = torch.tensor([1.0 / (255.0 * value) for value in std]).view(1, -1, 1, 1)
    x = x.sub_(shift).mul_(scale)
    return x.contiguous(memory_format=torch.channels_last)


def _digits() -> ImageData:
    """Scikit-learn's 1,797 handwritten digits, enlarged from 8x8; every fifth is a test image."""
    raw = load_digits()
    small = torch.from_numpy(np.asarray(raw.images, dtype=np.float32))[:, None] * (255.0 / 16.0)
    size = (_DIGITS_SIDE, _DIGITS_SIDE)
    large = functional.interpolate(small, size, mode="bilinear", align_corners=False)
    images = large.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
    everything = Split(images.contiguous().numpy(), np.asarray(raw.target, dtype=np.int64))
    is_test = np.arange(len(everything)) % 5 == 4
    splits = {"train": everything.take(~is_test), "test": everything.take(is_test)}
    return _assemble(DIGITS, splits, tuple(map(str, range(10))), mirrorable=False)


def _assemble(
    name: str, splits: Mapping[str, Split], classes: tuple[str, ...], *, mirrorable: bool
) -> ImageData:
    """Carve the missing splits and describe the result."""
    train, validation, test = splits["train"], splits.get("validation"), splits.get("test")
    if test is None:
        test, validation = validation, None
    if len(train) < _FEWEST_TRAINING:
        raise DataError(
            f"data {name!r} has {len(train)} training images, at least {_FEWEST_TRAINING} are"
            " needed"
        )
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(train))
    held_out = min(_MOST_VALIDATION, len(train) // 10)
    if validation is None:
        validation, order = train.take(np.sort(order[:held_out])), order[held_out:]
    if test is None:
        test, order = train.take(np.sort(order[:held_out])), order[held_out:]
    calibration = train.take(order[:_MOST_CALIBRATION])
    train = train.take(np.sort(order)) if len(order) < len(train) else train
    mean, std = _moments(train.images)
    digest = _digest(classes, (train, validation, test))
    return ImageData(
        name, train, calibration, validation, test, classes, mean, std, digest, mirrorable
    )


def _moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, exact, from the histogram of each channel."""
    counts = np.zeros((3, 256))
    for start in range(0, len(images), _CHUNK):
        pixels = images[start : start + _CHUNK].reshape(-1, 3)
        for channel in range(3):
            counts[channel] += np.bincount(pixels[:, channel], minlength=256)
    values = np.arange(256) / 255.0
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ values
    variance = (weights * (values - mean[:, None]) ** 2).sum(axis=1)
    std = np.maximum(np.sqrt(variance), 1.0 / 255.0)  # a constant channel must not divide by zero
    return tuple(map(float, mean)), tuple(map(float, std))


def _digest(classes: tuple[str, ...], splits: Sequence[Split]) -> str:
    digest = hashlib.sha256("\0".join(classes).encode())
    for split in splits:
        digest.update(repr(split.images.shape).encode())
        digest.update(np.ascontiguousarray(split.images).data)
        digest.update(np.ascontiguousarray(split.labels).data)
    return digest.hexdigest()


def _fingerprint(sources: Mapping[str, "_Source"]) -> str:
    """Identify undecoded splits, and the way they are decoded."""
    digest = hashlib.sha256(_DECODING.encode())
    for name, source in sources.items():
        digest.update(name.encode())
        source.add_to(digest)
    return digest.hexdigest()


def _from_cache(name: str, key: str) -> ImageData | None:
    """The data that were kept under that key, if they are what they were."""
    found = read_arrays(_CACHE, key)
    if found is None:
        return None
    try:
        splits = {
            split: Split(found.arrays[f"{split}.images"], found.arrays[f"{split}.labels"])
            for split in SplitName
        }
        description = found.description
        data = ImageData(
            name,
            splits[SplitName.TRAIN],
            splits[SplitName.CALIBRATION],
            splits[SplitName.VALIDATION],
            splits[SplitName.TEST],
            classes=tuple(description["classes"]),
            mean=tuple(description["mean"]),
            std=tuple(description["std"]),
            digest=description["digest"],
        )
        calibration_digest = description["calibration"]
    except (KeyError, TypeError, DataError):
        return None
    digest = _digest(data.classes, (data.train, data.validation, data.test))
    calibration = _digest(data.classes, (data.calibration,))
    intact = (digest, calibration) == (data.digest, calibration_digest)
    return data if intact else None


def _to_cache(data: ImageData, key: str) -> None:
    arrays: dict[str, np.ndarray] = {}
    for name in SplitName:
        arrays[f"{name}.images"] = data.split(name).images
        arrays[f"{name}.labels"] = data.split(name).labels
    description = {
        "classes": data.classes,
        "mean": data.mean,
        "std": data.std,
        "digest": data.digest,
        "calibration": _digest(data.classes, (data.calibration,)),
    }
    write_arrays(_CACHE, key, CachedArrays(arrays, description))


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
class _Source:
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
        content = table.column(self.image_column)
        outside = compute.is_null(compute.struct_field(content, "bytes"))
        for path in compute.struct_field(content, "path").filter(outside).to_pylist():
            with suppress(OSError, TypeError):  # decoding says what is wrong with it
                status = Path(path).stat()
                digest.update(repr((path, status.st_size, status.st_mtime_ns)).encode())

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
            raise DataError(f"{where} cannot be read: {_line(error)}") from None
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

    def decode(self, name: str, side: int) -> Split:
        """Decode all images to side x side pixels, in parallel."""
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
        return Split(images, labels.to_numpy().astype(np.int64))

    def _pixels(self, row: Mapping[str, Any] | None, index: int, side: int) -> np.ndarray:
        image = self.open(row, index)
        try:
            image = image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"image {index} of {self.origin} is corrupt: {_line(error)}") from None
        if image.size != (side, side):
            width, height = image.size
            edge = min(width, height)
            left, top = (width - edge) // 2, (height - edge) // 2
            box = (left, top, left + edge, top + edge)
            image = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
        return np.asarray(image)


def _read(name_or_folder: str) -> dict[str, _Source]:
    """The splits of a data set by our names, undecoded."""
    looks_like_path = name_or_folder.count("/") > 1 or name_or_folder.startswith((".", "/", "~"))
    folder = Path(name_or_folder).expanduser()
    if not folder.is_dir() and (looks_like_path or folder.exists() or not name_or_folder):
        raise DataError(
            f"no data folder {name_or_folder!r}: give {DIGITS!r}, a hub name or a folder of"
            " images or parquet files"
        )
    location = str(folder) if folder.is_dir() else name_or_folder
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
        raise DataError(f"cannot load data {name_or_folder!r}: {_line(error)}") from None
    sources = {}
    for name, aliases in _ALIASES.items():
        present = [alias for alias in aliases if alias in found and found[alias].num_rows]
        if present:
            sources[name] = _source(found[present[0]], f"{name_or_folder} ({present[0]})")
    if "train" not in sources:
        raise DataError(f"data {name_or_folder!r} has no split 'train', only: {', '.join(found)}")
    for name, source in sources.items():
        if source.classes != sources["train"].classes:
            raise DataError(f"data {name_or_folder!r}: {name} has other classes than train")
    return sources


def _source(split: Any, origin: str) -> _Source:
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
    return _Source(origin, table, images[0], label, tuple(map(str, labels[label].names)))


def _common_side(source: _Source, origin: str) -> int:
    sizes = [source.open(row, index).size for index, row in enumerate(source.rows())]
    if not sizes:
        raise DataError(f"data {origin!r} has no training images")
    return min(_LARGEST_SIDE, math.floor(statistics.median(min(size) for size in sizes)))


def _require_memory(count: int, side: int) -> None:
    needed = count * side * side * 3
    if needed > psutil.virtual_memory().available:
        raise DataError(
            f"{count} images of {side}x{side} pixels need {needed / 2**30:.1f} GiB of memory,"
            " more than is free: use fewer or smaller images"
        )


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


def _line(error: Exception) -> str:
    """The first line of a message, or the kind of error."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
