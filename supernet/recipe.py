"""What BigNAS training does at a given step, as pure functions of (configuration, step).

Batches, augmentation and architectures are drawn from generators seeded with (seed, purpose,
step): training that resumes at step k draws exactly what it would have drawn without the stop, and
no generator state has to be saved.

Source: Yu et al., "BigNAS: Scaling Up Neural Architecture Search with Big Single-Stage Models",
ECCV 2020, section 3.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np

from bignas.device_db.errors import InputError
from bignas.supernet.architecture import Architecture
from bignas.supernet.data import Split
from bignas.supernet.space import SearchSpace

__all__ = [
    "Precision",
    "Regularize",
    "Schedule",
    "TrainConfig",
    "augment",
    "cut_out",
    "draw_architectures",
    "draw_batch",
    "generator",
    "learning_rate",
]


class Schedule(StrEnum):
    """How the learning rate falls after the warm-up."""

    EXPONENTIAL = "exponential"  # to a share of the start, where it is held: BigNAS
    COSINE = "cosine"  # to zero


class Regularize(StrEnum):
    """Which children label smoothing and dropout apply to."""

    BIGGEST = "biggest"  # BigNAS
    ALL = "all"


class Precision(StrEnum):
    """Of activations and products in training; weights and sums are float32."""

    AUTO = "auto"  # bfloat16 where that is faster, else float32
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Purpose(IntEnum):
    """What random numbers are drawn for."""

    ORDER = 0
    AUGMENT = 1
    ARCHITECTURES = 2
    DROPOUT = 3
    SUBSET = 4


# These say how training runs, not what it computes: they may change when training resumes.
_OPERATIONAL = frozenset(
    {
        "keep_memory",
        "threads",
        "save_every_steps",
        "save_every_seconds",
        "log_every_steps",
        "evaluate_every_epochs",
        "evaluate_images",
    }
)


@dataclass(frozen=True)
class TrainConfig:
    """Everything about a training run but the space and the data. Raises InputError."""

    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 0.1  # after the warm-up, for the summed gradients of all children
    orthogonal_rate: float = 0.0  # of dense weights, by orthogonalised momentum (BigNAS: 0, as all)
    warmup_epochs: float = 1.0  # linear, from zero
    schedule: Schedule = Schedule.EXPONENTIAL
    final_rate: float = 0.05  # exponential: share of the start at which the rate is held
    hold_epochs: float = 2.0  # exponential: so many last epochs at the final rate
    momentum: float = 0.9  # Nesterov
    weight_decay: float = 1e-4  # once a step, on convolution and classifier weights
    orthogonal_decay: float = 0.0  # of weights with an orthogonal rate, as a share of that rate
    keep_norms: bool = False  # dense weights before batch norms turn, by the orthogonal rate
    label_smoothing: float = 0.1
    dropout: float = 0.0  # before the classifier; small networks on small images do without
    regularize: Regularize = Regularize.BIGGEST
    gradient_clip: float = 5.0  # largest norm of the summed gradient
    sandwich: bool = True  # biggest, smallest and random children; else random children only
    random_children: int = 2  # a step; without the sandwich two more, for equal work
    distillation: bool = True  # all but the biggest learn from its outputs
    label_weight: float = 0.0  # share of the labels in the losses of those that distil (BigNAS: 0)
    label_epochs: float = 1.0  # but from the labels in so many first epochs (BigNAS: 0)
    average_decay: float = 0.0  # deliver a running average of the weights (BigNAS: 0, none)
    zero_gamma: bool = True  # blocks with a shortcut start silent
    whiten_stem: bool = False  # the stem starts with filters that whiten images (BigNAS: random)
    mirror: bool = True  # random mirror images, where the data allow
    crop_margin: float = 0.125  # random crops from images padded by this share of their side
    cutout: float = 0.0  # blacken a random square of this share of their side (BigNAS: 0, none)
    max_train_images: int | None = None  # train on a random subset of this size
    seed: int = 0
    precision: Precision = Precision.AUTO  # of activations and products
    fused: bool = True  # compiled training kernels where they apply, else torch's
    keep_memory: bool = True  # do not return freed memory to the system while training
    threads: int | None = None  # None: as many as there are processors
    save_every_steps: int = 500
    save_every_seconds: float = 60.0
    log_every_steps: int = 20
    evaluate_every_epochs: float = 1.0  # smallest, middle and biggest child; 0: never
    evaluate_images: int = 2000  # so many of the validation images

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", _member(Schedule, "schedule", self.schedule))
        object.__setattr__(self, "regularize", _member(Regularize, "regularize", self.regularize))
        object.__setattr__(self, "precision", _member(Precision, "precision", self.precision))
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise InputError(f"{name} must lie between {low:g} and {high:g}, not {value:g}")
        if not self.sandwich and (self.distillation or self.regularize is Regularize.BIGGEST):
            raise InputError(
                "without the sandwich rule no step has a biggest child: set distillation to false"
                " and regularize to all"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """The fields that decide the trained weights; those of a resumed run must be equal."""
        return {key: value for key, value in self.to_dict().items() if key not in _OPERATIONAL}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TrainConfig":
        """Read the JSON form; InputError names a key that is unknown or of another type."""
        known = dataclasses.asdict(cls())
        for key, value in data.items():
            if key not in known:
                raise InputError(f"unknown training option {key!r}")
            if not _is_of_kind(value, known[key]):
                raise InputError(f"training option {key} cannot be {value!r}")
        return cls(**data)


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("epochs", 1, 1_000_000),
    ("batch_size", 2, 65536),
    ("learning_rate", 1e-9, 1e9),
    ("orthogonal_rate", 0, 1e9),
    ("warmup_epochs", 0, 1_000_000),
    ("final_rate", 1e-6, 1),
    ("hold_epochs", 0, 1_000_000),
    ("label_weight", 0, 1),
    ("label_epochs", 0, 1_000_000),
    ("average_decay", 0, 0.999999),
    ("momentum", 1e-9, 0.9999),
    ("weight_decay", 0, 1),
    ("orthogonal_decay", 0, 1),
    ("label_smoothing", 0, 0.9),
    ("dropout", 0, 0.9),
    ("gradient_clip", 1e-6, 1e9),
    ("random_children", 0, 64),
    ("crop_margin", 0, 0.5),
    ("cutout", 0, 1),
    ("max_train_images", 2, 10**9),
    ("seed", 0, 2**63 - 1),
    ("threads", 1, 4096),
    ("save_every_steps", 1, 10**9),
    ("save_every_seconds", 0, 1e9),
    ("log_every_steps", 1, 10**9),
    ("evaluate_every_epochs", 0, 1_000_000),
    ("evaluate_images", 1, 10**9),
)


def generator(config: TrainConfig, purpose: Purpose, count: int) -> np.random.Generator:
    """The generator of one purpose at one step (or epoch)."""
    return np.random.default_rng((config.seed, int(purpose), count))


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Rate of `step` (from 0): linear warm-up, then the schedule."""
    total = config.epochs * steps_per_epoch
    warmup = min(config.warmup_epochs * steps_per_epoch, total / 2)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    if config.schedule is Schedule.COSINE:
        share = (step - warmup) / max(1.0, total - warmup)
        return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))
    hold = min(config.hold_epochs * steps_per_epoch, (total - warmup) / 2)
    share = min(1.0, (step - warmup) / max(1.0, total - warmup - hold))
    return float(config.learning_rate * config.final_rate**share)


