"""A worker without an engine: python fake_worker.py MICROSECONDS TRACE [FAIL_AFTER].

It replies as a worker does, and notes in the file TRACE, again and again from a thread, that it is
running: nothing is noted while it is stopped.
"""

import json
import sys
import threading
import time
from pathlib import Path


def main() -> None:
    microseconds, trace = float(sys.argv[1]), Path(sys.argv[2])
    left = int(sys.argv[3]) if len(sys.argv) > 3 else -1
    threading.Thread(target=note, args=(trace,), daemon=True).start()
    reply({"runs": 1})
    for _ in sys.stdin:
        if left == 0:
            sys.exit("the engine broke")
        left -= 1
        time.sleep(0.002)
        reply({"us": microseconds})


def reply(content: dict[str, float]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def note(trace: Path) -> None:
    with trace.open("w", encoding="utf-8") as stream:
        while True:
            stream.write(f"{time.monotonic_ns()}\n")
            stream.flush()
            time.sleep(0.0002)


main()
