"""The supernet and its extracted children are one and the same function."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from bignas.device_db.errors import ArchitectureError, DataError
from bignas.supernet.architecture import Architecture
from bignas.supernet.calibrate import calibrate
from bignas.supernet.child import Child
from bignas.supernet.network import ElasticBlock, Supernet
from bignas.supernet.space import SearchSpace
from bignas.supernet.spaces import load_space


@pytest.fixture(params=["cifar", "tiny", "gated", "dense"])
def space(request: pytest.FixtureRequest) -> SearchSpace:
    if request.param == "cifar":
        return load_space("cifar")
    found: SearchSpace = request.getfixturevalue(f"{request.param}_space")
    return found


def lively(space: SearchSpace) -> Supernet:
    """A supernet in which every parameter matters, as after training."""
    network = Supernet(space, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return network


def extremes_and_random(space: SearchSpace, count: int = 4) -> list[Architecture]:
    rng = np.random.default_rng(5)
    return [space.smallest(), space.biggest(), *(space.sample(rng) for _ in range(count))]


def images_for(arch: Architecture, count: int = 12) -> torch.Tensor:
    shape = (count, 3, arch.resolution, arch.resolution)
    return torch.randn(shape, generator=torch.Generator().manual_seed(arch.resolution))


def child_of(network: Supernet, arch: Architecture) -> Child:
    return network.extract(arch, calibrate(network, arch, images_for(arch)))


def test_child_equals_supernet(space: SearchSpace) -> None:
    network = lively(space)
    for arch in extremes_and_random(space):
        images = images_for(arch)
        statistics = calibrate(network, arch, images, batch_size=5)
        child = network.extract(arch, statistics)
        with torch.no_grad():
            expected = network(images, arch, statistics)
            assert expected.std() > 1e-3
            assert (child(images) - expected).abs().max() <= 1e-5
            assert (child(images[:1]) - expected[:1]).abs().max() <= 1e-5
            assert child(images[:1]).shape == (1, space.classes)


def test_calibration_on_one_batch_is_training_mode(space: SearchSpace) -> None:
    network = lively(space)
    arch = space.sample(np.random.default_rng(8))
    images = images_for(arch)
    statistics = calibrate(network, arch, images, batch_size=len(images))
    with torch.no_grad():
        assert (network(images, arch) - network(images, arch, statistics)).abs().max() < 1e-4


def outputs_of(child: Child, names: list[str]) -> dict[str, torch.Tensor]:
    """Run the child on one image; the outputs of its modules in the order in which they ran."""
    outputs: dict[str, torch.Tensor] = {}

    def watch(name: str) -> None:
        def hook(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            outputs[name] = output[0]

        child.get_submodule(name).register_forward_hook(hook)

    for name in names:
        watch(name)
    child(images_for(child.architecture, 1))
    return outputs


def test_counts_equal_those_of_the_child(space: SearchSpace) -> None:
    """MACs by hooks on the modules that run, parameters as torch counts them."""
    network = Supernet(space)
    for arch in extremes_and_random(space, 8):
        child = child_of(network, arch)
        weighted = {
            name: module.weight
            for name, module in child.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
        }
        outputs = outputs_of(child, list(weighted))
        macs = {
            name: weight[0].numel() * outputs[name].numel() for name, weight in weighted.items()
        }
        assert sum(macs.values()) == space.macs(arch)
        assert sum(p.numel() for p in child.parameters()) == space.params(arch)
        for layer in space.layers(arch):
            counted = macs.get(layer.name, macs.get(f"{layer.name}.conv", 0))
            assert counted == layer.macs


def test_modules_run_in_the_order_and_shapes_of_the_layers(space: SearchSpace) -> None:
    network = Supernet(space)
    for arch in extremes_and_random(space, 2):
        layers = space.layers(arch)
        outputs = outputs_of(child_of(network, arch), [layer.name for layer in layers])
        assert list(outputs) == [layer.name for layer in layers]
        for layer in layers:
            shape = tuple(outputs[layer.name].shape)
            assert shape == (layer.out_channels, layer.out_height, layer.out_width)[: len(shape)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_export_is_a_clean_graph(space: SearchSpace, tmp_path: Path) -> None:
    child = child_of(lively(space), space.biggest())
    path = tmp_path / "child.onnx"
    images = images_for(space.biggest(), 1)
    torch.onnx.export(child, (images,), path, dynamo=False)
    graph = onnx.load(path).graph
    operators = {node.op_type for node in graph.node}
    plain = {"Conv", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
    gates = {"Sigmoid", "Mul"}  # swish is both too
    expected = {"gated": plain - {"Relu"} | gates | {"HardSwish"}, "dense": plain | gates}
    assert operators == expected.get(space.name, plain)
    weighted = [layer for layer in space.layers(space.biggest()) if layer.weight_count]
    assert sum(node.op_type in ("Conv", "Gemm") for node in graph.node) == len(weighted)


def test_children_share_first_channels_and_kernel_centres(tiny_space: SearchSpace) -> None:
    network = lively(tiny_space)
    small = child_of(network, tiny_space.smallest())
    name = "stages.1.0.depthwise"
    weight = small.get_submodule(f"{name}.conv").weight
    assert isinstance(weight, torch.Tensor)
    biggest = network.get_submodule(name).weight
    assert isinstance(biggest, torch.Tensor)
    assert torch.equal(weight, biggest[:8, :, 1:4, 1:4])


def test_zero_gamma_silences_blocks_with_a_shortcut_only(gated_space: SearchSpace) -> None:
    for zero_gamma in (True, False):
        network = Supernet(gated_space, zero_gamma=zero_gamma)
        blocks = [block for block in network.modules() if isinstance(block, ElasticBlock)]
        assert any(block.has_shortcut for block in blocks)
        assert not all(block.has_shortcut for block in blocks)
        for block in blocks:
            assert block.project.scale is not None
            silent = bool((block.project.scale == 0).all())
            assert silent == (block.has_shortcut and zero_gamma)


def test_the_network_has_no_state_but_its_weights(tiny_space: SearchSpace) -> None:
    network = lively(tiny_space)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert list(network.buffers()) == []
    for arch in extremes_and_random(tiny_space):
        child_of(network, arch)
        network(images_for(arch), arch)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            Supernet(tiny_space, seed=3).parameters(),
            Supernet(tiny_space, seed=3).parameters(),
            strict=True,
        )
    )


def test_every_weight_learns_from_the_biggest_child(gated_space: SearchSpace) -> None:
    network = lively(gated_space)
    arch = gated_space.biggest()
    network(images_for(arch), arch).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_misuse_is_refused(tiny_space: SearchSpace) -> None:
    network = Supernet(tiny_space)
    small, big = tiny_space.smallest(), tiny_space.biggest()
    statistics = calibrate(network, small, images_for(small))
    with pytest.raises(ArchitectureError, match="16x16, the architecture takes 12x12"):
        network(images_for(big), small)
    with pytest.raises(ArchitectureError, match="another architecture"):
        network.extract(big, statistics)
    with pytest.raises(ArchitectureError, match="another architecture"):
        network(images_for(big), big, statistics)
    with pytest.raises(ArchitectureError, match="not in space"):
        network.extract(Architecture(13, 8, small.stages, 16), statistics)
    with pytest.raises(DataError, match="at least one image"):
        calibrate(network, small, images_for(small)[:0])
