"""Where fitted latency predictors are kept: one file for each search space and device."""

import os
from pathlib import Path

from platformdirs import user_data_dir

from bignas.device_db.device import Device
from bignas.device_db.errors import InputError
from bignas.latency.evidence import evidence_hash, runtime_version
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.recording import space_label
from bignas.supernet.space import SearchSpace

__all__ = ["load_predictor", "predictor_path", "save_predictor"]

CLASSES = 10  # the classifier's width says nothing about which predictor fits


def predictor_path(space: SearchSpace, device: Device) -> Path:
    """Return the file of a predictor, in $BIGNAS_DATA or the user folder."""
    root = Path(os.environ.get("BIGNAS_DATA") or user_data_dir("bignas"))
    return root / "predictors" / f"{space_label(space.with_classes(CLASSES))}-{device.name}.json"


def save_predictor(predictor: LatencyPredictor, device: Device) -> Path:
    """Write a predictor where `load_predictor` finds it, and return the path."""
    path = predictor_path(predictor.space, device)
    predictor.save(path)
    return path


def load_predictor(space: SearchSpace, device: Device) -> LatencyPredictor:
    """Return the fitted predictor of a space and device.

    Raises:
        InputError: there is none yet, or it is stale; the message names the command to run.
    """
    path = predictor_path(space, device)
    if not path.exists():
        raise InputError(
            f"no latency predictor for space {space.name!r} on device {device.name!r} yet; run"
            f" `bignas profile SPACE --device {device.name}`, then"
            f" `bignas predictor fit SPACE --device {device.name}`"
        )
    predictor = LatencyPredictor.load(path)
    predictor.check_matches(
        space, device.name, evidence_hash(), device.machine_digest, runtime_version()
    )
    return predictor.for_space(space)
