"""The search as a whole: exact repetition and resumption, hopeless budgets, a delivered promise."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch

from bignas.compile.bundle import Bundle, verify
from bignas.compile.objects import ObjectCache
from bignas.device_db.accuracies import EvaluationSetting
from bignas.device_db.errors import CheckpointError, InfeasibleBudgetError, InputError
from bignas.device_db.probe import probe_local
from bignas.device_db.store import Store
from bignas.latency.bench import PROCESSES, bench_bundle
from bignas.latency.evidence import evidence_hash
from bignas.latency.fitting import fit_predictor
from bignas.latency.interval import Interval
from bignas.latency.kernel_model import KernelTable
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.profile import profile_space, space_workloads
from bignas.latency.repeatability import Repeatability
from bignas.search import pipeline
from bignas.search import strategy as registry
from bignas.search.context import SearchContext, SearchProgress
from bignas.search.delivery import Delivery
from bignas.search.pipeline import run_search
from bignas.search.requirements import Site
from bignas.search.result import Candidate, LatencyAt, SearchConfig
from bignas.search.strategy import BUILT_IN
from bignas.search.trial import Trial
from bignas.search.trial_log import TrialLog
from bignas.supernet.accuracy import AccuracyPredictor
from bignas.supernet.architecture import Architecture
from bignas.supernet.checkpoint import Checkpoint
from bignas.supernet.children import ChildEvaluator
from bignas.supernet.data import ImageData, load_data
from bignas.supernet.drawing import draw_children
from bignas.supernet.network import Supernet
from bignas.supernet.space import SearchSpace
from tests.search.synthetic import make_space


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits")


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("BIGNAS_DB", f"sqlite:///{tmp_path / 'store.sqlite'}")
    monkeypatch.setenv("BIGNAS_CACHE", str(tmp_path / "cache"))


def _space() -> SearchSpace:
    return make_space(stages=2, depths=(1, 2))


def _checkpoint(space: SearchSpace, data: ImageData) -> Checkpoint:
    network = Supernet(space, seed=0)
    return Checkpoint(
        space, network.state_dict(), data.mean, data.std, data.classes, data.name, data.digest,
        0, 0, {},
    )  # fmt: skip


def _predictor(space: SearchSpace) -> LatencyPredictor:
    """A made-up device: a kernel takes a microsecond and one more for each 100,000 MACs."""
    table = {work: 1.0 + work.macs / 1e5 for work in space_workloads(space)}
    return LatencyPredictor.fit(space, KernelTable(table, "local", evidence_hash()), [])


@contextmanager
def _opened_search(
    space: SearchSpace,
    data: ImageData,
    config: SearchConfig,
    out: Path,
    predictor: LatencyPredictor | None = None,
    accuracy: AccuracyPredictor | None = None,
) -> Iterator[pipeline._Search]:
    """A search on the made-up device, in which nothing has happened yet."""
    with Store.open() as store:
        device = store.device("local")
        cache, predictor = ObjectCache(device.target), predictor or _predictor(space)
        site = Site(device, cache, predictor, config.budget_ms)
        checkpoint = _checkpoint(space, data)
        yield pipeline._Search(
            SearchContext(
                checkpoint.network(), checkpoint, data, store, (site,), config, out, print,
                accuracy, processes=1,
            )
        )  # fmt: skip


def _explore(
    out: Path,
    space: SearchSpace,
    data: ImageData,
    config: SearchConfig,
    stop_after: int = 10**9,
    accuracy: AccuracyPredictor | None = None,
) -> list[Trial]:
    """Explore only; `stop_after` batches the user presses Ctrl-C."""
    seen = 0

    def interrupt(progress: SearchProgress) -> None:
        nonlocal seen
        seen += progress.phase == "explore"
        if seen == stop_after:
            raise KeyboardInterrupt

    with Store.open() as store:
        device = store.device("local")
        site = Site(device, ObjectCache(device.target), _predictor(space), config.budget_ms)
        checkpoint = _checkpoint(space, data)
        search = pipeline._Search(
            SearchContext(
                checkpoint.network(), checkpoint, data, store, (site,), config, out, interrupt,
                accuracy, processes=1,
            )
        )  # fmt: skip
        search.requirements.require_feasible(config.seed)
        return search.explorer.explore({"config": repr(config)})


def _middle_budget_ms(space: SearchSpace) -> float:
    ends = _predictor(space).predict([space.smallest(), space.biggest()])
    return float(np.sqrt(ends.high_ms[0] * ends.latency_ms[1]))


@pytest.mark.parametrize("strategy", sorted(BUILT_IN))
def test_the_same_seed_gives_the_same_trials(
    tmp_path: Path, data: ImageData, strategy: str
) -> None:
    space = _space()
    config = SearchConfig(_middle_budget_ms(space), strategy, 12, validation_images=50)
    first = _explore(tmp_path / "a", space, data, config)
    assert first == _explore(tmp_path / "b", space, data, config)
    assert sum(trial.top1 is not None for trial in first) == config.evaluations


@pytest.mark.parametrize("strategy", sorted(BUILT_IN))
def test_an_interrupted_search_continues_as_if_nothing_had_happened(
    tmp_path: Path, data: ImageData, strategy: str
) -> None:
    space = _space()
    config = SearchConfig(_middle_budget_ms(space), strategy, 40, validation_images=20)
    whole = _explore(tmp_path / "whole", space, data, config)
    with pytest.raises(KeyboardInterrupt):
        _explore(tmp_path / "parts", space, data, config, stop_after=2)
    assert _explore(tmp_path / "parts", space, data, config) == whole


def _accuracy(space: SearchSpace, data: ImageData) -> AccuracyPredictor:
    """Fitted to a made-up accuracy, which prefers big children at low resolution."""
    checkpoint = _checkpoint(space, data)
    setting = EvaluationSetting(checkpoint.digest, data.digest, "validation", 100, 50)
    ends = np.log([space.macs(space.smallest()), space.macs(space.biggest())])
    children = {
        arch: round(0.3 + 0.5 * (np.log(space.macs(arch)) - ends[0]) / np.ptp(ends), 2)
        - (0.2 if arch.resolution == space.resolutions[-1] else 0.0)
        for arch in draw_children(space, 40, seed=0)
    }
    return AccuracyPredictor.fit(space, setting, children)


def test_predictions_choose_what_is_evaluated(tmp_path: Path, data: ImageData) -> None:
    space = _space()
    accuracy = _accuracy(space, data)
    config = SearchConfig(_middle_budget_ms(space), evaluations=8)
    trials = _explore(tmp_path / "a", space, data, config, accuracy=accuracy)
    assert len(trials) == config.evaluations
    predicted = accuracy.predict([one.architecture for one in trials])
    assert [one.top1 for one in trials] != predicted.tolist()
    assert all(one.feasible and one.top1 is not None for one in trials)
    rng = np.random.default_rng(0)
    others = [space.sample(rng) for _ in range(200)]
    prices = _predictor(space).predict(others).latency_ms
    rivals = [one for one, ms in zip(others, prices, strict=True) if ms <= config.budget_ms * 0.8]
    assert predicted.max() >= accuracy.predict(rivals).max()
    assert np.median(predicted) > np.median(accuracy.predict(rivals))
    assert _explore(tmp_path / "b", space, data, config, accuracy=accuracy) == trials


def test_a_quarter_of_what_an_evaluation_adds_to_a_prediction_counts(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = _space()
    accuracy = _accuracy(space, data)
    monkeypatch.setattr(ChildEvaluator, "evaluate", lambda _, archs, *__: [0.5] * len(archs))
    monkeypatch.setattr(
        pipeline._Search,
        "_measure_at",
        lambda _, __, archs: np.full((len(archs), PROCESSES), 0.001),
    )
    children = draw_children(space, 10, seed=1)
    config = SearchConfig(1e3, finalists=10)
    with _opened_search(space, data, config, tmp_path, accuracy=accuracy) as search:
        evaluated = search._evaluate(children, search.requirements)
        predicted = accuracy.predict(children)
        assert [one.top1 for one in evaluated] == pytest.approx((0.5 + 3 * predicted) / 4)
        found = search._measure(search._finalists(evaluated))
    assert {one.top1 for one in found} == {0.5}
    ranked = [children[place] for place in np.argsort(-predicted, kind="stable")]
    best = max(found, key=lambda one: one.expected_top1)
    assert accuracy.predict([best.architecture])[0] == accuracy.predict(ranked[:1])[0]


def test_an_interrupted_search_with_predictions_continues(tmp_path: Path, data: ImageData) -> None:
    space = _space()
    accuracy = _accuracy(space, data)
    config = SearchConfig(_middle_budget_ms(space), evaluations=12)
    whole = _explore(tmp_path / "whole", space, data, config, accuracy=accuracy)
    with pytest.raises(KeyboardInterrupt):
        _explore(tmp_path / "parts", space, data, config, stop_after=1, accuracy=accuracy)
    assert 0 < sum(map(len, TrialLog(tmp_path / "parts", {"config": repr(config)}).read())) < 12
    assert _explore(tmp_path / "parts", space, data, config, accuracy=accuracy) == whole


def test_a_predictor_of_other_weights_is_refused(tmp_path: Path, data: ImageData) -> None:
    space = _space()
    accuracy = _accuracy(space, data)
    other = dataclasses.replace(
        accuracy, setting=dataclasses.replace(accuracy.setting, weights="other")
    )
    with pytest.raises(InputError, match="other weights"):
        _explore(tmp_path, space, data, SearchConfig(1.0), accuracy=other)


def test_only_architectures_that_keep_the_budget_are_evaluated(
    tmp_path: Path, data: ImageData
) -> None:
    space = _space()
    config = SearchConfig(_middle_budget_ms(space), evaluations=10, validation_images=50)
    for trial in _explore(tmp_path, space, data, config):
        assert space.contains(trial.architecture)
        assert trial.top1 is None or trial.latency_ms <= config.budget_ms


def test_a_hopeless_budget_names_the_fastest_architecture(tmp_path: Path, data: ImageData) -> None:
    space = _space()
    with pytest.raises(InfeasibleBudgetError) as caught:
        _explore(tmp_path, space, data, SearchConfig(budget_ms=1e-6))
    assert space.smallest().key in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.glob("*.json*"))


class _Astray:
    """A strategy of another package that does what it must not."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        del space, seed

    def suggest(self, count: int) -> list[object]:
        return [make_space(stages=3).smallest()] * count

    def tell(self, trials: list[Trial]) -> None:
        raise AssertionError("told of an architecture outside the space")


