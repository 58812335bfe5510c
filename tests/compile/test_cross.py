"""Other processor families: linked by cross compilers, checked by the runner under emulation."""

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bignas.compile import emulator, toolchain
from bignas.compile.bundle import (
    RUNNER,
    TOLERANCE,
    Bundle,
    verify,
)
from bignas.compile.manifest import ScheduleSource
from bignas.device_db.errors import BundleError, ToolchainError, VerificationError
from bignas.device_db.presets import PRESETS
from bignas.device_db.probe import probe_local
from bignas.device_db.target import Target
from bignas.latency.bench import bench_bundle
from bignas.supernet.architecture import Architecture
from bignas.supernet.spaces import load_space
from tests.compile.bundles import child_bundle, child_contents, network_bundle
from tests.compile.tools import FOREIGN, require_command, require_cross_tools

SPACE = load_space("cifar")
ALLOWANCE_BYTES = 400_000


def some_child(seed: int) -> Architecture:
    return SPACE.sample(np.random.default_rng(seed))


CHILDREN = {"smallest": SPACE.smallest(), "random": some_child(3)}


@pytest.mark.parametrize("preset", FOREIGN)
@pytest.mark.parametrize("child", CHILDREN)
def test_children_answer_as_onnxruntime_does(preset: str, child: str, tmp_path: Path) -> None:
    target = PRESETS[preset]
    require_cross_tools(target)
    bundle = child_bundle(tmp_path / "bundle", CHILDREN[child], preset)
    result = verify(Bundle.load(bundle.path))
    assert result.ok
    assert result.emulated
    assert result.top1_agreement == 1.0
    scale = max(1.0, float(np.abs(bundle.golden()[1]).max()))
    assert result.max_abs_error <= TOLERANCE * scale
    size = (bundle.path / RUNNER).stat().st_size
    assert size <= bundle.manifest.weights_bytes + ALLOWANCE_BYTES
    for kernel in bundle.manifest.kernels:
        assert (kernel.source, kernel.latency_us) == (ScheduleSource.UNTUNED, None)
    with pytest.raises(BundleError, match=f"built for {target.architecture}"):
        bench_bundle(bundle)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name not in FOREIGN])
@pytest.mark.parametrize("child", CHILDREN)
def test_children_for_presets_of_this_family(preset: str, child: str, tmp_path: Path) -> None:
    if PRESETS[preset].vector_lanes > probe_local().target.vector_lanes:
        pytest.skip(f"this processor lacks what {preset} needs")
    bundle = child_bundle(tmp_path / "bundle", CHILDREN[child], preset)
    assert verify(bundle).ok
    subprocess.run([bundle.path / RUNNER, "--self-check"], check=True, capture_output=True)


@pytest.mark.parametrize("preset", FOREIGN)
def test_threads_of_other_families_answer_alike(preset: str, tmp_path: Path) -> None:
    require_cross_tools(PRESETS[preset])
    bundle = child_bundle(tmp_path / "bundle", SPACE.smallest(), preset, threads=2)
    assert bundle.manifest.threads == 2
    assert verify(bundle).ok


