"""The engines of the race, each behind the same calls: convert a model, prepare it, run it once.

All run float32 on the same input with the same number of threads, each with the settings that its
documentation names as the fastest. An engine whose package is not installed is reported as absent,
never replaced. To race for an older instruction set, an engine must be told to leave the newer one
alone; those that cannot be told say so in `unrestricted`.

Nothing of an engine is imported before it runs: each has a process of its own (engine_worker.py).
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from bignas.compile.library import NetworkLibrary

__all__ = ["ENGINES", "NATIVE", "OURS", "Engine", "ModelFiles", "Prepared", "Task"]

OURS = "bignas"
NATIVE = "native"  # the best instruction set of the machine
AVX2 = "x86-64-v3"
SSE4 = "x86-64-v2"
INDUCTOR_BITS = {AVX2: 256, SSE4: 1}  # of a vector; 1: code without vectors, the compiler's own
BY_PROCESSOR = "it chooses its kernels by what the processor says, and has no setting for that"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """One network in every form that an engine may want, in a folder of its name."""

    folder: Path

    @property
    def onnx(self) -> Path:
        """The ONNX model."""
        return self.folder / "model.onnx"

    @property
    def model(self) -> str:
        """The name of the network in race_models.py."""
        return self.folder.name

    @property
    def traced(self) -> Path:
        """The network as torch traces it; ncnn's converter writes its files beside it."""
        return self.folder / "model.pt"

    @property
    def image(self) -> Path:
        """The input, float32 [1, channels, height, width], as a NumPy file."""
        return self.folder / "image.npy"

    def output(self, engine: str) -> Path:
        """Where an engine leaves what it computed, as a NumPy file."""
        return self.folder / f"output-{engine}.npy"


@dataclass(frozen=True, slots=True)
class Task:
    """What an engine is to run: the files of a model, our library of it, threads and target."""

    files: ModelFiles
    library: Path
    threads: int
    target: str = NATIVE

    def load_image(self) -> np.ndarray:
        """Return the input."""
        image: np.ndarray = np.load(self.files.image)
        return image


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model in an engine: `run` computes it once, `read` gives the output of the last run.

    `held` are objects that the engine refers to without owning them.
    """

    run: Callable[[], Any]
    read: Callable[[], Any]
    held: tuple[Any, ...] = ()

    def output(self) -> np.ndarray:
        """Run once and return the output, flat."""
        self.run()
        return np.array(self.read(), dtype=np.float32).reshape(-1)


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine: its package, its calls, and how it is kept to an older instruction set.

    `convert` writes the engine's own files of a model, where it needs some. `restrictions` are
    environment variables by target; `unrestricted` says why an engine has none. `environment` are
    variables that it always gets.
    """

    package: str
    prepare: Callable[[Task], Prepared]
    convert: Callable[[ModelFiles], None] | None = None
    restrictions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    unrestricted: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def installed(self) -> bool:
        """Whether the package is installed here."""
        try:
            version(self.package)
        except PackageNotFoundError:
            return False
        return True

    def left_out(self, target: str) -> str | None:
        """Return why the engine cannot race for a target, None when it can."""
        return None if target == NATIVE or target in self.restrictions else self.unrestricted

    def environment_for(self, target: str, threads: int) -> dict[str, str]:
        """Return the environment variables to start the engine's process with."""
        threading = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        return {**threading, **self.environment, **self.restrictions.get(target, {})}


def _bignas(task: Task) -> Prepared:
    run = NetworkLibrary(task.library).bind(task.load_image())
    return Prepared(run, run)


def _onnxruntime(task: Task) -> Prepared:
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    session = onnxruntime.InferenceSession(
        task.files.onnx, options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    image = task.load_image()
    binding.bind_cpu_input(session.get_inputs()[0].name, image)
    binding.bind_output(session.get_outputs()[0].name, "cpu")
    return Prepared(
        lambda: session.run_with_iobinding(binding),
        lambda: binding.copy_outputs_to_cpu()[0],
        (image,),
    )


def _openvino(task: Task) -> Prepared:
    openvino = importlib.import_module("openvino")
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(task.files.onnx),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",  # on some processors it would choose bfloat16
            "INFERENCE_NUM_THREADS": task.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # the whole process is pinned
        },
    )
    request = compiled.create_infer_request()
    image = task.load_image()
    request.set_input_tensor(openvino.Tensor(image, shared_memory=True))
    return Prepared(request.infer, lambda: request.get_output_tensor().data, (image,))


def _mnn_file(files: ModelFiles) -> Path:
    return files.folder / "model.mnn"