class _Raising(_Astray):
    def suggest(self, count: int) -> list[object]:
        raise KeyError("two\nlines")


class _Mumbling(_Astray):
    def suggest(self, count: int) -> list[object]:
        return ["r32"] * count


class _Unmakeable(_Astray):
    def __init__(self, space: SearchSpace, seed: int) -> None:
        raise ZeroDivisionError("not today")


@pytest.mark.parametrize(
    ("faulty", "complaint"),
    [
        (_Astray, "left the space: stages"),
        (_Raising, "failed: KeyError"),
        (_Mumbling, "not an architecture"),
        (_Unmakeable, "failed: ZeroDivisionError: not today"),
    ],
)
def test_a_faulty_strategy_is_refused_in_one_line(
    tmp_path: Path,
    data: ImageData,
    monkeypatch: pytest.MonkeyPatch,
    faulty: type[_Astray],
    complaint: str,
) -> None:
    offered = EntryPoint("faulty", f"{__name__}:{faulty.__name__}", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda _: faulty)
    monkeypatch.setattr(registry, "entry_points", lambda group: [offered])
    space = _space()
    with pytest.raises(InputError, match=complaint) as caught:
        _explore(tmp_path, space, data, SearchConfig(_middle_budget_ms(space), "faulty"))
    assert "'faulty'" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_data_of_other_classes_are_refused(tmp_path: Path, data: ImageData) -> None:
    space = _space()
    other = dataclasses.replace(_checkpoint(space, data), classes=("a", "b"))
    config, out = SearchConfig(1.0), tmp_path / "out"
    with Store.open() as store:
        device = store.device("local")
        cache, predictor = ObjectCache(device.target), _predictor(space)
        with pytest.raises(CheckpointError):
            run_search(Supernet(space), other, data, device, store, cache, predictor, config, out)
    assert not out.exists()


