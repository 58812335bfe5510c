"""Our binaries against other engines: the same networks, interleaved in one run.

    python benchmarks/race_engines.py --json benchmarks/results/race.json

Networks: MobileNetV2, EfficientNet-Lite0 and ResNet-18, two children of `bignas`, ten of `cifar`.
Each engine runs in a process of its own on the same cores, warm, called from the same Python loop,
and is stopped while another one is timed. Outputs are compared, every sample is written. Kernels
that the store lacks are tuned first.

The race may be run in pieces: --models, --threads, --targets and --engines take names separated by
commas. What the file has already is not repeated unless --again asks for it.

`pip install -e '.[bench]'` adds the peers. Those that are not installed, and those that cannot
be kept to an older instruction set, are left out, and the file says why.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from engines import ENGINES, NATIVE, OURS, ModelFiles
from fma_peak import needed_macs, peak_gmacs
from interleave import WorkerCommand, WorkerError, run_worker, sample_in_turn
from race_models import RaceModel, race_models, write_model
from race_results import Entry, Key, is_done, key_of, merge, read_entries, summarise, write_results

from bignas.compile.fusion import kernel_options
from bignas.compile.graph import KernelGraph
from bignas.compile.kernel_identity import code_hash
from bignas.compile.lower import lower_onnx
from bignas.compile.network import build_network
from bignas.compile.objects import ObjectCache
from bignas.device_db.device import Device
from bignas.device_db.errors import BignasError, MeasurementError
from bignas.device_db.presets import PRESETS
from bignas.device_db.probe import LOCAL
from bignas.device_db.store import Store
from bignas.latency.anchor import anchored
from bignas.latency.in_network import ProbedNetwork, in_network_records
from bignas.latency.in_network_table import in_network_table
from bignas.latency.jobs import NETWORK_SETTINGS, NetworkJob, of_processes
from bignas.latency.local import measure
from bignas.latency.recording import Recorder
from bignas.latency.tuned import fuse_tuned, schedules_of, tuned_kernels
from bignas.latency.tuning import ensure_tuned

TARGETS = (NATIVE, "x86-64-v3", "x86-64-v2")
THREADS = (1, 2)
ROUNDS = 60
PROCESSES = 7  # of ours without Python: where pages lie is drawn anew in each
SPACE = "race"  # of all networks, in the records of their kernels
TOLERANCE = 1e-3  # of the largest output; engines that use Winograd or fuse differently need it
WORKER = Path(__file__).with_name("engine_worker.py")


@dataclass(frozen=True, slots=True)
class Course:
    """A target and a number of threads, with the device that has both."""

    target: str
    threads: int
    device: Device
    cores: tuple[int, ...]

    @property
    def left_out(self) -> dict[str, str]:
        """Engines that do not run, each with the reason."""
        reasons = {
            name: engine.left_out(self.target) if engine.installed else "not installed"
            for name, engine in ENGINES.items()
        }
        return {name: reason for name, reason in reasons.items() if reason is not None}


@dataclass(frozen=True, slots=True)
class Compiled:
    """A network of ours: its kernels and the linked library; its latency, those of kernels summed.

    The kernels' are those within networks, and those of kernels measured alone.
    """

    graph: KernelGraph
    library: Path
    network_us: Mapping[str, float] = field(default_factory=dict)
    kernel_sum_us: float = 0.0
    alone_sum_us: float = 0.0


def main() -> None:
    """Run what is missing of the race, and write every sample."""
    options = _options()
    models = race_models()
    wanted = _chosen(options.models, models, "networks")
    engines = _chosen(options.engines, ENGINES, "engines")
    try:
        with Store.open() as store, tempfile.TemporaryDirectory(prefix="bignas-race-") as folder:
            race = _Race(
                models,
                engines,
                options.rounds,
                options.processes,
                store,
                Path(folder),
                options.json,
            )
            for target in _chosen(options.targets, TARGETS, "targets"):
                for threads in options.threads.split(","):
                    race.run(race.course(target, int(threads)), wanted, options.again)
    except (BignasError, WorkerError) as error:
        sys.exit(str(error))
    for course in summarise(read_entries(options.json)):
        print(_summary_line(course))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="", help="names separated by commas; all by default")
    parser.add_argument("--threads", default=",".join(map(str, THREADS)))
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--again", action="store_true", help="repeat what is done already")
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args()


def _chosen(names: str, known: Sequence[str] | Mapping[str, Any], what: str) -> list[str]:
    chosen = names.split(",") if names else list(known)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        sys.exit(f"there are no {what} {', '.join(unknown)}; known: {', '.join(known)}")
    return chosen


class _Race:
    """The race and its results file; networks are written and converted once."""

    def __init__(
        self,
        models: Mapping[str, RaceModel],
        engines: Sequence[str],
        rounds: int,
        processes: int,
        store: Store,
        folder: Path,
        results: Path,
    ) -> None:
        self.models = models
        self.engines = engines
        self.rounds = rounds
        self.processes = processes
        self.store = store
        self.folder = folder
        self.results = results
        self._files: dict[str, ModelFiles] = {}

    def course(self, target: str, threads: int) -> Course:
        """Return a course on this machine; its device is added to the store when it is new."""
        local = self.store.device(LOCAL)
        allowed = sorted(os.sched_getaffinity(0), reverse=True)
        if not 1 <= threads <= len(allowed):
            sys.exit(f"{threads} threads do not fit on the {len(allowed)} cores of this machine")
        device = local
        if (target, threads) != (NATIVE, local.threads):
            device = replace(
                local,
                name=f"{LOCAL}-{target}-{threads}-threads",
                target=PRESETS.get(target, local.target),
                threads=threads,
            )
            self.store.add_device(device)
        return Course(target, threads, device, tuple(allowed[:threads]))

    def run(self, course: Course, names: Sequence[str], again: bool) -> None:
        """Race the networks that have no entry yet, and write each entry when it is there."""
        left_out = course.left_out
        engines = [name for name in self.engines if name not in left_out]
        done = {key_of(entry): entry for entry in read_entries(self.results)}
        missing = [
            name
            for name in names
            if again
            or not is_done(done.get(Key(course.target, course.threads, name)), engines, code_hash())
        ]
        if not missing:
            return
        peak = peak_gmacs(course.device.target, course.cores)
        compiled = self._compile(course, missing)
        for name in missing:
            entry = self._entry(course, self.models[name], compiled[name], engines)
            entry |= {"peak_gmacs": peak, "left_out": left_out}
            self._write(entry, course.device)

    def _write(self, entry: Entry, device: Device) -> None:
        entries = merge(read_entries(self.results), [entry], list(self.models))
        machine = {
            "cpu": device.cpu_model,
            "cores": device.cores,
            "python": platform.python_version(),
        }
        write_results(self.results, entries, machine)
        medians = "  ".join(f"{name} {us:.1f}" for name, us in entry["median_us"].items())
        course = f"{entry['target']}, {entry['threads']} threads"
        print(f"{course}: {entry['model']:20} {medians} us", flush=True)

    def _model_files(self, model: RaceModel) -> ModelFiles:
        """Return the files of a network, written and converted by all engines on first use."""
        if model.name not in self._files:
            files = write_model(model, self.folder)
            for name in self.engines:
                if ENGINES[name].installed and ENGINES[name].convert is not None:
                    run_worker(self._worker("convert", name, files, os.environ))
            self._files[model.name] = files
        return self._files[model.name]

    def _compile(self, course: Course, names: Sequence[str]) -> dict[str, Compiled]:
        """Tune what the store lacks, and link our library of each network."""
        cache = ObjectCache(course.device.target)
        graphs = {
            name: lower_onnx(self._model_files(self.models[name]).onnx.read_bytes())
            for name in names
        }
        compiled: dict[str, Compiled] = {}
        for name, layered in graphs.items():
            options = kernel_options(layered.workloads)
            kernels = ensure_tuned(
                options, course.device, self.store, cache, _show_tuning, layered.weights_bytes
            )
            graph = fuse_tuned(layered, kernels)
            network = build_network(graph, schedules_of(kernels), cache, course.threads)
            library = self.folder / name / f"{course.target}-{course.threads}.so"
            library.write_bytes(network.library)
            compiled[name] = Compiled(graph, library)
        return self._measured(course, compiled, cache)

    def _measured(
        self, course: Course, compiled: Mapping[str, Compiled], cache: ObjectCache
    ) -> dict[str, Compiled]:
        """Measure each network, and its kernels where they run; return them with that.

        Without Python, with probes and without in turns, each in a process of its own: two copies
        of large weights get in each other's way.
        """
        device = course.device
        kernels = tuned_kernels(self.store, device.name)
        schedules, recorder = schedules_of(kernels), Recorder(device.name)
        settings = anchored(NETWORK_SETTINGS, device.target, device.threads)
        settings = replace(of_processes(settings, self.processes), attempts=1)
        network_us: dict[str, dict[str, float]] = {}
        for model, one in compiled.items():
            probed = ProbedNetwork(SPACE, model, one.graph)
            path = one.library.with_name(f"probed-{one.library.name}")
            jobs = [NetworkJob(one.library), probed.link(schedules, cache, device.threads, path)]
            quantiles: list[np.ndarray] = []
            for _ in range(self.processes):
                reports = [measure([job], settings) for job in jobs]
                whole, calls = (report.results[0] for report in reports)
                for result in (whole, calls):
                    if result.error is not None:
                        raise MeasurementError(f"{model} cannot be measured: {result.error}")
                environment = reports[-1].environment
                self.store.add_measurements(
                    in_network_records(probed, schedules, calls, environment, recorder)
                )
                quantiles.append(np.quantile(whole.samples_ns, [0.1, 0.5]) / 1e3)
            low, median = np.median(quantiles, axis=0)
            network_us[model] = {"low": float(low), "p50": float(median)}
        within = in_network_table(self.store, device.name, kernels)
        alone_us = {one: entry.latency_us for one, entry in kernels.items()}
        return {
            model: replace(
                one,
                network_us=network_us[model],
                kernel_sum_us=_sum(within.latencies_us(one.graph.workloads)),
                alone_sum_us=sum(alone_us[work] for work in one.graph.workloads),
            )
            for model, one in compiled.items()
        }

    def _entry(
        self, course: Course, model: RaceModel, compiled: Compiled, engines: Sequence[str]
    ) -> Entry:
        """Time one network in the engines and return what was found."""
        files = self._model_files(model)
        details = [str(compiled.library), str(course.threads), course.target]
        workers = {}
        for name in engines:
            own = ENGINES[name].environment_for(course.target, course.threads)
            # unless told otherwise OpenMP spins for a moment, then sleeps
            inherited = {key: os.environ[key] for key in os.environ if key != "OMP_WAIT_POLICY"}
            workers[name] = self._worker("time", name, files, inherited | own, details)
        load = os.getloadavg()[0]
        samples = sample_in_turn(workers, self.rounds, course.cores)
        return {
            "model": model.name,
            "group": model.group,
            "target": course.target,
            "threads": course.threads,
            "resolution": model.resolution,
            "macs": sum(workload.macs for workload in compiled.graph.workloads),
            "needed_macs": sum(needed_macs(workload) for workload in compiled.graph.workloads),
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "code_hash": code_hash(),
            "versions": {name: version(ENGINES[name].package) for name in engines},
            "cores": list(course.cores),
            "load_average": load,
            "median_us": {name: float(np.median(values)) for name, values in samples.items()},
            "max_abs_difference": differences(
                {name: np.load(files.output(name)) for name in engines}
            ),
            "kernel_sum_us": compiled.kernel_sum_us,
            "alone_sum_us": compiled.alone_sum_us,
            "network_us": compiled.network_us,
            "processes": self.processes,
            "fallback_kernels": len(compiled.graph.fallbacks),
            "fused_blocks": sum(one.hidden_channels > 0 for one in compiled.graph.workloads),
            "samples_us": {
                name: [round(us, 3) for us in values] for name, values in samples.items()
            },
        }

    def _worker(
        self,
        action: str,
        engine: str,
        files: ModelFiles,
        environment: Mapping[str, str],
        details: Sequence[str] = (),
    ) -> WorkerCommand:
        command = [sys.executable, str(WORKER), action, engine, str(files.folder), *details]
        return WorkerCommand(command, environment, files.folder / f"{action}-{engine}.log")


def differences(outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the largest difference of each engine's output from ours.

    Raises:
        WorkerError: an engine computes something else.
    """
    ours = outputs[OURS]
    scale = max(1.0, float(np.abs(ours).max()))
    errors = {name: float(np.abs(one - ours).max()) for name, one in outputs.items()}
    wrong = [name for name, error in errors.items() if not error <= TOLERANCE * scale]
    if wrong:
        raise WorkerError(f"{', '.join(wrong)} and {OURS} disagree: {errors}")
    return errors


def _sum(latencies_us: Sequence[float | None]) -> float:
    if None in latencies_us:
        raise MeasurementError("a kernel has no latency within its network")
    return sum(us for us in latencies_us if us is not None)


def _show_tuning(done: int, total: int, rejected: int) -> bool:
    print(f"tuned {done} of {total} kernels, {rejected} rounds repeated", flush=True)
    return True


def _summary_line(course: Mapping[str, Any]) -> str:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    return (
        f"{course['target']}, {course['threads']} threads: bignas / fastest peer"
        f" {shown(course['geometric_mean_ratio'])} (geometric mean without ResNet-18),"
        f" {shown(course['geometric_mean_ratio_cifar'])} (cifar), worst {course['worst']}"
    )


if __name__ == "__main__":
    main()
