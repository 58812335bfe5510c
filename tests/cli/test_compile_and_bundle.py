"""bignas compile, verify, bench and run; what is measured here takes well below a second."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from bignas.compile import codegen, toolchain
from bignas.compile.bundle import Verification
from bignas.compile.schedule import Schedule
from bignas.device_db import probe
from bignas.device_db.presets import PRESETS
from bignas.device_db.probe import probe_local
from bignas.device_db.store import Store
from bignas.device_db.target import Target
from bignas.device_db.workload import Workload
from bignas.latency import remote_bundle, tuning
from tests.cli.helpers import refused, run, run_json
from tests.compile.tools import FOREIGN, require_cross_tools


def test_verify_tells_what_scripts_read(bundle: Path) -> None:
    found = run_json("verify", bundle)
    assert found["ok"] is True
    assert 0 <= found["max_abs_error"] < 1e-4
    assert found["top1_agreement"] == 1.0
    assert "yes" in run("verify", bundle).stdout


def test_differing_outputs_are_reported_and_fail(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        remote_bundle, "verify", lambda _: Verification(False, float("inf"), 0.25, 4)
    )
    result = run("verify", bundle, "--json")
    assert (result.exit_code, result.stderr) == (1, "")
    found = json.loads(result.stdout)
    assert (found["ok"], found["max_abs_error"], found["top1_agreement"]) == (False, None, 0.25)
    assert run("verify", bundle).exit_code == 1


@pytest.mark.parametrize(
    "name", ["run", "model.so", "model.onnx", "golden_inputs.npy", "manifest.json"]
)
@pytest.mark.parametrize("command", ["verify", "bench", "run"])
def test_a_damaged_bundle(name: str, command: str, bundle: Path) -> None:
    copy = Path("copy")
    shutil.copytree(bundle, copy)
    file = copy / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    extra = ("--input", bundle / "golden_inputs.npy", "--output", "y.npy")
    assert name in refused(command, copy, *(extra if command == "run" else ()))
    file.unlink()
    assert name in refused(command, copy, *(extra if command == "run" else ()))


def test_bench_tells_what_scripts_read(bundle: Path) -> None:
    found = run_json("bench", bundle)
    latency = found["latency_ms"]
    assert 0 < latency["min"] <= latency["p50"] <= latency["p90"]
    assert latency["n"] >= 10
    assert (found["device"], found["threads"], found["kind"]) == ("local", 1, "measured")
    assert "median" in run("bench", bundle).stdout


def test_run_answers_as_the_golden_outputs(bundle: Path) -> None:
    expected = np.load(bundle / "golden_outputs.npy")
    inputs = bundle / "golden_inputs.npy"
    found = run_json("run", bundle, "--input", inputs, "--output", "y.npy")
    assert (found["images"], found["classes"]) == (4, 10)
    np.testing.assert_allclose(np.load("y.npy"), expected, atol=1e-5)
    np.save("one.npy", np.load(inputs)[2])
    assert run("run", bundle, "--input", "one.npy", "--output", "deep/z.npy").exit_code == 0
    np.testing.assert_allclose(np.load("deep/z.npy"), expected[2:3], atol=1e-5)


def npy(values: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values), allow_pickle=True)
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


GOOD = npy(np.zeros((2, 3, 8, 8), np.float32))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy(np.zeros((2, 3, 8, 8))), "float64"),
        (npy(np.zeros((2, 3, 8, 8), ">f4")), "float32"),
        (npy(np.zeros((2, 8, 8, 3), np.float32)), "[n, 3, 8, 8]"),
        (npy(np.zeros((192,), np.float32)), "[3, 8, 8]"),
        (npy(np.zeros((0, 3, 8, 8), np.float32)), "no images"),
        (npy({"a": 1}), "x.npy"),
        (npz(), "several arrays"),
        (GOOD[:-5], "x.npy"),
        (GOOD[:20], "x.npy"),
        (GOOD.replace(b"(2, 3", b"(9, 3"), "x.npy"),
        (b"", "x.npy"),
        (b"\x80\x04K\x01.", "x.npy"),
    ],
)
def test_inputs_that_do_not_fit(content: bytes, words: str, bundle: Path) -> None:
    Path("x.npy").write_bytes(content)
    assert words in refused("run", bundle, "--input", "x.npy", "--output", "y.npy")
    assert "no.npy" in refused("run", bundle, "--input", "no.npy", "--output", "y.npy")


def model(operator: str) -> bytes:
    """A model of one operator that gives as many values as it takes."""
    shape = [1, 3, 8, 8]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(onnx.ModelProto.SerializeToString(made))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "bad.onnx"),
        (b"", "bad.onnx"),
        (b"no model", "bad.onnx"),
        (model("Erf")[:-30], "bad.onnx"),
        (model("NoSuchOperator"), "NoSuchOperator"),
        (model("Erf"), "spatial"),
    ],
)
def test_onnx_models_that_cannot_be_compiled(content: bytes | None, words: str) -> None:
    if content is not None:
        Path("bad.onnx").write_bytes(content)
    line = refused("compile", "bad.onnx", "--out", "made")
    assert words.lower() in line.lower()


def classifier(side: int, channels: int = 4) -> bytes:
    """A model of a convolution and a mean on images of any size; its file is tiny."""
    weights = np.ones((channels, 3, 1, 1), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["wide"]),
            helper.make_node("GlobalAveragePool", ["wide"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, channels, 1, 1])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(onnx.ModelProto.SerializeToString(made))


def constant_of(shape: list[int]) -> bytes:
    """A model that adds a constant of a shape, which the file only names."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["constant"]),
        helper.make_node("Add", ["x", "constant"], ["sum"]),
        helper.make_node("GlobalAveragePool", ["sum"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 1, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 1, 1])],
        [onnx.numpy_helper.from_array(np.array(shape, np.int64), "shape")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(onnx.ModelProto.SerializeToString(made))


@pytest.mark.parametrize(
    "content",
    [
        classifier(10**5),
        classifier(10**9),
        classifier(2**31 - 1),
        constant_of([1, 3, 10**6, 10**6]),
    ],
    ids=["input", "larger", "largest", "constant"],
)
def test_absurdly_large_models_are_refused_before_they_cost_memory(content: bytes) -> None:
    Path("large.onnx").write_bytes(content)
    line = refused("compile", "large.onnx", "--out", "made")
    assert "large.onnx is too large" in line
    assert "GiB" in line


def test_a_model_that_does_not_fit_a_device_or_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("model.onnx").write_bytes(classifier(1000))
    run("device", "add", "small", "--target", FOREIGN[0], "--memory-mb", "16")
    line = refused("compile", "model.onnx", "--device", "small", "--out", "made")
    assert "not enough memory: the network needs 27 MiB, device 'small' has 16" in line
    few = psutil.virtual_memory()._replace(available=1 << 20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: few)
    line = refused("compile", "model.onnx", "--out", "made")
    assert "not enough memory: to compile and check" in line


def test_a_processor_that_the_compiler_does_not_know() -> None:
    Path("model.onnx").write_bytes(classifier(8))
    run("device", "add", "odd", "--cpu", "nonsense")
    line = refused("compile", "model.onnx", "--device", "odd", "--out", "made")
    assert "unknown processor 'nonsense'" in line


@pytest.mark.parametrize("target", [None, FOREIGN[0]])
def test_a_missing_compiler_is_bad_input(
    target: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("model.onnx").write_bytes(classifier(8))
    run("device", "add", "board", *(("--target", target) if target else ()))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(toolchain, "ZIG", "no_such_package")
    line = refused("compile", "model.onnx", "--device", "board", "--out", "made")
    assert "apt-get install gcc" in line


@pytest.mark.parametrize("command", ["verify", "bench", "run"])
def test_a_bundle_of_a_newer_version(command: str, bundle: Path) -> None:
    copy = Path("copy")
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    extra = ("--input", bundle / "golden_inputs.npy", "--output", "y.npy")
    line = refused(command, copy, *(extra if command == "run" else ()))
    assert "format version 99" in line


def test_what_compile_takes_depends_on_the_source(checkpoint: Path) -> None:
    out = ("--out", "made")
    assert "--arch" in refused("compile", checkpoint, "--data", "digits", *out)
    assert "--data" in refused("compile", checkpoint, "--arch", "biggest", *out)
    assert "checkpoint" in refused("compile", "m.onnx", "--arch", "biggest", *out)
    assert "checkpoint" in refused("compile", "m.onnx", "--data", "digits", *out)
    two = ("--arch", "biggest", "--arch", "smallest", "--data", "digits")
    assert "one architecture" in refused("compile", checkpoint, *two, *out)


def test_compile_replaces_nothing_but_a_bundle() -> None:
    precious = Path("precious")
    precious.mkdir()
    (precious / "thesis.tex").touch()
    assert "other files" in refused("compile", "m.onnx", "--out", precious)
    assert (precious / "thesis.tex").exists()


def test_tuned_children_compile_without_measuring_or_building(
    checkpoint: Path, measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table holds every kernel of the space, so that any child is only linked."""

    def unwanted(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(tuning, "measure_on", unwanted)
    monkeypatch.setattr(tuning, "build_objects", unwanted)
    built: list[Workload] = []
    build_object = codegen.build_object

    def build(workload: Workload, schedule: Schedule, target: Target) -> bytes:
        built.append(workload)
        return build_object(workload, schedule, target)

    monkeypatch.setattr(codegen, "build_object", build)
    command = ("compile", checkpoint, "--data", "digits", "--out", "made")
    for child in ("smallest", "biggest"):
        made = run_json(*command, "--arch", child)
        assert made["untuned"] == 0
        built.clear()
        run_json(*command, "--arch", child)
        assert built == []
    with Store.open() as store:
        sessions = {one.session for one in store.kernel_measurements("local")}
    run_json(*command, "--arch", "random:1", "--seed", "3")
    with Store.open() as store:
        assert {one.session for one in store.kernel_measurements("local")} == sessions


@pytest.mark.slow
def test_a_compiled_child_and_its_onnx_model_are_bundles(checkpoint: Path) -> None:
    arguments = ("compile", checkpoint, "--arch", "smallest", "--data", "digits", "--out", "made")
    made = run_json(*arguments)
    assert made["bundle"] == "made"
    assert (made["device"], made["predicted_ms"]) == ("local", None)
    assert run_json("verify", "made")["ok"]
    again = run(*arguments)
    assert again.exit_code == 0
    assert "no predicted latency" in again.stderr
    onnx_made = run_json("compile", "made/model.onnx", "--out", "second")
    assert (onnx_made["arch"], onnx_made["kernels"]) == (None, made["kernels"])
    assert run_json("verify", "second")["ok"]


def test_a_bundle_for_another_processor_family_is_made_unmeasured(checkpoint: Path) -> None:
    require_cross_tools(PRESETS[FOREIGN[0]])
    assert run("device", "add", "far", "--target", FOREIGN[0]).exit_code == 0
    arguments = ("compile", checkpoint, "--arch", "smallest", "--data", "digits", "--out", "made")
    result = run(*arguments, "--device", "far", "--json")
    assert result.exit_code == 0
    assert "kernels are untuned: 'far' cannot be measured" in result.stderr
    made = json.loads(result.stdout)
    assert made["untuned"] == made["kernels"]
    assert (made["predicted_ms"], made["interval_ms"]) == (None, None)
    verified = run_json("verify", "made")
    assert (verified["ok"], verified["emulated"]) == (True, True)
    assert "emulator" in run("verify", "made").stdout
    assert "built for" in refused("bench", "made")
    images = ("--input", "made/golden_inputs.npy", "--output", "y.npy")
    assert "built for" in refused("run", "made", *images)
    with Store.open() as store:
        assert not list(store.kernel_measurements("far"))
        assert not list(store.network_measurements("far"))
    assert run("compile", "made/model.onnx", "--device", "far", "--out", "again").exit_code == 0


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        (("--target", "x86-64-v2", "--cpu-model", "Some Xeon"), True),
        (("--target", "x86-64-v4"), False),
    ],
    ids=["another model", "more instructions"],
)
def test_a_bundle_for_another_processor_of_this_family_is_made_unmeasured(
    options: tuple[str, ...], runs: bool, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that claims to have no AVX-512."""
    Path("cpuinfo").write_text(Path("/proc/cpuinfo").read_text().replace("avx512", "no"))
    monkeypatch.setattr(probe, "_CPUINFO", Path("cpuinfo").absolute())
    assert run("device", "add", "far", *options).exit_code == 0
    arguments = ("compile", checkpoint, "--arch", "smallest", "--data", "digits", "--out", "made")
    result = run(*arguments, "--device", "far", "--json")
    assert result.exit_code == 0
    assert "kernels are untuned: 'far' cannot be measured" in result.stderr
    made = json.loads(result.stdout)
    assert made["untuned"] == made["kernels"]
    manifest = json.loads(Path("made/manifest.json").read_text())
    assert {one["source"] for one in manifest["kernels"]} == {"untuned"}
    assert {one["latency_us"] for one in manifest["kernels"]} == {None}
    with Store.open() as store:
        assert not list(store.kernel_measurements("far"))
    if runs:
        assert run_json("verify", "made")["ok"]
    else:
        assert "instructions this processor" in refused("verify", "made")


@pytest.mark.slow
def test_a_bundle_of_two_threads(checkpoint: Path) -> None:
    """Tuned, compiled, verified and measured with two threads; on one core, compiled unmeasured."""
    assert run("device", "add", "two", "--threads", "2").exit_code == 0
    arguments = ("compile", checkpoint, "--arch", "smallest", "--data", "digits", "--out", "made")
    made = run_json(*arguments, "--device", "two")
    assert made["threads"] == 2
    assert run_json("verify", "made")["ok"]
    if probe_local().cores < 2:
        assert made["untuned"] == made["kernels"]
        assert "2 threads" in refused("bench", "made")
    else:
        assert made["untuned"] == 0
        found = run_json("bench", "made")
        assert (found["device"], found["threads"], found["kind"]) == ("two", 2, "measured")
