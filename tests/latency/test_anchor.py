"""The anchor of a target can be measured, and is what samples are given by."""

import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from bignas.compile.toolchain import link_shared_library
from bignas.device_db.errors import MeasurementError
from bignas.device_db.files import cache_folder
from bignas.device_db.presets import PRESETS
from bignas.device_db.probe import LOCAL, probe_local
from bignas.device_db.target import Target
from bignas.device_db.workload import Operator, Workload
from bignas.latency import local
from bignas.latency.anchor import anchor_of, anchored
from bignas.latency.harness import build_harness
from bignas.latency.jobs import KernelJob, Settings
from bignas.latency.local import measure
from bignas.latency.sentinels import BESIDE_KERNELS, ESTABLISHED, Sentinels, references_of

QUICK = Settings(rounds=5, sample_us=50.0, attempts=3)
WAITING_NS = 20_000


def test_an_anchor_is_built_once() -> None:
    target = probe_local().target
    first = anchor_of(target)
    before = first.library.stat()
    assert anchor_of(target) == first
    assert first.library.stat().st_mtime_ns == before.st_mtime_ns
    assert first.library.parent == cache_folder()


def test_targets_have_anchors_of_their_own() -> None:
    targets = [target for name, target in PRESETS.items() if name.startswith("x86")]
    anchors = [anchor_of(one) for one in targets]
    assert len({one.library for one in anchors}) == len(targets) > 1
    assert len({one.library.read_bytes() for one in anchors}) == len(targets)


def test_the_reference_of_an_anchor_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIGNAS_CACHE", str(tmp_path))
    device = probe_local()
    settings = anchored(QUICK, device.target, 1)
    assert settings.anchor is not None
    (found,) = measure([settings.anchor], settings).results
    assert len(found.samples_ns) == QUICK.rounds
    references = references_of(LOCAL, settings)
    assert references.is_relative_to(tmp_path)
    assert json.loads(references.read_text())["core_ns"] > 0


def test_a_new_measuring_program_keeps_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was profiled is at that reference, and stays valid when the program changes."""
    monkeypatch.setenv("BIGNAS_CACHE", str(tmp_path))
    settings = anchored(QUICK, probe_local().target, 1)
    assert settings.anchor is not None
    measure([settings.anchor], settings)
    known = Sentinels.recall(references_of(LOCAL, settings), BESIDE_KERNELS)

    def built_anew(target: Target) -> Path:
        program = build_harness(target)
        return Path(shutil.copy(program, program.with_name("another-program")))

    monkeypatch.setattr(local, "build_harness", built_anew)
    measure([settings.anchor], settings)
    found = Sentinels.recall(references_of(LOCAL, settings), BESIDE_KERNELS)
    assert known.core_ns == found.core_ns > 0
    assert found.processes > known.processes


@pytest.mark.parametrize(
    ("factor", "processes", "kept"),
    [(0.87, 1, True), (1.15, 1, True), (1.28, ESTABLISHED, True), (1.28, 1, False)],
)
def test_samples_are_given_at_the_reference(
    factor: float, processes: int, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes as long as the anchor is given as the anchor's reference, whatever both take.

    A reference that the core is far faster than gives way, unless it is established. The kernel
    waits by the clock: it takes the same time however fast the core is at the moment.
    """
    monkeypatch.setenv("BIGNAS_CACHE", str(tmp_path))  # references of its own
    target = probe_local().target
    source = f"""
    #define _POSIX_C_SOURCE 199309L
    #include <time.h>
    static long now(void) {{
        struct timespec time;
        clock_gettime(CLOCK_MONOTONIC, &time);
        return time.tv_sec * 1000000000L + time.tv_nsec;
    }}
    void waiting(void);
    void waiting(void) {{
        for (long start = now(); now() - start < {WAITING_NS};) {{}}
    }}
    """
    path = tmp_path / "waiting.so"
    path.write_bytes(link_shared_library({"code.c": source.encode()}, (), target))
    waiting = KernelJob(path, "waiting", Workload(Operator.SCALE, 4, 4, 16, 16))
    settings = replace(QUICK, anchor=waiting)
    references = references_of(LOCAL, settings)
    known = Sentinels(factor * WAITING_NS, 0.0)
    for _ in range(processes):
        before = Sentinels.recall(references, BESIDE_KERNELS)
        before.remember(references, BESIDE_KERNELS, known, reached=True)
    (found,) = measure([waiting], settings).results
    assert statistics.median(found.samples_ns) == pytest.approx(factor * WAITING_NS, rel=0.12)
    after_ns = Sentinels.recall(references, BESIDE_KERNELS).core_ns
    assert (after_ns == known.core_ns) == kept
    assert kept or after_ns == pytest.approx(WAITING_NS, rel=0.12)


def test_a_broken_anchor_is_no_fault_of_the_jobs(tmp_path: Path) -> None:
    target = probe_local().target
    source = b"void broken(void);\nvoid broken(void) { __builtin_trap(); }\n"
    path = tmp_path / "broken.so"
    path.write_bytes(link_shared_library({"code.c": source}, (), target))
    broken = KernelJob(path, "broken", Workload(Operator.SCALE, 4, 4, 16, 16))
    with pytest.raises(MeasurementError, match="measuring process failed"):
        measure([anchor_of(target)], Settings(rounds=2, anchor=broken))


def test_a_process_full_of_stalls_is_not_settled(tmp_path: Path) -> None:
    """Nobody knows how far its samples are off: more than a little is not made up for."""
    target = probe_local().target
    source = b"""
    void stalling(void);
    void stalling(void) {
        static int calls;
        int loops = ++calls % 5 ? 20000 : 38000;
        for (volatile int i = 0; i < loops; i++) {}
    }
    """
    path = tmp_path / "stalling.so"
    path.write_bytes(link_shared_library({"code.c": source}, (), target))
    stalling = KernelJob(path, "stalling", Workload(Operator.SCALE, 4, 4, 16, 16))
    settings = Settings(rounds=QUICK.rounds, sample_us=QUICK.sample_us, anchor=stalling)
    for _ in range(2):  # without a reference, and with one
        assert measure([anchor_of(target)], settings).unsettled == QUICK.rounds
