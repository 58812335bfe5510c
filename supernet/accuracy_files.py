"""Where accuracy predictors are kept: beside the checkpoint they are about."""

from pathlib import Path

from bignas.device_db.errors import InputError
from bignas.supernet.accuracy import AccuracyPredictor
from bignas.supernet.checkpoint import Checkpoint, shipped_checkpoints, shipped_folder

__all__ = [
    "accuracy_path",
    "find_accuracy_predictor",
    "load_accuracy_predictor",
    "read_accuracy_predictor",
]

_CHECKPOINT_SUFFIX = ".safetensors"
_SUFFIX = ".accuracy.json"


def accuracy_path(name_or_path: str | Path) -> Path:
    """The file of a checkpoint's predictor: beside a shipped supernet, or beside the file.

    net.safetensors has net.accuracy.json.
    """
    path = Path(name_or_path)
    if name_or_path in shipped_checkpoints():
        path = Path(str(shipped_folder())) / name_or_path
    return path.with_name(path.name.removesuffix(_CHECKPOINT_SUFFIX) + _SUFFIX)


def read_accuracy_predictor(path: Path) -> AccuracyPredictor:
    """Read a predictor; InputError, naming the file, when it is missing or no such file."""
    try:
        return AccuracyPredictor.from_bytes(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"cannot read the accuracy predictor {path}: {error.strerror or error};"
            f" `bignas accuracy fit` makes one"
        ) from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def load_accuracy_predictor(
    path: Path, checkpoint: Checkpoint, data_digest: str
) -> AccuracyPredictor:
    """Read the predictor of a checkpoint and data.

    Raises InputError when there is none, or it is about other weights or data.
    """
    predictor = read_accuracy_predictor(path)
    if not predictor.matches(checkpoint.digest, data_digest):
        raise InputError(
            f"the accuracy predictor {path} is about other weights or data; run"
            " `bignas accuracy fit` again, or move it away"
        )
    return predictor


def find_accuracy_predictor(
    name_or_path: str | Path, checkpoint: Checkpoint, data_digest: str
) -> AccuracyPredictor | None:
    """The predictor beside a checkpoint; None where there is none about these weights and data.

    Raises InputError when the file beside it is damaged.
    """
    path = accuracy_path(name_or_path)
    if not path.exists():
        return None
    predictor = read_accuracy_predictor(path)
    return predictor if predictor.matches(checkpoint.digest, data_digest) else None
