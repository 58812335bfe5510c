"""A target: what code is generated for, as a frozen value that validates itself."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from bignas.device_db.checks import digest_of, exact_keys, member_of, text_of, texts_of
from bignas.device_db.errors import TargetError

__all__ = ["MachineArchitecture", "Target"]


class MachineArchitecture(StrEnum):
    """Processor families that code can be generated for."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"
    ARM = "arm"
    RISCV64 = "riscv64"


# Vector registers: (lanes of float32, number of registers). On x86-64 the CPU name gives the level,
# features raise or lower it.
_SSE, _AVX2, _AVX512 = (4, 16), (8, 16), (16, 32)
_X86_CPUS = {
    **dict.fromkeys(("x86-64-v3", "haswell", "broadwell", "skylake", "alderlake"), _AVX2),
    **dict.fromkeys(("znver1", "znver2", "znver3"), _AVX2),
    **dict.fromkeys(("x86-64-v4", "skylake-avx512", "cascadelake", "cooperlake"), _AVX512),
    **dict.fromkeys(("icelake-client", "icelake-server", "sapphirerapids"), _AVX512),
    **dict.fromkeys(("emeraldrapids", "graniterapids", "znver4", "znver5"), _AVX512),
}
_ARCHITECTURE_ALIASES = {
    "amd64": MachineArchitecture.X86_64,
    "arm64": MachineArchitecture.AARCH64,
    "armv7l": MachineArchitecture.ARM,
    "armv7a": MachineArchitecture.ARM,
    "armv7": MachineArchitecture.ARM,
    "armv8l": MachineArchitecture.ARM,
}
_TRIPLE = re.compile(r"[A-Za-z0-9_.]+(-[A-Za-z0-9_.]+)+")
_CPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_FEATURE = re.compile(r"[+-][A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Target:
    """What code is generated for: LLVM triple, processor name and features such as `+avx512f`.

    Features are kept sorted, so two targets that differ in their order only are equal.

    Raises:
        TargetError: malformed text, contradicting features or an unsupported architecture.
    """

    triple: str
    cpu: str
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _TRIPLE.fullmatch(self.triple):
            raise TargetError(
                f"malformed target triple {self.triple!r}, expected one like x86_64-linux-gnu"
            )
        if not _CPU.fullmatch(self.cpu):
            raise TargetError(f"malformed processor name {self.cpu!r}")
        for feature in self.features:
            if not _FEATURE.fullmatch(feature):
                raise TargetError(
                    f"malformed feature {feature!r}, expected one like +avx2 or -avx512f"
                )
        features = tuple(sorted(set(self.features)))
        if len({feature[1:] for feature in features}) != len(features):
            raise TargetError(f"features contradict each other: {', '.join(features)}")
        object.__setattr__(self, "features", features)
        _ = self.architecture

    @property
    def architecture(self) -> MachineArchitecture:
        """Processor family, from the first part of the triple."""
        name = self.triple.split("-", 1)[0].lower()
        if name in _ARCHITECTURE_ALIASES:
            return _ARCHITECTURE_ALIASES[name]
        return member_of(MachineArchitecture, "architecture", name, TargetError)

    @property
    def vector_lanes(self) -> int:
        """Float32 values that one vector register holds; 1 without vector instructions."""
        return self._vectors()[0]

    @property
    def vector_registers(self) -> int:
        """Number of vector registers that a kernel may use."""
        return self._vectors()[1]

    def _vectors(self) -> tuple[int, int]:
        match self.architecture:
            case MachineArchitecture.X86_64:
                return self._x86_vectors()
            case MachineArchitecture.AARCH64:
                return (4, 32)
            case MachineArchitecture.ARM:
                return (1, 16) if "-neon" in self.features else (4, 16)
            case MachineArchitecture.RISCV64:
                return (4, 32) if "+v" in self.features else (1, 32)

    def _x86_vectors(self) -> tuple[int, int]:
        level = _X86_CPUS.get(self.cpu, _SSE)
        if "+avx512f" in self.features:
            level = _AVX512
        elif "+avx2" in self.features:
            level = max(level, _AVX2)
        if "-avx512f" in self.features:
            level = min(level, _AVX2)
        if "-avx2" in self.features or "-avx" in self.features:
            level = _SSE
        return level

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits, the same on every machine for equal targets."""
        return digest_of(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, one a field."""
        return {"triple": self.triple, "cpu": self.cpu, "features": list(self.features)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the target that `to_dict` was called on.

        Raises:
            TargetError: a missing or unknown key, or a value of the wrong type.
        """
        values = exact_keys(cls, data, TargetError)
        return cls(
            triple=text_of("triple", values["triple"], TargetError),
            cpu=text_of("cpu", values["cpu"], TargetError),
            features=texts_of("features", values["features"], TargetError),
        )

    def to_tvm(self) -> dict[str, Any]:
        """Return the dictionary that `tvm.target.Target` takes."""
        target: dict[str, Any] = {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu}
        if self.features:
            target["mattr"] = list(self.features)
        return target