@pytest.mark.slow
def test_a_search_delivers_a_bundle_that_agrees_with_the_child(
    tmp_path: Path, data: ImageData
) -> None:
    space = _space()
    with Store.open() as store:
        device = store.device("local")
        assert device == probe_local()
        cache = ObjectCache(device.target)
        summary = profile_space(space, device, store, cache, minutes=2, subnets=20)
        assert summary.subnets == 20
        predictor = fit_predictor(space, device, store)
        ends = predictor.predict([space.smallest(), space.biggest()]).latency_ms
        config = SearchConfig(float(np.sqrt(ends.prod())), evaluations=20)
        checkpoint = _checkpoint(space, data)
        result = run_search(
            checkpoint.network(), checkpoint, data, device, store, cache, predictor, config,
            tmp_path / "run",
        )  # fmt: skip
        assert store.check_integrity() == []
    assert result.best.measured_ms <= config.budget_ms
    assert result.binary_agreement >= 0.999
    assert all(candidate.measured_ms <= config.budget_ms for candidate in result.front)
    bundle = Bundle.load(tmp_path / "run" / result.bundle)
    assert verify(bundle).ok
    assert bundle.manifest.measured is not None
    assert bundle.manifest.architecture == result.best.architecture.to_dict()
    assert bench_bundle(bundle).latency_ms > 0


