"""Accuracies of supernets' children in the store, found by what they were evaluated with.

An accuracy is a pure function of weights, images and architecture, so unlike a latency it belongs
to no device, and is looked up instead of evaluated again.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from bignas.device_db.rows import canonical
from bignas.device_db.schema import ACCURACIES

__all__ = ["EvaluationSetting", "find_accuracies", "insert_accuracies"]


@dataclass(frozen=True, slots=True)
class EvaluationSetting:
    """What children were evaluated with. Raises ValueError when a number makes no sense.

    `weights` is the digest of a checkpoint, `data` that of a data set; `images` of `split` were
    classified after the batch norms had seen `calibration_images`.
    """

    weights: str
    data: str
    split: str
    images: int
    calibration_images: int

    def __post_init__(self) -> None:
        if self.images < 1 or self.calibration_images < 1:
            raise ValueError("an evaluation needs images, and others to calibrate with")


def find_accuracies(connection: Connection, setting: EvaluationSetting) -> dict[str, int]:
    """Numbers of correctly classified images, by the key of the architecture."""
    columns = ACCURACIES.c
    query = sql.select(columns.architecture, columns.correct).where(
        *(columns[name] == value for name, value in asdict(setting).items())
    )
    return {row.architecture: row.correct for row in connection.execute(query)}


def insert_accuracies(
    connection: Connection, setting: EvaluationSetting, correct: Mapping[str, int]
) -> None:
    """Insert what is not known yet; `correct` as in `find_accuracies`."""
    known = find_accuracies(connection, setting)
    rows = [
        {
            **asdict(setting),
            "architecture": key,
            "correct": count,
            "digest": _digest(setting, key),
        }
        for key, count in correct.items()
        if key not in known
    ]
    if rows:
        connection.execute(sql.insert(ACCURACIES), rows)


def _digest(setting: EvaluationSetting, key: str) -> str:
    content = canonical({**asdict(setting), "architecture": key})
    return hashlib.sha256(content.encode()).hexdigest()[:32]
