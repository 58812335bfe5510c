"""Trained supernets on disk: one safetensors file with the weights and all that explains them.

Format 1: tensors by the names of `Supernet.state_dict`, float32, or float16 where a small file
matters more than their last digits; they are float32 once they are read. The header's metadata has
one key, "bignas", whose text is a JSON object (one key, because the order of several is not
reproducible). Equal checkpoints have equal bytes. Nothing is ever unpickled.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bignas.device_db.errors import CheckpointError, SpaceError
from bignas.device_db.files import write_atomically
from bignas.supernet.data import ImageData
from bignas.supernet.network import Supernet
from bignas.supernet.space import SearchSpace

__all__ = [
    "Checkpoint",
    "Start",
    "load_checkpoint",
    "read_checkpoint",
    "read_tensors",
    "save_checkpoint",
    "shipped_checkpoints",
    "shipped_folder",
    "write_tensors",
]

_FORMAT = 1
_KIND = "supernet"
_HEADER = "bignas"
_SUFFIX = ".safetensors"
_STORED = (torch.float32, torch.float16)


@dataclass(frozen=True)
class Start:
    """Weights that training went on from: their digest, and the epochs they were trained for."""

    digest: str
    epochs: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A supernet and what it was trained on.

    `mean` and `std` belong to the weights: images are normalised by them, whatever the data.
    `config` is the training configuration in JSON form. `step` counts optimizer steps and
    `epochs_done` complete epochs, those of `start` not included.
    """

    space: SearchSpace
    weights: Mapping[str, Tensor] = field(repr=False)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    data_name: str
    data_digest: str
    step: int
    epochs_done: int
    config: Mapping[str, Any]
    start: Start | None = None

    @property
    def all_epochs(self) -> int:
        """Complete epochs, those of the weights it started from included."""
        return self.epochs_done + (self.start.epochs if self.start else 0)

    def network(self) -> Supernet:
        """The supernet with these weights; CheckpointError when they do not fit the space."""
        network = Supernet(self.space)
        expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
        found = {name: tensor.shape for name, tensor in self.weights.items()}
        if expected != found:
            wrong = sorted(
                name
                for name in expected.keys() | found.keys()
                if expected.get(name) != found.get(name)
            )
            raise CheckpointError(
                f"the weights do not fit space {self.space.name!r}, for example {wrong[0]}"
            )
        for name, tensor in self.weights.items():
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"weight {name} holds values that are not finite")
        network.load_state_dict(dict(self.weights))
        return network.requires_grad_(False)

    @functools.cached_property
    def digest(self) -> str:
        """Hash of all that decides what its children answer: space, normalisation and weights."""
        digest = hashlib.sha256(self.space.digest.encode())
        digest.update(json.dumps([self.mean, self.std]).encode())
        for name in sorted(self.weights):
            digest.update(f"{name} {tuple(self.weights[name].shape)}".encode())
            digest.update(self.weights[name].detach().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def align(self, data: ImageData) -> ImageData:
        """Return data normalised as these weights expect it; CheckpointError as `check_data`."""
        self.check_data(data)
        return dataclasses.replace(data, mean=self.mean, std=self.std)

    def check_data(self, data: ImageData) -> None:
        """Raise CheckpointError unless `data` has the classes this supernet was trained for."""
        if data.classes != self.classes:
            raise CheckpointError(
                f"the supernet was trained for the {len(self.classes)} classes of"
                f" {self.data_name!r}, data {data.name!r} has {len(data.classes)} others"
            )


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, halved: bool = False) -> None:
    """Write atomically; OutputError when the file cannot be written.

    `halved` rounds the weights to float16, half the size; CheckpointError when one is too large.
    """
    description = {
        "space": checkpoint.space.to_dict(),
        "mean": list(checkpoint.mean),
        "std": list(checkpoint.std),
        "classes": list(checkpoint.classes),
        "data_name": checkpoint.data_name,
        "data_digest": checkpoint.data_digest,
        "step": checkpoint.step,
        "epochs_done": checkpoint.epochs_done,
        "config": dict(checkpoint.config),
    }
    if checkpoint.start is not None:
        description["start"] = checkpoint.start.to_dict()
    weights = checkpoint.weights
    if halved:
        weights = {name: tensor.half() for name, tensor in weights.items()}
        if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
            raise CheckpointError(f"{path}: there are weights that are too large for float16")
    write_tensors(path, _KIND, weights, description)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; CheckpointError when it is missing, corrupt, foreign or newer."""
    weights, description = read_tensors(path, _KIND)
    try:
        return Checkpoint(
            SearchSpace.from_dict(description["space"]),
            weights,
            tuple(float(value) for value in description["mean"]),
            tuple(float(value) for value in description["std"]),
            tuple(str(name) for name in description["classes"]),
            str(description["data_name"]),
            str(description["data_digest"]),
            int(description["step"]),
            int(description["epochs_done"]),
            dict(description["config"]),
            _start_of(description.get("start")),
        )
    except (KeyError, TypeError, ValueError, SpaceError) as error:
        raise CheckpointError(f"{path} has a malformed description: {error}") from None


def _start_of(value: Mapping[str, Any] | None) -> Start | None:
    return None if value is None else Start(str(value["digest"]), int(value["epochs"]))


def load_checkpoint(name_or_path: str | Path) -> tuple[Supernet, Checkpoint]:
    """Load a shipped supernet by name, or a checkpoint file. Raises CheckpointError."""
    known = shipped_checkpoints()
    if name_or_path in known:
        with resources.as_file(shipped_folder() / f"{name_or_path}{_SUFFIX}") as path:
            checkpoint = read_checkpoint(path)
    else:
        checkpoint = read_checkpoint(Path(name_or_path))
    try:
        return checkpoint.network(), checkpoint
    except CheckpointError as error:
        raise CheckpointError(f"{name_or_path}: {error}") from None


def shipped_checkpoints() -> tuple[str, ...]:
    """Names of the supernets that ship with the package, sorted."""
    folder = shipped_folder()
    if not folder.is_dir():
        return ()
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)))


def shipped_folder() -> Traversable:
    """The folder of the shipped supernets and what belongs to them; it may not exist."""
    return resources.files("bignas.supernet") / "shipped"


def write_tensors(
    path: Path, kind: str, tensors: Mapping[str, Tensor], description: Mapping[str, Any]
) -> None:
    """Write tensors and a JSON description atomically; OutputError when that fails."""
    header = {"kind": kind, "format": _FORMAT, **description}
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    metadata = {_HEADER: json.dumps(header, sort_keys=True)}
    write_atomically(path, safetensors.torch.save(plain, metadata))


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote as that kind, as float32.

    Raises CheckpointError when it is anything else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint {path}{_known()}") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from None
    try:
        description = json.loads(metadata.get(_HEADER, "null"))
    except ValueError:
        description = None
    if not isinstance(description, dict) or description.get("kind") != kind:
        raise CheckpointError(f"{path} is not a bignas {kind}")
    version = description.get("format")
    if version != _FORMAT:
        raise CheckpointError(
            f"{path} has format {version}, this version of bignas reads format {_FORMAT}"
        )
    if any(tensor.dtype not in _STORED for tensor in tensors.values()):
        raise CheckpointError(f"{path} holds weights that are neither float32 nor float16")
    return {name: tensor.float() for name, tensor in tensors.items()}, description


def _known() -> str:
    names = shipped_checkpoints()
    return f": give a file or one of {', '.join(names)}" if names else ": give a file"
