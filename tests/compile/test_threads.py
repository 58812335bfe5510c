"""Networks of several threads: the numbers of one thread, whoever calls them and from where."""

import copy
import multiprocessing
import subprocess
import sys
import threading
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from bignas.compile.bundle import RUNNER
from bignas.compile.child_graph import graph_with_random_weights
from bignas.compile.library import NetworkLibrary, aligned_floats
from bignas.compile.plan import MOST_THREADS
from bignas.device_db.errors import InputError, MeasurementError
from bignas.latency.jobs import Settings
from bignas.supernet.spaces import load_space
from tests.compile.bundles import child_bundle
from tests.compile.networks import CLIPPED, DENSE, SQUEEZE, compile_graph, run_compiled, space_from

SPACE = load_space("cifar")
SIZE = SPACE.smallest().resolution
IMAGES = np.random.default_rng(0).standard_normal((3, 3, SIZE, SIZE)).astype(np.float32)
TOLERANCE = 1e-5  # of the largest output; shares change no sum, but LLVM may contract otherwise


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest child of `cifar` for two threads."""
    path = tmp_path_factory.mktemp("threads") / "network.so"
    path.write_bytes(compile_graph(graph_with_random_weights(SPACE, SPACE.smallest()), 2).library)
    return path


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    network = compile_graph(graph_with_random_weights(SPACE, SPACE.smallest()))
    return run_compiled(network, IMAGES, tmp_path_factory.mktemp("one"))


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize("text", [SQUEEZE, CLIPPED, DENSE])
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_any_number_of_threads_gives_the_numbers_of_one(
    text: str, threads: int, tmp_path: Path
) -> None:
    """Also with more threads than cores, and than tasks of a kernel."""
    space = space_from(text, tmp_path)
    random = np.random.default_rng(threads)
    for architecture in (space.smallest(), space.biggest(), space.sample(random)):
        graph = graph_with_random_weights(space, architecture)
        size = architecture.resolution
        images = random.standard_normal((2, space.in_channels, size, size)).astype(np.float32)
        one, many = (
            run_compiled(compile_graph(graph, count), images, tmp_path) for count in (1, threads)
        )
        assert close(many, one)


def test_many_runs_in_a_row_agree(library: Path, expected: np.ndarray) -> None:
    """A missing barrier would show, sooner or later."""
    network = NetworkLibrary(library)
    first = network.run(IMAGES)
    assert close(first, expected)
    for _ in range(300):
        assert np.array_equal(network.run(IMAGES), first)


def test_callers_at_the_same_time_do_not_disturb_each_other(
    library: Path, expected: np.ndarray
) -> None:
    found: list[bool] = []

    def work(network: NetworkLibrary) -> None:
        found.append(all(close(network.run(IMAGES), expected) for _ in range(50)))

    opened = NetworkLibrary(library)
    second = copy.copy(opened)  # the same code and threads, memory of its own
    second._workspace = aligned_floats(opened._workspace.size)
    callers = [threading.Thread(target=work, args=(network,)) for network in (opened, second)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    assert found == [True, True]


def _run_in_child(network: NetworkLibrary, expected: np.ndarray) -> None:
    sys.exit(0 if close(network.run(IMAGES), expected) else 1)


def test_a_forked_process_starts_threads_of_its_own(library: Path, expected: np.ndarray) -> None:
    network = NetworkLibrary(library)
    network.run(IMAGES)
    child = multiprocessing.get_context("fork").Process(
        target=_run_in_child, args=(network, expected)
    )
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert close(network.run(IMAGES), expected)


def test_the_library_can_be_unloaded_while_its_threads_wait(library: Path) -> None:
    """They would go on in memory that is gone."""
    program = (
        "import _ctypes, ctypes, sys, time\n"
        "import numpy as np\n"
        "library = ctypes.CDLL(sys.argv[1])\n"
        "library.bignas_workspace_bytes.restype = ctypes.c_size_t\n"
        "raw = np.zeros(library.bignas_workspace_bytes() + 64, np.uint8)\n"
        "place = ctypes.c_void_p(raw.ctypes.data + -raw.ctypes.data % 64)\n"
        "image, output = np.zeros(1 << 16, np.float32), np.zeros(1 << 16, np.float32)\n"
        "pointers = [ctypes.c_void_p(one.ctypes.data) for one in (image, output)]\n"
        "assert library.bignas_run(*pointers, place) == 0\n"
        "_ctypes.dlclose(library._handle)\n"
        "time.sleep(0.2)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(library)], check=True, timeout=60)


def test_the_runner_has_threads_without_a_c_library(tmp_path: Path) -> None:
    bundle = child_bundle(tmp_path / "bundle", SPACE.smallest(), threads=2)
    for option in ("--self-check", "--bench"):
        command = [str(bundle.path / RUNNER), option]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (result.returncode, result.stderr) == (0, "")
        assert option == "--self-check" or "threads 2" in result.stdout


def test_more_threads_than_a_pool_has_are_refused() -> None:
    graph = graph_with_random_weights(SPACE, SPACE.smallest())
    with pytest.raises(InputError, match=f"at most {MOST_THREADS} threads"):
        compile_graph(graph, MOST_THREADS + 1)
    with pytest.raises(MeasurementError, match=f"at most {MOST_THREADS}"):
        Settings(threads=MOST_THREADS + 1)
    header = resources.files("bignas.compile.runner").joinpath("pool.h").read_text("utf-8")
    assert f"POOL_MOST_THREADS = {MOST_THREADS}" in header
