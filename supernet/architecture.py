"""Architectures: one child network of a search space, as plain frozen values."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from bignas.device_db.errors import ArchitectureError

__all__ = ["Architecture", "StageChoice"]


@dataclass(frozen=True, slots=True)
class StageChoice:
    """One stage of an architecture. Raises ArchitectureError unless all are positive integers."""

    channels: int
    depth: int
    kernel: int
    expand: int

    def __post_init__(self) -> None:
        for name in ("channels", "depth", "kernel", "expand"):
            _check_positive(name, getattr(self, name))


@dataclass(frozen=True)
class Architecture:
    """One child network: its input resolution in pixels and the width, depth and kernels inside.

    Raises ArchitectureError for values that no space could hold; whether a particular space holds
    it is the question of `SearchSpace.check`.
    """

    resolution: int
    stem_channels: int
    stages: tuple[StageChoice, ...]
    head_channels: int

    def __post_init__(self) -> None:
        for name in ("resolution", "stem_channels", "head_channels"):
            _check_positive(name, getattr(self, name))
        if not self.stages or not all(isinstance(stage, StageChoice) for stage in self.stages):
            raise ArchitectureError("stages must be a list of at least one stage")

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as architecture files hold it."""
        return {
            "resolution": self.resolution,
            "stem_channels": self.stem_channels,
            "stages": [dataclasses.asdict(stage) for stage in self.stages],
            "head_channels": self.head_channels,
        }

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Read the JSON form back; ArchitectureError names the key that is wrong."""
        fields = _exact_keys(data, cls, "architecture")
        stages = fields["stages"]
        if not isinstance(stages, list):
            raise ArchitectureError("stages must be a list of at least one stage")
        choices = []
        for index, stage in enumerate(stages):
            values = _exact_keys(stage, StageChoice, f"stages[{index}]")
            try:
                choices.append(StageChoice(**values))
            except ArchitectureError as error:
                raise ArchitectureError(f"stages[{index}].{error}") from None
        return cls(**{**fields, "stages": tuple(choices)})

    @functools.cached_property
    def key(self) -> str:
        """Canonical JSON text: equal architectures have equal keys."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))


def _exact_keys(data: object, kind: type[Any], what: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise ArchitectureError(f"{what} must be a JSON object, not {type(data).__name__}")
    known = [item.name for item in dataclasses.fields(kind)]
    for key in data:
        if key not in known:
            raise ArchitectureError(f"{what}: unknown key {key!r}, known: {', '.join(known)}")
    for key in known:
        if key not in data:
            raise ArchitectureError(f"{what}: key {key!r} is missing")
    return dict(data)


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArchitectureError(f"{name} must be a positive integer, not {value!r}")
