"""Images for training, calibration, validation and test, and the one way they enter a network.

Decisions
- Everything is decoded once into uint8 arrays; augmentation and resizing work on whole batches.
  The arrays are kept in the cache folder, under the hash of the undecoded images, so that later
  commands on the same data start at once. A folder whose files look as they did (size, times) is
  not even read again: its images are known by the listing.
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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.nn import functional

from bignas.device_db.errors import DataError
from bignas.supernet.array_cache import CachedArrays, read_arrays, write_arrays

if TYPE_CHECKING:
    from bignas.supernet.stored_images import StoredSplit

__all__ = ["DIGITS", "ImageData", "Split", "SplitName", "load_data", "preprocess"]

DIGITS = "digits"
_CACHE = "data"
_LISTINGS = "data-listings"
_DECODING = "1"  # to be changed when the same files are decoded or split in another way
_DIGITS_SIDE = 32
_SPLIT_SEED = 20200824
_MOST_VALIDATION = 5000
_MOST_CALIBRATION = 2048
_FEWEST_TRAINING = 10
_CHUNK = 2048  # images handled at once where whole arrays would need much memory


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
    name, folder = Path(name_or_folder).name or name_or_folder, _folder(name_or_folder)
    listing = None if folder is None else _listing(folder)
    known = None if listing is None else read_arrays(_LISTINGS, listing)
    data = None if known is None else _from_cache(name, str(known.description.get("key")))
    if data is not None:
        return data

    # takes seconds to import
    from bignas.supernet.stored_images import common_side, read_stored  # noqa: PLC0415

    sources = read_stored(name_or_folder if folder is None else str(folder), name_or_folder)
    key = _fingerprint(sources)
    data = _from_cache(name, key)
    if data is None:
        train = sources["train"]
        side = common_side(train, name_or_folder)
        _require_memory(sum(source.table.num_rows for source in sources.values()), side)
        splits = {split: Split(*stored.decode(split, side)) for split, stored in sources.items()}
        data = _assemble(name, splits, train.classes, mirrorable=True)
        _to_cache(data, key)
    if folder is not None and listing is not None and _is_complete(folder, sources):
        write_arrays(_LISTINGS, listing, CachedArrays({}, {"key": key}))
    return data


def _folder(name_or_folder: str) -> Path | None:
    """The folder of that name, None for a hub name; DataError for what can be neither."""
    folder = Path(name_or_folder).expanduser()
    if folder.is_dir():
        return folder
    looks_like_path = name_or_folder.count("/") > 1 or name_or_folder.startswith((".", "/", "~"))
    if looks_like_path or folder.exists() or not name_or_folder:
        raise DataError(
            f"no data folder {name_or_folder!r}: give {DIGITS!r}, a hub name or a folder of images"
            " or parquet files"
        )
    return None


def _is_complete(folder: Path, sources: Mapping[str, "StoredSplit"]) -> bool:
    """Whether all images lie in the folder; those of a table may lie elsewhere."""
    files = {path for source in sources.values() for path in source.files()}
    inside = folder.resolve()
    return all(Path(path).resolve().is_relative_to(inside) for path in files)


def _listing(folder: Path) -> str | None:
    """Identify a folder by how its files look, unread; None where linked folders hide some."""
    digest = hashlib.sha256(f"{_DECODING} {folder.resolve()}".encode())
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and path.is_dir():
            return None
        with suppress(OSError):  # reading it says what is wrong with it
            status = path.stat()
            times = (status.st_mtime_ns, status.st_ctime_ns)
            digest.update(repr((str(path), status.st_size, *times)).encode())
    return digest.hexdigest()


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
    key = hashlib.sha256(f"{_DECODING} {DIGITS} {version('scikit-learn')}".encode()).hexdigest()
    data = _from_cache(DIGITS, key)
    if data is not None:
        return data

    from sklearn.datasets import load_digits  # noqa: PLC0415 - takes a second to import

    raw = load_digits()
    small = torch.from_numpy(np.asarray(raw.images, dtype=np.float32))[:, None] * (255.0 / 16.0)
    size = (_DIGITS_SIDE, _DIGITS_SIDE)
    large = functional.interpolate(small, size, mode="bilinear", align_corners=False)
    images = large.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
    everything = Split(images.contiguous().numpy(), np.asarray(raw.target, dtype=np.int64))
    is_test = np.arange(len(everything)) % 5 == 4
    splits = {"train": everything.take(~is_test), "test": everything.take(is_test)}
    data = _assemble(DIGITS, splits, tuple(map(str, range(10))), mirrorable=False)
    _to_cache(data, key)
    return data


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


def _fingerprint(sources: Mapping[str, "StoredSplit"]) -> str:
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
            mirrorable=description["mirrorable"],
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
        "mirrorable": data.mirrorable,
        "calibration": _digest(data.classes, (data.calibration,)),
    }
    write_arrays(_CACHE, key, CachedArrays(arrays, description))


def _require_memory(count: int, side: int) -> None:
    needed = count * side * side * 3
    if needed > psutil.virtual_memory().available:
        raise DataError(
            f"{count} images of {side}x{side} pixels need {needed / 2**30:.1f} GiB of memory,"
            " more than is free: use fewer or smaller images"
        )
