"""The protocol measures what it is given, whatever the others among it do."""

import dataclasses
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from bignas.compile.toolchain import link_shared_library
from bignas.device_db.errors import MeasurementError, ToolchainError
from bignas.device_db.files import cache_folder
from bignas.device_db.probe import LOCAL, probe_local
from bignas.device_db.workload import Operator, Workload
from bignas.latency import protocol
from bignas.latency.evidence import runtime_version
from bignas.latency.jobs import Job, KernelJob, NetworkJob, Settings
from bignas.latency.local import measure, measuring_cores
from bignas.latency.sentinels import (
    BESIDE_KERNELS,
    ESTABLISHED,
    FASTEST_CORE,
    FASTEST_ESTABLISHED,
    FORGET_SECONDS,
    LATEST,
    Sentinels,
    company_of,
    references_of,
)

QUICK = Settings(rounds=4, sample_us=20.0, stall_seconds=2.0)
WORKLOAD = Workload(Operator.SCALE, 4, 4, 16, 16)

KERNELS = """
#include <stddef.h>
#define KERNEL(name) \\
    void name(const float *in, const float *w, const float *b, const float *other, float *out); \\
    void name(const float *in, const float *w, const float *b, const float *other, float *out)

KERNEL(fast) {
    for (int i = 0; i < 256; i++) out[i] = in[i] * other[i % 16] + b[i % 16];
}
KERNEL(slow) {
    for (volatile int n = 0; n < 200; n++)
        for (int i = 0; i < 256; i++) out[i] = in[i] * other[i % 16] + b[i % 16];
}
KERNEL(invalid) { volatile float *volatile nowhere = NULL; *nowhere = 1.0f; }
KERNEL(illegal) { __builtin_trap(); }
KERNEL(endless) { for (volatile int n = 0; n == 0;) out[0] = in[0]; }
KERNEL(brittle) {
    static int calls;
    if (calls++ > 3) invalid(in, w, b, other, out);
    fast(in, w, b, other, out);
}

int bignas_run(const float *in, float *out, void *memory);
int bignas_run(const float *in, float *out, void *memory) { return 0; }
"""

NETWORK = """
#include <stddef.h>
int bignas_run(const float *in, float *out, void *memory);
size_t bignas_input_floats(void);
size_t bignas_output_floats(void);
size_t bignas_workspace_bytes(void);
size_t bignas_input_floats(void) { return 3000; }
size_t bignas_output_floats(void) { return 10; }
size_t bignas_workspace_bytes(void) { return 4096; }
int bignas_run(const float *in, float *out, void *memory) {
    if ((size_t)memory % 64) return -1;
    for (int i = 0; i < 3000; i++) ((float *)memory)[i % 1024] = in[i];
    for (int i = 0; i < 10; i++) out[i] = ((float *)memory)[i];
    return 0;
}
"""


PROBED = (
    NETWORK.replace("bignas_run(", "run(")
    + """
#define _POSIX_C_SOURCE 199309L
#include <time.h>
static double moments[4];
size_t bignas_probe_count(void);
const double *bignas_probe_moments(void);
size_t bignas_probe_count(void) { return 4; }
const double *bignas_probe_moments(void) { return moments; }
int bignas_run(const float *in, float *out, void *memory);
int bignas_run(const float *in, float *out, void *memory) {
    for (int step = 0; step < 4; step++) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        moments[step] = (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
        for (int i = 0; i < (step == 1 ? 30 : 1); i++)
            if (run(in, out, memory)) return -1;
    }
    return 0;
}
"""
)


def link(source: str, path: Path) -> Path:
    library = link_shared_library({"code.c": source.encode()}, (), probe_local().target)
    path.write_bytes(library)
    return path


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link(KERNELS, tmp_path_factory.mktemp("kernels") / "kernels.so")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link(NETWORK, tmp_path_factory.mktemp("networks") / "network.so")


def kernels(library: Path, *symbols: str) -> list[Job]:
    return [KernelJob(library, symbol, WORKLOAD) for symbol in symbols]