def _exact_predictor(space: SearchSpace) -> LatencyPredictor:
    exact = Interval(0.01, 0.01, 0.0, 1.0)
    return dataclasses.replace(_predictor(space), interval=exact, settled=exact)


def _pretend(
    monkeypatch: pytest.MonkeyPatch, predictor: LatencyPredictor, slower: float = 1.0
) -> Callable[[Architecture], float]:
    """Measuring says so many times what is predicted; accuracy is the share of the slowest's time.

    Returns that accuracy.
    """
    slowest_ms = float(predictor.predict([predictor.space.biggest()]).latency_ms[0])

    def measure_at(_: object, __: Site, architectures: Sequence[Architecture]) -> np.ndarray:
        latency_ms = slower * predictor.predict(architectures).latency_ms
        return np.repeat(latency_ms[:, None], PROCESSES, axis=1)

    def top1(architecture: Architecture) -> float:
        return float(predictor.predict([architecture]).latency_ms[0]) / slowest_ms

    monkeypatch.setattr(pipeline._Search, "_measure_at", measure_at)
    monkeypatch.setattr(
        ChildEvaluator, "evaluate", lambda _, archs, *__: [top1(one) for one in archs]
    )
    return top1


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_more_processes_differ_the_more_of_a_budget_is_left(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch, noise: float
) -> None:
    space = _space()
    random = np.random.default_rng(0)
    trials = [Trial(one, 1.0, 1.0, 0.5) for one in draw_children(space, 40, seed=0)]
    table = np.exp(random.normal(0, noise, (len(trials), PROCESSES)))
    tables = iter([table])
    monkeypatch.setattr(pipeline._Search, "_measure_at", lambda *_: next(tables))
    with _opened_search(space, data, SearchConfig(1.0), tmp_path) as search:
        candidates = search._measure(trials)
    assert search.headroom == pytest.approx(
        max(pipeline.HEADROOM, pipeline.DEVIATIONS * pipeline.MEDIANS * noise), rel=0.3
    )
    assert len(candidates) == len(trials)


