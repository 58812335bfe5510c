"""The compiled training kernels compute what torch does, whatever the shape and the threads."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from bignas.device_db.workload import Activation, Operator
from bignas.supernet.calibrate import calibrate
from bignas.supernet.data import ImageData
from bignas.supernet.fused import FusedExecution
from bignas.supernet.fused_inference import inference_execution
from bignas.supernet.fused_kernels import KINDS, load_fused_kernels
from bignas.supernet.layer import Layer
from bignas.supernet.layers import (
    EPSILON,
    BatchExecution,
    ElasticUnit,
    FixedExecution,
    activate,
)
from bignas.supernet.network import Supernet
from bignas.supernet.precision import training_execution
from bignas.supernet.space import SearchSpace
from bignas.supernet.stage import Block
from bignas.supernet.train import TrainConfig, train

CHANNELS = st.sampled_from([16, 24, 40, 64, 72, 130, 384])


def fused() -> FusedExecution:
    kernels = load_fused_kernels()
    assert kernels is not None  # a C compiler is a requirement of the project
    return FusedExecution(kernels)


def unit(
    operator: Operator,
    channels: int,
    side: int,
    kernel: int = 1,
    stride: int = 1,
    activation: Activation = Activation.NONE,
) -> Layer:
    return Layer(
        "unit", operator, side, side, channels, channels, kernel, stride, kernel // 2, activation
    )


def images(count: int, channels: int, side: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, channels, side, side, generator=generator)
    return x.contiguous(memory_format=torch.channels_last)


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-5) -> bool:
    """Equal to `tolerance` of the largest value, or of one."""
    difference = (found.double() - expected).abs().max()
    return bool(difference <= tolerance * expected.abs().max().clamp(min=1.0))


def is_near_kink(y: Tensor, activation: Activation) -> bool:
    if activation is Activation.NONE:
        return False
    normal = functional.batch_norm(y.double(), None, None, training=True, eps=EPSILON)
    kinks = normal.new_tensor([-3.0, 0.0, 3.0, 6.0])
    return bool(((normal.unsqueeze(-1) - kinks).abs() < 2e-6).any())


@given(
    CHANNELS, st.integers(1, 9), st.integers(1, 5), st.sampled_from([3, 5]),
    st.sampled_from([1, 2]), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_depthwise_gradients(
    channels: int, side: int, count: int, kernel: int, stride: int, seed: int
) -> None:
    layer = unit(Operator.DEPTHWISE, channels, side, kernel, stride)
    x, weight = images(count, channels, side, seed), images(channels, 1, kernel, seed + 1)
    results = []
    for execution, kind in ((BatchExecution(), torch.float64), (fused(), torch.float32)):
        leaves = [tensor.to(kind).requires_grad_() for tensor in (x, weight)]
        y = execution.convolve(layer, leaves[0], leaves[1], None)
        gradient = images(count, channels, y.shape[2], seed + 2).to(kind)
        results.append((y, *torch.autograd.grad(y, leaves, gradient)))
    for expected, found in zip(*results, strict=True):
        assert close(found, expected)


@given(
    CHANNELS, st.sampled_from([8, 24, 33, 160]), st.integers(1, 9), st.integers(1, 5),
    st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_pointwise_gradients(
    channels: int, out_channels: int, side: int, count: int, seed: int
) -> None:
    layer = Layer("unit", Operator.POINTWISE, side, side, channels, out_channels)
    x, weight = images(count, channels, side, seed), images(out_channels, channels, 1, seed + 1)
    results = []
    for execution, kind in ((BatchExecution(), torch.float64), (fused(), torch.float32)):
        leaves = [tensor.to(kind).requires_grad_() for tensor in (x, weight)]
        y = execution.convolve(layer, leaves[0], leaves[1], None)
        gradient = images(count, out_channels, side, seed + 2).to(kind)
        results.append((y, *torch.autograd.grad(y, leaves, gradient)))
    for expected, found in zip(*results, strict=True):
        assert close(found, expected)


@given(
    st.sampled_from([(3, 24), (24, 48), (33, 10), (64, 130)]), st.integers(1, 9),
    st.integers(1, 18), st.sampled_from([3, 5]), st.sampled_from([1, 2]), st.booleans(),
    st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_dense_gradients(
    channels: tuple[int, int],
    side: int,
    count: int,
    kernel: int,
    stride: int,
    of_input: bool,
    seed: int,
) -> None:
    """Of the weights alone too, as in the first layer."""
    layer = Layer("unit", Operator.CONV, side, side, *channels, kernel, stride, kernel // 2)
    x, weight = images(count, channels[0], side, seed), images(channels[1], channels[0], kernel, 1)
    results = []
    for execution, kind in ((BatchExecution(), torch.float64), (fused(), torch.float32)):
        leaves = [weight.to(kind).requires_grad_(), x.to(kind).requires_grad_(of_input)]
        y = execution.convolve(layer, leaves[1], leaves[0], None)
        gradient = images(count, channels[1], y.shape[2], seed + 2).to(kind)
        results.append((y, *torch.autograd.grad(y, leaves[: 1 + of_input], gradient)))
    assert type(results[1][0].grad_fn).__name__ == "_ConvolutionBackward"
    for expected, found in zip(*results, strict=True):
        assert close(found, expected)


class Watching(BatchExecution):
    """Notes whether an activation gets a value so near to a kink that rounding decides."""

    near_kink = False

    def finish(
        self, layer: Layer, y: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None
    ) -> Tensor:
        plain = replace(layer, activation=Activation.NONE)
        u = super().finish(plain, y, scale, shift, residual)
        if layer.activation is not Activation.NONE:
            kinks = u.new_tensor([-3.0, 0.0, 3.0, 6.0])
            self.near_kink |= bool(((u.unsqueeze(-1) - kinks).abs() < 5e-6).any())
        return activate(layer, u, None)


def chain_of(
    sizes: tuple[int, int, int],
    side: int,
    kernel: int,
    stride: int,
    activation: Activation,
    block: Block = Block.MBCONV,
) -> list[tuple[ElasticUnit, Layer]]:
    """Return the units of a block, without an expansion that would change nothing."""
    channels, hidden, out_channels = sizes
    out_side = (side - 1) // stride + 1
    window = (kernel, stride, kernel // 2, activation)
    pointwise, dense, depthwise = Operator.POINTWISE, Operator.CONV, Operator.DEPTHWISE
    if block is Block.FUSED_MBCONV:
        first = [Layer("e", dense, side, side, channels, hidden, *window)]
    else:
        expand = Layer("e", pointwise, side, side, channels, hidden, activation=activation)
        first = [expand] if channels != hidden else []
        first.append(Layer("d", depthwise, side, side, hidden, hidden, *window))
    chosen = [*first, Layer("p", pointwise, out_side, out_side, hidden, out_channels)]
    units = [
        ElasticUnit(
            one.out_channels, one.in_channels, one.kernel,
            depthwise=one.operator is Operator.DEPTHWISE, normalized=True,
        )
        for one in chosen
    ]  # fmt: skip
    return list(zip(units, chosen, strict=True))


@given(
    st.sampled_from([(24, 72, 24), (16, 16, 16), (40, 40, 33), (20, 64, 130)]),
    st.integers(3, 9), st.integers(6, 9), st.sampled_from([3, 5]), st.sampled_from([1, 2]),
    st.sampled_from([*KINDS]), st.sampled_from(Block),
    st.booleans(), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=90, deadline=None)
def test_chains_and_their_gradients(
    sizes: tuple[int, int, int],
    side: int,
    count: int,
    kernel: int,
    stride: int,
    activation: Activation,
    block: Block,
    with_residual: bool,
    seed: int,
) -> None:
    with_residual = with_residual and stride == 1 and sizes[0] == sizes[2]
    units = chain_of(sizes, side, kernel, stride, activation, block)
    generator = torch.Generator().manual_seed(seed)
    for unit, _ in units:
        for parameter in unit.parameters():
            torch.nn.init.normal_(parameter, generator=generator)
    x = images(count, sizes[0], side, seed)
    gradient = images(count, sizes[2], (side - 1) // stride + 1, seed + 1)
    reference = Watching()
    runs = (
        (reference, torch.float64), (BatchExecution(), torch.float32), (fused(), torch.float32),
    )  # fmt: skip
    results = []
    for execution, kind in runs:
        for unit, _ in units:
            unit.to(kind)
        leaf = x.to(kind).requires_grad_()
        z = execution.chain(units, leaf, leaf if with_residual else None)
        leaves = [leaf, *(one for unit, _ in units for one in unit.parameters())]
        results.append((z, *torch.autograd.grad(z, leaves, gradient.to(kind))))
    assert type(results[2][0].grad_fn).__name__ == "_ChainBackward"
    assume(not reference.near_kink)
    for expected, by_torch, found in zip(*results, strict=True):
        error = (found.double() - expected).abs().max()
        usual = (by_torch.double() - expected).abs().max()  # batch norms of few pixels lose digits
        assert error <= 4 * usual + 2e-5 * expected.abs().max().clamp(min=1.0)


@given(
    CHANNELS, st.integers(1, 9), st.integers(4, 9),
    st.sampled_from([*KINDS]),
    st.booleans(), st.sampled_from([0.0, 3.0, 1000.0]), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_normalisation_and_its_gradients(
    channels: int,
    side: int,
    count: int,
    activation: Activation,
    with_residual: bool,
    offset: float,
    seed: int,
) -> None:
    """Also far from zero, where sums of squares would cancel.

    Where an activation has a kink rounding decides between two slopes; then inputs are drawn again.
    """
    offset = offset if activation is Activation.NONE else 0.0
    layer = unit(Operator.POINTWISE, channels, side, activation=activation)
    y = images(count, channels, side, seed) + offset
    assume(not is_near_kink(y, activation))
    vectors: tuple[Tensor, ...] = (torch.ones(channels), torch.zeros(channels))
    if activation is Activation.NONE:
        vectors = images(2, channels, 1, seed + 3).flatten(1).unbind()
    residual = images(count, channels, side, seed + 1)
    results = []
    for execution, kind in ((BatchExecution(), torch.float64), (fused(), torch.float32)):
        leaves = [tensor.to(kind).requires_grad_() for tensor in (y, *vectors, residual)]
        added = leaves[3] if with_residual else None
        z = execution.finish(layer, leaves[0], leaves[1], leaves[2], added)
        gradient = images(count, channels, side, seed + 2).to(kind)
        used = leaves if with_residual else leaves[:3]
        results.append((z, *torch.autograd.grad(z, used, gradient)))
    tolerance = 2e-5 + 1e-6 * offset
    for expected, found in zip(*results, strict=True):
        assert close(found, expected, tolerance)


def test_results_do_not_depend_on_the_threads() -> None:
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        x = images(6, 24, 9, 0)
        layer = unit(Operator.DEPTHWISE, 24, 9, 3, 1, Activation.RELU)
        leaves = [x.requires_grad_(), images(24, 1, 3, 1).requires_grad_()]
        y = fused().convolve(layer, leaves[0], leaves[1], None).detach().requires_grad_()
        z = fused().finish(layer, y, torch.ones(24), torch.zeros(24), None)
        found.append([z, *torch.autograd.grad(z.square().sum(), y)])
        gradients = torch.autograd.grad(
            fused().convolve(layer, leaves[0], leaves[1], None).sum(), leaves
        )
        found[-1].extend(gradients)
        for block in Block:
            units = chain_of((24, 72, 24), 9, 3, 1, Activation.RELU, block)
            for one, _ in units:
                torch.nn.init.ones_(one.weight)
            chained = fused().chain(units, leaves[0], None)
            found[-1].append(chained)
            first = [*units[0][0].parameters()]
            found[-1].extend(torch.autograd.grad(chained.square().sum(), first))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("which", ["gated_space", "dense_space"])
def test_whole_children(which: str, request: pytest.FixtureRequest) -> None:
    """Gates, swish, strides and shortcuts: whatever is not fused goes the usual way."""
    space: SearchSpace = request.getfixturevalue(which)
    network = Supernet(space, zero_gamma=False)
    rng = np.random.default_rng(0)
    for arch in (space.biggest(), space.smallest(), space.sample(rng)):
        x = images(8, 3, arch.resolution, 0)
        gradients = []
        for execution in (BatchExecution(), fused()):
            network.zero_grad()
            logits = network.classify(network.features(x, arch, execution))
            logits.square().sum().backward()  # type: ignore[no-untyped-call]
            used = [p.grad for p in network.parameters() if p.grad is not None]
            gradients.append(torch.cat([gradient.flatten() for gradient in used]).clone())
        assert close(gradients[1], gradients[0].double(), 1e-3)


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("precision", "fused_inference", "calibrate"):
        monkeypatch.setattr(f"bignas.supernet.{module}.load_fused_kernels", lambda: None)
    assert type(training_execution()) is BatchExecution
    assert type(inference_execution({})) is FixedExecution


def test_training_without_a_compiler(
    tiny_space: SearchSpace, toy_data: ImageData, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_compiler(monkeypatch)
    config = TrainConfig(epochs=1, batch_size=24, threads=1)
    assert train(tiny_space, toy_data, out, config).step == 4


@pytest.mark.parametrize("which", ["tiny_space", "gated_space", "dense_space"])
def test_calibrated_children_are_those_that_torch_computes(
    which: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    space: SearchSpace = request.getfixturevalue(which)
    network = Supernet(space, zero_gamma=False)
    for arch in (space.biggest(), space.smallest(), space.sample(np.random.default_rng(0))):
        x = images(12, 3, arch.resolution, 1)
        found = calibrate(network, arch, x, batch_size=5)
        with monkeypatch.context() as patch:
            without_compiler(patch)
            expected = calibrate(network, arch, x, batch_size=5)
        assert found.keys() == expected.keys()
        for name, moments in expected.items():
            for one, other in zip(found[name], moments, strict=True):
                assert close(one, other.double(), 1e-4)
        child = network.extract(arch, found)
        with torch.no_grad():
            execution = inference_execution(found)
            for part in (x, x[:5]):  # weights are folded once
                logits = network.classify(network.features(part, arch, execution))
                assert close(logits, child(part).double(), 1e-4)


def test_the_compiled_library_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGNAS_CACHE", str(tmp_path))
    load_fused_kernels.cache_clear()
    assert load_fused_kernels() is not None
    (library,) = tmp_path.glob("fused-*.so")
    written = library.stat().st_mtime_ns
    load_fused_kernels.cache_clear()
    assert load_fused_kernels() is not None
    assert library.stat().st_mtime_ns == written
    library.write_bytes(b"damaged")
    load_fused_kernels.cache_clear()
    assert load_fused_kernels() is not None
    monkeypatch.setenv("BIGNAS_CACHE", str(tmp_path / "other"))
    monkeypatch.setenv("PATH", "")
    load_fused_kernels.cache_clear()
    assert load_fused_kernels() is None
    load_fused_kernels.cache_clear()
