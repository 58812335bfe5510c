"""Kernels are told apart by what they take, and every column of it has a name."""

import numpy as np

from bignas.compile.workload import workloads
from bignas.latency.features import (
    KERNEL_FEATURES,
    ROOFLINE_FEATURES,
    kernel_features,
    roofline_features,
)
from bignas.supernet.spaces import load_space


def test_kernel_features_have_names_and_tell_kernels_apart() -> None:
    space = load_space("bignas")
    works = list(dict.fromkeys(workloads(space, space.biggest())))
    features = kernel_features(works)
    assert features.shape == (len(works), len(KERNEL_FEATURES))
    assert roofline_features(works).shape == (len(works), len(ROOFLINE_FEATURES))
    assert np.isfinite(features).all()
    assert len(np.unique(features, axis=0)) == len(works)
    assert kernel_features([]).shape == (0, len(KERNEL_FEATURES))
    assert roofline_features([]).shape == (0, len(ROOFLINE_FEATURES))
