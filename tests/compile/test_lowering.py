"""A network, its export and its binary are one function, and its kernels are known beforehand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from bignas.compile.child_graph import graph_of_child, graph_with_random_weights
from bignas.compile.lower import lower_onnx
from bignas.compile.onnx_export import export_onnx, load_onnx, run_onnx
from bignas.compile.plan import make_plan
from bignas.compile.workload import workloads
from bignas.device_db.errors import ModelError
from bignas.device_db.presets import PRESETS
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace
from bignas.supernet.spaces import load_space
from tests.compile.networks import (
    CLIPPED,
    DENSE,
    SQUEEZE,
    clipped,
    compile_graph,
    first_schedules,
    headless,
    mobilenet,
    randomise,
    resnet,
    run_compiled,
    space_from,
    specimen,
)

TOLERANCE = 1e-4  # of the largest logit

CIFAR = load_space("cifar")


def close(result: np.ndarray, expected: np.ndarray) -> bool:
    assert result.shape == expected.shape
    return bool(np.abs(result - expected).max() <= TOLERANCE * np.abs(expected).max())


def check_parity(space: SearchSpace, architecture: Architecture, seed: int, folder: Path) -> None:
    sample = specimen(space, architecture, seed)
    with torch.inference_mode():
        sliced = sample.supernet(sample.images, architecture, sample.statistics).numpy()
        child = sample.child(sample.images).numpy()
    model = export_onnx(sample.child, architecture.resolution, space.in_channels)
    images = sample.images.numpy()
    graph = lower_onnx(model)
    assert workloads(space, architecture) == graph.workloads
    assert space.macs(architecture) == sum(one.macs for one in graph.workloads)
    assert close(child, sliced)
    assert close(run_onnx(model, images), sliced)
    assert close(run_compiled(compile_graph(graph), images, folder), sliced)
    target = PRESETS["x86-64-v3"]
    schedules = first_schedules(graph, target)
    plans = [
        make_plan(one, [schedules[work] for work in one.workloads], target.vector_lanes)
        for one in (
            graph,
            graph_of_child(sample.child),
            graph_with_random_weights(space, architecture),
        )
    ]
    assert len({plan.source for plan in plans}) == 1
    assert len({plan.workspace_bytes for plan in plans}) == 1
    assert len({len(plan.weights) for plan in plans}) == 1
    exported, folded = (np.frombuffer(plan.weights, np.float32) for plan in plans[:2])
    assert np.allclose(exported, folded, rtol=1e-5, atol=1e-6 * np.abs(exported).max())


@pytest.mark.parametrize("end", ["smallest", "biggest"])
def test_parity_at_the_ends_of_the_space(end: str, tmp_path: Path) -> None:
    check_parity(CIFAR, getattr(CIFAR, end)(), 0, tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_parity_of_random_architectures(seed: int, tmp_path: Path) -> None:
    check_parity(CIFAR, CIFAR.sample(np.random.default_rng(seed)), seed, tmp_path)


@pytest.mark.parametrize("text", [SQUEEZE, CLIPPED, DENSE], ids=["squeeze", "clipped", "dense"])
@pytest.mark.parametrize("seed", range(3))
def test_parity_with_other_activations_and_blocks(text: str, seed: int, tmp_path: Path) -> None:
    space = space_from(text, tmp_path)
    choices = [space.smallest(), space.biggest(), space.sample(np.random.default_rng(seed))]
    check_parity(space, choices[seed], seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 22))
def test_parity_of_many_architectures(seed: int, tmp_path: Path) -> None:
    texts = (SQUEEZE, CLIPPED, DENSE)
    for space in (CIFAR, *(space_from(text, tmp_path) for text in texts)):
        check_parity(space, space.sample(np.random.default_rng(seed)), seed, tmp_path)


@pytest.mark.parametrize("make", [resnet, mobilenet, clipped, headless])
def test_networks_of_other_origin(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = randomise(make())
    images = torch.randn(5, 3, 18, 18)
    model = export_onnx(module, 18)
    graph = lower_onnx(model)
    result = run_compiled(compile_graph(graph), images.numpy(), tmp_path)
    with torch.inference_mode():
        assert close(result, module(images).flatten(1).numpy())
    assert close(result, run_onnx(model, images.numpy()))


def test_the_same_network_gives_the_same_bytes() -> None:
    sample = specimen(CIFAR, CIFAR.smallest())
    models = [export_onnx(sample.child, 24) for _ in range(2)]
    assert models[0] == models[1]
    networks = [compile_graph(lower_onnx(model)) for model in models]
    assert networks[0].library == networks[1].library


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text
    assert "\n" not in text
    return text


class Function(nn.Module):
    """A stem, then a function of it."""

    def __init__(self, function: Callable[[Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, 1, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.stem(x))


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: x.argmax(1).float().mean((1, 2)), "argmax"),
        (lambda x: torch.where(x > 0, x, x * 2).mean((2, 3)), "greater|where"),
        (lambda x: x.double().mean((2, 3)), "astype|float64"),
        (lambda x: torch.cat(x.split(3, 1)[:2], 1).mean((2, 3)), "split"),
        (lambda x: torch.topk(x.mean((2, 3)), 4)[0], "topk"),
    ],
)
def test_unsupported_operators_are_named(function: Callable[[Tensor], Tensor], named: str) -> None:
    with pytest.raises(ModelError, match=f"(?i)unsupported.*({named})") as caught:
        lower_onnx(export_onnx(Function(function), 8))
    one_line(caught.value)


def test_biases_in_any_shape_are_taken_in(tmp_path: Path) -> None:
    scales = torch.tensor([0.5, -1.0, 2.0, 0.25]).reshape(1, 4, 1, 1)
    torch.manual_seed(1)
    module = nn.Sequential(
        Function(lambda x: scales[0] + (x + scales) + 0.5, channels=4), headless_tail()
    )
    images = torch.randn(3, 3, 8, 8)
    graph = lower_onnx(export_onnx(module, 8))
    with torch.inference_mode():
        expected = module(images).numpy()
    assert close(run_compiled(compile_graph(graph), images.numpy(), tmp_path), expected)


def headless_tail() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_models_of_other_number_types_are_refused() -> None:
    model = onnx.load_from_string(export_onnx(resnet(), 16))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    del model.graph.value_info[:]
    with pytest.raises(ModelError, match=r"float64|imported") as caught:
        lower_onnx(model.SerializeToString())
    one_line(caught.value)


def test_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    model = onnx.load_from_string(export_onnx(resnet(), 16))
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin")
    with pytest.raises(ModelError) as caught:
        lower_onnx(load_onnx(path))
    one_line(caught.value)


def test_a_spatial_output_is_refused() -> None:
    with pytest.raises(ModelError, match="spatial"):
        lower_onnx(export_onnx(nn.Conv2d(3, 8, 3), 12))


def model_of(nodes: list[onnx.NodeProto], inputs: int = 1, outputs: int = 1) -> bytes:
    """Return a model of images in0, in1, ... that gives vectors of four out0, out1, ..."""

    def value(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "network",
        [value(f"in{index}", [1, 3, 6, 6]) for index in range(inputs)],
        [value(f"out{index}", [1, 4, 1, 1]) for index in range(outputs)],
        [
            helper.make_tensor("weights", TensorProto.FLOAT, [4, 3, 6, 6], np.ones(432)),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def test_several_inputs_are_refused() -> None:
    nodes = [
        helper.make_node("Add", ["in0", "in1"], ["sum"]),
        helper.make_node("Conv", ["sum", "weights"], ["out0"]),
    ]
    with pytest.raises(ModelError, match="2 inputs"):
        lower_onnx(model_of(nodes, inputs=2))


def test_several_outputs_are_refused() -> None:
    nodes = [
        helper.make_node("Conv", ["in0", "weights"], ["out0"]),
        helper.make_node("Relu", ["out0"], ["out1"]),
    ]
    with pytest.raises(ModelError, match="2 outputs"):
        lower_onnx(model_of(nodes, outputs=2))


@pytest.mark.parametrize("axes", [{0: "batch"}, {2: "height", 3: "width"}])
def test_dynamic_shapes_are_refused(axes: dict[int, str], tmp_path: Path) -> None:
    model = onnx.load_from_string(export_onnx(resnet(), 16))
    for axis, name in axes.items():
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    for dimension in model.graph.output[0].type.tensor_type.shape.dim[:1]:
        dimension.dim_param = "batch" if 0 in axes else ""
    del model.graph.value_info[:]
    with pytest.raises(ModelError, match=r"(?i)dynamic") as caught:
        lower_onnx(model.SerializeToString())
    one_line(caught.value)


def test_a_batch_of_images_is_refused() -> None:
    model = onnx.load_from_string(export_onnx(resnet(), 16))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(ModelError, match="input must be") as caught:
        lower_onnx(model.SerializeToString())
    one_line(caught.value)


@pytest.mark.parametrize("content", [b"", b"garbage", bytes(range(256)) * 40, b"\x00" * 1000])
def test_garbage_is_no_model(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx") as caught:
        load_onnx(path)
    one_line(caught.value)


def test_a_damaged_model_is_refused_or_sound(tmp_path: Path) -> None:
    sound = export_onnx(resnet(), 8)
    path = tmp_path / "model.onnx"
    random = np.random.default_rng(0)
    for _ in range(25):
        damaged = bytearray(sound)
        damaged[int(random.integers(0, min(len(sound), 600)))] ^= 1 << int(random.integers(0, 8))
        path.write_bytes(damaged)
        try:
            lower_onnx(load_onnx(path))
        except ModelError as error:
            one_line(error)


def test_a_model_may_be_refused_for_no_reason_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(export_onnx(resnet(), 8))

    def refuse(*_: object, **__: object) -> None:
        raise onnx.checker.ValidationError

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(ModelError, match="not a valid ONNX model: ValidationError"):
        load_onnx(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*missing\.onnx"):
        load_onnx(tmp_path / "missing.onnx")


def test_a_loaded_model_is_the_file(tmp_path: Path) -> None:
    model = export_onnx(resnet(), 16)
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    assert load_onnx(path) == model
