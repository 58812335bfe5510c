"""The latency predictor on a made-up device whose true latencies are known."""

import json
from pathlib import Path

import numpy as np
import pytest

from bignas.compile.workload import workloads
from bignas.device_db.errors import ArchitectureError, InputError, OutputError
from bignas.latency.interval import Interval
from bignas.latency.kernel_model import KernelTable
from bignas.latency.metrics import coverage, mape
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.regression import Correction, ModelKind
from bignas.supernet.architecture import Architecture
from bignas.supernet.spaces import load_space
from tests.latency.synthetic import (
    CODE,
    DEVICE,
    all_kernels,
    draw,
    make_space,
    make_table,
    measure_ms,
)

SPACE = make_space()
KERNELS = all_kernels(SPACE, draw(SPACE, 100, 0))
TEST = draw(SPACE, 200, 77)
TEST_MS = measure_ms(SPACE, TEST, seed=77)


def networks(count: int, seed: int = 5, noise: float = 0.01) -> list[tuple[Architecture, float]]:
    archs = draw(SPACE, count, seed)
    return list(zip(archs, measure_ms(SPACE, archs, seed, noise), strict=True))


def fit(count: int, share: float = 1.0, seed: int = 5) -> LatencyPredictor:
    return LatencyPredictor.fit(SPACE, make_table(KERNELS, share, seed), networks(count, seed))


@pytest.fixture(scope="module")
def predictor() -> LatencyPredictor:
    return fit(40, share=0.7)


# --- predicting -----------------------------------------------------------------------------------


def test_without_networks_the_prediction_is_the_plain_sum_with_a_wide_interval() -> None:
    plain = fit(0)
    predicted = plain.predict(TEST)
    assert plain.networks == 0
    assert predicted.latency_ms == pytest.approx(plain.kernel_sums_ms(TEST))
    assert (predicted.high_ms / predicted.latency_ms >= 1.25 - 1e-9).all()
    assert coverage(predicted.low_ms, predicted.high_ms, TEST_MS) == 1


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_networks_improve_on_the_plain_sum(share: float) -> None:
    errors = [mape(fit(count, share).predict(TEST).latency_ms, TEST_MS) for count in (0, 8, 80)]
    assert errors[0] > 0.04
    assert errors[1] < 0.03
    assert errors[2] < 0.015


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10])
def test_few_networks_never_make_it_worse(count: int) -> None:
    for seed in range(5):
        fitted = fit(count, seed=seed)
        plain = mape(fitted.kernel_sums_ms(TEST), TEST_MS)
        assert mape(fitted.predict(TEST).latency_ms, TEST_MS) <= plain + 1e-3


def test_intervals_are_ordered_and_grow_with_what_was_not_measured() -> None:
    predicted = fit(30, share=0.6).predict(TEST)
    assert (predicted.low_ms < predicted.latency_ms).all()
    assert (predicted.latency_ms < predicted.high_ms).all()
    assert ((predicted.estimated_share >= 0) & (predicted.estimated_share <= 1)).all()
    order = np.argsort(predicted.estimated_share)
    widths = (predicted.high_ms / predicted.low_ms)[order]
    assert (np.diff(widths) >= -1e-12).all()
    assert widths[-1] > widths[0]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "share"), [(6, 1.0), (40, 0.5)])
def test_intervals_cover_what_they_promise(count: int, share: float) -> None:
    shares = []
    for seed in range(8):
        predicted = fit(count, share, seed + 100).predict(TEST)
        shares.append(coverage(predicted.low_ms, predicted.high_ms, TEST_MS))
    assert 0.83 <= np.mean(shares) <= 0.98


@pytest.mark.slow
def test_intervals_cover_networks_with_fewer_measured_kernels_than_those_of_the_fit() -> None:
    """Profiling measures the kernels of the measured networks first; others are estimated."""
    shares = []
    for seed in range(8):
        train = networks(25, seed + 200)
        known = {work for arch, _ in train for work in workloads(SPACE, arch)}
        table = make_table(sorted(known, key=lambda work: work.key), seed=seed)
        predicted = LatencyPredictor.fit(SPACE, table, train).predict(TEST)
        assert predicted.estimated_share.max() > 0
        shares.append(coverage(predicted.low_ms, predicted.high_ms, TEST_MS))
    assert 0.83 <= np.mean(shares) <= 0.99