@pytest.mark.parametrize("rounds", [1, 7])
def test_every_job_gets_a_sample_a_round(rounds: int, library: Path, network: Path) -> None:
    jobs = [*kernels(library, "fast", "slow"), NetworkJob(network)]
    report = measure(jobs, Settings(rounds=rounds, sample_us=10.0))
    assert [len(one.samples_ns) for one in report.results] == [rounds] * 3
    assert all(one.error is None for one in report.results)
    assert all(sample > 0 for one in report.results for sample in one.samples_ns)
    assert report.rejected >= 0
    assert report.unsettled >= 0


def test_calls_of_a_network_with_probes_are_timed(network: Path, tmp_path: Path) -> None:
    probed = link(PROBED, tmp_path / "probed.so")
    report = measure([NetworkJob(network), NetworkJob(probed), NetworkJob(probed)], QUICK)
    assert report.results[0].steps_ns == ()
    for result in report.results[1:]:
        first, slow, last = result.steps_ns
        assert len(first) == len(slow) == len(last) == len(result.samples_ns) == QUICK.rounds
        assert statistics.median(slow) > 3 * max(map(statistics.median, (first, last)))
        sums = [sum(steps) for steps in zip(*result.steps_ns, strict=True)]
        assert sums == pytest.approx(result.samples_ns, abs=0.01)


def test_results_are_in_the_order_of_the_jobs(library: Path) -> None:
    names = ["fast", "slow", "fast", "slow", "fast"]
    report = measure(kernels(library, *names), QUICK)
    medians = [statistics.median(one.samples_ns) for one in report.results]
    assert max(medians[0::2]) < min(medians[1::2])


