"""The kernel table, and estimates of kernels that are not in it."""

import numpy as np
import pytest

from bignas.device_db.errors import InputError
from bignas.device_db.records import Operator, Workload
from bignas.latency.kernel_model import KernelModel, KernelTable, estimate_kernels
from tests.latency.synthetic import (
    CODE,
    DEVICE,
    all_kernels,
    draw,
    kernel_us,
    make_space,
    make_table,
)

SPACE = make_space()
KERNELS = all_kernels(SPACE, draw(SPACE, 300, 0))
WORK = Workload(Operator.POINTWISE, 8, 8, 16, 32)


def test_equal_tables_have_equal_digests_whatever_the_order() -> None:
    table = make_table(KERNELS[:20])
    backwards = KernelTable(dict(reversed(list(table.items()))), DEVICE, CODE)
    assert table.digest == backwards.digest
    assert hash(table) == hash(backwards)
    first = next(iter(table))
    for other in (
        KernelTable({**table, first: 1e3}, DEVICE, CODE),
        KernelTable(table, "other", CODE),
        KernelTable(table, DEVICE, "code-2"),
    ):
        assert other.digest != table.digest


@pytest.mark.parametrize("latency_us", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_latencies_are_refused(latency_us: float) -> None:
    with pytest.raises(InputError, match=WORK.key):
        KernelTable({WORK: latency_us}, DEVICE, CODE)


def test_an_empty_table_is_refused_with_what_to_do() -> None:
    with pytest.raises(InputError, match="bignas profile"):
        KernelModel.fit({}, 0)


@pytest.mark.parametrize(("share", "tolerance"), [(0.5, 0.04), (0.1, 0.15)])
def test_kernels_that_were_not_measured_are_estimated(share: float, tolerance: float) -> None:
    table = make_table(KERNELS, share, seed=1)
    model = KernelModel.fit(table, 0)
    rest = [work for work in KERNELS if work not in table]
    errors = np.abs(np.log(model.estimate_us(rest) / [kernel_us(work) for work in rest]))
    assert np.median(errors) < tolerance
    assert model.error == pytest.approx(np.median(errors), rel=0.6)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_a_handful_of_kernels_still_gives_positive_estimates(count: int) -> None:
    table = make_table(KERNELS[::37][:count])
    model = KernelModel.fit(table, 0)
    estimates = model.estimate_us(KERNELS)
    assert np.isfinite(estimates).all()
    assert (estimates > 0).all()
    assert model.error > 0


def test_measured_kernels_are_looked_up() -> None:
    table = make_table(KERNELS, 0.5)
    estimates = estimate_kernels(table, KernelModel.fit(table, 0), KERNELS)
    for work, latency_us, measured in zip(
        KERNELS, estimates.latency_us, estimates.measured, strict=True
    ):
        assert measured == (work in table)
        assert not measured or latency_us == table[work]