def _mnn_convert(files: ModelFiles) -> None:
    converter = importlib.import_module("_tools")  # MNN.tools runs pip when it is imported
    paths = ["--modelFile", str(files.onnx), "--MNNModel", str(_mnn_file(files))]
    converter.mnnconvert(["mnnconvert", "-f", "ONNX", "--bizCode", "race", *paths])


def _mnn(task: Task) -> Prepared:
    mnn = importlib.import_module("MNN")
    interpreter = mnn.Interpreter(str(_mnn_file(task.files)))
    session = interpreter.createSession(
        {
            "backend": "CPU",
            "numThread": task.threads,
            "precision": "high",
            "memory": "high",
            "power": "high",
        }
    )
    entry = interpreter.getSessionInput(session)
    image = task.load_image()
    layout = mnn.Tensor_DimensionType_Caffe
    host = mnn.Tensor(image.shape, mnn.Halide_Type_Float, image, layout)
    entry.copyFrom(host)
    output = interpreter.getSessionOutput(session)
    return Prepared(lambda: interpreter.runSession(session), output.getData, (host, image))


def _ncnn_convert(files: ModelFiles) -> None:
    torch = importlib.import_module("torch")
    pnnx = importlib.import_module("pnnx")
    image = torch.from_numpy(np.load(files.image))
    pnnx.convert(str(files.traced), inputs=image, fp16=False)


def _ncnn(task: Task) -> Prepared:
    ncnn = importlib.import_module("ncnn")
    net = ncnn.Net()
    options = net.opt
    options.num_threads = task.threads
    options.lightmode = True
    options.use_packing_layout = True
    options.use_sgemm_convolution = True
    options.use_winograd_convolution = True
    # float32 throughout
    options.use_bf16_storage = False
    options.use_bf16_packed = False
    options.use_fp16_packed = False
    options.use_fp16_storage = False
    options.use_fp16_arithmetic = False
    # as ncnn's own benchmark does
    allocators = ncnn.UnlockedPoolAllocator(), ncnn.PoolAllocator()
    options.blob_allocator, options.workspace_allocator = allocators
    net.load_param(str(task.files.folder / "model.ncnn.param"))
    net.load_model(str(task.files.folder / "model.ncnn.bin"))
    pixels = task.load_image()[0]
    image = ncnn.Mat(pixels)

    def run() -> Any:
        extractor = net.create_extractor()
        extractor.input("in0", image)
        return extractor.extract("out0")[1]

    return Prepared(run, run, (allocators, pixels))


def _torch_compile(task: Task) -> Prepared:
    torch = importlib.import_module("torch")
    torch.set_num_threads(task.threads)
    config: Any = importlib.import_module("torch._inductor.config")
    config.freezing = True
    config.cpp_wrapper = True
    if task.target != NATIVE:
        config.cpp.march = task.target
        config.cpp.simdlen = INDUCTOR_BITS[task.target]
    models = importlib.import_module("race_models").race_models()
    compiled = torch.compile(models[task.files.model].build())
    image = torch.from_numpy(task.load_image())

    def run() -> Any:
        with torch.inference_mode():
            return compiled(image)

    return Prepared(run, run)


ENGINES: Mapping[str, Engine] = {
    OURS: Engine("bignas", _bignas, restrictions={AVX2: {}, SSE4: {}}),
    "onnxruntime": Engine(
        "onnxruntime",
        _onnxruntime,
        unrestricted=BY_PROCESSOR,
    ),
    # of the networks here, its mean over the image and its classifier ignore the setting
    "openvino": Engine(
        "openvino",
        _openvino,
        restrictions={AVX2: {"ONEDNN_MAX_CPU_ISA": "AVX2"}, SSE4: {"ONEDNN_MAX_CPU_ISA": "SSE41"}},
    ),
    "mnn": Engine(
        "MNN",
        _mnn,
        _mnn_convert,
        unrestricted=BY_PROCESSOR,
    ),
    "ncnn": Engine(
        "ncnn",
        _ncnn,
        _ncnn_convert,
        unrestricted=BY_PROCESSOR,
    ),
    "torch.compile": Engine(
        "torch",
        _torch_compile,
        restrictions={
            AVX2: {
                "ATEN_CPU_CAPABILITY": "avx2",
                "MKL_ENABLE_INSTRUCTIONS": "AVX2",
                "ONEDNN_MAX_CPU_ISA": "AVX2",
            },
            SSE4: {
                "ATEN_CPU_CAPABILITY": "default",
                "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
                "ONEDNN_MAX_CPU_ISA": "SSE41",
            },
        },
        environment={"TORCHINDUCTOR_COMPILE_THREADS": "1"},  # no processes of its own
    ),
}
