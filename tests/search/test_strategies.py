"""Every strategy is held to the same promises, on a made-up problem whose optimum is known."""

from importlib.metadata import EntryPoint

import numpy as np
import pytest

from bignas.device_db.errors import InputError
from bignas.search import strategy as registry
from bignas.search.coarse_to_fine import CoarseToFine
from bignas.search.constraint import LatencyBudget
from bignas.search.evolution import EvolutionConfig, RegularizedEvolution
from bignas.search.local_search import LocalSearch, LocalSearchConfig
from bignas.search.pareto import hypervolume
from bignas.search.strategy import (
    BUILT_IN,
    DEFAULT_STRATEGY,
    create_strategy,
    strategy_names,
)
from bignas.search.trial import Trial
from tests.search.synthetic import evaluate, latency_ms, make_space, search, top1

every_strategy = pytest.mark.parametrize("name", sorted(BUILT_IN))


def budget_at(quantile: float) -> LatencyBudget:
    """The budget that this share of the space keeps."""
    space = make_space()
    rng = np.random.default_rng(99)
    latencies = [latency_ms(space, space.sample(rng)) for _ in range(500)]
    return LatencyBudget(float(np.quantile(latencies, quantile)))


@every_strategy
def test_suggestions_are_new_distinct_and_inside_the_space(name: str) -> None:
    space = make_space()
    trials = search(create_strategy(name, space, 0), space, budget_at(0.5), trials=300)
    architectures = [trial.architecture for trial in trials]
    assert len(set(architectures)) == len(architectures) >= 300
    assert all(space.contains(architecture) for architecture in architectures)


