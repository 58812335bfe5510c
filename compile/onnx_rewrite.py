"""ONNX -> ONNX before the import: what Relax's importer does not read, or reads as a loop nest.

1. Sizes that are computed from constants or fixed shapes (torch writes those of a Pad or of halves
   so) become constants.
2. A Pad of zeros in front of a convolution, as exporters of other frameworks write the asymmetric
   padding of a strided one, becomes the convolution's padding.
"""

import math
from collections import Counter
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

__all__ = ["simplify"]

MOST_SIZES = 64  # values of a constant that may be a list of sizes, and not a weight


def simplify(model: Any) -> Any:
    """Return the model with sizes and padding as described above; the argument is not changed."""
    simple = onnx.ModelProto()
    simple.CopyFrom(model)
    if any(node.op_type in ("Pad", "Shape") for node in simple.graph.node):
        constants = _fold_sizes(simple)
        _merge_padding(simple.graph, constants)
    return simple


def _fold_sizes(model: Any) -> dict[str, np.ndarray]:
    """Evaluate operators on small constants, and return all small constants by name."""
    graph = model.graph
    opsets = {one.domain: one.version for one in model.opset_import}
    small = (one for one in graph.initializer if math.prod(one.dims) <= MOST_SIZES)
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in small}
    shapes = _fixed_shapes(model)
    for node in list(graph.node):
        feeds = {name: constants[name] for name in node.input if name in constants}
        if node.op_type == "Shape" and node.input[0] in shapes:
            feeds = {node.input[0]: np.broadcast_to(np.float32(0), shapes[node.input[0]])}
        known = all(not name or name in feeds for name in node.input)
        if not known or any(one.HasField("g") for one in node.attribute):
            continue
        if len(node.output) != 1 or (not node.input and node.op_type != "Constant"):
            continue
        results: Any = ReferenceEvaluator(node, opsets=opsets).run(None, feeds)
        value = np.asarray(results[0])
        if value.size > MOST_SIZES:
            continue
        constants[node.output[0]] = value
        if node.op_type != "Constant":
            graph.node.remove(node)
            graph.initializer.append(onnx.numpy_helper.from_array(value, node.output[0]))
    return constants


def _fixed_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of each value whose dimensions are all known."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: dict[str, tuple[int, ...]] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(one.dim_value > 0 for one in sizes):
            shapes[value.name] = tuple(one.dim_value for one in sizes)
    return shapes


def _merge_padding(graph: Any, constants: dict[str, np.ndarray]) -> None:
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(one.name for one in graph.output)
    makers = {node.output[0]: node for node in graph.node if node.op_type == "Pad"}
    for node in list(graph.node):
        pad = makers.get(node.input[0]) if node.op_type == "Conv" else None
        if pad is None or uses[pad.output[0]] != 1:
            continue
        amounts = _zeros_around(pad, constants)
        if amounts is not None and _widen(node, amounts):
            node.input[0] = pad.input[0]
            graph.node.remove(pad)


def _zeros_around(pad: Any, constants: dict[str, np.ndarray]) -> list[int] | None:
    """Return top, left, bottom, right of a Pad of zeros around an image, else nothing."""
    mode = next((one.s for one in pad.attribute if one.name == "mode"), b"constant")
    inputs = list(pad.input) + [""] * (4 - len(pad.input))
    pads = constants.get(inputs[1])
    value = constants.get(inputs[2]) if inputs[2] else np.zeros(())
    if mode != b"constant" or pads is None or value is None or inputs[3]:
        return None
    amounts = [int(one) for one in pads.reshape(-1)]
    if value.reshape(-1).any() or len(amounts) != 8 or min(amounts) < 0:
        return None
    if any(amounts[index] for index in (0, 1, 4, 5)):
        return None
    return [amounts[2], amounts[3], amounts[6], amounts[7]]


def _widen(conv: Any, amounts: list[int]) -> bool:
    """Add to the padding of a convolution; return whether it has explicit padding."""
    named = {one.name: one for one in conv.attribute}
    automatic = named.get("auto_pad")
    if automatic is not None and automatic.s != b"NOTSET":
        return False
    present = list(named["pads"].ints) if "pads" in named else [0, 0, 0, 0]
    if len(present) != 4:
        return False
    if "pads" in named:
        conv.attribute.remove(named["pads"])
    total = [one + more for one, more in zip(present, amounts, strict=True)]
    conv.attribute.append(onnx.helper.make_attribute("pads", total))
    return True
