"""A world of its own for each test, and what is costly to make once for all of them."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bignas.compile.bundle import BundleContents, write_bundle
from bignas.compile.lower import lower_onnx
from bignas.compile.network import build_network
from bignas.compile.objects import ObjectCache
from bignas.compile.onnx_export import export_onnx
from bignas.compile.schedule import candidates
from bignas.device_db.probe import probe_local
from bignas.device_db.store import Store
from bignas.latency.evidence import evidence_hash
from bignas.latency.kernel_model import KernelTable
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.predictors import save_predictor
from bignas.latency.profile import space_workloads
from bignas.supernet.checkpoint import load_checkpoint
from bignas.supernet.data import load_data
from bignas.supernet.evaluate import extract_calibrated
from bignas.supernet.spaces import load_space
from bignas.supernet.train import TrainConfig, train
from tests.cli.helpers import OTHER_SPACE, SPACE
from tests.device_db.samples import kernel


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Store, predictors and current folder are the test's own; kernels are built once for all."""
    monkeypatch.setenv("BIGNAS_DB", f"sqlite:///{tmp_path / 'store.sqlite'}")
    monkeypatch.setenv("BIGNAS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("BIGNAS_CACHE", str(cache_folder))
    work = tmp_path / "work"
    work.mkdir()
    before = Path.cwd()
    os.chdir(work)
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("assets")


@pytest.fixture(scope="session")
def space_file(assets: Path) -> Path:
    path = assets / "tiny.toml"
    path.write_text(SPACE)
    return path


@pytest.fixture(scope="session")
def other_space_file(assets: Path) -> Path:
    path = assets / "other.toml"
    path.write_text(OTHER_SPACE)
    return path


@pytest.fixture(scope="session")
def checkpoint(assets: Path, space_file: Path) -> Path:
    """A supernet of the tiny space, two steps old."""
    path = assets / "tiny.safetensors"
    config = TrainConfig(epochs=1, batch_size=64, max_train_images=128, threads=1)
    train(load_space(str(space_file)), load_data("digits"), path, config)
    return path


@pytest.fixture(scope="session")
def bundle(assets: Path, cache_folder: Path, checkpoint: Path) -> Path:
    """A bundle of the smallest child; its kernels are the first candidates, nothing is measured."""
    network, _ = load_checkpoint(checkpoint)
    architecture = network.space.smallest()
    data = load_data("digits")
    child = extract_calibrated(network, architecture, data)
    model = export_onnx(child, architecture.resolution)
    graph = lower_onnx(model)
    device = probe_local()
    schedules = {one: candidates(one, device.target)[0] for one in graph.workloads}
    built = build_network(graph, schedules, ObjectCache(device.target, cache_folder / "objects"))
    golden = np.random.default_rng(0).standard_normal((4, *graph.input_shape)).astype(np.float32)
    contents = BundleContents("tiny", built, model, golden, device, preprocessing={})
    return write_bundle(assets / "bundle", contents).path


@pytest.fixture
def predictor(space_file: Path) -> LatencyPredictor:
    """A fitted predictor of the tiny space on this machine, from an invented kernel table."""
    space = load_space(str(space_file))
    latencies = {one: 1.0 + one.macs / 1e4 for one in space_workloads(space)}
    table = KernelTable(latencies, "local", evidence_hash())
    fitted = LatencyPredictor.fit(space, table, [])
    save_predictor(fitted, probe_local())
    return fitted


@pytest.fixture
def measured(space_file: Path) -> None:
    """A store with an invented measurement of every kernel of the tiny space."""
    with Store.open() as store:
        device = store.device("local")
        store.add_measurements(
            replace(
                kernel(number, "local"),
                workload=workload,
                schedule=candidates(workload, device.target)[0].to_text(),
                provenance=replace(kernel().provenance, code_hash=evidence_hash()),
            )
            for number, workload in enumerate(space_workloads(load_space(str(space_file))))
        )
