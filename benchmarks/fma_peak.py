"""What the processor can do at most: multiply-adds a second with a target's vectors.

    python benchmarks/fma_peak.py

A small C program keeps independent chains of fused multiply-adds in registers, long enough to hide
their latency; it uses the target's widest vectors and runs once on each core at the same time.
x86-64-v2 has no fused multiply-add: there each chain multiplies, then adds.
"""

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bignas.compile.inverted_bottleneck import parts_of
from bignas.compile.toolchain import link_program
from bignas.device_db.errors import TargetError
from bignas.device_db.presets import PRESETS
from bignas.device_db.probe import probe_local
from bignas.device_db.target import MachineArchitecture, Target
from bignas.device_db.workload import Operator, Workload

__all__ = ["needed_macs", "peak_gmacs"]

MILLISECONDS = 300


@dataclass(frozen=True, slots=True)
class Vectors:
    """GCC's names for the vectors of an instruction set."""

    feature: str
    kind: str
    prefix: str
    multiply_add: str


X86_VECTORS: Mapping[int, Vectors] = {  # by lanes
    4: Vectors("sse4.2", "__m128", "_mm", "_mm_add_ps(_mm_mul_ps(x, a), b)"),
    8: Vectors("avx2,fma", "__m256", "_mm256", "_mm256_fmadd_ps(x, a, b)"),
    16: Vectors("avx512f", "__m512", "_mm512", "_mm512_fmadd_ps(x, a, b)"),
}

SOURCE = r"""
#define _GNU_SOURCE
#include <immintrin.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CHAINS = 12, STEPS = 20000, LANES = sizeof(VECTOR) / sizeof(float) };

static volatile float scale = 0.999f, shift = 0.001f, sink;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

__attribute__((target(FEATURE), noinline)) static void work(void) {
    VECTOR a = SET1(scale), b = SET1(shift), chains[CHAINS];
    for (int i = 0; i < CHAINS; i++) chains[i] = SET1(shift * i);
    for (int step = 0; step < STEPS; step++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) { VECTOR x = chains[i]; chains[i] = MULTIPLY_ADD; }
    }
    float last[LANES];
    for (int i = 0; i < CHAINS; i++) { STORE(last, chains[i]); sink += last[0]; }
}

/* Gigamacs a second: the best stretch within the time. */
static double best(double limit) {
    double most = 0.0;
    for (double end = seconds() + limit; seconds() < end;) {
        double start = seconds();
        work();
        double rate = (double)CHAINS * STEPS * LANES / (seconds() - start) * 1e-9;
        if (rate > most) most = rate;
    }
    return most;
}

/* Arguments: milliseconds, then the cores. */
int main(int count, char **arguments) {
    int ends[2];
    if (pipe(ends)) return 1;
    for (int i = 2; i < count; i++) {
        pid_t child = fork();
        if (child < 0) return 1;
        if (child == 0) {
            cpu_set_t core;
            CPU_ZERO(&core);
            CPU_SET(atoi(arguments[i]), &core);
            sched_setaffinity(0, sizeof core, &core);
            double rate = best(atof(arguments[1]) * 1e-3);
            return write(ends[1], &rate, sizeof rate) != sizeof rate;
        }
    }
    double sum = 0.0, rate;
    for (int i = 2; i < count; i++) {
        int status;
        if (wait(&status) < 0 || status) return 1;
        if (read(ends[0], &rate, sizeof rate) != sizeof rate) return 1;
        sum += rate;
    }
    printf("%.3f\n", sum);
    return 0;
}
"""


def peak_gmacs(target: Target, cores: Sequence[int], milliseconds: int = MILLISECONDS) -> float:
    """Return 10^9 float32 multiply-adds a second that these cores together can do at most.

    Raises:
        TargetError: the target is no x86-64 one.
        ToolchainError: the C compiler is missing or fails.
        CalledProcessError: the processor cannot run the target's instructions.
    """
    if target.architecture is not MachineArchitecture.X86_64:
        raise TargetError(f"the peak is measured on x86-64 only, not on {target.architecture}")
    vectors = X86_VECTORS[target.vector_lanes]
    defined = {
        "FEATURE": f'"{vectors.feature}"',
        "VECTOR": vectors.kind,
        "SET1": f"{vectors.prefix}_set1_ps",
        "STORE": f"{vectors.prefix}_storeu_ps",
        "MULTIPLY_ADD": vectors.multiply_add,
    }
    head = "".join(f"#define {name} {value}\n" for name, value in defined.items())
    with tempfile.TemporaryDirectory(prefix="bignas-peak-") as folder:
        program = Path(folder) / "peak"
        program.write_bytes(link_program({"peak.c": (head + SOURCE).encode()}, target))
        program.chmod(0o755)
        command = [str(program), str(milliseconds), *map(str, cores)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout)


def needed_macs(workload: Workload) -> int:
    """Return the multiply-adds of a kernel without those on padding, which it may leave out.

    On small images with wide windows they are many, so that the share of the peak reckoned with
    `Workload.macs`, which counts them as published figures do, could exceed one.
    """
    if workload.operator is Operator.INVERTED_BOTTLENECK:
        return sum(needed_macs(layer) for layer in parts_of(workload))
    window = workload.kernel * workload.kernel * workload.out_height * workload.out_width
    taps = [
        sum(
            0 <= output * workload.stride - workload.padding + tap < size
            for output in range(outputs)
            for tap in range(workload.kernel)
        )
        for size, outputs in (
            (workload.height, workload.out_height),
            (workload.width, workload.out_width),
        )
    ]
    return workload.macs // window * taps[0] * taps[1]


def main() -> None:
    """Print the peak of this machine's x86-64 levels for each number of threads."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    here = probe_local().target
    names = [name for name in PRESETS if name.startswith("x86-64") and name <= here.cpu]
    cores = sorted(os.sched_getaffinity(0), reverse=True)
    peaks = {
        name: [peak_gmacs(PRESETS[name], cores[:count]) for count in range(1, len(cores) + 1)]
        for name in names
    }
    print(json.dumps({"gmacs_by_threads": peaks}, indent=1))


if __name__ == "__main__":
    main()