def draw_batch(
    config: TrainConfig, train: Split, step: int, mirrorable: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Augmented images, uint8 [batch, H, W, 3], and labels of `step`.

    Every epoch goes through the images in a new order; what does not fill a batch is left out.
    """
    epoch, position = divmod(step, len(train) // config.batch_size)
    order = generator(config, Purpose.ORDER, epoch).permutation(len(train))
    chosen = order[position * config.batch_size : (position + 1) * config.batch_size]
    rng = generator(config, Purpose.AUGMENT, step)
    images = augment(train.images[chosen], rng, config.crop_margin, config.mirror and mirrorable)
    return cut_out(images, rng, config.cutout), train.labels[chosen]


def augment(
    images: np.ndarray, rng: np.random.Generator, margin: float, mirror: bool
) -> np.ndarray:
    """Random crops of padded images, uint8 [N, H, W, 3], half of them mirrored if `mirror`."""
    count, height, width, _ = images.shape
    pad = round(margin * min(height, width))
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows = rng.integers(0, 2 * pad + 1, (count, 1)) + np.arange(height)
    columns = rng.integers(0, 2 * pad + 1, (count, 1)) + np.arange(width)
    if mirror:
        mirrored = rng.random((count, 1)) < 0.5
        columns = np.where(mirrored, columns[:, ::-1], columns)
    cropped: np.ndarray = padded[
        np.arange(count)[:, None, None], rows[:, :, None], columns[:, None]
    ]
    return cropped


def cut_out(images: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """Images, uint8 [N, H, W, 3], each with a black square somewhere, of a share of their side.

    The centre of the square lies anywhere in the image, so that part of it may be outside.

    Source: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with
    Cutout", 2017.
    """
    count, height, width, _ = images.shape
    side = round(share * min(height, width))
    if not side:
        return images
    top = rng.integers(0, height, (count, 1)) - side // 2
    left = rng.integers(0, width, (count, 1)) - side // 2
    rows, columns = np.arange(height), np.arange(width)
    inside_rows = (rows >= top) & (rows < top + side)
    inside_columns = (columns >= left) & (columns < left + side)
    inside = inside_rows[:, :, None, None] & inside_columns[:, None, :, None]
    return np.where(inside, np.uint8(0), images)


def draw_architectures(config: TrainConfig, space: SearchSpace, step: int) -> list[Architecture]:
    """The children of `step`; with the sandwich rule the biggest is first, the smallest second.

    Where the space holds a single architecture it is the only child: it is trained alone.
    """
    if space.size() == 1:
        return [space.biggest()]
    rng = generator(config, Purpose.ARCHITECTURES, step)
    if not config.sandwich:
        return [space.sample(rng) for _ in range(config.random_children + 2)]
    drawn = [space.sample(rng) for _ in range(config.random_children)]
    return [space.biggest(), space.smallest(), *drawn]


def _is_of_kind(value: object, default: object) -> bool:
    """Whether an option may have this value; those without a default are integers."""
    if default is None:
        return value is None or (isinstance(value, int) and not isinstance(value, bool))
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, str):
        return isinstance(value, str)
    return type(value) is type(default)


def _member(kind: type[StrEnum], name: str, value: str) -> StrEnum:
    try:
        return kind(value)
    except ValueError:
        raise InputError(f"{name} must be one of {', '.join(kind)}, not {value!r}") from None