@pytest.mark.parametrize("preset", FOREIGN)
def test_fallback_kernels_bring_their_mathematics(preset: str, tmp_path: Path) -> None:
    """The runner's own functions are right on every processor family."""
    require_cross_tools(PRESETS[preset])
    torch.manual_seed(1)
    layers = nn.Conv2d(3, 8, 3), nn.GELU(), nn.Mish(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    network = nn.Sequential(*layers, nn.Linear(8, 5), nn.Softmax(1))
    bundle = network_bundle(tmp_path / "bundle", network, preset)
    assert {"erf", "softmax", "tanh"} <= set(bundle.manifest.fallbacks)
    result = verify(bundle)
    assert result.ok
    assert result.max_abs_error < 1e-6
    size = (bundle.path / RUNNER).stat().st_size
    assert size <= bundle.manifest.weights_bytes + ALLOWANCE_BYTES


@pytest.mark.parametrize("preset", FOREIGN)
def test_two_builds_are_identical(preset: str, tmp_path: Path) -> None:
    require_cross_tools(PRESETS[preset])
    one = child_bundle(tmp_path / "one", SPACE.smallest(), preset)
    two = child_bundle(tmp_path / "two", SPACE.smallest(), preset)
    assert one.manifest == two.manifest


@pytest.fixture
def foreign(tmp_path: Path) -> Bundle:
    """A bundle for the first processor family that this machine is none of."""
    require_cross_tools(PRESETS[FOREIGN[0]])
    return child_bundle(tmp_path / "bundle", SPACE.smallest(), FOREIGN[0])


def test_a_damaged_foreign_bundle_is_refused(foreign: Bundle) -> None:
    (foreign.path / RUNNER).write_bytes((foreign.path / RUNNER).read_bytes()[:-1])
    with pytest.raises(BundleError, match="run has changed"):
        verify(foreign)


def test_without_an_emulator_its_package_is_named(
    foreign: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BundleError, match="qemu-user-static") as caught:
        verify(foreign)
    assert "\n" not in str(caught.value)


def test_differing_outputs_fail_under_emulation(foreign: Bundle) -> None:
    np.save(foreign.path / "golden_outputs.npy", foreign.golden()[1] + 1)
    target = PRESETS[FOREIGN[0]]
    ok, error, _, _ = emulator.emulated_self_check(foreign.path / RUNNER, target)
    assert not ok
    assert error == pytest.approx(1, abs=0.01)


def test_what_the_emulated_runner_refuses_is_told(foreign: Bundle) -> None:
    (foreign.path / "golden_inputs.npy").unlink()
    target = PRESETS[FOREIGN[0]]
    with pytest.raises(BundleError, match=r"golden_inputs\.npy"):
        emulator.emulated_self_check(foreign.path / RUNNER, target)


@pytest.mark.parametrize("code", ["import os; os.abort()", "print('no document')"])
def test_a_crash_under_emulation_is_an_error(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulator, "emulator_of", lambda _: [sys.executable, "-c", code])
    with pytest.raises(VerificationError, match="stopped with status"):
        emulator.emulated_self_check(tmp_path / RUNNER, PRESETS[FOREIGN[0]])


@pytest.mark.parametrize(
    ("preset", "processor", "lacking"),
    [
        ("cortex-a76", ["qemu-aarch64-static", "-cpu", "cortex-a57"], "dotprod"),
        ("riscv64-v", ["qemu-riscv64-static", "-cpu", "rv64,v=false"], "v"),
        ("x86-64-v2", ["qemu-x86_64-static", "-cpu", "core2duo"], "popcnt"),
        ("x86-64-v3", ["qemu-x86_64-static", "-cpu", "Nehalem"], "avx"),
        ("x86-64-v4", ["qemu-x86_64-static", "-cpu", "Haswell"], "avx512f"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_older_processors_get_a_message_and_no_illegal_instruction(
    preset: str, processor: list[str], lacking: str, tmp_path: Path
) -> None:
    require_command(processor[0], emulator.PACKAGE)
    if preset in FOREIGN:
        require_cross_tools(PRESETS[preset])
    bundle = child_bundle(tmp_path / "bundle", SPACE.smallest(), preset)
    for option in ("--self-check", "--bench"):
        result = subprocess.run(
            [*processor, str(bundle.path / RUNNER), option],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 2
        lines = [one for one in result.stderr.splitlines() if "qemu" not in one]
        lines = [one for one in lines if "TCG doesn't support" not in one]
        assert len(lines) == 1, lines
        assert f"lacks {lacking}," in lines[0]


def test_an_emulated_bench_says_so(foreign: Bundle) -> None:
    command = emulator.emulator_of(PRESETS[FOREIGN[0]])
    assert command is not None
    result = subprocess.run(
        [*command, str(foreign.path / RUNNER), "--bench", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"kind": "emulated"' in result.stdout


@pytest.mark.parametrize("preset", FOREIGN)
def test_a_missing_cross_compiler_names_a_package(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(toolchain, "ZIG", "no_such_package")
    with pytest.raises(ToolchainError, match=r"apt-get install gcc-\w+-linux-gnu") as caught:
        child_contents(SPACE.smallest(), preset)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", FOREIGN)
def test_zig_takes_the_place_of_a_missing_cross_compiler(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for zig records how it was called."""
    (tmp_path / "stand_in.py").write_text(
        "import sys\nsys.exit('called ' + ' '.join(sys.argv[1:]))"
    )
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(toolchain, "ZIG", "stand_in")
    architecture = PRESETS[preset].architecture
    with pytest.raises(ToolchainError, match=f"called cc -target {architecture}-linux-gnu -O2"):
        child_contents(SPACE.smallest(), preset)


@pytest.mark.parametrize("preset", ["cortex-a72", "riscv64-v"])
def test_zig_links_what_answers_right(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec(toolchain.ZIG) is None:
        pytest.skip("zig is not installed: pip install ziglang")
    require_cross_tools(PRESETS[preset])
    family = PRESETS[preset].architecture
    hidden = dataclasses.replace(toolchain.CROSS_COMPILERS[family], command="no-such-compiler")
    monkeypatch.setitem(toolchain.CROSS_COMPILERS, family, hidden)
    bundle = child_bundle(tmp_path / "bundle", SPACE.smallest(), preset)
    assert verify(bundle).ok


def test_other_systems_cannot_be_linked() -> None:
    with pytest.raises(ToolchainError, match="bundles are for Linux"):
        toolchain.link_shared_library({}, (), Target("riscv64-unknown-elf", "generic-rv64"))


def test_the_emulator_without_suffix_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = PRESETS["riscv64-v"]
    (tmp_path / "qemu-riscv64").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    command = emulator.emulator_of(target)
    assert command is not None
    assert command[0] == shutil.which("qemu-riscv64")
    assert "v=true" in command[2]