def test_a_library_may_be_anywhere(library: Path, network: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a  folder with spaces, % and ümläuts"
    folder.mkdir()
    for path in (library, network):
        (folder / path.name).write_bytes(path.read_bytes())
    jobs = [*kernels(folder / library.name, "fast"), NetworkJob(folder / network.name)]
    assert [one.error for one in measure(jobs, QUICK).results] == [None, None]


@pytest.mark.parametrize("symbol", ["invalid", "illegal"])
def test_a_crash_costs_only_the_kernel_that_crashes(symbol: str, library: Path) -> None:
    report = measure(kernels(library, "fast", symbol, "slow", symbol), QUICK)
    assert [len(one.samples_ns) for one in report.results] == [4, 0, 4, 0]
    assert "status" in str(report.results[1].error)
    assert "status" in str(report.results[3].error)


def test_a_hanging_kernel_is_ended(library: Path) -> None:
    start = time.monotonic()
    settings = Settings(rounds=2, sample_us=10.0, stall_seconds=0.7)
    report = measure(kernels(library, "fast", "endless"), settings)
    assert time.monotonic() - start < 30
    assert [len(one.samples_ns) for one in report.results] == [2, 0]
    assert "no progress" in str(report.results[1].error)
    assert not harnesses()


def test_what_is_missing_is_an_error_of_its_own(
    library: Path, network: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.so").write_text("no library", encoding="utf-8")
    jobs: list[Job] = [
        *kernels(library, "fast", "no_such_symbol"),
        *kernels(tmp_path / "missing.so", "fast"),
        *kernels(tmp_path / "text.so", "fast"),
        NetworkJob(library),
        NetworkJob(network),
    ]
    results = measure(jobs, QUICK).results
    assert [one.error is None for one in results] == [True, False, False, False, False, True]
    for result, named in zip(
        results[1:5], ["no_such_symbol", "missing.so", "text.so", "network library"], strict=True
    ):
        assert named in str(result.error)
        assert "\n" not in str(result.error)
        assert result.samples_ns == ()


def test_jobs_may_all_fail_or_be_none(library: Path) -> None:
    assert measure([], QUICK).results == ()
    results = measure(kernels(library, "invalid", "no_such_symbol"), QUICK).results
    assert all(one.error for one in results)


def test_a_crash_that_no_job_can_be_blamed_for_is_an_error(library: Path) -> None:
    with pytest.raises(MeasurementError, match="measuring process failed"):
        measure(kernels(library, "brittle"), Settings(rounds=3, sample_us=0.001))


def test_the_environment_is_recorded(library: Path) -> None:
    environment = measure(kernels(library, "fast"), QUICK).environment
    assert environment.affinity == measuring_cores(1)
    assert set(measuring_cores(1)) <= os.sched_getaffinity(0)
    assert environment.load_average >= 0
    assert 0 <= environment.steal_fraction <= 1
    assert environment.context_switches >= 0
    assert runtime_version()


def test_progress_counts_rounds(library: Path) -> None:
    seen: list[tuple[int, int]] = []
    measure(
        kernels(library, "fast"), QUICK, lambda done, total, rejected: seen.append((done, total))
    )
    assert seen == [(done, 4) for done in range(1, 5)]


def harnesses() -> list[psutil.Process]:
    return [
        one
        for one in psutil.Process().children(recursive=True)
        if one.status() != psutil.STATUS_ZOMBIE and one.name().startswith("harness-")
    ]


def test_an_interruption_ends_the_measuring_process(library: Path) -> None:
    def interrupt(done: int, total: int, rejected: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(kernels(library, "slow"), Settings(rounds=100_000, sample_us=500.0), interrupt)
    assert not harnesses()


def test_the_measuring_program_is_built_once(library: Path) -> None:
    measure(kernels(library, "fast"), QUICK)
    (program,) = cache_folder().glob("harness-*")
    before = program.stat()
    measure(kernels(library, "fast"), QUICK)
    assert program.stat().st_mtime_ns == before.st_mtime_ns
    assert os.access(program, os.X_OK)


def test_the_sentinels_are_not_computed_by_the_compiler(library: Path) -> None:
    """Two thousand dependent multiply-adds, 8,192 cache lines: both take longer than a tick."""
    measure(kernels(library, "fast"), QUICK)
    readings = json.loads(references_of(LOCAL, QUICK).read_text())
    assert readings["core_ns"] > 300
    assert min(readings["memory_ns"][BESIDE_KERNELS]) > 1000


def test_jobs_that_cannot_be_loaded_leave_the_references_alone(library: Path) -> None:
    measure(kernels(library, "fast"), QUICK)
    path = references_of(LOCAL, QUICK)
    before = Sentinels.recall(path, BESIDE_KERNELS)
    measure(kernels(library, "no_such_symbol"), QUICK)
    assert Sentinels.recall(path, BESIDE_KERNELS) == before != Sentinels()


def test_the_core_s_reference_stays_until_it_is_not_reached_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sentinels.json"
    clock = [1000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])

    def after(core_ns: float, memory_ns: float, reached: bool) -> Sentinels:
        found = Sentinels(core_ns, memory_ns)
        Sentinels.recall(path, BESIDE_KERNELS).remember(path, BESIDE_KERNELS, found, reached)
        return Sentinels.recall(path, BESIDE_KERNELS)

    assert Sentinels.recall(path, BESIDE_KERNELS) == Sentinels()
    assert after(100.0, 900.0, True) == Sentinels(100.0, 900.0, 1000.0, 1)
    assert after(99.9, 900.0, True) == Sentinels(100.0, 900.0, 1000.0, 2)  # rounded
    assert after(100.0, 0.0, True) == Sentinels(100.0, 900.0, 1000.0, 3)  # nothing used the memory
    clock[0] += FORGET_SECONDS / 2
    assert after(170.0, 900.0, False) == Sentinels(100.0, 900.0, 1000.0, 3)  # a neighbour
    clock[0] += FORGET_SECONDS
    assert after(170.0, 900.0, False) == Sentinels(170.0, 900.0, clock[0], 0)  # another clock
    assert after(100.0, 900.0, True) == Sentinels(100.0, 900.0, clock[0], 1)


def test_an_established_reference_holds_for_a_faster_core(tmp_path: Path) -> None:
    path = tmp_path / "sentinels.json"
    known = Sentinels()
    bounds = []
    for _ in range(ESTABLISHED + 1):
        known.remember(path, BESIDE_KERNELS, Sentinels(100.0, 900.0), reached=True)
        known = Sentinels.recall(path, BESIDE_KERNELS)
        bounds.append(known.fastest_core)
    assert bounds == sorted(bounds)
    assert bounds[-3] == FASTEST_CORE < bounds[-2] == bounds[-1] == FASTEST_ESTABLISHED
    known.remember(path, BESIDE_KERNELS, Sentinels(70.0, 900.0), reached=False)  # faster than that
    assert Sentinels.recall(path, BESIDE_KERNELS).core_ns == 70.0
    assert Sentinels.recall(path, BESIDE_KERNELS).fastest_core == FASTEST_CORE


def test_the_memory_s_reference_is_what_the_latest_processes_found_as_a_rule(
    tmp_path: Path,
) -> None:
    path = tmp_path / "sentinels.json"

    def after(*memory_ns: float) -> float:
        for one in memory_ns:
            known = Sentinels.recall(path, BESIDE_KERNELS)
            known.remember(path, BESIDE_KERNELS, Sentinels(100.0, one), reached=True)
        return Sentinels.recall(path, BESIDE_KERNELS).memory_ns

    assert after(900.0) == 900.0
    assert after(910.0, 300.0, 905.0) == pytest.approx(900.0, rel=0.01)  # once quiet
    assert after(2000.0, 920.0) == pytest.approx(900.0, rel=0.02)  # once busy
    assert after(*[2000.0] * LATEST) == 2000.0  # busy from now on


def test_memory_is_remembered_for_each_company_and_the_core_for_all(tmp_path: Path) -> None:
    path = tmp_path / "sentinels.json"

    def after(company: str, core_ns: float, memory_ns: float) -> Sentinels:
        known = Sentinels.recall(path, company)
        known.remember(path, company, Sentinels(core_ns, memory_ns), reached=True)
        return Sentinels.recall(path, company)

    assert after(BESIDE_KERNELS, 100.0, 900.0).memory_ns == 900.0
    assert Sentinels.recall(path, "networks").memory_ns == 0.0
    networks = after("networks", 99.0, 2500.0)
    assert (networks.core_ns, networks.memory_ns) == (100.0, 2500.0)
    assert after("networks", 100.0, 2700.0).memory_ns == 2600.0
    kernels = Sentinels.recall(path, BESIDE_KERNELS)
    assert (kernels.core_ns, kernels.memory_ns) == (100.0, 900.0)


def test_networks_of_about_the_same_size_are_one_company(tmp_path: Path) -> None:
    def networks(*sizes: int) -> list[NetworkJob]:
        jobs = []
        for number, size in enumerate(sizes):
            path = tmp_path / f"{size}-{number}.so"
            path.write_bytes(b"." * size)
            jobs.append(NetworkJob(path))
        return jobs

    kernel = KernelJob(tmp_path / "kernel.so", "kernel", WORKLOAD)
    alone = company_of(networks(1500))
    assert company_of([kernel]) == BESIDE_KERNELS != alone
    assert company_of(networks(1100, 900)) == company_of([*networks(1200), kernel]) == alone
    assert company_of(networks(1500, 1500)) != alone
    assert company_of(networks(700)) != alone
    assert company_of([NetworkJob(tmp_path / "missing.so"), *networks(1500)]) == alone


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"core_ns": 1, "memory_ns": 1, "reached_at": 1, "processes": 1}',
        b'{"core_ns": null, "memory_ns": {}, "reached_at": 1, "processes": 1}',
        b'{"core_ns": 1, "memory_ns": {}, "reached_at": 1}',
    ],
)
def test_damaged_references_are_forgotten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sentinels.json"
    path.write_bytes(content)
    assert Sentinels.recall(path, BESIDE_KERNELS) == Sentinels()


