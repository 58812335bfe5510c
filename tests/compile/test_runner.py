"""The native runner: it answers as the library does, needs no other file, and refuses clearly."""

import dataclasses
import json
import os
import re
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bignas.compile import native, toolchain
from bignas.compile.bundle import (
    GOLDEN_INPUTS,
    GOLDEN_OUTPUTS,
    RUNNER,
    Bundle,
    verify,
    write_bundle,
)
from bignas.compile.cpu_features import CHECKED, required_features
from bignas.compile.manifest import ScheduleSource
from bignas.compile.toolchain import FLAGS
from bignas.device_db.device import Device
from bignas.device_db.errors import ToolchainError
from bignas.device_db.presets import PRESETS
from bignas.device_db.target import Target
from bignas.supernet.spaces import load_space
from tests.compile.bundles import child_bundle, child_contents, device_of, network_bundle

SPACE = load_space("cifar")
ALLOWANCE_BYTES = 400_000  # of the runner beyond the weights
OWN_BYTES = 100_000  # of a runner of few kernels that holds no C library
SEGMENT_DYNAMIC, SEGMENT_INTERPRETER = 2, 3


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return child_bundle(tmp_path_factory.mktemp("runner") / "bundle", SPACE.smallest())


@pytest.fixture
def copy(sound: Bundle, tmp_path: Path) -> Path:
    """A bundle to spoil."""
    return shutil.copytree(sound.path, tmp_path / "bundle")


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(folder / RUNNER), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def refused(folder: Path, *arguments: object) -> str:
    """Run what must fail as bad input, and return the one line about it."""
    result = run(folder, *arguments)
    assert result.returncode == 2, result
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_it_agrees_with_verify(sound: Bundle) -> None:
    result = run(sound.path, "--self-check", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    expected = verify(sound)
    assert (found["ok"], found["images"]) == (expected.ok, expected.images)
    assert found["top1_agreement"] == pytest.approx(expected.top1_agreement, abs=1e-6)
    assert found["max_abs_error"] == pytest.approx(expected.max_abs_error, rel=0.01)
    assert "passed" in run(sound.path, "--self-check").stdout


def test_it_works_from_any_folder_and_through_a_link(sound: Bundle, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(sound.path / RUNNER)
    for command, folder in (([str(link)], "/"), (["./run"], str(sound.path))):
        subprocess.run([*command, "--self-check"], cwd=folder, check=True, capture_output=True)


def test_its_outputs_are_those_of_the_library_bit_by_bit(sound: Bundle, tmp_path: Path) -> None:
    images, _ = sound.golden()
    source, destination = tmp_path / "x.bin", tmp_path / "y.bin"
    expected = sound.open_library().run(images)
    for count in (1, len(images)):
        source.write_bytes(images[:count].tobytes())
        result = run(sound.path, "--input", source, "--output", destination)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        outputs = np.frombuffer(destination.read_bytes(), np.float32)
        assert np.array_equal(outputs, expected[:count].ravel())
    assert {path.name for path in tmp_path.iterdir()} == {"x.bin", "y.bin"}


def test_bench_tells_what_scripts_read(sound: Bundle) -> None:
    found = json.loads(run(sound.path, "--bench", "--json").stdout)
    latency = found["latency_ms"]
    assert 0 < latency["min"] <= latency["p50"] <= latency["p90"]
    assert latency["n"] == 100
    assert (found["device"], found["threads"], found["kind"]) == ("local", 1, "measured")
    assert "p50" in run(sound.path, "--bench").stdout


def segments(program: bytes) -> set[int]:
    """Return the types of a 64-bit little-endian program's segments."""
    (offset,) = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    return {struct.unpack_from("<I", program, offset + size * i)[0] for i in range(count)}


def test_it_depends_on_no_library(sound: Bundle) -> None:
    found = segments((sound.path / RUNNER).read_bytes())
    assert not found & {SEGMENT_DYNAMIC, SEGMENT_INTERPRETER}


def test_it_works_in_an_empty_file_system(copy: Path) -> None:
    images, expected = Bundle.load(copy).golden()
    for path in copy.iterdir():
        if path.name not in (RUNNER, GOLDEN_INPUTS, GOLDEN_OUTPUTS):
            path.unlink()
    (copy / "x.bin").write_bytes(images.tobytes())
    if os.geteuid() == 0:
        prefix = ["chroot", str(copy)]
    else:
        prefix = ["unshare", "--map-root-user", "chroot", str(copy)]
        if subprocess.run([*prefix, "/run", "--help"], capture_output=True, check=False).returncode:
            pytest.skip("changing the root needs root, or user namespaces")
    on_file = ["--input", "/x.bin", "--output", "/y.bin"]
    for arguments in (["--self-check"], ["--bench", "--json"], on_file):
        result = subprocess.run(
            [*prefix, "/run", *arguments], capture_output=True, text=True, check=False
        )
        assert (result.returncode, result.stderr) == (0, ""), result
    outputs = np.frombuffer((copy / "y.bin").read_bytes(), np.float32)
    np.testing.assert_allclose(outputs, expected.ravel(), atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("which", ["smallest", "biggest"])
def test_it_is_little_more_than_its_weights(which: str, tmp_path: Path) -> None:
    architecture = SPACE.smallest() if which == "smallest" else SPACE.biggest()
    bundle = child_bundle(tmp_path / "bundle", architecture)
    size = (bundle.path / RUNNER).stat().st_size
    assert size <= bundle.manifest.weights_bytes + ALLOWANCE_BYTES
    assert bundle.manifest.weights_bytes <= 1.05 * 4 * SPACE.params(architecture)
    assert bundle.manifest.prepared_bytes > 0  # transformed weights stand in no file


def test_two_builds_from_nothing_are_identical(
    sound: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIGNAS_CACHE", str(tmp_path / "another cache"))
    contents = child_contents(SPACE.smallest(), cache=tmp_path / "another cache")
    again = native.build_runner(contents.network, contents.device, sound.manifest.tolerance)
    assert again == (sound.path / RUNNER).read_bytes()
    assert contents.network.library == (sound.path / "model.so").read_bytes()


def test_its_own_sources_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second build of the same network compiles nothing but what is the network's."""
    monkeypatch.setenv("BIGNAS_CACHE", str(tmp_path))
    compiled: list[str] = []
    run_compiler = toolchain._run

    def spy(command: Sequence[str], folder: Path) -> None:
        compiled.extend(command[-1:] if "-c" in command else ())
        run_compiler(command, folder)

    contents = child_contents(SPACE.smallest())
    monkeypatch.setattr(toolchain, "_run", spy)
    builds = []
    for flags in ("-O2", "-O2", "-O1"):
        monkeypatch.setattr(toolchain, "FLAGS", (*FLAGS, flags))
        builds.append(native.build_runner(contents.network, contents.device, 1e-4))
    assert builds[0] == builds[1]
    own, rounds = {"network.c", "settings.c"}, len(builds)
    counts = Counter(compiled)
    assert {name: counts.pop(name) for name in own} == dict.fromkeys(own, rounds)
    assert counts
    assert set(counts.values()) == {2}  # again for other options


class Arctangent(nn.Module):
    """A function that only the C library has."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.atan(x)


@pytest.mark.parametrize(
    ("function", "own"), [(nn.GELU(), True), (nn.Mish(), True), (Arctangent(), False)]
)
def test_fallback_kernels_get_the_mathematical_functions_they_call(
    function: nn.Module, own: bool, tmp_path: Path
) -> None:
    """Those that the runner has cost a few kilobytes, others the C library."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), function, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    bundle = network_bundle(tmp_path / "bundle", network)
    assert bundle.manifest.fallbacks
    assert ScheduleSource.FALLBACK in {one.source for one in bundle.manifest.kernels}
    result = run(bundle.path, "--self-check")
    assert (result.returncode, result.stderr) == (0, "")
    program = (bundle.path / RUNNER).read_bytes()
    assert not segments(program) & {SEGMENT_DYNAMIC, SEGMENT_INTERPRETER}
    assert (len(program) < bundle.manifest.weights_bytes + OWN_BYTES) is own


def test_differing_outputs_fail(copy: Path) -> None:
    path = copy / GOLDEN_OUTPUTS
    expected = np.load(path)
    for changed, words in ((expected + 0.5, "FAILED"), (expected * np.nan, "infinite")):
        np.save(path, changed)
        result = run(copy, "--self-check")
        assert (result.returncode, result.stderr) == (1, "")
        assert words in result.stdout
    found = json.loads(run(copy, "--self-check", "--json").stdout)
    assert (found["ok"], found["max_abs_error"]) == (False, None)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


SPOILS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "header only": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "short": lambda path: path.write_bytes(path.read_bytes()[:-4]),
    "long": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "text": lambda path: path.write_text("no array " * 100),
    "double": lambda path: np.save(path, np.load(path).astype(np.float64)),
    "fortran": lambda path: np.save(path, np.asfortranarray(np.load(path))),
    "narrow": lambda path: np.save(path, np.load(path)[..., 1:]),
    "no images": lambda path: np.save(path, np.load(path)[:0]),
    "scalar": lambda path: np.save(path, np.float32(1)),
    "fewer": lambda path: np.save(path, np.load(path)[1:]),
    "claims more": lambda path: path.write_bytes(path.read_bytes().replace(b"(6, ", b"(9, ")),
    "a folder": make_folder,
}


@pytest.mark.parametrize("name", [GOLDEN_INPUTS, GOLDEN_OUTPUTS])
@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS.keys())
def test_damaged_golden_files(spoil: Callable[[Path], object], name: str, copy: Path) -> None:
    spoil(copy / name)
    assert "golden" in refused(copy, "--self-check")


def test_a_random_header_never_crashes(copy: Path) -> None:
    path = copy / GOLDEN_INPUTS
    original = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(60):
        changed = bytearray(original)
        for position in random.integers(0, 128, 3):
            changed[position] = int(random.integers(0, 256))
        path.write_bytes(changed)
        assert run(copy, "--self-check").returncode in (0, 1, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give one of"),
        (("--nonsense",), "--nonsense"),
        (("self-check",), "unknown option"),
        (("--self-check", "--bench"), "give one of"),
        (("--json",), "give one of"),
        (("--input",), "needs a file"),
        (("--input", "x"), "belong together"),
        (("--output", "x"), "belong together"),
        (("--input", "x", "--output", "y", "--json"), "--json"),
        (("--input", "/nonexistent", "--output", "y"), "no such file"),
        (("--input", "/", "--output", "y"), "not a regular file"),
    ],
    ids=str,
)
def test_bad_options(arguments: tuple[str, ...], words: str, sound: Bundle) -> None:
    assert words in refused(sound.path, *arguments)


def test_help_names_every_option(sound: Bundle) -> None:
    result = run(sound.path, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    for option in ("--self-check", "--bench", "--json", "--input", "--output"):
        assert option in result.stdout


@pytest.mark.parametrize("size", [0, 1, -1, -4, 4])
def test_inputs_of_a_wrong_size(size: int, sound: Bundle, tmp_path: Path) -> None:
    image = sound.golden()[0][0].tobytes()
    whole = {0: b""}.get(size, (image + image)[: len(image) + size])
    (tmp_path / "x.bin").write_bytes(whole)
    line = refused(sound.path, "--input", tmp_path / "x.bin", "--output", tmp_path / "y.bin")
    assert str(len(image)) in line
    assert f"holds {len(whole)} bytes" in line
    assert not (tmp_path / "y.bin").exists()


def test_too_little_memory_is_told(tmp_path: Path) -> None:
    """The network claims to need more than a processor can address."""
    contents = child_contents(SPACE.smallest())
    size = re.compile(r"(?<=bignas_workspace_bytes\(void\) \{ return )\d+")
    source, count = size.subn(f"{1 << 60}ul", contents.network.plan.source)
    assert count == 1
    plan = dataclasses.replace(contents.network.plan, source=source)
    network = dataclasses.replace(contents.network, plan=plan)
    bundle = write_bundle(tmp_path / "bundle", dataclasses.replace(contents, network=network))
    images = tmp_path / "x.bin"
    images.write_bytes(bundle.golden()[0].tobytes())
    on_file = ("--input", images, "--output", tmp_path / "y")
    for arguments in (("--self-check",), ("--bench",), on_file):
        result = run(bundle.path, *arguments)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == "error: not enough memory to run\n"


def test_outputs_that_cannot_be_written(sound: Bundle, tmp_path: Path) -> None:
    source, kept = tmp_path / "x.bin", tmp_path / "kept"
    source.write_bytes(sound.golden()[0][0].tobytes())
    kept.write_text("kept")
    places = {
        tmp_path: "a folder",
        kept / "y.bin": "not a folder",
        tmp_path / "nowhere" / "y.bin": "no such file or folder",
        tmp_path / ("y" * 300): "too long",
        Path("/dev/full"): "disk full",
    }
    for place, words in places.items():
        line = refused(sound.path, "--input", source, "--output", place)
        assert str(place)[:200] in line
        assert words in line
    assert Path("/dev/full").is_char_device()
    assert {path.name for path in tmp_path.iterdir()} == {"x.bin", "kept"}


def test_a_full_standard_output_is_an_error(sound: Bundle) -> None:
    for arguments in (["--self-check"], ["--help"]):
        with Path("/dev/full").open("wb") as full:
            command = [str(sound.path / RUNNER), *arguments]
            result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
        assert result.returncode == 2


def test_a_processor_that_lacks_something_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner counts a feature it does not know as one that is not there."""
    monkeypatch.setattr(native, "required_features", lambda _: ("imaginary",))
    bundle = child_bundle(tmp_path / "bundle", SPACE.smallest())
    images = bundle.path / GOLDEN_INPUTS
    for arguments in (("--self-check",), ("--bench",), ("--input", images, "--output", "y")):
        line = refused(bundle.path, *arguments)
        assert "this processor lacks imaginary" in line
        assert bundle.manifest.target["cpu"] in line


def test_the_runner_can_ask_for_every_feature() -> None:
    source = resources.files("bignas.compile.runner").joinpath("cpu.c").read_text("utf-8")
    known = set(re.findall(r'\{"([a-z0-9.]+)", [A-Z]', source))
    assert known == {name for names in CHECKED.values() for name in names}


@pytest.mark.parametrize("target", PRESETS.values(), ids=PRESETS.keys())
def test_presets_need_what_they_name(target: Target) -> None:
    found = required_features(target)
    assert {name[1:] for name in target.features} <= set(found)
    assert set(found) <= CHECKED[target.architecture]


@pytest.mark.parametrize(
    ("target", "present", "absent"),
    [
        (Target("x86_64-linux-gnu", "x86-64"), "", "sse4.2"),
        (Target("x86_64-linux-gnu", "x86-64-v2"), "sse4.2", "avx"),
        (Target("x86_64-linux-gnu", "haswell"), "avx2 fma", "avx512f"),
        (Target("x86_64-linux-gnu", "x86-64-v4", ("-avx512f",)), "avx2", "avx512f"),
        (Target("x86_64-linux-gnu", "znver4"), "avx512vl avx2", ""),
        (Target("x86_64-linux-gnu", "x86-64", ("+avx2",)), "avx2", "avx512f"),
        (Target("aarch64-linux-gnu", "generic"), "neon", "dotprod"),
    ],
    ids=str,
)
def test_features_follow_from_processor_and_features(
    target: Target, present: str, absent: str
) -> None:
    found = set(required_features(target))
    assert set(present.split()) <= found
    assert not set(absent.split()) & found


@pytest.mark.parametrize("triple", ["armv7l-linux-gnueabihf", "aarch64-apple-macosx"])
def test_systems_without_a_runner_are_named(triple: str) -> None:
    contents = child_contents(SPACE.smallest())
    here = device_of(None)
    device = Device(
        "far", Target(triple, "generic"), 1, here.cpu_model, here.cores, here.memory_bytes
    )
    with pytest.raises(ToolchainError, match=triple):
        native.build_runner(contents.network, device, 1e-4)
