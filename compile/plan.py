"""Where every value of a network lives, and the C function that calls its kernels in order.

Activations share one workspace: a value's place is free again after its last reader has run.
Weights and biases are one read-only block, packed as each kernel reads them, but for those that the
program transforms before its first run, into memory of its own.

With several threads, every kernel is computed by all of them, each its share of the kernel's tasks;
a barrier stands wherever a kernel reads what another thread may have written.

A network with probes notes the time before each of its calls and after the last one: so kernels are
measured where they run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bignas.compile.graph import INPUT, Call, FallbackCall, KernelCall, KernelGraph
from bignas.compile.kernel_identity import symbol_of
from bignas.compile.packing import count_read, pack_weights
from bignas.compile.schedule import Schedule, column_groups, task_count
from bignas.compile.winograd import positions_of
from bignas.device_db.errors import InputError
from bignas.device_db.workload import BYTES_PER_VALUE, Workload

__all__ = ["MOST_THREADS", "Plan", "make_plan"]

MOST_THREADS = 64  # as in runner/pool.h
ALIGNMENT = 16  # float32 values, 64 bytes
# Kernels have arrays on the stack; where that starts is chance else, another one in each process.
_STACK_AT_PAGE = ("    _Alignas(4096) volatile char page[1] = {0};", "    (void)page;")


@dataclass(frozen=True, slots=True)
class Plan:
    """A network ready to be linked: C source of its call sequence, weights, bytes of workspace.

    `prepared_bytes` are those of transformed weights.
    """

    source: str
    weights: bytes
    workspace_bytes: int
    prepared_bytes: int
    probed: bool = False


def make_plan(
    graph: KernelGraph,
    schedules: Sequence[Schedule | None],
    lanes: int,
    threads: int = 1,
    *,
    probed: bool = False,
) -> Plan:
    """Return the plan of a network for `threads` threads; `lanes` of the target's vectors.

    There is one schedule a call, and none where the call is a fallback. A `probed` one tells when
    each call started.

    Raises:
        InputError: more threads than a network can have, or a kernel without a schedule.
    """
    if threads > MOST_THREADS:
        raise InputError(f"a network has at most {MOST_THREADS} threads, not {threads}")
    places, floats = _place_values(graph, threads)
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

    steps: list[_Step] = []
    prepared = _PreparedWeights(lanes)
    for call, schedule in zip(graph.calls, schedules, strict=True):
        if isinstance(call, FallbackCall):
            kernel = call.kernel
            arguments = [
                append(call.constants[name].astype(np.float32).ravel())
                if name in call.constants
                else value(name)
                for name in call.operands
            ]
            arguments += [value(name) for name, _ in _areas(call, threads)]
            steps.append(_Step(kernel.symbol, kernel.key, arguments, len(call.operands)))
            continue
        if schedule is None:
            raise InputError(f"no schedule for {call.workload.key}")
        packed = np.zeros(0, np.float32)
        if call.weights is not None:
            packed = pack_weights(call.workload, schedule, lanes, call.weights)
        stored = append(packed)
        has_bias = call.weights is not None
        scratch = _aligned(call.workload.scratch_count)
        other = value(call.other) if call.other else "0"
        if scratch:
            other = f"m + {places[_scratch_name(call)]} + (size_t)part * {scratch}"
        arguments = [
            value(call.input),
            prepared.add(call.workload, schedule, stored) if schedule.winograd_side else stored,
            append(call.bias) if has_bias else "0",
            other,
            value(call.output),
        ]
        symbol = symbol_of(call.workload, schedule)
        tasks = task_count(call.workload, schedule, lanes)
        steps.append(_Step(symbol, call.workload.key, arguments, 3, tasks))
    weights = np.concatenate(blocks) if blocks else np.zeros(ALIGNMENT, np.float32)
    output, workspace_bytes = places[graph.calls[-1].output], floats * BYTES_PER_VALUE
    source = _source(graph, steps, prepared, output, workspace_bytes, threads, probed)
    prepared_bytes = prepared.floats * BYTES_PER_VALUE
    return Plan(source, weights.tobytes(), workspace_bytes, prepared_bytes, probed)


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True)
class _Step:
    """One call in C; the first `constant` arguments are only read. A fallback has no tasks."""

    symbol: str
    key: str
    arguments: Sequence[str]
    constant: int
    tasks: int = 0

    @property
    def declaration(self) -> str:
        pointers = ["const float *"] * self.constant
        pointers += ["float *"] * (len(self.arguments) - self.constant)
        ends = ["int", "int"] if self.tasks else []
        return f"void {self.symbol}({', '.join([*pointers, *ends])});"

    def call(self, first: str = "0", last: str | None = None) -> str:
        """Return the call of the tasks from `first` to `last`, all of them if nothing is said."""
        ends = [first, last or str(self.tasks)] if self.tasks else []
        return f"{self.symbol}({', '.join([*self.arguments, *ends])});"


class _PreparedWeights:
    """Weights that are transformed before the first run: where they stand, and the C of that."""

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self._groups: list[str] = []
        self.floats = 0

    def add(self, workload: Workload, schedule: Schedule, stored: str) -> str:
        """Find a place for the weights of a kernel; return it in C."""
        place, side = self.floats, schedule.winograd_side
        from_, to = 0, place
        for _, width in column_groups(workload.out_channels, self._lanes, schedule.vectors):
            values = workload.in_channels * width
            self._groups.append(f"    {{{stored} + {from_}, t + {to}, {values}, {side}}},")
            from_ += values * workload.kernel**2
            to += values * positions_of(side)
        self.floats += _aligned(count_read(workload, schedule))
        return f"t + {place}"

    @property
    def declarations(self) -> list[str]:
        """C lines before the function of the network."""
        if not self.floats:
            return []
        return [
            '#include "winograd.h"',
            f"static _Alignas({ALIGNMENT * BYTES_PER_VALUE}) float t[{self.floats}];",
            "static const struct winograd_weights prepared[] = {",
            *self._groups,
            "};",
            "",
        ]

    @property
    def preparation(self) -> list[str]:
        """C lines at the start of it."""
        if not self.floats:
            return []
        return [
            "    static int state;",
            f"    winograd_prepare(&state, prepared, {len(self._groups)});",
        ]


def _scratch_name(call: KernelCall) -> str:
    return f"{call.output}.scratch"


def _areas(call: Call, threads: int) -> list[tuple[str, int]]:
    """Return name and size of what a call writes: its output, then scratch areas."""
    areas = [(call.output, _aligned(call.output_floats))]
    if isinstance(call, FallbackCall):
        for index, size in enumerate(call.kernel.scratch):
            areas.append((f"{call.output}.scratch{index}", _aligned(size)))
    elif call.workload.scratch_count:
        areas.append((_scratch_name(call), _aligned(call.workload.scratch_count) * threads))
    return areas


def _place_values(graph: KernelGraph, threads: int) -> tuple[dict[str, int], int]:
    """First fit over lifetimes: return the offset of each value and the size of the workspace."""
    last_use = {
        name: index for index, call in enumerate(graph.calls) for name, _ in _areas(call, threads)
    }
    for index, call in enumerate(graph.calls):
        for name in call.reads:
            if name != INPUT:
                last_use[name] = index
    places: dict[str, int] = {}
    live: list[tuple[int, int, str]] = []  # (offset, size, value), sorted
    total = 0
    for index, call in enumerate(graph.calls):
        live = [entry for entry in live if last_use[entry[2]] >= index]
        for name, size in _areas(call, threads):
            offset = 0
            for start, length, _ in sorted(live):
                if offset + size <= start:
                    break
                offset = max(offset, start + length)
            places[name] = offset
            live.append((offset, size, name))
            total = max(total, offset + size)
    return places, total


def _source(
    graph: KernelGraph,
    steps: Sequence[_Step],
    prepared: _PreparedWeights,
    output: int,
    workspace: int,
    threads: int,
    probed: bool,
) -> str:
    channels, height, width = graph.input_shape
    copy = f"memcpy(output, m + {output}, {graph.output_size} * sizeof(float));"
    if threads > 1:
        body = _parallel(steps, prepared, copy, threads, probed)
    else:
        body = _serial(steps, prepared, copy, probed)
    return "\n".join(
        [
            "/* The kernels of one network in the order in which they run. */",
            *(['#include "probes.h"'] if probed else []),
            '#include "bignas.h"',
            *(['#include "pool.h"'] if threads > 1 else []),
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
            *prepared.declarations,
            *dict.fromkeys(step.declaration for step in steps),
            "void bignas_network(const float *input, float *output, float *m);",
            "",
            f"size_t bignas_input_floats(void) {{ return {channels * height * width}; }}",
            f"size_t bignas_output_floats(void) {{ return {graph.output_size}; }}",
            f"size_t bignas_workspace_bytes(void) {{ return {workspace}; }}",
            "",
            *([f"BIGNAS_PROBES({len(steps) + 1})", ""] if probed else []),
            *body,
        ]
    )


def _serial(
    steps: Sequence[_Step], prepared: _PreparedWeights, copy: str, probed: bool
) -> list[str]:
    lines: list[str] = []
    for number, step in enumerate(steps):
        lines += _probe(number, probed)
        lines.append(f"    {step.call()}  /* {step.key} */")
    return [
        "void bignas_network(const float *input, float *output, float *m) {",
        *prepared.preparation,
        "    enum { part = 0 };",
        *_STACK_AT_PAGE,
        *lines,
        *_probe(len(steps), probed),
        f"    {copy}",
        "}",
        "",
    ]


def _probe(number: int, probed: bool) -> list[str]:
    """Return the C line that notes when a call starts, on the first thread."""
    return [f"    if (part == 0) bignas_probe({number});"] if probed else []


def _parallel(
    steps: Sequence[_Step], prepared: _PreparedWeights, copy: str, threads: int, probed: bool
) -> list[str]:
    lines: list[str] = []
    divided = False  # whether the step before ran on all threads
    for number, step in enumerate(steps):
        if step.tasks > 1:
            if number:
                lines.append("    pool_barrier(call);")
            lines += _probe(number, probed)
            share = "pool_share({}, part{}, call)"
            first, last = (share.format(step.tasks, end) for end in ("", " + 1"))
            lines.append(f"    {step.call(first, last)}  /* {step.key} */")
        else:
            if divided:
                lines.append("    pool_barrier(call);")
            lines += _probe(number, probed)
            lines.append(f"    if (part == 0) {step.call()}  /* {step.key} */")
        divided = step.tasks > 1
    if divided and probed:  # else pool_run waits for all parts
        lines.append("    pool_barrier(call);")
    lines += _probe(len(steps), probed)
    return [
        "struct values {",
        "    const float *input;",
        "    float *output, *m;",
        "};",
        "",
        "static void compute(void *argument, int part, struct pool_call *call) {",
        "    const struct values *values = argument;",
        "    const float *input = values->input;",
        "    float *output = values->output, *m = values->m;",
        *_STACK_AT_PAGE,
        *lines,
        "}",
        "",
        "void bignas_network(const float *input, float *output, float *m) {",
        *prepared.preparation,
        "    struct values values = {input, output, m};",
        f"    pool_run(compute, &values, {threads});",
        f"    {copy}",
        "}",
        "",
    ]
