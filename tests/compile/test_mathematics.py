"""The runner's own mathematical functions, and how it knows which ones kernels call."""

import ctypes
import re
from collections.abc import Callable
from importlib import resources

import numpy as np
import pytest
from scipy.special import erf

from bignas.compile.elf import undefined_symbols
from bignas.compile.fallback import FallbackKernel
from bignas.compile.fallback_object import build_fallback
from bignas.compile.native import PROVIDED
from bignas.compile.toolchain import link_shared_library
from bignas.device_db.presets import PRESETS
from bignas.device_db.probe import probe_local

RUNNER = resources.files("bignas.compile.runner")
SPECIAL = np.array(
    [0, -0.0, 1, -1, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 88.7, 88.8, -87.4, -103, -104, 1e-45, 1e-38,
     8388609, -8388609, 1e9, 3e38, -3e38, np.inf, -np.inf, np.nan]
).astype(np.float32)  # fmt: skip
CODE = """
@I.ir_module
class Module:
    @T.prim_func(s_tir=True)
    def main(x: T.Buffer((1, 4), "float32"), y: T.Buffer((1, 4), "float32")):
        for i, j in T.grid(1, 4):
            with T.sblock("y"):
                at, to = T.axis.remap("SS", [i, j])
                y[at, to] = T.{operator}(x[at, to])
"""
RANDOM = np.random.default_rng(0)
VALUES = np.concatenate(
    [
        SPECIAL,
        RANDOM.standard_normal(2000) * 3,
        RANDOM.uniform(-110, 110, 2000),
        10 ** RANDOM.uniform(-40, 38, 1000),
    ]
).astype(np.float32)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("mathematics") / "mathematics.so"
    sources = {"mathematics.c": RUNNER.joinpath("mathematics.c").read_bytes()}
    path.write_bytes(link_shared_library(sources, (), probe_local().target))
    return ctypes.CDLL(str(path))


def function_of(library: ctypes.CDLL, name: str, operands: int) -> Callable[..., float]:
    function: Callable[..., float] = library[name]
    function.restype = ctypes.c_float  # type: ignore[attr-defined]
    function.argtypes = [ctypes.c_float] * operands  # type: ignore[attr-defined]
    return function


def distance(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return how far values are from exact ones, in units in the last place of float32."""
    with np.errstate(all="ignore"):
        nearest = expected.astype(np.float32)
        result = np.abs(found - expected) / np.spacing(np.abs(nearest))
    same = (found == nearest) & (np.signbit(found) == np.signbit(nearest))
    result[same | (np.isnan(found) & np.isnan(nearest))] = 0
    return np.where(np.isnan(result), np.inf, result)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("expf", np.exp),
        ("logf", np.log),
        ("erff", erf),
        ("floorf", np.floor),
        ("ceilf", np.ceil),
        ("truncf", np.trunc),
        ("rintf", np.rint),
        ("nearbyintf", np.rint),
        ("roundf", lambda x: np.copysign(np.floor(np.abs(x) + 0.5), x)),
    ],
)
def test_functions_of_one_value(
    name: str, reference: Callable[[np.ndarray], np.ndarray], library: ctypes.CDLL
) -> None:
    function = function_of(library, name, 1)
    found = np.array([function(one) for one in VALUES], np.float32)
    with np.errstate(all="ignore"):
        expected = reference(VALUES.astype(np.float64))
    assert distance(found, expected).max() <= (1 if name == "erff" else 0.51)


@pytest.mark.parametrize(("name", "reference"), [("sinf", np.sin), ("cosf", np.cos)])
def test_circular_functions(
    name: str, reference: Callable[[np.ndarray], np.ndarray], library: ctypes.CDLL
) -> None:
    function = function_of(library, name, 1)
    values = VALUES[~(np.abs(VALUES) > 1e4)]
    found = np.array([function(one) for one in values], np.float32)
    np.testing.assert_allclose(found, reference(values.astype(np.float64)), rtol=0, atol=1e-7)
    assert np.isnan(function(np.inf))


def test_powers(library: ctypes.CDLL) -> None:
    function = function_of(library, "powf", 2)
    bases = np.concatenate([np.abs(VALUES[:1000]), np.repeat(SPECIAL, len(SPECIAL))])
    exponents = np.concatenate([RANDOM.uniform(-9, 9, 1000), np.tile(SPECIAL, len(SPECIAL))])
    found = np.array([function(*one) for one in zip(bases, exponents, strict=True)], np.float32)
    with np.errstate(all="ignore"):
        expected = np.power(bases.astype(np.float64), exponents.astype(np.float32).astype(float))
    assert distance(found, expected).max() <= 0.51


def test_what_is_provided_is_what_the_sources_define() -> None:
    text = "".join(RUNNER.joinpath(name).read_text() for name in ("mathematics.c", "system.c"))
    defined = set(re.findall(r"^WEAK [a-z_ ]+\W(\w+)\(", text, re.MULTILINE))
    assert defined - {"clock_gettime"} == PROVIDED


@pytest.mark.parametrize(
    ("operator", "called"), [("sqrt", set()), ("exp", {"expf"}), ("atan", {"atanf"})]
)
@pytest.mark.parametrize("preset", ["x86-64-v2", "cortex-a72", "riscv64-v"])
def test_the_symbols_that_an_object_calls(operator: str, called: set[str], preset: str) -> None:
    code = CODE.format(operator=operator)
    kernel = FallbackKernel(operator, 1, (1, 4), (), code)
    assert undefined_symbols(build_fallback(kernel, PRESETS[preset])) == called
