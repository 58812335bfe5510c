"""Operators that no template computes go through TVM's own loop nests, and the manifest says so."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from models import MODELS, model_onnx  # benchmarks/models.py
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional

from bignas.compile.bundle import BundleContents, verify, write_bundle
from bignas.compile.fallback import FALLBACK, FallbackKernel
from bignas.compile.fallback_object import build_fallback
from bignas.compile.graph import FallbackCall, KernelGraph
from bignas.compile.legalise import Operand, activation_kernel
from bignas.compile.lower import lower_onnx
from bignas.compile.native import build_runner
from bignas.compile.onnx_export import export_onnx, run_onnx
from bignas.compile.plan import make_plan
from bignas.device_db.errors import ModelError, ToolchainError
from bignas.device_db.presets import PRESETS
from bignas.device_db.probe import probe_local
from bignas.device_db.target import Target
from bignas.device_db.workload import Activation, Operator
from tests.compile.networks import compile_graph, run_compiled

SIDE = 11
TOLERANCE = 1e-4  # of the largest output
ALLOWANCE_BYTES = 400_000  # of the native runner beyond the weights


def check(model: bytes, folder: Path, allowance_bytes: int | None = None) -> KernelGraph:
    """Compile a model, compare it with ONNX Runtime on random images and return its kernels.

    With an allowance, its native runner is built too, and may be larger than its weights by that.
    """
    graph = lower_onnx(model)
    shape = (3, *graph.input_shape)
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = run_onnx(model, images)
    network = compile_graph(graph)
    result = run_compiled(network, images, folder)
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= TOLERANCE * np.abs(expected).max()
    if allowance_bytes is not None:
        program = build_runner(network, probe_local(), TOLERANCE)
        assert len(program) <= len(network.plan.weights) + allowance_bytes
    return graph


def operators(graph: KernelGraph) -> list[str]:
    return [kernel.operator for kernel in graph.fallbacks]


class After(nn.Module):
    """A convolution, then a function of it, then a classifier if its result is spatial."""

    def __init__(self, function: Callable[[Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, 1, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.stem(x))
        return y.mean((2, 3)) if y.ndim == 4 else y


def shuffled(x: Tensor) -> Tensor:
    """The channel shuffle of ShuffleNet."""
    _, channels, height, width = x.shape
    groups = x.reshape(1, 2, channels // 2, height, width)
    return groups.transpose(1, 2).reshape(1, channels, height, width)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x: functional.max_pool2d(x, 3, 2, 1), []),
        (lambda x: functional.max_pool2d(x, 2), []),
        (lambda x: functional.max_pool2d(x, 3, 2, ceil_mode=True), []),
        (lambda x: functional.max_pool2d(x, 2, ceil_mode=True), ["max_pool2d"]),
        (lambda x: functional.max_pool2d(x, (3, 2)), ["max_pool2d"]),
        (lambda x: functional.max_pool2d(x, 3, dilation=2), ["max_pool2d"]),
        (lambda x: functional.avg_pool2d(x, 3, 2, 1), []),
        (lambda x: functional.avg_pool2d(x, 2, count_include_pad=False), []),
        (lambda x: functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False), ["avg_pool2d"]),
        (lambda x: functional.avg_pool2d(x, SIDE), []),
        (lambda x: x.amax((2, 3)), ["max"]),
        (lambda x: torch.cat((x, x * x), 1), ["multiply", "concat"]),
        (lambda x: functional.max_pool2d(x, 2) + functional.avg_pool2d(x, 2), ["add"]),
        (lambda x: functional.relu(x) + x, ["relu", "add"]),
        (lambda x: x - functional.hardswish(x), ["hard_swish", "subtract"]),
        (lambda x: functional.silu(x) / (x * x + 1), None),
        (lambda x: torch.sigmoid(functional.max_pool2d(x, 2)), []),
        (lambda x: functional.relu6(functional.max_pool2d(x, 2)), []),
        (lambda x: functional.hardsigmoid(functional.max_pool2d(x, 2)), []),
        (torch.tanh, ["tanh"]),
        (torch.erf, ["erf"]),
        (lambda x: functional.leaky_relu(x, 0.1), ["leakyrelu"]),
        (functional.gelu, None),
        (functional.elu, None),
        (lambda x: (x + 1).clamp(0, 3), None),
        (lambda x: torch.softmax(x, 1), ["softmax"]),
        (lambda x: torch.softmax(x.mean((2, 3)), 1), ["softmax"]),
        (lambda x: x.mean(2).mean(2), ["mean", "mean"]),
        (lambda x: x.mean((1, 2)), ["mean"]),
        (lambda x: x.transpose(1, 2), ["permute_dims"]),
        (lambda x: x.flatten(1), ["reshape"]),
        (shuffled, None),
        (lambda x: torch.cat((x.chunk(2, 1)[1], x.chunk(2, 1)[0]), 1), None),
        (lambda x: x * functional.layer_norm(x, (SIDE,)), None),
        (lambda x: functional.pad(x, (1, 0, 0, 2), value=0.5), ["pad"]),
        (lambda x: functional.pad(x, (1, 1, 2, 2), mode="reflect"), None),
        (lambda x: x[:, 2:6, 1:, ::2], None),
        (lambda x: functional.interpolate(x, scale_factor=2.0), None),
        (lambda x: x * torch.arange(SIDE, dtype=torch.float32), ["multiply"]),
        (lambda x: x[:, :, :8, :8] + torch.arange(8.0), None),
        (lambda x: x @ x.transpose(2, 3), None),
        (lambda x: x + torch.arange(float(SIDE))[:, None], ["add"]),
        (lambda x: functional.relu(x.mean((2, 3), keepdim=True)) + x, ["add"]),
        (lambda x: x - 1, []),
        (lambda x: 1 - x, ["subtract"]),
        (lambda x: x / torch.arange(1.0, 9).reshape(8, 1, 1) * 3, []),
    ],
)  # fmt: skip
def test_each_operator_alone(
    function: Callable[[Tensor], Tensor], names: list[str] | None, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    graph = check(export_onnx(After(function), SIDE), tmp_path)
    if names is not None:
        found = [re.sub("[^a-z0-9]", "", one) for one in operators(graph)]
        assert found == [re.sub("[^a-z0-9]", "", one) for one in names]
    else:
        assert graph.fallbacks


@pytest.mark.parametrize(
    ("conv", "names"),
    [
        (nn.Conv2d(8, 8, 3, groups=2), ["conv2d", "add"]),
        (nn.Conv2d(8, 16, 3, groups=8), ["conv2d", "add"]),
        (nn.Conv2d(8, 12, (1, 3)), ["conv2d", "add"]),
        (nn.Conv2d(8, 12, 3, stride=(1, 2)), ["conv2d", "add"]),
        (nn.Conv2d(8, 12, 3, dilation=2), ["conv2d", "add"]),
        (nn.ConvTranspose2d(8, 12, 3, 2), None),
        (nn.Conv2d(8, 12, 3, padding=(0, 1)), ["pad"]),
        (nn.Conv2d(8, 12, 3, padding=3), ["pad"]),
        (nn.Conv2d(8, 12, 1, padding=1), ["pad"]),
        (nn.Conv2d(8, 12, 1, 2), []),
        (nn.Conv2d(8, 12, 7, 2, 3), []),
    ],
)
def test_convolutions_of_any_kind(conv: nn.Module, names: list[str] | None, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    graph = check(export_onnx(nn.Sequential(*network, nn.Flatten()), 14), tmp_path)
    if names is not None:
        assert [one for one in operators(graph) if one != "relu"] == names


class ByHand(nn.Module):
    """Padding as TensorFlow does it: one more pixel at the bottom and at the right."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, 8, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv(functional.pad(x, (0, 1, 0, 1))))


