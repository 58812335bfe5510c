"""Where every value of a network lives, and the C function that calls its kernels in order.

Activations share one workspace: a value's place is free again after its last reader has run.
Weights and biases are one read-only block, packed as each kernel reads them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bignas.compile.codegen import pack_weights, symbol_of
from bignas.compile.graph import INPUT, Call, FallbackCall, KernelGraph
from bignas.compile.schedule import Schedule
from bignas.device_db.errors import InputError

__all__ = ["Plan", "make_plan"]

ALIGNMENT = 16  # float32 values, 64 bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """A network ready to be linked: C source of its call sequence, weights, bytes of workspace."""

    source: str
    weights: bytes
    workspace_bytes: int


def make_plan(graph: KernelGraph, schedules: Sequence[Schedule | None], lanes: int) -> Plan:
    """Return the plan of a network; `lanes` of the target's vectors.

    There is one schedule a call, and none where the call is a fallback.
    """
    places, floats = _place_values(graph)
    blocks: list[np.ndarray] = []
    size = 0

    def append(values: np.ndarray) -> str:
        nonlocal size
        if values.size == 0:
            return "0"
        start = size
        padded = np.zeros(_aligned(values.size), np.float32)
        padded[: values.size] = values
        blocks.append(padded)
        size += padded.size
        return f"w + {start}"

    def value(name: str) -> str:
        return INPUT if name == INPUT else f"m + {places[name]}"

    declarations: list[str] = []
    lines: list[str] = []
    for call, schedule in zip(graph.calls, schedules, strict=True):
        if isinstance(call, FallbackCall):
            kernel = call.kernel
            arguments = [
                append(call.constants[name].astype(np.float32).ravel())
                if name in call.constants
                else value(name)
                for name in call.operands
            ]
            arguments += [value(name) for name, _ in _areas(call)]
            declarations.append(
                _declaration(kernel.symbol, len(call.operands), len(kernel.scratch))
            )
            lines.append(f"    {kernel.symbol}({', '.join(arguments)});  /* {kernel.key} */")
            continue
        if schedule is None:
            raise InputError(f"no schedule for {call.workload.key}")
        symbol = symbol_of(call.workload, schedule)
        declarations.append(_declaration(symbol, 4, 0))
        packed = np.zeros(0, np.float32)
        if call.weights is not None:
            packed = pack_weights(call.workload, schedule, lanes, call.weights)
        has_bias = call.weights is not None
        arguments = [
            value(call.input),
            append(packed),
            append(call.bias) if has_bias else "0",
            value(call.other) if call.other else "0",
            value(call.output),
        ]
        lines.append(f"    {symbol}({', '.join(arguments)});  /* {call.workload.key} */")
    weights = np.concatenate(blocks) if blocks else np.zeros(ALIGNMENT, np.float32)
    source = _source(graph, declarations, lines, places[graph.calls[-1].output], floats * 4)
    return Plan(source, weights.tobytes(), floats * 4)


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def _areas(call: Call) -> list[tuple[str, int]]:
    """Return name and size of what a call writes: its output, then a fallback's scratch."""
    areas = [(call.output, _aligned(call.output_floats))]
    if isinstance(call, FallbackCall):
        for index, size in enumerate(call.kernel.scratch):
            areas.append((f"{call.output}.scratch{index}", _aligned(size)))
    return areas


def _place_values(graph: KernelGraph) -> tuple[dict[str, int], int]:
    """First fit over lifetimes: return the offset of each value and the size of the workspace."""
    last_use = {name: index for index, call in enumerate(graph.calls) for name, _ in _areas(call)}
    for index, call in enumerate(graph.calls):
        for name in call.reads:
            if name != INPUT:
                last_use[name] = index
    places: dict[str, int] = {}
    live: list[tuple[int, int, str]] = []  # (offset, size, value), sorted
    total = 0
    for index, call in enumerate(graph.calls):
        live = [entry for entry in live if last_use[entry[2]] >= index]
        for name, size in _areas(call):
            offset = 0
            for start, length, _ in sorted(live):
                if offset + size <= start:
                    break
                offset = max(offset, start + length)
            places[name] = offset
            live.append((offset, size, name))
            total = max(total, offset + size)
    return places, total


def _declaration(symbol: str, operands: int, scratch: int) -> str:
    arguments = ", ".join(["const float *"] * operands + ["float *"] * (1 + scratch))
    return f"void {symbol}({arguments});"


def _source(
    graph: KernelGraph,
    declarations: Sequence[str],
    lines: Sequence[str],
    output: int,
    workspace: int,
) -> str:
    channels, height, width = graph.input_shape
    return "\n".join(
        [
            "/* The kernels of one network in the order in which they run. */",
            '#include "bignas.h"',
            "#include <string.h>",
            "",
            '__asm__(".section .rodata\\n"',
            '        ".balign 64\\n"',
            '        "bignas_weights:\\n"',
            '        ".incbin \\"weights.bin\\"\\n"',
            '        ".previous\\n");',
            'extern const float w[] __asm__("bignas_weights")',
            '    __attribute__((visibility("hidden")));',
            "",
            *dict.fromkeys(declarations),
            "void bignas_network(const float *input, float *output, float *m);",
            "",
            f"size_t bignas_input_floats(void) {{ return {channels * height * width}; }}",
            f"size_t bignas_output_floats(void) {{ return {graph.output_size}; }}",
            f"size_t bignas_workspace_bytes(void) {{ return {workspace}; }}",
            "",
            "void bignas_network(const float *input, float *output, float *m) {",
            *lines,
            f"    memcpy(output, m + {output}, {graph.output_size} * sizeof(float));",
            "}",
            "",
        ]
    )
