"""A network's operations -> the fused kernels that compute them.

Phases, in order
    1. import      ONNX through Relax (compile/relax_import)
    2. activate    patterns that exporters write for one activation become one operation
    3. fuse        convolution or product, bias, residual and activation become one kernel call
    4. check       shapes, layout and every operator are known; nothing is skipped silently

Layout: kernels compute NHWC. A network whose tensors are spatial only between its first convolution
and its last pooling needs no transposition at all; others are refused.
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from bignas.compile.graph import INPUT, KernelCall, KernelGraph
from bignas.compile.relax_import import Operation, Tensors, import_onnx
from bignas.device_db.errors import ModelError
from bignas.device_db.records import Activation, Layout, Operator, Workload

__all__ = ["lower_onnx"]

ACTIVATIONS = {
    "relu": Activation.RELU,
    "relu6": Activation.RELU6,
    "sigmoid": Activation.SIGMOID,
    "swish": Activation.SWISH,
    "silu": Activation.SWISH,
    "hard_sigmoid": Activation.HARD_SIGMOID,
    "hard_swish": Activation.HARD_SWISH,
}
IDENTITIES = frozenset({"reshape", "squeeze", "expand_dims", "flatten"})
COMMUTATIVE = frozenset({"add", "multiply", "maximum", "minimum"})
ANCHORS = frozenset({"conv2d", "matmul", "mean", "multiply"})


def lower_onnx(model: bytes) -> KernelGraph:
    """Return the kernels of an ONNX model.

    Raises:
        ModelError: an operator or a shape that no kernel exists for; the operator is named.
    """
    return _Fusion(_merge_activations(import_onnx(model))).run()


def _merge_activations(tensors: Tensors) -> Tensors:
    """Rewrite x*sigmoid(x), clip(x+3)/6 and the like to single operations."""
    by_output: dict[str, Operation] = {}
    rewritten: list[Operation] = []
    for operation in tensors.operations:
        merged = _merge(_constant_last(operation, tensors), by_output, tensors)
        by_output[merged.output] = merged
        rewritten.append(merged)
    used = {tensors.output}
    kept: list[Operation] = []
    for operation in reversed(rewritten):
        if operation.output in used:
            kept.append(operation)
            used.update(operation.inputs)
    return replace(tensors, operations=tuple(reversed(kept)))


def _constant_last(operation: Operation, tensors: Tensors) -> Operation:
    """Exporters write a sum with a constant, and a product, in either order."""
    if operation.kind in COMMUTATIVE and operation.inputs[0] in tensors.constants:
        return replace(operation, inputs=operation.inputs[::-1])
    return operation


def _merge(operation: Operation, known: dict[str, Operation], tensors: Tensors) -> Operation:
    def scalar(name: str) -> float | None:
        value = tensors.constants.get(name)
        return float(value.reshape(())) if value is not None and value.size == 1 else None

    def becomes(kind: str, source: str) -> Operation:
        return Operation(kind, (source,), operation.output, operation.shape)

    def sixth_of(one: Operation) -> str | None:
        """Return what `one` divides by six, if it does."""
        factor = scalar(one.inputs[1]) if one.kind in ("multiply", "divide") else None
        if not factor:
            return None
        factor = factor if one.kind == "multiply" else 1 / factor
        return one.inputs[0] if abs(factor - 1 / 6) < 1e-6 else None

    def clipped_shift(name: str) -> str | None:
        """Return x if the value is relu6(x + 3)."""
        clip = known.get(name)
        shifted = known.get(clip.inputs[0]) if clip and clip.kind == "relu6" else None
        if shifted and shifted.kind == "add" and scalar(shifted.inputs[1]) == 3.0:
            return shifted.inputs[0]
        return None

    first = operation.inputs[0]
    before = known.get(first)
    bounds = operation.attributes.get("scalars")
    match operation.kind:
        case "maximum" if scalar(operation.inputs[1]) == 0.0:
            return becomes("relu", first)
        case "minimum" if before and before.kind == "relu" and scalar(operation.inputs[1]) == 6.0:
            return becomes("relu6", before.inputs[0])
        case "clip" if bounds == [0, 6]:
            return becomes("relu6", first)
        case "clip" if bounds == [0, 1] and before and before.kind == "add":
            scaled = known.get(before.inputs[0])
            if scaled and scalar(before.inputs[1]) == 0.5:
                source = sixth_of(scaled)
                if source is not None:
                    return becomes("hard_sigmoid", source)
        case "multiply" | "divide" if sixth_of(operation) is not None:
            source = clipped_shift(first)
            if source is not None:
                return becomes("hard_sigmoid", source)
            if before and before.kind == "multiply":
                for source, gate in (before.inputs, before.inputs[::-1]):
                    if clipped_shift(gate) == source:
                        return becomes("hard_swish", source)
        case "multiply":
            for gate, source in (operation.inputs[::-1], operation.inputs):
                maker = known.get(gate)
                if maker and maker.inputs[0] == source:
                    if maker.kind == "sigmoid":
                        return becomes("swish", source)
                    if maker.kind == "hard_sigmoid":
                        return becomes("hard_swish", source)
    return operation


@dataclass(slots=True)
class _Chain:
    """A kernel while it takes in the operations that follow it."""

    workload: Workload
    input: str
    last: Operation
    weights: np.ndarray | None
    bias: np.ndarray
    other: str | None = None


class _Fusion:
    """Walks the operations in order and lets each convolution take in what follows it."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.uses = Counter(name for one in tensors.operations for name in one.inputs)
        self.uses[tensors.output] += 1
        self.consumers: dict[str, list[Operation]] = {}
        for operation in tensors.operations:
            for name in operation.inputs:
                self.consumers.setdefault(name, []).append(operation)
        self.alias: dict[str, str] = {tensors.input: INPUT}
        self.done: set[str] = set()  # operations that a kernel has taken in
        self.shapes = {one.output: one.shape for one in tensors.operations}
        self.shapes[tensors.input] = tensors.input_shape

    def run(self) -> KernelGraph:
        """Return the kernel graph."""
        shape = self.tensors.input_shape
        if len(shape) != 4 or shape[0] != 1:
            raise ModelError(
                f"the model's input must be [1, channels, height, width], not {list(shape)}"
            )
        calls: list[tuple[int, KernelCall]] = []
        order = {one.output: index for index, one in enumerate(self.tensors.operations)}
        for operation in self.tensors.operations:
            if operation.output in self.done:
                continue
            if operation.kind in IDENTITIES:
                self._pass_through(operation)
                continue
            if operation.kind not in ANCHORS:
                raise ModelError(
                    f"the model uses an unsupported operator, or one where it cannot be fused:"
                    f" {operation.kind} with output {list(operation.shape)}"
                )
            chain = self._start(operation)
            self._extend(chain)
            calls.append((order[chain.last.output], self._call(chain)))
        calls.sort(key=lambda entry: entry[0])
        return self._graph(tuple(call for _, call in calls))

    def _value(self, name: str) -> str:
        return self.alias.get(name, name)

    def _pass_through(self, operation: Operation) -> None:
        source = operation.inputs[0]
        shape = self.shapes[source]
        if len(shape) == 4 and shape[2:] != (1, 1):
            raise ModelError(
                f"the model uses an unsupported {operation.kind} of a spatial tensor {list(shape)};"
                " pool it to 1x1 first"
            )
        self.alias[operation.output] = self._value(source)

    def _start(self, operation: Operation) -> _Chain:
        match operation.kind:
            case "conv2d":
                return self._conv(operation)
            case "matmul":
                return self._matmul(operation)
            case "mean":
                return self._pool(operation)
            case _:
                return self._scale(operation)

    def _conv(self, operation: Operation) -> _Chain:
        weights = self._constant(operation, 1)
        _, in_channels, height, width = self.shapes[operation.inputs[0]]
        out_channels, _, kernel, kernel_width = weights.shape
        attributes = operation.attributes
        groups = int(attributes.get("groups", 1))
        stride, padding = attributes["strides"], attributes["padding"]
        if kernel != kernel_width or len(set(stride)) != 1 or len(set(padding)) != 1:
            raise ModelError(
                "the model uses an unsupported conv2d: kernel, stride and padding must be square,"
                f" got kernel {kernel}x{kernel_width}, stride {stride}, padding {padding}"
            )
        if any(one != 1 for one in attributes.get("dilation", [1])):
            raise ModelError("the model uses an unsupported conv2d: dilation must be 1")
        planar = self._value(operation.inputs[0]) == INPUT
        if groups == 1:
            pointwise = kernel == 1 and stride[0] == 1 and not planar
            operator = Operator.POINTWISE if pointwise else Operator.CONV
        elif groups == in_channels == out_channels and not planar:
            operator = Operator.DEPTHWISE
        else:
            raise ModelError(
                f"the model uses an unsupported conv2d: {groups} groups of {in_channels} to"
                f" {out_channels} channels{' on the network input' if planar else ''}"
            )
        workload = Workload(
            operator, height, width, in_channels, out_channels, kernel, stride[0], padding[0],
            input_layout=Layout.NCHW if planar else Layout.NHWC,
        )  # fmt: skip
        return self._chain(operation, workload, weights)

    def _matmul(self, operation: Operation) -> _Chain:
        weights = self._constant(operation, 1)
        shape = self.shapes[operation.inputs[0]]
        if weights.ndim != 2 or int(np.prod(shape)) != weights.shape[0]:
            raise ModelError(
                f"the model uses an unsupported matmul: {list(shape)} by {list(weights.shape)}"
            )
        depth, channels = weights.shape
        workload = Workload(Operator.POINTWISE, 1, 1, depth, channels)
        return self._chain(operation, workload, weights.T.reshape(channels, depth, 1, 1))

    def _pool(self, operation: Operation) -> _Chain:
        shape = self.shapes[operation.inputs[0]]
        axes = sorted(int(axis) % len(shape) for axis in operation.attributes.get("axis") or [])
        if len(shape) != 4 or axes != [2, 3]:
            raise ModelError("the model uses an unsupported mean: only height and width together")
        _, channels, height, width = shape
        workload = Workload(Operator.GLOBAL_POOL, height, width, channels, channels)
        return self._chain(operation, workload, None)

    def _scale(self, operation: Operation) -> _Chain:
        source, gate = operation.inputs
        if self.shapes.get(source, (0,))[2:] == (1, 1):
            source, gate = gate, source
        shape, gate_shape = self.shapes.get(source), self.shapes.get(gate)
        if shape is None or gate_shape is None or gate_shape != (1, shape[1], 1, 1):
            raise ModelError(
                "the model uses an unsupported multiply: only a tensor by one factor a channel"
            )
        if self._value(gate) == INPUT:
            raise ModelError("the model uses an unsupported multiply: by the network input")
        _, channels, height, width = shape
        workload = Workload(Operator.SCALE, height, width, channels, channels)
        chain = self._chain(replace(operation, inputs=(source,)), workload, None)
        chain.last = operation
        chain.other = self._value(gate)
        return chain

    def _chain(
        self, operation: Operation, workload: Workload, weights: np.ndarray | None
    ) -> _Chain:
        source = self._value(operation.inputs[0])
        if source == INPUT and workload.input_layout is not Layout.NCHW:
            raise ModelError(f"a network cannot start with {workload.operator}; use a convolution")
        bias = np.zeros(workload.out_channels, np.float32)
        return _Chain(workload, source, operation, weights, bias)

    def _constant(self, operation: Operation, index: int) -> np.ndarray:
        value = self.tensors.constants.get(operation.inputs[index])
        if value is None:
            raise ModelError(
                f"the model uses an unsupported {operation.kind} of two computed tensors"
            )
        return value

    def _extend(self, chain: _Chain) -> None:
        """Take in bias, residual and activation, as long as nobody else reads what lies between."""
        while True:
            following = self.consumers.get(chain.last.output, [])
            if self.uses[chain.last.output] != 1 or not following:
                return
            operation = following[0]
            if operation.output in self.done:
                return
            if operation.kind == "add" and chain.workload.activation is Activation.NONE:
                if not self._take_add(chain, operation):
                    return
            elif operation.kind in ACTIVATIONS and chain.workload.activation is Activation.NONE:
                activation = ACTIVATIONS[operation.kind]
                chain.workload = replace(chain.workload, activation=activation)
            elif operation.kind in IDENTITIES and operation.shape == chain.last.shape:
                pass
            else:
                return
            chain.last = operation
            self.done.add(operation.output)

    def _take_add(self, chain: _Chain, operation: Operation) -> bool:
        weighted = chain.weights is not None
        other = next((one for one in operation.inputs if one != chain.last.output), None)
        if other is None or not weighted or operation.shape != chain.last.shape:
            return False
        constant = self.tensors.constants.get(other)
        if constant is not None:
            if not _is_per_channel(constant, len(operation.shape), chain.workload.out_channels):
                return False
            chain.bias = chain.bias + constant.reshape(-1).astype(np.float32)
            return True
        other_value = self._value(other)
        if chain.other or other_value == INPUT or self.shapes[other] != operation.shape:
            return False
        chain.other = other_value
        chain.workload = replace(chain.workload, residual=True)
        return True

    def _call(self, chain: _Chain) -> KernelCall:
        return KernelCall(
            chain.workload, chain.input, chain.last.output, chain.other, chain.weights, chain.bias
        )

    def _graph(self, calls: tuple[KernelCall, ...]) -> KernelGraph:
        if not calls or self._value(self.tensors.output) != calls[-1].output:
            raise ModelError("the model's output is not computed by its last operator")
        last = calls[-1].workload
        if last.out_height * last.out_width != 1:
            raise ModelError("the model's output is spatial; only classifiers are supported")
        _, channels, height, width = self.tensors.input_shape
        return KernelGraph(calls, (channels, height, width), last.out_channels)


def _is_per_channel(constant: np.ndarray, rank: int, channels: int) -> bool:
    """Return whether a constant, added to a tensor [1, channels, ...], is one number a channel."""
    padded = (1,) * (rank - constant.ndim) + constant.shape
    return constant.size == 1 or padded == (1, channels, *(1,) * (rank - 2))
