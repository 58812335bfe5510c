"""Profiles the tiny space, in a process that a test may kill."""

import sys

from bignas.compile.objects import ObjectCache
from bignas.device_db.probe import LOCAL
from bignas.device_db.store import Store
from bignas.latency.profile import ProfileProgress, profile_space
from tests.latency.tiny import TINY


def report(step: ProfileProgress) -> None:
    """Write a line, so that the test knows how far it is."""
    sys.stdout.write(f"{step.phase} {step.done} of {step.total}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with Store.open() as store:
        device = store.device(LOCAL)
        profile_space(
            TINY,
            device,
            store,
            ObjectCache(device.target),
            minutes=10,
            progress=report,
            subnets=20,
        )
