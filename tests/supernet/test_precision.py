"""Mixed precision computes what float32 does, to the rounding of bfloat16."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bignas.device_db.errors import InputError
from bignas.device_db.probe import probe_local
from bignas.device_db.workload import Activation, Operator
from bignas.supernet.data import ImageData
from bignas.supernet.fused_kernels import (
    KINDS,
    FusedKernels,
    Linked,
    Normalized,
    load_fused_kernels,
)
from bignas.supernet.layer import Layer
from bignas.supernet.network import Supernet
from bignas.supernet.precision import bfloat16_speed, is_mixed, training_execution
from bignas.supernet.recipe import Precision
from bignas.supernet.space import SearchSpace
from bignas.supernet.train import TrainConfig, train

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ULP = 2.0**-8  # of bfloat16, at most, as a share of the value


def kernels() -> FusedKernels:
    found = load_fused_kernels()
    assert found is not None  # a C compiler is a requirement of the project
    return found


def rounded(count: int, channels: int, side: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, channels, side, side, generator=generator)
    return x.bfloat16().contiguous(memory_format=torch.channels_last)


SHAPES = (st.integers(1, 4), st.sampled_from([3, 16, 24, 130]), st.integers(1, 7))


@given(*SHAPES, st.integers(0, 99), st.sampled_from(["none", "self"]))
@settings(max_examples=40, deadline=None)
def test_stores_round_as_torch_does(
    count: int, channels: int, side: int, seed: int, added: str
) -> None:
    y = rounded(count, channels, side, seed)
    residual = y if added == "self" else None
    factor = torch.randn(channels, generator=torch.Generator().manual_seed(seed))
    found = kernels().normalize(y, residual, factor, torch.zeros(channels), KINDS[Activation.NONE])
    exact = kernels().normalize(
        y.float(), None if residual is None else residual.float(), factor, torch.zeros(channels),
        KINDS[Activation.NONE],
    )  # fmt: skip
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, exact.bfloat16())


@given(*SHAPES, st.sampled_from(sorted(KINDS)), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_batch_norms_compute_in_float32(
    count: int, channels: int, side: int, activation: Activation, seed: int
) -> None:
    y, dz = rounded(count, channels, side, seed), rounded(count, channels, side, seed + 1)
    moments = [kernels().moments(one) for one in (y, y.float())]
    for found, expected in zip(*moments, strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    vectors = (*moments[0], torch.full((channels,), 1.5), torch.full((channels,), 0.1))
    kind = KINDS[activation]
    dy, *sums = kernels().normalize_backward(y, dz, vectors, kind)
    exact, *exact_sums = kernels().normalize_backward(y.float(), dz.float(), vectors, kind)
    assert torch.allclose(dy.float(), exact, rtol=ULP, atol=1e-5)
    for found, expected in zip(sums, exact_sums, strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3)


@given(
    st.sampled_from([16, 24, 40, 130]), st.integers(1, 9), st.integers(1, 4),
    st.sampled_from([3, 5]), st.sampled_from([1, 2]), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_depthwise_convolutions_compute_in_float32(
    channels: int, side: int, count: int, kernel: int, stride: int, seed: int
) -> None:
    layer = Layer(
        "d", Operator.DEPTHWISE, side, side, channels, channels, kernel, stride, kernel // 2
    )
    x = rounded(count, channels, side, seed)
    weight = torch.randn(channels, 1, kernel, kernel, generator=torch.Generator().manual_seed(1))
    y = kernels().convolve(layer, Normalized(x), weight)
    exact = kernels().convolve(layer, Normalized(x.float()), weight)
    assert torch.equal(y, exact.bfloat16())
    dy = rounded(count, channels, y.shape[2], seed + 1)
    found = kernels().convolve_backward(layer, Linked(dy, dy), Normalized(x), weight)
    single = (Linked(dy.float(), dy.float()), Normalized(x.float()))
    expected = kernels().convolve_backward(layer, *single, weight)
    assert found.of_input is not None
    assert expected.of_input is not None
    assert torch.equal(found.of_input.g, expected.of_input.g.bfloat16())
    assert torch.equal(found.weight, expected.weight)


@pytest.mark.parametrize("has_compiler", [True, False])
@pytest.mark.parametrize("which", ["tiny_space", "gated_space", "dense_space"])
def test_whole_children(which: str, has_compiler: bool, request: pytest.FixtureRequest) -> None:
    space: SearchSpace = request.getfixturevalue(which)
    network = Supernet(space, zero_gamma=False)
    rng = np.random.default_rng(0)
    for arch in (space.biggest(), space.smallest(), space.sample(rng)):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(16, 3, arch.resolution, arch.resolution, generator=generator)
        x, found = x.contiguous(memory_format=torch.channels_last), []
        for mixed in (False, True):
            network.zero_grad()
            execution = training_execution(fused=has_compiler, mixed=mixed)
            logits = network.classify(network.features(x, arch, execution))
            assert logits.dtype is torch.float32
            logits.square().sum().backward()  # type: ignore[no-untyped-call]
            used = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
            found.append((logits.detach().flatten(), torch.cat(used).clone()))
        for single, half in zip(*found, strict=True):
            assert torch.cosine_similarity(single, half, dim=0) > 0.99
            assert not torch.equal(single, half)  # it was another precision


def test_activations_are_stored_in_half() -> None:
    layer = Layer("unit", Operator.CONV, 8, 8, 16, 24, 3, 1, 1, Activation.RELU)
    x, weight = rounded(2, 16, 8, 0), torch.randn(24, 16, 3, 3)
    for fused in (True, False):
        execution = training_execution(fused=fused, mixed=True)
        y = execution.convolve(layer, x, weight, None)
        z = execution.finish(layer, y, torch.ones(24), torch.zeros(24), None)
        assert y.dtype is z.dtype is torch.bfloat16
        assert z.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("speed", [0.6, 4.0])
def test_precision_follows_the_device(speed: float, monkeypatch: pytest.MonkeyPatch) -> None:
    here = probe_local()
    monkeypatch.setattr("bignas.supernet.precision.bfloat16_speed", lambda: speed)
    for units in ("amx_bf16",), ("avx512_bf16",), ():
        there = replace(here, instruction_sets=(*units, "avx2"))
        monkeypatch.setattr("bignas.supernet.precision.probe_local", lambda one=there: one)
        assert is_mixed(Precision.AUTO, CPU) is (bool(units) and speed > 1)
        assert is_mixed(Precision.AUTO, GPU)
        for device in (CPU, GPU):
            assert is_mixed(Precision.BFLOAT16, device)
            assert not is_mixed(Precision.FLOAT32, device)


def test_a_product_is_timed_once_in_both_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[torch.dtype] = []
    linear = torch.nn.functional.linear

    def spy(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        kinds.append(x.dtype)
        return linear(x, weight)

    monkeypatch.setattr("bignas.supernet.precision.functional.linear", spy)
    bfloat16_speed.cache_clear()
    speed = bfloat16_speed()
    assert speed > 0
    assert kinds.count(torch.float32) == kinds.count(torch.bfloat16) > 1
    timed = len(kinds)
    assert bfloat16_speed() == speed
    assert len(kinds) == timed


def test_training_learns_and_resumes_in_mixed_precision(
    tiny_space: SearchSpace, toy_data: ImageData, tmp_path: Path
) -> None:
    config = TrainConfig(epochs=2, batch_size=24, threads=1, precision=Precision.BFLOAT16)
    whole = train(tiny_space, toy_data, tmp_path / "whole.safetensors", config)
    single = TrainConfig(epochs=2, batch_size=24, threads=1, precision=Precision.FLOAT32)
    other = train(tiny_space, toy_data, tmp_path / "single.safetensors", single)
    stopped = tmp_path / "stopped.safetensors"

    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_space, toy_data, stopped, config, stop)
    resumed = train(tiny_space, toy_data, stopped, config)
    assert all(torch.equal(whole.weights[name], one) for name, one in resumed.weights.items())
    differences = [
        float((whole.weights[name] - one).norm() / one.norm().clamp(min=1.0))
        for name, one in other.weights.items()
    ]
    assert 0.0 < max(differences) < 0.1


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(InputError, match="precision must be one of auto, float32, bfloat16"):
        TrainConfig.from_dict({"precision": "float8"})
