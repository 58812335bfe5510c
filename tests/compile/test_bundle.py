"""Bundles: reproducible, checked byte by byte, refused where they cannot run."""

import dataclasses
import errno
import gc
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bignas.compile.bundle as bundle_module
from bignas.compile.bundle import (
    FILES,
    MANIFEST,
    Bundle,
    BundleContents,
    record_measured,
    verify,
    write_bundle,
)
from bignas.compile.library import NetworkLibrary, aligned_floats
from bignas.compile.lower import lower_onnx
from bignas.compile.manifest import FORMAT_VERSION, Latency, Manifest
from bignas.compile.onnx_export import export_onnx
from bignas.device_db.device import Device
from bignas.device_db.errors import BundleError, OutputError, ToolchainError
from bignas.device_db.measurement import MeasurementKind
from bignas.device_db.presets import PRESETS
from bignas.device_db.probe import probe_local
from bignas.device_db.target import Target
from bignas.device_db.workload import Workload
from bignas.supernet.spaces import load_space
from tests.compile.networks import compile_graph, specimen

SPACE = load_space("cifar")
SIDE = SPACE.smallest().resolution


@pytest.fixture(scope="module")
def contents() -> BundleContents:
    architecture = SPACE.smallest()
    sample = specimen(SPACE, architecture)
    model = export_onnx(sample.child, architecture.resolution)
    network = compile_graph(lower_onnx(model))
    return BundleContents(
        name="smallest",
        network=network,
        onnx_model=model,
        golden_inputs=sample.images.numpy(),
        device=probe_local(),
        preprocessing={"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "resolution": SIDE},
        space=SPACE.name,
        space_digest=SPACE.digest,
        architecture=architecture.to_dict(),
        kernel_latency_us={network.graph.workloads[0]: 1.5},
        predicted=Latency(MeasurementKind.PREDICTED, "local", 0.5, interval_ms=(0.4, 0.6)),
    )


@pytest.fixture(scope="module")
def sound(contents: BundleContents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound bundle that no test may change."""
    path = tmp_path_factory.mktemp("bundles") / "sound"
    write_bundle(path, contents)
    return path


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    """A sound bundle to spoil."""
    return shutil.copytree(sound, tmp_path / "bundle")


def one_line(error: BaseException) -> None:
    assert str(error)
    assert "\n" not in str(error)


def test_a_bundle_verifies(sound: Path) -> None:
    result = verify(Bundle.load(sound))
    assert result.ok
    assert result.top1_agreement == 1.0
    assert 0 <= result.max_abs_error < 1e-3
    assert result.images == 6


def test_a_bundle_holds_its_files_and_no_others(sound: Path) -> None:
    assert {path.name for path in sound.iterdir()} == {MANIFEST, *FILES}


def test_the_same_contents_give_the_same_bytes(
    contents: BundleContents, sound: Path, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "again", contents)
    for path in sound.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_what_is_loaded_is_what_was_written(contents: BundleContents, tmp_path: Path) -> None:
    written = write_bundle(tmp_path / "bundle", contents)
    loaded = Bundle.load(tmp_path / "bundle")
    assert loaded == written
    assert Manifest.from_bytes(loaded.manifest.to_bytes()) == loaded.manifest
    manifest = loaded.manifest
    assert manifest.macs == sum(one.macs for one in contents.network.graph.workloads)
    assert [Workload.from_key(one.workload) for one in manifest.kernels] == list(
        contents.network.graph.workloads
    )
    assert manifest.kernels[0].latency_us == 1.5
    assert manifest.predicted == contents.predicted
    assert manifest.input["shape"] == [1, 3, SIDE, SIDE]
    assert Target.from_dict(manifest.target) == contents.device.target


def test_a_measured_latency_can_be_added(copy: Path) -> None:
    measured = Latency("measured", "local", 0.55, min_ms=0.5, p90_ms=0.7, samples=100)
    record_measured(Bundle.load(copy), measured)
    assert Bundle.load(copy).manifest.measured == measured
    assert verify(Bundle.load(copy)).ok


def test_a_bundle_may_be_moved_and_written_over(
    contents: BundleContents, copy: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "a folder with spaces" / "bundle"
    moved.parent.mkdir()
    copy.rename(moved)
    assert verify(Bundle.load(moved)).ok
    (moved / "stray").touch()
    write_bundle(moved, contents)
    assert not (moved / "stray").exists()
    assert verify(Bundle.load(moved)).ok


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_every_changed_byte_is_found(name: str, copy: Path) -> None:
    path = copy / name
    original = path.read_bytes()
    random = np.random.default_rng(len(original))
    count = 60 if name == MANIFEST else 6
    positions = {0, len(original) // 2, len(original) - 1}
    positions |= {int(one) for one in random.integers(0, len(original), count)}
    for position in positions:
        changed = bytearray(original)
        changed[position] ^= 1 << int(random.integers(0, 8))
        path.write_bytes(changed)
        with pytest.raises(BundleError) as caught:
            verify(Bundle.load(copy))
        one_line(caught.value)
    path.write_bytes(original)
    assert verify(Bundle.load(copy)).ok


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    ],
    ids=["missing", "empty", "short", "long"],
)
def test_damage_to_any_file_is_named(
    name: str, spoil: Callable[[Path], object], copy: Path
) -> None:
    spoil(copy / name)
    with pytest.raises(BundleError, match=name.replace(".", r"\.")) as caught:
        verify(Bundle.load(copy))
    one_line(caught.value)


@pytest.mark.parametrize("text", ["[]", "null", "{}", "1", '"text"', '{"format_version": 1}'])
def test_other_json_is_no_manifest(text: str, copy: Path) -> None:
    (copy / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.load(copy)


def test_a_newer_version_says_what_to_do(copy: Path) -> None:
    content = json.loads((copy / MANIFEST).read_text(encoding="utf-8"))
    content["format_version"] = FORMAT_VERSION + 1
    content["something_new"] = True
    (copy / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BundleError, match=f"version {FORMAT_VERSION + 1}.*install"):
        Bundle.load(copy)


@pytest.mark.parametrize("place", ["missing", "file"])
def test_no_bundle_there(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=f"no bundle at .*{place}"):
        Bundle.load(tmp_path / place)


def machine(name: str) -> Callable[[], Device]:
    device = dataclasses.replace(probe_local(), target=PRESETS[name])
    return lambda: device


@pytest.mark.parametrize(("name", "reason"), [("x86-64-v2", "lacks"), ("cortex-a72", "aarch64")])
def test_a_bundle_for_another_processor_is_refused(
    name: str, reason: str, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.load(sound)
    if bundle.manifest.target == PRESETS["x86-64-v2"].to_dict():
        pytest.skip("this processor is as old as the one the test pretends to be")
    monkeypatch.setattr(bundle_module, "probe_local", machine(name))
    with pytest.raises(BundleError, match=reason) as caught:
        verify(bundle)
    one_line(caught.value)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, SIDE, SIDE + 1), np.float32),
        np.zeros((1, SIDE, SIDE, 3), np.float32),
        np.zeros((3, SIDE, SIDE), np.float32),
        np.zeros((0, 3), np.float32),
        np.zeros((), np.float32),
        np.full((1, 3, SIDE, SIDE), "text"),
        np.full((1, 3, SIDE, SIDE), None),
    ],
    ids=["wider", "nhwc", "one image", "nothing", "scalar", "text", "objects"],
)
def test_inputs_of_another_shape_are_refused(images: np.ndarray, sound: Path) -> None:
    library = Bundle.load(sound).open_library()
    with pytest.raises(BundleError) as caught:
        library.run(images)
    one_line(caught.value)


def test_inputs_of_any_memory_order_and_number_type_are_taken(sound: Path) -> None:
    bundle = Bundle.load(sound)
    library = bundle.open_library()
    inputs, _ = bundle.golden()
    expected = library.run(inputs)
    assert np.array_equal(library.run(inputs.astype(np.float64)), expected)
    reordered = np.ascontiguousarray(inputs.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert np.array_equal(library.run(reordered), expected)
    unaligned = aligned_floats(inputs.size + 1)[1:].reshape(inputs.shape)
    unaligned[:] = inputs
    assert np.array_equal(library.run(unaligned), expected)
    assert library.run(inputs[:0]).shape == (0, expected.shape[1])


def test_a_bound_image_keeps_all_it_needs(sound: Path) -> None:
    inputs, expected = Bundle.load(sound).golden()
    calls = [Bundle.load(sound).open_library().bind(image[None]) for image in inputs]
    gc.collect()
    clutter = [np.full(1 << 12, np.nan, np.float32) for _ in range(500)]
    outputs = np.stack([call() for call in calls])
    assert len(clutter) == 500
    assert np.allclose(outputs, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))


def test_timing_gives_positive_samples(sound: Path) -> None:
    bundle = Bundle.load(sound)
    samples = bundle.open_library().time(bundle.golden()[0][0], inner=2, count=5)
    assert samples.shape == (5,)
    assert (samples > 0).all()


def test_a_bundle_written_over_is_the_new_one(contents: BundleContents, tmp_path: Path) -> None:
    """Both in one process, where the old library is still loaded."""
    path = tmp_path / "bundle"
    inputs = contents.golden_inputs
    before = write_bundle(path, contents).open_library()
    outputs = before.run(inputs)
    other = specimen(SPACE, SPACE.smallest(), seed=7)
    model = export_onnx(other.child, SIDE)
    network = compile_graph(lower_onnx(model))
    write_bundle(path, dataclasses.replace(contents, network=network, onnx_model=model))
    assert verify(Bundle.load(path)).ok
    assert not np.array_equal(Bundle.load(path).open_library().run(inputs), outputs)
    assert np.array_equal(before.run(inputs), outputs)


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.so"
    path.write_bytes(b"not a library")
    with pytest.raises(BundleError, match="not a network library"):
        NetworkLibrary(path)


def files_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_a_full_disk_leaves_nothing(
    contents: BundleContents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    write = os.write

    def fill(descriptor: int, data: bytes) -> int:
        nonlocal written
        written += 1
        if written > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", fill)
    with pytest.raises(OutputError, match="disk full") as caught:
        write_bundle(tmp_path / "bundle", contents)
    one_line(caught.value)
    monkeypatch.undo()
    assert files_below(tmp_path) == []


def test_a_full_disk_keeps_the_bundle_that_was_there(
    contents: BundleContents, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_below(copy.parent)

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match="disk full"):
        write_bundle(copy, contents)
    with pytest.raises(OutputError, match="disk full"):
        record_measured(Bundle.load(copy), Latency("measured", "local", 1.0))
    monkeypatch.undo()
    assert files_below(copy.parent) == before
    assert verify(Bundle.load(copy)).ok


def test_an_unwritable_place_is_named(contents: BundleContents, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for path in (tmp_path / "file", tmp_path / "file" / "bundle"):
        with pytest.raises(OutputError, match="file") as caught:
            write_bundle(path, contents)
        one_line(caught.value)
    assert files_below(tmp_path) == [tmp_path / "file"]
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("compiler", ["/nonexistent", ""])
def test_a_missing_compiler_names_a_package(
    compiler: str, contents: BundleContents, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiler:
        monkeypatch.setenv("CC", compiler)
    else:
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ToolchainError, match="gcc") as caught:
        compile_graph(contents.network.graph)
    one_line(caught.value)


def test_a_failing_compiler_is_quoted(
    contents: BundleContents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "false")
    with pytest.raises(ToolchainError, match="false failed"):
        compile_graph(contents.network.graph)


def test_generated_sources_compile_without_warnings(
    contents: BundleContents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "cc -Wall -Wextra -Werror")
    assert compile_graph(contents.network.graph).library