def test_what_binaries_differ_by_minutes_later_is_left_of_a_budget(
    tmp_path: Path, data: ImageData
) -> None:
    """Half of its variance is no less for a median of processes; big networks differ by more."""
    space, lasting = _space(), Repeatability(0.02, exponent=0.5, typical_ms=1.0, longest_ms=9.0)
    predictor = dataclasses.replace(_predictor(space), repeatability=lasting)
    left = []
    for number, budget_ms in enumerate([1.0, 4.0]):
        config, out = SearchConfig(budget_ms), tmp_path / str(number)
        with _opened_search(space, data, config, out, predictor) as search:
            left.append(search.headroom)
    assert left[1] == pytest.approx(2 * left[0])
    assert left[0] > 0.8 * pipeline.DEVIATIONS * lasting.deviation


def test_a_binary_that_misses_the_budget_is_replaced_by_one_that_uses_it(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first binary is a tenth slower than measured; all other finalists are far too fast."""
    space = _space()
    predictor, budget_ms = _exact_predictor(space), _middle_budget_ms(space)
    top1 = _pretend(monkeypatch, predictor)
    delivered: list[Candidate] = []

    def deliver(_: object, candidate: Candidate) -> tuple[dict[str, Bundle], Candidate]:
        (at,) = candidate.latencies
        slower = 1.0 if delivered else 1.1
        later = dataclasses.replace(at, measured_ms=at.measured_ms * slower)
        delivered.append(dataclasses.replace(candidate, latencies=(later,)))
        return {}, delivered[-1]

    monkeypatch.setattr(Delivery, "deliver", deliver)
    with _opened_search(space, data, SearchConfig(budget_ms), tmp_path, predictor) as search:
        children = sorted(draw_children(space, 60, seed=0), key=top1)
        most_ms = budget_ms * (1 - search.headroom)
        keeping = [one for one in children if predictor.predict([one]).latency_ms[0] <= most_ms]
        final = search._evaluate([*keeping[:3], keeping[-1]], search.requirements)
        measured = search._measure(final)
        found = search._deliver(final, final, measured)
    assert found is not None
    missed, best = delivered[0], found[1]
    assert missed.architecture == keeping[-1] != best.architecture
    assert missed in measured
    assert 0.9 * budget_ms < best.measured_ms <= budget_ms
    assert best.measured_ms > 1.5 * predictor.predict([keeping[2]]).latency_ms[0]


def test_two_measurements_count_more_than_one() -> None:
    def candidate(measured_ms: float) -> Candidate:
        at = LatencyAt("local", 1.0, 0.9, (0.8, 1.0), 0.5, measured_ms)
        return Candidate(_space().smallest(), 0.5, 1, 1, (at,))

    assert candidate(0.97).keeps_again(candidate(0.95), headroom=0.04)
    assert not candidate(0.98).keeps_again(candidate(0.95), headroom=0.04)
    assert not candidate(1.01).keeps_again(candidate(0.8), headroom=0.04)
    assert candidate(1.0).keeps_again(candidate(1.0), headroom=0.0)


def test_what_is_left_as_measured_is_spent(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything takes a tenth more than predicted, so that the most accurate break the budget."""
    space = _space()
    predictor, budget_ms = _exact_predictor(space), _middle_budget_ms(space)
    _pretend(monkeypatch, predictor, slower=1.1)
    with _opened_search(space, data, SearchConfig(budget_ms), tmp_path, predictor) as search:
        children = draw_children(space, 60, seed=0)
        final = [one for one in search._evaluate(children, search.requirements) if one.feasible]
        measured = [one for one in search._measure(search._finalists(final)) if not one.kept]
        assert measured
        measured += search._measure([min(final, key=lambda one: one.load)])
        before = list(final)
        found = search._spend_rest(final, final, measured)
    spent = final[len(before) :]
    best = max(one.top1 for one in measured if one.keeps(search.headroom))
    assert len(spent) <= pipeline.REFINEMENTS // 2
    assert not {one.architecture for one in spent} & {one.architecture for one in before}
    assert all(one.top1 > best for one in found)
    assert max(one.measured_ms for one in found if one.keeps(search.headroom)) > 0.95 * budget_ms
