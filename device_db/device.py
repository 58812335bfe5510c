"""A device: a machine that runs what is compiled for its target, at hand or remote."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from bignas.device_db.checks import digest_of, exact_keys, require_integer, text_of, texts_of
from bignas.device_db.errors import TargetError
from bignas.device_db.target import Target

__all__ = ["Device", "Remote"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HOST = re.compile(r"[A-Za-z0-9_.:%-]{1,253}")
_LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Remote:
    """Where a device is measured that is another machine: servers of TVM's RPC, found by a tracker.

    `host` and `port` are the tracker's, `key` is what the servers of the device registered with:
    machines with the same key count as the same device. `own_cache_bytes` is the size of one core's
    own (second-level) cache there.

    Raises:
        TargetError: a malformed host, port or key, or a size that is not positive.
    """

    host: str
    port: int
    key: str
    own_cache_bytes: int

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.host):
            raise TargetError(f"malformed host {self.host!r} of an RPC tracker")
        require_integer("the port of an RPC tracker", self.port, 1, TargetError)
        if self.port > _LAST_PORT:
            raise TargetError(f"the port of an RPC tracker is at most {_LAST_PORT}: {self.port}")
        if not _NAME.fullmatch(self.key):
            raise TargetError(
                f"malformed RPC key {self.key!r}: use letters, digits, dots, dashes and"
                " underscores, at most 100"
            )
        require_integer("own_cache_bytes", self.own_cache_bytes, 1, TargetError)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, one a field."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the access that `to_dict` was called on.

        Raises:
            TargetError: a missing or unknown key, or a value of the wrong type.
        """
        values = exact_keys(cls, data, TargetError)
        for name in ("host", "key"):
            text_of(name, values[name], TargetError)
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Device:
    """A machine that binaries run on: its target and the facts that latencies depend on.

    `threads` is the number of threads a binary uses on it; another number is another device. The
    name is also used in file names, so it is limited to letters, digits, dots, dashes, underscores.
    `remote` tells how a machine other than the one at hand is reached; how it is, does not make it
    another device.

    Raises:
        TargetError: a malformed name, or a number that is not positive.
    """

    name: str
    target: Target
    threads: int
    cpu_model: str
    cores: int
    memory_bytes: int
    instruction_sets: tuple[str, ...] = ()
    remote: Remote | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise TargetError(
                f"malformed device name {self.name!r}: use letters, digits, dots, dashes and"
                " underscores, at most 100"
            )
        for name in ("threads", "cores", "memory_bytes"):
            require_integer(name, getattr(self, name), 1, TargetError)

    @property
    def machine_digest(self) -> str:
        """Sixteen hexadecimal digits, equal for devices whose latencies may be compared."""
        return digest_of(
            {
                "target": self.target.to_dict(),
                "threads": self.threads,
                "cpu_model": self.cpu_model,
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, one a field."""
        return {
            "name": self.name,
            "target": self.target.to_dict(),
            "threads": self.threads,
            "cpu_model": self.cpu_model,
            "cores": self.cores,
            "memory_bytes": self.memory_bytes,
            "instruction_sets": list(self.instruction_sets),
            "remote": None if self.remote is None else self.remote.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the device that `to_dict` was called on.

        Raises:
            TargetError: a missing or unknown key, or a value of the wrong type.
        """
        values = exact_keys(cls, data, TargetError)
        if not isinstance(values["target"], Mapping):
            raise TargetError(f"target must be an object, got {values['target']!r}")
        values["target"] = Target.from_dict(values["target"])
        values["name"] = text_of("name", values["name"], TargetError)
        values["cpu_model"] = text_of("cpu_model", values["cpu_model"], TargetError)
        values["instruction_sets"] = texts_of(
            "instruction_sets", values["instruction_sets"], TargetError
        )
        if values["remote"] is not None:
            values["remote"] = Remote.from_dict(values["remote"])
        return cls(**values)
