"""From an ONNX model of any origin to the bundle that ships.

model -> Relax -> fused kernels -> tuned kernels of the device -> linked -> bundle.
"""

from pathlib import Path

import numpy as np

from bignas.compile.bundle import GOLDEN_IMAGES, Bundle
from bignas.compile.lower import lower_onnx
from bignas.compile.objects import ObjectCache
from bignas.compile.onnx_export import load_onnx
from bignas.device_db.device import Device
from bignas.device_db.files import require_writable
from bignas.device_db.store import Store
from bignas.search.deliver import deliver_graph, require_memory

__all__ = ["deliver_onnx"]


def deliver_onnx(
    model: Path, device: Device, store: Store, cache: ObjectCache, out: Path
) -> Bundle:
    """Compile an ONNX model and write its bundle; golden inputs are random.

    Raises:
        ModelError: the file is no valid ONNX model, has an unsupported operator (named), or does
            not fit into the device.
        OutputError: the bundle cannot be written.
        ToolchainError, MeasurementError: kernels cannot be built or tuned on this machine.
    """
    require_writable(out)
    content = load_onnx(model)
    graph = lower_onnx(content)
    require_memory(graph, device)
    random = np.random.default_rng(0)
    golden = random.standard_normal((GOLDEN_IMAGES, *graph.input_shape)).astype(np.float32)
    return deliver_graph(
        out,
        name=model.stem,
        model=content,
        graph=graph,
        golden=golden,
        device=device,
        store=store,
        cache=cache,
        preprocessing={"note": "as the model's author trained it"},
    )
