"""Profiles a space with invented measurements, in a process of its own."""

import sys

from bignas.compile.objects import ObjectCache
from bignas.device_db.probe import LOCAL
from bignas.device_db.store import Store
from bignas.latency import profile, profile_plan, regression
from tests.latency.fake_bench import FakeTuner, fake_subnets
from tests.latency.tiny import TINY

if __name__ == "__main__":
    FakeTuner.seconds = 0.05
    profile_plan.BATCH = 4
    regression.TREE_ROUNDS = 3
    setattr(profile, "Tuner", FakeTuner)  # noqa: B010 - the types differ
    setattr(profile, "measure_subnets", fake_subnets)  # noqa: B010
    with Store.open() as store:
        device = store.device(LOCAL)
        cache = ObjectCache(device.target)
        sys.stdin.readline()  # all processes begin at the same time
        profile.profile_space(TINY, device, store, cache, minutes=5, subnets=20)
