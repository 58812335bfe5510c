"""Fallback kernels: operators that no template of ours computes, as TVM's own loop nests.

A fallback is a value like a `Workload`: it can be compared, hashed and stored without TVM. Its
`code` is the text of the loop nest in TVM's tensor IR, and decides everything about it; the name of
the operator is for people. In C it is a function of pointers to float32,

    void kernel(const float *operand0, ..., float *output, float *scratch0, ...);

whose scratch areas are places in the network's workspace: nothing is allocated when it runs.
"""

import hashlib
import math
from dataclasses import dataclass

__all__ = ["FALLBACK", "FallbackKernel"]

FALLBACK = "fallback"  # in the place of a schedule, wherever kernels are listed


@dataclass(frozen=True, slots=True)
class FallbackKernel:
    """One operator by TVM's own scheduling.

    `output_shape` is the logical one, such as [1, channels, height, width]; `scratch` holds the
    number of values of each scratch area.
    """

    operator: str
    operands: int
    output_shape: tuple[int, ...]
    scratch: tuple[int, ...]
    code: str

    @property
    def digest(self) -> str:
        """Twenty hexadecimal digits, the same on every machine for equal code."""
        return hashlib.sha256(self.code.encode()).hexdigest()[:20]

    @property
    def key(self) -> str:
        """Text that names the kernel in a manifest: `fallback-max_pool2d-1x64x56x56-0123...`."""
        shape = "x".join(map(str, self.output_shape))
        return f"{FALLBACK}-{self.operator}-{shape}-{self.digest}"

    @property
    def symbol(self) -> str:
        """The C symbol of the kernel, the same on every machine."""
        return f"bignas_f_{self.digest}"

    @property
    def output_floats(self) -> int:
        """Number of values of the output."""
        return math.prod(self.output_shape)
