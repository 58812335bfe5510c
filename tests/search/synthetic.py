"""A small space with a made-up accuracy and latency: any strategy can be tried in milliseconds."""

from bignas.device_db.workload import Activation
from bignas.search.constraint import LatencyBudget
from bignas.search.strategy import Strategy
from bignas.search.trial import Trial
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace
from bignas.supernet.stage import StageSpace


def make_space(*, stages: int = 3, depths: tuple[int, ...] = (1, 2, 3)) -> SearchSpace:
    """A space of a few thousand architectures (with three stages)."""
    stage = StageSpace(
        channels=(8, 16),
        depths=depths,
        kernels=(3, 5),
        expands=(2, 4),
        stride=2,
        activation=Activation.RELU,
        squeeze_excite=False,
    )
    return SearchSpace(
        name="small",
        resolutions=(16, 32),
        stem_channels=(8,),
        stem_stride=1,
        stem_activation=Activation.RELU,
        stages=(stage,) * stages,
        head_channels=(32,),
        head_activation=Activation.RELU,
    )


def latency_ms(space: SearchSpace, architecture: Architecture) -> float:
    """Grows with work and with the number of kernels."""
    return float(space.macs(architecture) / 1e6 + 0.01 * len(space.layers(architecture)))


def top1(space: SearchSpace, architecture: Architecture) -> float:
    """Grows with capacity, with diminishing returns that differ from one dimension to the next."""
    encoded = space.encode(architecture)
    gains = [float(value) / (3 + index % 5) for index, value in enumerate(encoded)]
    return 0.5 + 0.45 * sum(gains) / sum(1 / (3 + index % 5) for index in range(len(encoded)))


def evaluate(space: SearchSpace, architecture: Architecture, budget: LatencyBudget) -> Trial:
    """Too slow architectures are rejected without an accuracy, as the pipeline does it."""
    latency = latency_ms(space, architecture)
    load = latency / budget.budget_ms
    accuracy = top1(space, architecture) if load <= 1 else None
    return Trial(architecture, latency, load, accuracy)


def search(
    strategy: Strategy, space: SearchSpace, budget: LatencyBudget, trials: int, batch: int = 16
) -> list[Trial]:
    """Run a strategy for about `trials` trials."""
    told: list[Trial] = []
    while len(told) < trials and (suggestions := strategy.suggest(batch)):
        new = [evaluate(space, architecture, budget) for architecture in suggestions]
        strategy.tell(new)
        told += new
    return told
