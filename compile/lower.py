"""A network's operations -> the fused kernels that compute them.

Phases, in order
    1. import      ONNX through Relax (compile/relax_import)
    2. activate    patterns that exporters write for one activation become one operation
    3. fuse        convolution or product, norm, bias, residual, activation become one kernel call
    4. fall back   what no template computes becomes a loop nest of TVM's (compile/legalise)
    5. check       shapes, types and every operator are known; nothing is skipped silently

Layout: values of four dimensions are NHWC in memory, all others as their shape says. The network's
input is NCHW: a convolution reads it as it is, a fallback too, for others it is transposed once. A
value is flattened for free where both orders are the same (1x1 images), or where only products read
it, whose weights are then reordered instead.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from bignas.compile.graph import INPUT, Call, FallbackCall, KernelCall, KernelGraph
from bignas.compile.legalise import (
    Operand,
    activation_kernel,
    operator_kernel,
    padding_kernel,
    transpose_kernel,
)
from bignas.compile.relax_import import Operation, Tensors, import_onnx
from bignas.device_db.errors import ModelError
from bignas.device_db.workload import Activation, Layout, Operator, Workload

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
WINDOW_POOLS = {"max_pool2d": Operator.MAX_POOL, "avg_pool2d": Operator.AVERAGE_POOL}
IDENTITIES = frozenset({"reshape", "squeeze", "expand_dims", "flatten"})
COMMUTATIVE = frozenset({"add", "multiply", "maximum", "minimum"})
AFFINE = frozenset({"add", "subtract", "multiply", "divide"})
TRANSPOSED = "input.nhwc"  # name of the value that holds the network's input as NHWC


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
        self.flattened: dict[str, tuple[int, ...]] = {}  # read by products only: the shape before
        self.done: set[str] = set()  # operations that a kernel has taken in
        self.shapes = {one.output: one.shape for one in tensors.operations}
        self.shapes[tensors.input] = tensors.input_shape
        self.order = {one.output: index for index, one in enumerate(tensors.operations)}
        self.calls: list[tuple[int, Call]] = []  # with the place in the order of operations
        self.transposed = False

    def run(self) -> KernelGraph:
        """Return the kernel graph."""
        shape = self.tensors.input_shape
        if len(shape) != 4 or shape[0] != 1:
            raise ModelError(
                f"the model's input must be [1, channels, height, width], not {list(shape)}"
            )
        for operation in self.tensors.operations:
            if operation.output in self.done:
                continue
            if operation.kind in IDENTITIES and self._pass_through(operation):
                continue
            chain = self._start(operation)
            if chain is None:
                self._fall_back(operation)
            else:
                self._extend(chain)
                self._emit(self._call(chain), chain.last)
        self.calls.sort(key=lambda entry: entry[0])
        return self._graph(tuple(call for _, call in self.calls))

    # --- values -----------------------------------------------------------------------------------

    def _value(self, name: str) -> str:
        return self.alias.get(name, name)

    def _planar(self, name: str) -> bool:
        """Return whether a value is NCHW in memory: the network's input, under any shape."""
        return self._value(name) == INPUT

    def _channels_last(self, name: str) -> str:
        """Return the value that holds a tensor as NHWC; the network's input is transposed once."""
        shape = self.shapes[name]
        if not self._planar(name) or _is_flat(shape):
            return self._value(name)
        if not self.transposed:
            self.transposed = True
            call = FallbackCall(transpose_kernel(shape), (INPUT,), TRANSPOSED)
            self.calls.append((-1, call))
        return TRANSPOSED

    def _emit(self, call: Call, operation: Operation) -> None:
        self.calls.append((self.order[operation.output], call))

    def _pass_through(self, operation: Operation) -> bool:
        """Give a reshaped value the place of its source, if its order in memory stays the same."""
        source = operation.inputs[0]
        shape = self.shapes[source]
        flat = _is_flat(operation.shape)
        if self._planar(source):
            same = flat or operation.shape == self.tensors.input_shape
        else:
            same = flat and _is_flat(shape)
        if same:
            self.alias[operation.output] = self._value(source)
            return True
        readers = self.consumers.get(operation.output, [])
        products = all(one.kind == "matmul" and self._is_product(one) for one in readers)
        if flat and readers and products and self.tensors.output != operation.output:
            self.alias[operation.output] = self._value(source)
            self.flattened[operation.output] = shape[1:]
            return True
        return False

    # --- templates --------------------------------------------------------------------------------

    def _start(self, operation: Operation) -> _Chain | None:
        """Return the kernel that an operation starts, or nothing if no template computes it."""
        match operation.kind:
            case "conv2d":
                return self._conv(operation)
            case "matmul":
                return self._matmul(operation)
            case "mean" | "avg_pool2d" | "adaptive_avg_pool2d":
                return self._pool(operation) or self._window_pool(operation)
            case "max_pool2d":
                return self._window_pool(operation)
            case "multiply":
                return self._scale(operation)
            case _:
                return None

    def _conv(self, operation: Operation) -> _Chain | None:
        source = operation.inputs[0]
        weights = self.tensors.constants.get(operation.inputs[1])
        if weights is None:
            return None
        attributes = operation.attributes
        _, in_channels, height, width = self.shapes[source]
        out_channels, _, kernel, kernel_width = weights.shape
        groups = int(attributes.get("groups", 1))
        stride, padding = attributes["strides"], attributes["padding"]
        if kernel != kernel_width or len(set(stride)) != 1:
            return None
        if any(one != 1 for one in attributes.get("dilation", [1])):
            return None
        if groups not in (1, in_channels) or (groups > 1 and in_channels != out_channels):
            return None
        if len(set(padding)) != 1 or padding[0] >= kernel:
            value, planar = self._padded(operation, padding), False
            height, width = height + padding[0] + padding[2], width + padding[1] + padding[3]
            padding = [0]
        else:
            planar = groups == 1 and self._planar(source)
            value = self._value(source) if planar else self._channels_last(source)
        if groups > 1:
            operator = Operator.DEPTHWISE
        else:
            pointwise = kernel == 1 and stride[0] == 1 and not planar
            operator = Operator.POINTWISE if pointwise else Operator.CONV
        workload = Workload(
            operator, height, width, in_channels, out_channels, kernel, stride[0], padding[0],
            input_layout=Layout.NCHW if planar else Layout.NHWC,
        )  # fmt: skip
        return self._chain(operation, workload, value, weights)

    def _padded(self, operation: Operation, padding: list[int]) -> str:
        """Emit the kernel that pads the input of a convolution, and return its output."""
        source = operation.inputs[0]
        layout = Layout.NCHW if self._planar(source) else Layout.NHWC
        kernel = padding_kernel(Operand(self.shapes[source], layout), padding)
        output = f"{operation.output}.padded"
        self._emit(FallbackCall(kernel, (self._value(source),), output), operation)
        return output

    def _is_product(self, operation: Operation) -> bool:
        """Return whether a product is one of a single row by constant weights."""
        weights = self.tensors.constants.get(operation.inputs[1])
        shape = self.shapes.get(operation.inputs[0])
        return (
            weights is not None
            and weights.ndim == 2
            and shape is not None
            and math.prod(shape) == weights.shape[0]
        )

    def _matmul(self, operation: Operation) -> _Chain | None:
        if not self._is_product(operation):
            return None
        source = operation.inputs[0]
        weights = self.tensors.constants[operation.inputs[1]]
        depth, channels = weights.shape
        if source in self.flattened:
            planes = weights.reshape(*self.flattened[source], channels)
            weights = planes.transpose(1, 2, 0, 3).reshape(depth, channels)
        workload = Workload(Operator.POINTWISE, 1, 1, depth, channels)
        kernel = weights.T.reshape(channels, depth, 1, 1)
        return self._chain(operation, workload, self._value(source), kernel)

    def _pool(self, operation: Operation) -> _Chain | None:
        source = operation.inputs[0]
        shape = self.shapes[source]
        if len(shape) != 4:
            return None
        _, channels, height, width = shape
        attributes = operation.attributes
        match operation.kind:
            case "mean":
                axes = sorted(int(axis) % 4 for axis in attributes.get("axis") or [])
                whole = axes == [2, 3]
            case "avg_pool2d":
                whole = tuple(attributes["pool_size"]) == (height, width)
                whole = whole and not any(attributes["padding"])
            case _:
                whole = operation.shape[2:] == (1, 1)
        if not whole:
            return None
        workload = Workload(Operator.GLOBAL_POOL, height, width, channels, channels)
        return self._chain(operation, workload, self._channels_last(source), None)

    def _window_pool(self, operation: Operation) -> _Chain | None:
        """Return a pooling of square windows whose padding is the same on all sides."""
        source, attributes = operation.inputs[0], operation.attributes
        if operation.kind not in WINDOW_POOLS:
            return None
        operator = WINDOW_POOLS[operation.kind]
        _, channels, height, width = self.shapes[source]
        sizes = [set(attributes[name]) for name in ("pool_size", "strides", "padding", "dilation")]
        if any(len(one) != 1 for one in sizes):
            return None
        (kernel,), (stride,), (padding,), (dilation,) = sizes
        if dilation != 1 or padding >= kernel or min(height, width) + 2 * padding < kernel:
            return None
        counted = operator is Operator.MAX_POOL or attributes.get("count_include_pad")
        if padding and not counted:
            return None
        workload = Workload(operator, height, width, channels, channels, kernel, stride, padding)
        if (workload.out_height, workload.out_width) != operation.shape[2:]:
            return None
        return self._chain(operation, workload, self._channels_last(source), None)

    def _scale(self, operation: Operation) -> _Chain | None:
        source, gate = operation.inputs
        if self.shapes.get(source, (0,))[2:] == (1, 1):
            source, gate = gate, source
        shape, gate_shape = self.shapes.get(source), self.shapes.get(gate)
        if shape is None or len(shape) != 4 or gate_shape != (1, shape[1], 1, 1):
            return None
        _, channels, height, width = shape
        workload = Workload(Operator.SCALE, height, width, channels, channels)
        chain = self._chain(operation, workload, self._channels_last(source), None)
        chain.other = self._channels_last(gate)
        return chain

    def _chain(
        self, operation: Operation, workload: Workload, source: str, weights: np.ndarray | None
    ) -> _Chain:
        bias = np.zeros(workload.out_channels, np.float32)
        return _Chain(workload, source, operation, weights, bias)

    # --- what follows a template ------------------------------------------------------------------

    def _extend(self, chain: _Chain) -> None:
        """Take in what follows, as long as nobody else reads what lies between."""
        while True:
            following = self.consumers.get(chain.last.output, [])
            if self.uses[chain.last.output] != 1 or not following:
                return
            operation = following[0]
            if operation.output in self.done:
                return
            if operation.kind in AFFINE and chain.workload.activation is Activation.NONE:
                if not (self._take_constant(chain, operation) or self._take_add(chain, operation)):
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

    def _take_constant(self, chain: _Chain, operation: Operation) -> bool:
        """Take in a bias, or what a batch norm consists of: one constant a channel."""
        value = self.tensors.constants.get(operation.inputs[1])
        if value is None or chain.weights is None or operation.shape != chain.last.shape:
            return False
        channels = _one_per_channel(value, operation.shape, chain.workload.out_channels)
        if channels is None:
            return False
        match operation.kind:
            case "add":
                chain.bias = chain.bias + channels
                return True
            case "subtract":
                chain.bias = chain.bias - channels
                return True
            case _ if chain.other is not None:
                return False
            case "divide":
                channels = 1 / channels
        chain.bias = chain.bias * channels
        chain.weights = chain.weights * channels.reshape(-1, 1, 1, 1)
        return True

    def _take_add(self, chain: _Chain, operation: Operation) -> bool:
        """Take in a residual."""
        other = next((one for one in operation.inputs if one != chain.last.output), None)
        if operation.kind != "add" or other is None or chain.weights is None or chain.other:
            return False
        if not self.shapes.get(other) == operation.shape == chain.last.shape:
            return False
        chain.other = self._channels_last(other)
        chain.workload = replace(chain.workload, residual=True)
        return True

    def _call(self, chain: _Chain) -> KernelCall:
        return KernelCall(
            chain.workload, chain.input, chain.last.output, chain.other, chain.weights, chain.bias
        )

    # --- fallbacks --------------------------------------------------------------------------------

    def _fall_back(self, operation: Operation) -> None:
        """Emit TVM's own loop nest of an operation."""
        if operation.kind in ACTIVATIONS:
            operand = self._operand(operation, operation.inputs[0])
            kernel = activation_kernel(ACTIVATIONS[operation.kind], operand)
            names: tuple[str, ...] = operation.inputs
        elif operation.source is None:
            raise ModelError(f"the model uses an unsupported operator: {operation.kind}")
        else:
            source = operation.source
            operands = [self._operand(operation, name) for name in source.inputs]
            kernel, order = operator_kernel(operation.kind, source.call, source.module, operands)
            names = tuple(source.inputs[index] for index in order)
        constants = self.tensors.constants
        call = FallbackCall(
            kernel,
            tuple(name if name in constants else self._value(name) for name in names),
            operation.output,
            {name: constants[name] for name in names if name in constants},
        )
        self._emit(call, operation)

    def _operand(self, operation: Operation, name: str) -> Operand:
        constant = self.tensors.constants.get(name)
        if constant is None:
            layout = Layout.NCHW if self._planar(name) else Layout.NHWC
            return Operand(self.shapes[name], layout)
        if constant.dtype != np.float32:
            raise ModelError(
                f"the model uses an unsupported operator: {operation.kind} on {constant.dtype};"
                " only float32 is supported"
            )
        return Operand(constant.shape, Layout.NCHW)

    def _graph(self, calls: tuple[Call, ...]) -> KernelGraph:
        if not calls or self._value(self.tensors.output) != calls[-1].output:
            raise ModelError("the model's output is not computed by its last operator")
        shape = self.shapes[self.tensors.output]
        size = math.prod(shape)
        if max(shape, default=0) != size:
            raise ModelError("the model's output is spatial; only classifiers are supported")
        _, channels, height, width = self.tensors.input_shape
        return KernelGraph(calls, (channels, height, width), size)


def _is_flat(shape: tuple[int, ...]) -> bool:
    """Return whether a value lies in memory as its logical shape says: NHWC is then the same."""
    return len(shape) != 4 or shape[1] == 1 or shape[2:] == (1, 1)


def _one_per_channel(value: np.ndarray, shape: tuple[int, ...], channels: int) -> np.ndarray | None:
    """Return a constant that is added to, or multiplies, a tensor as one value a channel."""
    if value.dtype != np.float32 or value.size not in (1, channels):
        return None
    if value.size == 1:
        return np.full(channels, value.reshape(()), np.float32)
    try:
        whole = np.broadcast_to(value, shape)
    except ValueError:
        return None
    if len(shape) == 4:
        whole = whole.transpose(0, 2, 3, 1)
    rows = whole.reshape(-1, channels)
    return rows[0].copy() if (rows == rows[0]).all() else None
