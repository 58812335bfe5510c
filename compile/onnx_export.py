"""Child network -> ONNX, checked by the ONNX checker and against ONNX Runtime.

The graph holds plain operators with folded batch norm, static shapes, batch size 1 and one named
input and output, so that any other engine reads it too.
"""

import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import psutil
import torch
from google.protobuf.message import DecodeError

from bignas.device_db.errors import ModelError
from bignas.device_db.messages import first_line
from bignas.device_db.workload import BYTES_PER_VALUE

__all__ = ["INPUT_NAME", "OPSET", "OUTPUT_NAME", "export_onnx", "load_onnx", "run_onnx"]

OPSET = 17
MOST_VALUES = 2**31 - 1  # of a tensor: kernels compute places with 32 bits
INPUT_NAME = "input"
OUTPUT_NAME = "logits"


def export_onnx(child: torch.nn.Module, resolution: int, in_channels: int = 3) -> bytes:
    """Return the ONNX model of a child, input float32 [1, channels, resolution, resolution].

    The exporter that traces is used: it takes a fraction of a second, the newer one five seconds or
    more, and both give the same numbers.

    Raises:
        ModelError: the exported graph does not pass the ONNX checker.
    """
    child = child.eval()
    example = torch.zeros(1, in_channels, resolution, resolution)
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)  # of a padding's sizes
        torch.onnx.export(
            child,
            (example,),
            buffer,  # type: ignore[arg-type]  # the exporter that traces takes files too
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load_from_string(buffer.getvalue())
    _check(model, "the exported model")
    return model.SerializeToString(deterministic=True)


def load_onnx(path: Path) -> bytes:
    """Return a checked ONNX model from a file.

    Raises:
        ModelError: the file is missing, unreadable or not a valid ONNX model, or a tensor of it is
            too large for this machine.
    """
    try:
        data = path.read_bytes()
        model = onnx.load_from_string(data)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except (DecodeError, ValueError) as error:
        raise ModelError(f"{path} is not an ONNX model") from error
    if not model.graph.node:
        raise ModelError(f"{path} is not an ONNX model: it has no operators")
    _check(model, str(path))
    _check_sizes(model, str(path))
    return data


def _check(model: Any, name: str) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except UnicodeDecodeError as error:
        raise ModelError(f"{name} is not a valid ONNX model: a damaged text") from error
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"{name} is not a valid ONNX model: {first_line(error)}") from error


def _check_sizes(model: Any, name: str) -> None:
    """A small file can ask for any amount of memory, already while it is imported."""
    memory = psutil.virtual_memory().total
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = [one.dim_value for one in value.type.tensor_type.shape.dim if one.dim_value > 0]
        count = math.prod(sizes)
        if count > MOST_VALUES or count * BYTES_PER_VALUE > memory:
            gibibytes = count * BYTES_PER_VALUE / 2**30
            raise ModelError(
                f"{name} is too large: {value.name!r} has {count:,} values, {gibibytes:,.1f} GiB;"
                f" this machine has {memory / 2**30:.1f} GiB of memory"
            )


def run_onnx(model: bytes, images: np.ndarray) -> np.ndarray:
    """Return ONNX Runtime's outputs [n, classes] for images [n, channels, height, width]."""
    session = onnx_session(model)
    name = session.get_inputs()[0].name
    outputs = [
        np.asarray(session.run(None, {name: images[i : i + 1]})[0]) for i in range(len(images))
    ]
    return np.concatenate(outputs).reshape(len(images), -1)


def onnx_session(model: bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """Return an ONNX Runtime session on the CPU with its best graph optimisations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
