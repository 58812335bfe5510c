"""Tests of the spaces that benchmarks use beside the built-in ones."""

from dataclasses import replace
from pathlib import Path

from bignas.supernet.spaces import load_space

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_bignas_at_two_resolutions_is_bignas_otherwise() -> None:
    space = load_space(str(BENCHMARKS / "bignas_192_224.toml"))
    bignas = load_space("bignas")
    assert space.resolutions == bignas.resolutions[:2] == (192, 224)
    assert replace(space, name=bignas.name, resolutions=bignas.resolutions) == bignas
