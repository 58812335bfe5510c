"""Fits what networks take to the sums of their kernels.

Of kernels as they run in networks where that predicts networks that were left out better, else of
kernels alone. A few networks are fitted by a line, more by whatever predicts best. A network that
is left out is left out of the readings of kernels, too, or its sum would be made of what is to be
predicted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bignas.device_db.workload import Workload
from bignas.latency.in_network_model import InNetworkModel
from bignas.latency.in_network_readings import InNetworkReadings
from bignas.latency.network_sums import (
    NetworkSums,
    SpaceSums,
    network_feature_names,
    network_features,
)
from bignas.latency.recording import space_label
from bignas.latency.regression import Correction, Fit, fit_correction
from bignas.latency.weight_line import fit_weight_line
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = ["NetworkFit", "fit_networks"]

Array = NDArray[np.float64]

FOLDS = 10
FEWEST_TO_COMPARE = 8  # networks
WEIGHTS = "log_weight_bytes"  # of `network_feature_names`
MICROSECONDS_PER_MILLISECOND = 1e3


@dataclass(frozen=True, eq=False)
class NetworkFit:
    """A correction of the sums of n networks, and what cross-validation says about it."""

    correction: Correction  # of log(network / sum of its kernels within it), on network_features
    within: InNetworkModel
    residuals: Array  # [n] out-of-fold log(measured / predicted)
    estimated_share: Array  # [n] of their kernels' sums


def fit_networks(
    space: SearchSpace,
    sums_with: Callable[[InNetworkModel], SpaceSums],
    alone_us: Mapping[Workload, float],
    architectures: Sequence[Architecture],
    measured_ms: Array,
    readings: InNetworkReadings | None,
    seed: int,
) -> NetworkFit:
    """Fit to distinct architectures and what they take, [n] in milliseconds; n may be 0.

    `sums_with` gives the sums of networks in which kernels take what a model says, `alone_us` what
    measured kernels take by themselves.
    """
    sums = sums_with(InNetworkModel())(architectures)
    alone = _fit_ratios(space, sums, measured_ms, seed)
    fit = NetworkFit(alone.correction, InNetworkModel(), alone.residuals, sums.estimated_share)
    if readings is None:
        return fit
    label = space_label(space)
    names = [(label, one.key) for one in architectures]
    measured_us = (measured_ms * MICROSECONDS_PER_MILLISECOND).tolist()
    readings = readings.scaled_to(dict(zip(names, measured_us, strict=True)))
    whole = InNetworkModel.fit(readings, alone_us, seed)
    within_us = sums_with(whole)(architectures).within_us
    probed = [one.network for one in readings.networks]
    for fold in range(FOLDS):
        left_out = set(probed[fold::FOLDS])
        test = [place for place, name in enumerate(names) if name in left_out]
        if test:
            rest = InNetworkModel.fit(readings.without(left_out), alone_us, seed)
            chosen = [architectures[place] for place in test]
            within_us[test] = sums_with(rest)(chosen).within_us
    within = _fit_ratios(space, replace(sums, within_us=within_us), measured_ms, seed)
    if np.abs(within.residuals).sum() >= np.abs(alone.residuals).sum():
        return fit
    return replace(fit, correction=within.correction, within=whole, residuals=within.residuals)


def _fit_ratios(space: SearchSpace, sums: NetworkSums, measured_ms: Array, seed: int) -> Fit:
    """Fit what networks take more than the sums of their kernels, as logarithms.

    The line is as simple as a constant, so it needs to be no better than the others by a margin.
    """
    targets = np.log(measured_ms * MICROSECONDS_PER_MILLISECOND / sums.within_us)
    features = network_features(sums)
    if not len(targets):
        return fit_correction(features, targets, seed)
    line = fit_weight_line(features, network_feature_names(space).index(WEIGHTS), targets)
    if len(targets) < FEWEST_TO_COMPARE:
        return line
    fit = fit_correction(features, targets, seed)
    return line if np.abs(line.residuals).sum() < np.abs(fit.residuals).sum() else fit