class WithInput(nn.Module):
    """The input itself is a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


class Gated(nn.Module):
    """The input itself is multiplied by a gate, or is one."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return torch.mul(x, self.conv(x))


class Broadcast(nn.Module):
    """A convolution of a pooled value is added to what was pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        return torch.add(self.conv(y.mean((2, 3), keepdim=True)), y)


class Refolded(nn.Module):
    """The input in another shape."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(1, 3 * SIDE, SIDE, 1)


HEAD = (nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ([nn.MaxPool2d(2), nn.Conv2d(3, 4, 3), *HEAD], ["transpose"]),
        ([nn.Conv2d(3, 3, 3, groups=3), *HEAD], ["transpose"]),
        ([*HEAD, nn.Linear(3, 4), nn.ReLU()], ["transpose"]),
        ([nn.Flatten(), nn.Linear(363, 5), nn.ReLU(), nn.Linear(5, 4)], []),
        ([nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(324, 5), nn.ReLU()], []),
        ([nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5)], []),
        ([nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), *HEAD], None),
        ([nn.ReLU(), nn.Conv2d(3, 4, 3), *HEAD], ["relu"]),
        ([WithInput(), *HEAD], ["transpose"]),
        ([ByHand(3), *HEAD], ["pad"]),
        ([nn.Conv2d(3, 6, 3), ByHand(6), *HEAD], ["pad"]),
        ([nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1), *HEAD], None),
        ([nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3), *HEAD], []),
        ([nn.Conv2d(3, 4, 3), *HEAD, nn.Softmax(1)], ["softmax"]),
        ([nn.Conv2d(3, 4, SIDE)], []),
        ([Gated(SIDE), *HEAD], ["transpose"]),
        ([nn.AvgPool2d(SIDE), Gated(1)], ["transpose"]),
        ([Broadcast(), *HEAD], ["tanh", "add"]),
        ([Refolded(), nn.Conv2d(33, 8, (3, 1)), *HEAD], None),
        ([Refolded(), nn.Conv2d(33, 8, 1), nn.ReLU(), *HEAD], None),
    ],
)
def test_beginnings_and_ends(
    layers: list[nn.Module], names: list[str] | None, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(*layers)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.uniform_(-1, 1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    graph = check(export_onnx(network, SIDE), tmp_path)
    assert names is None or operators(graph) == names


@pytest.mark.parametrize("place", ["before", "after"])
def test_batch_norms_that_the_exporter_left(place: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        values = random.uniform(0.5, 1.5, shape).astype(np.float32)
        return onnx.numpy_helper.from_array(values, name)

    first = ("x", "h", "c", "y") if place == "after" else ("h", "y", "x", "h")
    conv_in, conv_out, norm_in, norm_out = first
    if place == "after":
        norm_in = conv_out
    channels = 4 if place == "after" else 3
    nodes = [
        helper.make_node("Conv", [conv_in, "w"], [conv_out]),
        helper.make_node("BatchNormalization", [norm_in, "s", "b", "m", "v"], [norm_out]),
    ]
    graph = helper.make_graph(
        nodes if place == "after" else nodes[::-1],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 1, 1])],
        [constant("w", 4, 3, 5, 5), *(constant(name, channels) for name in "sbmv")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    found = check(model.SerializeToString(), tmp_path)
    if place == "after":
        assert found.fallbacks == ()
        assert [one.operator for one in found.workloads] == [Operator.CONV]


@pytest.mark.parametrize("name", MODELS)
def test_usual_networks_at_a_small_resolution(name: str, tmp_path: Path) -> None:
    graph = check(model_onnx(name, 48, classes=10), tmp_path, ALLOWANCE_BYTES)
    assert operators(graph) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_usual_networks_at_full_resolution(name: str, tmp_path: Path) -> None:
    check(model_onnx(name, 224), tmp_path, ALLOWANCE_BYTES)


def small_network() -> bytes:
    """Two fallbacks, one of which calls the C library's mathematics and needs scratch."""
    torch.manual_seed(1)
    layers = nn.Conv2d(3, 8, 3), nn.MaxPool2d((2, 1)), *HEAD, nn.Linear(8, 5), nn.Softmax(1)
    return export_onnx(nn.Sequential(*layers), SIDE)


def test_the_manifest_names_fallbacks(tmp_path: Path) -> None:
    model = small_network()
    network = compile_graph(lower_onnx(model))
    golden = np.random.default_rng(0).standard_normal((4, 3, SIDE, SIDE)).astype(np.float32)
    contents = BundleContents("small", network, model, golden, probe_local(), {})
    bundle = write_bundle(tmp_path / "bundle", contents)
    assert bundle.manifest.fallbacks == ("max_pool2d", "softmax")
    entries = [one for one in bundle.manifest.kernels if one.schedule == FALLBACK]
    assert [one.workload.split("-")[:2] for one in entries] == [
        [FALLBACK, "max_pool2d"],
        [FALLBACK, "softmax"],
    ]
    assert [one.latency_us for one in entries] == [None, None]
    assert verify(bundle).ok


def test_the_library_runs_without_tvm(tmp_path: Path) -> None:
    path = tmp_path / "model.so"
    path.write_bytes(compile_graph(lower_onnx(small_network())).library)
    program = (
        "import ctypes, sys\n"
        f"library = ctypes.CDLL({str(path)!r})\n"
        "memory = ctypes.create_string_buffer(1 << 20)\n"
        "start = -ctypes.addressof(memory) % 64 + ctypes.addressof(memory)\n"
        f"image, scores = (ctypes.c_float * {3 * SIDE * SIDE})(), (ctypes.c_float * 5)()\n"
        "assert library.bignas_run(image, scores, ctypes.c_void_p(start)) == 0\n"
        "assert abs(sum(scores) - 1) < 1e-5\n"
        "assert not any('tvm' in name for name in sys.modules)\n"
        "assert 'tvm' not in open('/proc/self/maps').read()\n"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", path], check=True, capture_output=True, text=True
    ).stdout
    assert "tvm" not in symbols.lower()


def test_equal_operators_are_one_kernel() -> None:
    first, second = (activation_kernel(Activation.RELU, Operand((1, 4, 5, 5))) for _ in range(2))
    assert first == second
    assert first.key == second.key
    assert activation_kernel(Activation.RELU, Operand((1, 4, 5, 6))).key != first.key


def test_kernels_are_the_same_in_another_process(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(small_network())
    program = (
        "import pathlib, sys\n"
        "from bignas.compile.lower import lower_onnx\n"
        "for one in lower_onnx(pathlib.Path(sys.argv[1]).read_bytes()).fallbacks: print(one.key)\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(path)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert result.stdout.split() == [one.key for one in lower_onnx(path.read_bytes()).fallbacks]


@pytest.mark.parametrize("name", ["x86-64-v2", "neoverse-n1", "riscv64-v"])
def test_builds_are_byte_identical_for_every_target(name: str) -> None:
    for kernel in lower_onnx(small_network()).fallbacks:
        first, second = (build_fallback(kernel, PRESETS[name]) for _ in range(2))
        assert first == second
        assert kernel.symbol.encode() in first
        assert b"TVMBackend" not in first


def test_code_that_cannot_be_built_is_named() -> None:
    kernel = FallbackKernel("max_pool2d", 1, (1, 4), (), "no code")
    with pytest.raises(ToolchainError, match="max_pool2d") as caught:
        build_fallback(kernel, Target("x86_64-linux-gnu", "x86-64-v3"))
    assert "\n" not in str(caught.value)


def test_scratch_overlaps_neither_operands_nor_output() -> None:
    kernel = FallbackKernel("test", 2, (1, 40), (30, 5), "")
    calls = tuple(
        FallbackCall(kernel, operands, output)
        for operands, output in (
            (("input", "input"), "a"),
            (("a", "input"), "b"),
            (("a", "b"), "c"),
        )
    )
    plan = make_plan(KernelGraph(calls, (1, 4, 10), 40), [None] * 3, lanes=4)
    sizes = (40, 40, 40, 30, 5)
    for line in re.findall(r"bignas_f_\w+\((.*)\);  /\*", plan.source):
        areas = [
            (int(argument.partition("+ ")[2]), size)
            for argument, size in zip(line.split(", "), sizes, strict=True)
            if argument != "input"
        ]
        for index, (start, size) in enumerate(areas):
            assert (start + size) * 4 <= plan.workspace_bytes
            for other, length in areas[index + 1 :]:
                assert start + size <= other or other + length <= start


@pytest.mark.parametrize("operator", ["If", "Loop"])
def test_control_flow_is_refused(operator: str) -> None:
    def body(name: str, inputs: list[onnx.ValueInfoProto], results: list[str]) -> onnx.GraphProto:
        values = [
            helper.make_tensor_value_info(
                one, TensorProto.BOOL if one == "go" else TensorProto.FLOAT, None
            )
            for one in results
        ]
        nodes = [helper.make_node("Identity", ["in0"], [results[-1]])]
        if "go" in results:
            nodes.append(helper.make_node("Identity", ["go_on"], ["go"]))
        return helper.make_graph(nodes, name, inputs, values)

    sum_of = helper.make_node("ReduceSum", ["in0"], ["sum"], keepdims=0)
    positive = helper.make_node("Greater", ["sum", "zero"], ["positive"])
    if operator == "If":
        node = helper.make_node(
            "If", ["positive"], ["y"], then_branch=body("a", [], ["u"]),
            else_branch=body("b", [], ["v"]),
        )  # fmt: skip
    else:
        inputs = [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held", TensorProto.FLOAT, None),
        ]
        node = helper.make_node(
            "Loop", ["", "positive", "in0"], ["y"], body=body("c", inputs, ["go", "w"])
        )
    graph = helper.make_graph(
        [sum_of, positive, node],
        "network",
        [helper.make_tensor_value_info("in0", TensorProto.FLOAT, [1, 4, 1, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 1, 1])],
        [onnx.numpy_helper.from_array(np.zeros((), np.float32), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError) as caught:
        lower_onnx(model.SerializeToString())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64])
def test_inputs_of_other_types_are_refused(kind: int) -> None:
    graph = helper.make_graph(
        [helper.make_node("Abs", ["x"], ["y"])],
        "network",
        [helper.make_tensor_value_info("x", kind, [1, 4, 1, 1])],
        [helper.make_tensor_value_info("y", kind, [1, 4, 1, 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError, match="float32"):
        lower_onnx(model.SerializeToString())