def test_a_missing_compiler_names_a_package(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIGNAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", "/nonexistent")
    with pytest.raises(ToolchainError, match="gcc"):
        measure(kernels(library, "fast"), QUICK)


def test_the_measuring_program_compiles_without_warnings(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIGNAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", "cc -Wall -Wextra -Werror")
    assert measure(kernels(library, "fast"), QUICK).results[0].error is None


WAITING = """
#define _POSIX_C_SOURCE 199309L
#include <time.h>
static long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000L + time.tv_nsec;
}
static void wait_ns(long ns) { for (long start = now(); now() - start < ns;) {} }
static int disturbed(void) { return now() / 2000000L % 2; } /* every other 2 ms */
void core(void);
void core(void) { wait_ns(disturbed() ? 15000 : 10000); }
void sensitive(void);
void sensitive(void) { wait_ns(disturbed() ? 20000 : 10000); }
void restless(void);
void restless(void) {
    static unsigned state = 1;
    state = state * 1664525u + 1013904223u;
    wait_ns(10000 + (long)(state >> 16) % 30000);
}
"""


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIGNAS_CACHE", str(tmp_path / "cache"))  # references of its own
    return link(WAITING, tmp_path / "waiting.so")


def test_a_disturbed_core_is_waited_out(waiting: Path) -> None:
    """Code that suffers more than the anchor is measured while neither does."""
    core = KernelJob(waiting, "core", WORKLOAD)
    settings = Settings(rounds=100, sample_us=20.0, anchor=core)
    report = measure(kernels(waiting, "sensitive"), settings)
    (result,) = report.results
    assert report.rejected > 0
    assert len(result.samples_ns) == settings.rounds
    ascending = sorted(result.samples_ns)
    assert [ascending[10], ascending[90]] == pytest.approx([10_000, 10_000], rel=0.12)


def test_unsure_medians_are_measured_for_more_rounds(waiting: Path) -> None:
    settings = Settings(rounds=32, sample_us=5.0, attempts=2)
    jobs = kernels(waiting, "restless")
    (brief,) = measure(jobs, settings).results
    assert len(brief.samples_ns) == settings.rounds
    (longer,) = measure(jobs, dataclasses.replace(settings, wanted_error=0.02)).results
    assert settings.rounds < len(longer.samples_ns) <= protocol.MOST_ROUNDS * settings.rounds


@pytest.mark.parametrize(
    ("error", "rounds"), [(0.0, 30), (0.01, 30), (0.02, 120), (0.5, 30 * protocol.MOST_ROUNDS)]
)
def test_the_error_falls_with_the_root_of_the_rounds(error: float, rounds: int) -> None:
    assert protocol._rounds_needed(error, Settings(rounds=30, wanted_error=0.01)) == rounds
    assert protocol._rounds_needed(error, Settings(rounds=30)) == 30


def test_lasting_changes_make_a_median_less_sure() -> None:
    """As many samples, as far apart: those that change slowly tell less."""
    ups = [1.0, 1.1] * 80
    slow = [1.0] * 20 + [1.1] * 20
    assert protocol._standard_error(ups) < protocol._standard_error(slow * 4)
    assert protocol._standard_error([1.0] * 160) == 0
    assert protocol._standard_error([1.0, 2.0] * 7) == 0  # too few to tell


@pytest.mark.parametrize(
    "values",
    [
        {"rounds": 0},
        {"wanted_error": 0.0},
        {"find_seconds": float("nan")},
        {"sample_us": 0.0},
        {"sample_us": float("nan")},
        {"core_drift": -1.0},
        {"memory_drift": float("nan")},
        {"stall_seconds": 0.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(MeasurementError, match="positive"):
        Settings(**values)  # type: ignore[arg-type]


def test_the_calmest_attempt_counts(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disturbed attempts are repeated, no more often than asked for; a calm one ends the search."""
    monkeypatch.setattr(protocol, "PAUSE_SECONDS", 0.0)
    shares = [0.9, 0.3, 0.6]
    original = protocol._run
    seen: list[tuple[float, ...]] = []

    def disturbed(*arguments: Any) -> Any:
        outcome = original(*arguments)
        outcome.measured, outcome.unsettled = 100, int(100 * shares[len(seen)])
        seen.append(outcome.samples[0])
        return outcome

    monkeypatch.setattr(protocol, "_run", disturbed)
    jobs, settings = kernels(library, "fast"), dataclasses.replace(QUICK, attempts=3)
    report = measure(jobs, settings)
    assert report.unsettled == 30
    assert report.results[0].samples_ns == seen[1]
    assert len(seen) == 3
    shares[:] = [0.5, 0.0, 0.0]
    seen.clear()
    assert measure(jobs, settings).unsettled == 0
    assert len(seen) == 2
