"""The kernel table, and estimates of kernels that are not in it."""

import json

import numpy as np
import pytest

from bignas.device_db.errors import InputError
from bignas.device_db.workload import Operator, Workload
from bignas.latency.kernel_model import (
    KernelModel,
    KernelTable,
    estimate_kernels,
    rough_latencies_us,
)
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


@pytest.mark.parametrize("slower", [0.1, 1.0, 30.0])
def test_kernels_of_a_kind_that_was_not_measured_take_time(slower: float) -> None:
    """They are not free just because no measured kernel shares their work."""
    known = [one for one in KERNELS if one.operator is not Operator.POINTWISE]
    rest = [one for one in KERNELS if one.operator is Operator.POINTWISE]
    table = {one: slower * kernel_us(one) for one in known}
    rough_us = rough_latencies_us(table, rest)
    ratios = rough_us / [slower * kernel_us(one) for one in rest]
    assert 1 / 4 < np.median(ratios) < 4
    macs = np.array([one.macs for one in rest])
    assert np.corrcoef(rough_us, macs)[0, 1] > 0.5


def test_measured_kernels_are_looked_up() -> None:
    table = make_table(KERNELS, 0.5)
    estimates = estimate_kernels(table, KernelModel.fit(table, 0), KERNELS)
    for work, latency_us, measured in zip(
        KERNELS, estimates.latency_us, estimates.measured, strict=True
    ):
        assert measured == (work in table)
        assert not measured or latency_us == table[work]


# --- sources --------------------------------------------------------------------------------------


def odd_device(share: float = 1.0, seed: int = 3) -> KernelTable:
    """A device whose times depend on what no feature tells, as caches and tuning make them."""
    random = np.random.default_rng(11)
    oddity = {work: float(np.exp(random.normal(0, 0.3))) for work in KERNELS}
    chosen = np.random.default_rng(seed).random(len(KERNELS)) < share
    latencies = {
        work: 2.5 * kernel_us(work) * oddity[work]
        for work, taken in zip(KERNELS, chosen, strict=True)
        if taken
    }
    return KernelTable(latencies, "odd", CODE)


def sibling(device: KernelTable) -> KernelTable:
    """The same device with another clock and a little of its own."""
    random = np.random.default_rng(5)
    latencies = {
        work: latency_us * 0.4 * float(np.exp(random.normal(0, 0.02)))
        for work, latency_us in device.items()
    }
    return KernelTable(latencies, "sibling", CODE)


def errors(model: KernelModel, device: KernelTable, known: KernelTable) -> float:
    rest = [work for work in device if work not in known]
    truth = np.array([device[work] for work in rest])
    return float(np.median(np.abs(np.log(model.estimate_us(rest) / truth))))


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_a_resembling_device_tells_what_shapes_do_not(share: float) -> None:
    device = odd_device()
    few = odd_device(share)
    alone = KernelModel.fit(few, 0)
    helped = KernelModel.fit(few, 0, [sibling(device)])
    assert len(helped.sources) == 1
    assert errors(helped, device, few) < 0.05 < errors(alone, device, few)
    assert helped.error < alone.error


def test_a_misleading_device_is_left_out() -> None:
    random = np.random.default_rng(2)
    noise = KernelTable({work: float(random.uniform(1, 100)) for work in KERNELS}, "noise", CODE)
    table = make_table(KERNELS, 0.3)
    model = KernelModel.fit(table, 0, [noise])
    assert model.sources == ()
    assert model.to_dict() == KernelModel.fit(table, 0).to_dict()


def test_a_source_that_lacks_kernels_is_filled_up() -> None:
    device = odd_device()
    half = KernelTable(dict(list(sibling(device).items())[::2]), "half", CODE)
    few = odd_device(0.2)
    model = KernelModel.fit(few, 0, [half])
    estimates = model.estimate_us(KERNELS)
    assert np.isfinite(estimates).all()
    assert (estimates > 0).all()


def test_a_model_with_sources_survives_its_json() -> None:
    device = odd_device()
    model = KernelModel.fit(odd_device(0.2), 0, [sibling(device)])
    again = KernelModel.from_dict(json.loads(json.dumps(model.to_dict())))
    assert again.estimate_us(KERNELS) == pytest.approx(model.estimate_us(KERNELS))


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_a_handful_of_kernels_with_sources_still_gives_positive_estimates(count: int) -> None:
    table = KernelTable(dict(list(odd_device().items())[::37][:count]), "odd", CODE)
    estimates = KernelModel.fit(table, 0, [sibling(odd_device())]).estimate_us(KERNELS)
    assert np.isfinite(estimates).all()
    assert (estimates > 0).all()
