"""The engines of the race, each behind the same two calls: prepare a model, run it once.

An engine whose package is not installed is reported as absent, never replaced. All run float32 on
the same input with the same number of threads; OpenVINO, whose default on this kind of processor is
bfloat16, is told to keep float32.
"""

import importlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bignas.compile.library import NetworkLibrary
from bignas.compile.onnx_export import INPUT_NAME, OUTPUT_NAME, onnx_session

__all__ = ["ENGINES", "PACKAGES", "Model", "Prepared", "absent_engines"]


@dataclass(frozen=True)
class Prepared:
    """A model in an engine: `run` computes it once, `read` gives the output of the last run."""

    run: Callable[[], Any]
    read: Callable[[], Any]

    def output(self) -> np.ndarray:
        """Run once and return the output, flat."""
        self.run()
        return np.array(self.read(), dtype=np.float32).reshape(-1)


@dataclass(frozen=True)
class Model:
    """One network in every form an engine may want; `image` is [1, channels, height, width]."""

    name: str
    onnx: bytes
    module: torch.nn.Module
    library: Path
    image: np.ndarray


def _bignas(model: Model, threads: int) -> Prepared:
    if threads != 1:
        raise NotImplementedError("one thread only")
    run = NetworkLibrary(model.library).bind(model.image)
    return Prepared(run, run)


def _onnxruntime(model: Model, threads: int) -> Prepared:
    session = onnx_session(model.onnx, threads)
    binding = session.io_binding()
    binding.bind_cpu_input(INPUT_NAME, model.image)
    binding.bind_output(OUTPUT_NAME, "cpu")
    return Prepared(
        lambda: session.run_with_iobinding(binding), lambda: binding.copy_outputs_to_cpu()[0]
    )


def _openvino(model: Model, threads: int) -> Prepared:
    openvino = importlib.import_module("openvino")
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.onnx),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        },
    )
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(model.image, shared_memory=True))
    return Prepared(request.infer, lambda: request.get_output_tensor().data)


def _mnn(model: Model, threads: int) -> Prepared:
    mnn = importlib.import_module("MNN")
    converter = importlib.import_module("_tools")  # MNN.tools runs pip when it is imported
    with tempfile.TemporaryDirectory() as folder:
        source, converted = Path(folder) / "model.onnx", Path(folder) / "model.mnn"
        source.write_bytes(model.onnx)
        paths = ["--modelFile", str(source), "--MNNModel", str(converted)]
        converter.mnnconvert(["mnnconvert", "-f", "ONNX", "--bizCode", "race", *paths])
        interpreter = mnn.Interpreter(str(converted))
    session = interpreter.createSession(
        {"backend": "CPU", "numThread": threads, "precision": "high"}
    )
    entry = interpreter.getSessionInput(session)
    layout = mnn.Tensor_DimensionType_Caffe
    host = mnn.Tensor(model.image.shape, mnn.Halide_Type_Float, model.image, layout)
    entry.copyFrom(host)
    output = interpreter.getSessionOutput(session)
    return Prepared(lambda: interpreter.runSession(session), output.getData)


class _Named(torch.nn.Module):
    """pnnx writes module paths out as Python names, which must not start with a digit."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.network(x)
        return scores


def _ncnn(model: Model, threads: int) -> Prepared:
    ncnn = importlib.import_module("ncnn")
    pnnx = importlib.import_module("pnnx")
    with tempfile.TemporaryDirectory() as folder:
        traced = str(Path(folder) / "model.pt")
        pnnx.export(_Named(model.module), traced, torch.from_numpy(model.image), fp16=False)
        net = ncnn.Net()
        net.opt.num_threads = threads
        net.opt.use_bf16_storage = False
        net.opt.use_fp16_packed = False
        net.opt.use_fp16_storage = False
        net.opt.use_fp16_arithmetic = False
        net.load_param(str(Path(folder) / "model.ncnn.param"))
        net.load_model(str(Path(folder) / "model.ncnn.bin"))
    image = ncnn.Mat(model.image[0]).clone()

    def run() -> Any:
        extractor = net.create_extractor()
        extractor.input("in0", image)
        return extractor.extract("out0")[1]

    return Prepared(run, run)


def _torch_compile(model: Model, threads: int) -> Prepared:
    torch.set_num_threads(threads)
    config: Any = importlib.import_module("torch._inductor.config")
    config.freezing = True
    compiled = torch.compile(model.module.eval())
    image = torch.from_numpy(model.image)

    def run() -> Any:
        with torch.inference_mode():
            return compiled(image)

    return Prepared(run, run)


ENGINES: Mapping[str, Callable[[Model, int], Prepared]] = {
    "bignas": _bignas,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "mnn": _mnn,
    "ncnn": _ncnn,
    "torch.compile": _torch_compile,
}
PACKAGES = {
    "bignas": "bignas",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "mnn": "MNN",
    "ncnn": "ncnn",
    "torch.compile": "torch",
}


def absent_engines() -> list[str]:
    """Return the engines whose package is not installed here."""
    absent = []
    for name, package in PACKAGES.items():
        try:
            version(package)
        except PackageNotFoundError:
            absent.append(name)
    return absent