def test_more_confidence_means_wider_intervals() -> None:
    table, train = make_table(KERNELS), networks(60)
    widths = [
        LatencyPredictor.fit(SPACE, table, train, confidence).interval.quantile
        for confidence in (0.5, 0.9)
    ]
    assert widths[0] < widths[1]


def test_one_sided_quantiles_meet_the_interval_and_their_inverse(
    predictor: LatencyPredictor,
) -> None:
    predicted = predictor.predict(TEST)
    upper = (1 + predictor.confidence) / 2
    assert predictor.quantile_ms(TEST, upper) == pytest.approx(predicted.high_ms)
    assert predictor.quantile_ms(TEST, 0.5) == pytest.approx(predicted.latency_ms)
    assert predictor.quantile_ms(TEST, 1 - upper) == pytest.approx(predicted.low_ms)
    bounds = [predictor.quantile_ms(TEST, level) for level in (0.1, 0.6, 0.9, 0.99, 0.999)]
    assert (np.diff(bounds, axis=0) > 0).all()
    for level in (0.2, 0.9, 0.99):
        limit_ms = float(predictor.quantile_ms(TEST[:1], level)[0])
        assert predictor.probability_within(TEST[:1], limit_ms) == pytest.approx([level])
    for level in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="between 0 and 1"):
            predictor.quantile_ms([], level)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_measured_networks_keep_a_quantile_as_often_as_it_says(level: float) -> None:
    kept = [np.mean(fit(40, seed=seed).quantile_ms(TEST, level) >= TEST_MS) for seed in range(6)]
    assert level - 0.08 <= np.mean(kept) <= level + 0.08


def test_what_changes_until_a_binary_is_measured_widens_intervals_until_that_is_known() -> None:
    table, train = make_table(KERNELS), networks(40)
    plain = LatencyPredictor.of_kernels(SPACE, table)
    steady, changing = plain.corrected(train), plain.corrected(train, noise_variance=0.05**2)
    assert changing.interval.floor > steady.interval.floor + 0.04
    assert changing.settled == steady.settled == steady.interval
    fresh = list(zip(TEST[:3], TEST_MS[:3], strict=True))
    assert changing.conditioned(fresh[:2]).interval == changing.interval
    assert changing.conditioned(fresh).interval == steady.interval
    again = LatencyPredictor.from_bytes(changing.to_bytes())
    assert (again.interval, again.settled) == (changing.interval, changing.settled)


def test_an_outlier_among_the_networks_is_survived() -> None:
    train = networks(30)
    train[3] = (train[3][0], train[3][1] * 5)
    spoilt = LatencyPredictor.fit(SPACE, make_table(KERNELS), train)
    assert mape(spoilt.predict(TEST).latency_ms, TEST_MS) < 0.06


def test_a_network_measured_often_counts_once_with_its_median() -> None:
    train = networks(12)
    arch, measured_ms = train[0]
    table = make_table(KERNELS)
    repeated = [*train, (arch, measured_ms * 0.99), (arch, measured_ms * 3)]
    expected = LatencyPredictor.fit(SPACE, table, train)
    assert LatencyPredictor.fit(SPACE, table, repeated).to_bytes() == expected.to_bytes()


def test_predictions_do_not_depend_on_what_else_is_asked(predictor: LatencyPredictor) -> None:
    together = predictor.predict(TEST).latency_ms
    alone = [float(predictor.predict([arch]).latency_ms[0]) for arch in TEST[:20]]
    assert together[:20] == pytest.approx(alone, rel=1e-9)
    assert predictor.predict([]).latency_ms.shape == (0,)


def test_the_kernels_of_a_network_add_up_to_its_plain_sum(predictor: LatencyPredictor) -> None:
    for arch in TEST[:5]:
        kernels = predictor.kernels(arch)
        assert tuple(kernel.workload for kernel in kernels) == workloads(SPACE, arch)
        total_ms = sum(kernel.latency_us for kernel in kernels) / 1e3
        assert total_ms == pytest.approx(float(predictor.kernel_sums_ms([arch])[0]))
        assert all(kernel.measured == (kernel.workload in predictor.table) for kernel in kernels)