@every_strategy
def test_the_same_seed_gives_the_same_search_and_another_seed_another(name: str) -> None:
    space = make_space()
    budget = budget_at(0.5)
    runs = [search(create_strategy(name, space, seed), space, budget, 200) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@every_strategy
def test_telling_the_trials_again_resumes_the_search(name: str) -> None:
    space = make_space()
    budget = budget_at(0.3)
    original = create_strategy(name, space, 3)
    trials = search(original, space, budget, 150)
    resumed = create_strategy(name, space, 3)
    for trial in trials:
        resumed.tell([trial])
    assert resumed.suggest(20) == original.suggest(20)
    assert resumed.suggest(20) == original.suggest(20)


@every_strategy
def test_a_strategy_can_be_told_what_it_never_suggested(name: str) -> None:
    space = make_space()
    budget = budget_at(0.5)
    strategy = create_strategy(name, space, 0)
    foreign = [evaluate(space, space.biggest(), budget), evaluate(space, space.smallest(), budget)]
    strategy.tell(foreign)
    suggestions = strategy.suggest(30)
    assert not {trial.architecture for trial in foreign} & set(suggestions)


@every_strategy
@pytest.mark.parametrize("count", [0, 1, 7])
def test_as_many_suggestions_as_asked_for(name: str, count: int) -> None:
    assert len(create_strategy(name, make_space(), 0).suggest(count)) == count


@every_strategy
def test_a_small_space_is_visited_completely_and_then_the_suggestions_end(name: str) -> None:
    space = make_space(stages=1, depths=(1,))
    trials = search(create_strategy(name, space, 0), space, LatencyBudget(1e6), 10_000, batch=5)
    assert {trial.architecture for trial in trials} == set(space.architectures())
    assert len(trials) == space.size()


@every_strategy
def test_a_hopeless_budget_does_not_stop_a_strategy(name: str) -> None:
    space = make_space()
    trials = search(create_strategy(name, space, 0), space, LatencyBudget(1e-6), 120)
    assert not any(trial.feasible for trial in trials)
    assert len(trials) >= 120


@pytest.mark.parametrize("quantile", [0.02, 0.3, 0.9])
def test_evolution_comes_close_to_the_optimum_under_loose_and_tight_budgets(
    quantile: float,
) -> None:
    space = make_space()
    budget = budget_at(quantile)
    keeping = [arch for arch in space.architectures() if budget.allows(latency_ms(space, arch))]
    accuracies = np.sort([top1(space, arch) for arch in keeping])
    trials = search(create_strategy("evolution", space, 0), space, budget, 640)
    best = max(trials, key=lambda trial: trial.score)
    assert best.feasible
    assert best.top1 is not None
    assert best.top1 >= accuracies[-1] - 0.01


@pytest.mark.parametrize("quantile", [0.02, 0.3, 0.9])
def test_the_default_finds_the_optimum_in_a_fiftieth_of_the_space(quantile: float) -> None:
    space = make_space()
    budget = budget_at(quantile)
    optimum = max(
        top1(space, arch)
        for arch in space.architectures()
        if budget.allows(latency_ms(space, arch))
    )
    for seed in range(2):
        strategy = create_strategy(DEFAULT_STRATEGY, space, seed)
        trials = search(strategy, space, budget, space.size() // 50, batch=50)
        assert max(trial.score for trial in trials) == optimum


def test_the_default_finds_the_few_that_keep_a_very_tight_limit() -> None:
    space = make_space()
    fastest = sorted((latency_ms(space, arch), arch.key) for arch in space.architectures())[:8]
    budget = LatencyBudget(fastest[-1][0])
    trials = search(create_strategy(DEFAULT_STRATEGY, space, 0), space, budget, 500)
    assert {one.architecture.key for one in trials if one.feasible} >= {key for _, key in fastest}


def test_the_default_s_front_beats_random_search_s() -> None:
    space = make_space(stages=4)
    budget = budget_at(0.6)
    for seed in range(2):
        areas = [
            hypervolume(search(create_strategy(name, space, seed), space, budget, 200), 10.0)
            for name in (DEFAULT_STRATEGY, "random")
        ]
        assert areas[0] > areas[1]


def test_nsga2_mates_the_best_of_all_it_was_told() -> None:
    space = make_space(stages=4)
    budget = budget_at(0.6)
    strategy = create_strategy("nsga2", space, 0)
    trials = search(strategy, space, budget, 640)
    start, end = trials[:64], trials[-64:]
    assert np.mean([one.score for one in end]) > np.mean([one.score for one in start])
    assert hypervolume(trials, 10.0) > hypervolume(
        search(create_strategy("random", space, 0), space, budget, 640), 10.0
    )


def test_a_space_that_is_too_large_is_not_enumerated() -> None:
    with pytest.raises(InputError, match="at most"):
        create_strategy("exhaustive", make_space(stages=6), 0)


def test_coarse_to_fine_looks_at_its_grid_first() -> None:
    space = make_space()
    strategy = CoarseToFine(space, 0)
    trials = search(strategy, space, budget_at(0.5), len(strategy.grid), batch=8)
    assert {trial.architecture for trial in trials[: len(strategy.grid)]} == set(strategy.grid)
    assert space.smallest() == trials[0].architecture
    assert space.biggest() in strategy.grid
    for architecture in strategy.grid:  # one level for all stages
        assert len(set(architecture.stages)) == 1


def test_local_search_leaves_the_best_in_all_directions() -> None:
    space, budget = make_space(), LatencyBudget(1e6)
    strategy = LocalSearch(space, 0, LocalSearchConfig(starts=3))
    start = search(strategy, space, budget, 3, batch=3)
    best = max(start, key=lambda trial: trial.score).architecture
    directions = sum(len(options) - 1 for _, options in space.dimensions())
    around = strategy.suggest(directions)
    row = np.array(space.positions(best))
    distances = [int((row != space.positions(one)).sum()) for one in around]
    assert distances == [1] * directions


def test_evolution_beats_random_search() -> None:
    space = make_space(stages=4)
    budget = budget_at(0.3)
    scores = {
        name: np.mean(
            [
                max(
                    trial.score
                    for trial in search(create_strategy(name, space, seed), space, budget, 320)
                )
                for seed in range(3)
            ]
        )
        for name in ("random", "evolution")
    }
    assert scores["evolution"] > scores["random"]


def test_evolution_asks_for_the_smallest_first() -> None:
    space = make_space()
    assert create_strategy("evolution", space, 5).suggest(4)[0] == space.smallest()


def test_the_population_ages_and_prefers_the_feasible() -> None:
    space = make_space()
    rng = np.random.default_rng(0)
    strategy = RegularizedEvolution(space, 0, EvolutionConfig(population=4, tournament=2))
    archs = list(dict.fromkeys(space.sample(rng) for _ in range(40)))[:12]
    slow = [Trial(arch, 10.0 - index, 10.0 - index) for index, arch in enumerate(archs[:6])]
    strategy.tell(slow)
    assert strategy.population() == [slow[5], slow[4], slow[3], slow[2]]
    good = [Trial(arch, 1.0, 0.5, 0.9 - index / 10) for index, arch in enumerate(archs[6:])]
    strategy.tell(good[:2])
    assert strategy.population() == [*good[:2], slow[5], slow[4]]
    strategy.tell(good[2:])
    assert strategy.population() == good[2:]  # the best of all has died of age


def test_a_later_trial_of_an_architecture_replaces_the_earlier_one() -> None:
    space = make_space()
    strategy = RegularizedEvolution(space, 0)
    strategy.tell([Trial(space.smallest(), 1.0, 0.5, 0.5)])
    measured = Trial(space.smallest(), 1.2, 0.5, 0.6)
    strategy.tell([measured])
    assert strategy.population() == [measured]


@pytest.mark.parametrize(
    "settings",
    [
        {"population": 0},
        {"tournament": 0},
        {"tournament": 65},
        {"mutation_probability": 0.0},
        {"cross_probability": 1.5},
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must lie"):
        EvolutionConfig(**settings)  # type: ignore[arg-type]


def test_an_unknown_strategy_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"annealing.*evolution.*random"):
        create_strategy("annealing", make_space(), 0)


def test_packages_can_offer_strategies(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = [
        EntryPoint("mine", "bignas.search.random_search:RandomSearch", registry.ENTRY_POINT_GROUP),
        EntryPoint("broken", "no_such_module:Strategy", registry.ENTRY_POINT_GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: offered)
    assert {"mine", "broken", "evolution", "random"} <= set(strategy_names())
    space = make_space()
    assert space.contains(create_strategy("mine", space, 0).suggest(1)[0])
    with pytest.raises(InputError, match="cannot be loaded"):
        create_strategy("broken", space, 0)
