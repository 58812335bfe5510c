from dataclasses import replace

import pytest
import torch

from bignas.supernet.data import ImageData
from bignas.supernet.network import Supernet
from bignas.supernet.space import SearchSpace
from bignas.supernet.whitening import principal_filters, whiten_stem


def test_responses_are_uncorrelated_and_fall_in_variance() -> None:
    images = torch.randn(20, 3, 12, 12, generator=torch.Generator().manual_seed(0)).cumsum(2)
    filters = principal_filters(images, 3)
    assert filters.shape == (54, 3, 3, 3)
    assert torch.equal(filters[1::2], -filters[::2])
    flat = filters[::2].flatten(1)
    assert torch.allclose(flat @ flat.T, torch.eye(27), atol=1e-5)
    responses = torch.nn.functional.conv2d(images, filters[::2]).transpose(0, 1).flatten(1)
    moments = responses @ responses.T / responses.shape[1]
    variances = moments.diagonal()
    assert torch.all(variances[1:] <= variances[:-1] * 1.0001)
    assert (moments - torch.diag(variances)).abs().max() < 1e-4 * variances[0]


@pytest.mark.parametrize("images", [3, 60])
def test_the_stem_takes_as_many_as_it_has(
    tiny_space: SearchSpace, toy_data: ImageData, images: int
) -> None:
    network, usual = Supernet(tiny_space), Supernet(tiny_space)
    whiten_stem(network, toy_data, toy_data.train.take(torch.arange(images).numpy()))
    weight = network.stem.weight
    assert torch.allclose(weight.flatten(1).norm(dim=1), torch.ones(len(weight)), atol=1e-5)
    assert torch.equal(weight[1::2], -weight[: len(weight) // 2 * 2 : 2])
    for (name, mine), other in zip(network.named_parameters(), usual.parameters(), strict=True):
        assert torch.equal(mine, other) == (name != "stem.weight")


def test_more_filters_than_directions_stay(tiny_space: SearchSpace, toy_data: ImageData) -> None:
    wide = replace(tiny_space, stem_channels=(8, 64))
    network, usual = Supernet(wide), Supernet(wide)
    whiten_stem(network, toy_data, toy_data.train)
    assert torch.equal(network.stem.weight[54:], usual.stem.weight[54:])
    assert not torch.equal(network.stem.weight[:54], usual.stem.weight[:54])