def test_the_same_measurements_give_the_same_bytes() -> None:
    assert fit(40, share=0.5).to_bytes() == fit(40, share=0.5).to_bytes()


@pytest.mark.parametrize("measured_ms", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_latencies_are_refused(measured_ms: float) -> None:
    with pytest.raises(InputError, match="must be positive"):
        LatencyPredictor.fit(SPACE, make_table(KERNELS), [(TEST[0], measured_ms)])


def test_other_bad_input_is_refused() -> None:
    table = make_table(KERNELS)
    with pytest.raises(InputError, match="confidence"):
        LatencyPredictor.fit(SPACE, table, [], confidence=1.0)
    with pytest.raises(InputError, match="bignas profile"):
        LatencyPredictor.fit(SPACE, KernelTable({}, DEVICE, CODE), [])
    foreign = Architecture(999, 16, TEST[0].stages, 128)
    with pytest.raises(ArchitectureError, match="resolution"):
        LatencyPredictor.fit(SPACE, table, []).predict([TEST[0], foreign])
    with pytest.raises(ArchitectureError, match="resolution"):
        LatencyPredictor.fit(SPACE, table, [(foreign, 1.0)])


# --- intervals alone ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 5, 9, 30])
def test_the_interval_covers_gaussian_errors(count: int) -> None:
    rng = np.random.default_rng(count)
    covered = []
    for _ in range(400):
        residuals = rng.normal(0, 0.03, count)
        interval = Interval.calibrate(residuals, np.zeros(count), 0.1, 0.9)
        width = float(interval.half_widths(np.zeros(1))[0])
        covered.append(np.mean(np.abs(rng.normal(0, 0.03, 50)) <= width))
    assert 0.87 <= np.mean(covered) <= 0.98


@pytest.mark.parametrize("measured", [0.018, 0.02, 0.035])
def test_the_interval_covers_errors_with_more_or_less_noise(measured: float) -> None:
    rng = np.random.default_rng(0)
    more = measured**2 - 0.02**2
    covered = []
    for _ in range(300):
        interval = Interval.calibrate(rng.normal(0, 0.02, 60), np.zeros(60), 0.1, 0.9, more)
        width = float(interval.half_widths(np.zeros(1))[0])
        covered.append(np.mean(np.abs(rng.normal(0, measured, 50)) <= width))
    assert 0.87 <= np.mean(covered) <= 0.93


def test_noise_explains_a_part_of_the_errors_at_most() -> None:
    errors = np.random.default_rng(0).normal(0, 0.02, 60)
    plain, less = (Interval.calibrate(errors, np.zeros(60), 0.1, 0.9, one) for one in (0.0, -1.0))
    assert 0.89 * plain.floor < less.floor < 0.9 * plain.floor


def test_the_interval_follows_errors_that_grow_with_the_estimated_share() -> None:
    rng = np.random.default_rng(0)
    covered: dict[float, list[float]] = {0.1: [], 0.9: []}
    for _ in range(200):
        shares = rng.uniform(0, 1, 60)
        residuals = rng.normal(0, 0.01 + 0.1 * shares)
        interval = Interval.calibrate(residuals, shares, 0.1 * 0.67, 0.9)
        for share, hits in covered.items():
            width = float(interval.half_widths(np.array([share]))[0])
            errors = np.abs(rng.normal(0, 0.01 + 0.1 * share, 50))
            hits.append(float((errors <= width).mean()))
    assert 0.87 <= np.mean(covered[0.9]) <= 0.93
    assert np.mean(covered[0.1]) >= 0.9


# --- saving ---------------------------------------------------------------------------------------


def test_a_saved_predictor_is_complete(predictor: LatencyPredictor, tmp_path: Path) -> None:
    path = tmp_path / "predictor.json"
    predictor.save(path)
    loaded = LatencyPredictor.load(path)
    before, after = predictor.predict(TEST), loaded.predict(TEST)
    assert np.array_equal(before.latency_ms, after.latency_ms)
    assert np.array_equal(before.high_ms, after.high_ms)
    assert loaded.to_bytes() == predictor.to_bytes()
    assert loaded.table == predictor.table
    assert loaded.space == predictor.space


def test_trees_survive_saving() -> None:
    loaded = LatencyPredictor.from_bytes(fit(40, share=0.7).to_bytes())
    assert loaded.kernel_model.correction.kind is ModelKind.TREES


def test_damaged_trees_are_told_where_they_are_needed() -> None:
    document = fit(40, share=0.7).kernel_model.correction.to_dict()
    features = np.zeros((1, len(document["ridge"]["weights"])))
    document["trees"]["learner"]["gradient_booster"] = {"name": "gbtree", "model": 3}
    with pytest.raises(InputError, match="trees of the predictor are damaged"):
        Correction.from_dict(document).predict(features)
    document["trees"] = {"other": 1}
    with pytest.raises(ValueError, match="no boosted trees"):
        Correction.from_dict(document)


def damaged_files(data: bytes) -> dict[str, bytes]:
    document = json.loads(data)
    content = document["content"]
    return {
        "empty": b"",
        "truncated": data[: len(data) // 2],
        "binary": bytes(range(256)),
        "other JSON": b"[1, 2]",
        "other format": json.dumps({**document, "format": "else"}).encode(),
        "newer": json.dumps({**document, "version": document["version"] + 1}).encode(),
        "no content": json.dumps({**document, "content": None}).encode(),
        "changed": json.dumps({**document, "content": {**content, "confidence": 0.5}}).encode(),
    }


def test_foreign_damaged_and_newer_files_are_refused_in_one_line(
    predictor: LatencyPredictor, tmp_path: Path
) -> None:
    path = tmp_path / "predictor.json"
    for what, data in damaged_files(predictor.to_bytes()).items():
        path.write_bytes(data)
        with pytest.raises(InputError) as refusal:
            LatencyPredictor.load(path)
        message = str(refusal.value)
        assert str(path) in message, what
        assert "\n" not in message, what
    with pytest.raises(InputError, match="predictor fit"):
        LatencyPredictor.load(tmp_path / "missing.json")


def test_a_folder_in_the_way_is_an_output_error(
    predictor: LatencyPredictor, tmp_path: Path
) -> None:
    with pytest.raises(OutputError):
        predictor.save(tmp_path)


def test_a_stale_predictor_says_why_and_what_to_run(predictor: LatencyPredictor) -> None:
    predictor.check_matches(SPACE, DEVICE, CODE)
    predictor.check_matches(SPACE.with_classes(100), DEVICE, CODE)
    other_space = make_space()
    other_space = type(other_space).from_dict({**other_space.to_dict(), "resolutions": [24, 28]})
    for arguments, reason in (
        ((other_space, DEVICE, CODE), "has changed"),
        ((SPACE, "phone", CODE), "for device 'made-up'"),
        ((SPACE, DEVICE, "code-2"), "way to measure them have changed"),
    ):
        with pytest.raises(InputError, match=reason) as refusal:
            predictor.check_matches(*arguments)
        assert f"bignas predictor fit SPACE --device {arguments[1]}" in str(refusal.value)


def test_a_predictor_of_another_machine_or_runtime_is_stale(predictor: LatencyPredictor) -> None:
    """The name of a device stays the same when the machine or the runtime behind it changes."""
    table = KernelTable(predictor.table.latencies_us, DEVICE, CODE, "machine", "runtime 1")
    fitted = LatencyPredictor.from_bytes(LatencyPredictor.fit(SPACE, table, []).to_bytes())
    fitted.check_matches(SPACE, DEVICE, CODE, "machine", "runtime 1")
    with pytest.raises(InputError, match="stale: device 'made-up' is another machine"):
        fitted.check_matches(SPACE, DEVICE, CODE, "other", "runtime 1")
    with pytest.raises(InputError, match="measured with runtime 1, this is runtime 2"):
        fitted.check_matches(SPACE, DEVICE, CODE, "machine", "runtime 2")


def test_another_number_of_classes_is_predicted_too(predictor: LatencyPredictor) -> None:
    many = predictor.for_space(SPACE.with_classes(1000))
    assert (many.kernel_sums_ms(TEST) > predictor.kernel_sums_ms(TEST)).all()
    assert not many.kernels(TEST[0])[-1].measured
    with pytest.raises(InputError, match="has changed"):
        predictor.for_space(load_space("cifar"))
