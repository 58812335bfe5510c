"""ONNX -> Relax -> a flat list of tensor operations whose constants are numpy arrays.

Phases
    1. import    ONNX to Relax, weights as constants (after compile/onnx_rewrite)
    2. clean up  canonical bindings, one dataflow block, dead code removed
    3. flatten   one `Operation` a binding; operations on constants are evaluated here
"""

import contextlib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

from bignas.compile.onnx_rewrite import simplify
from bignas.device_db.errors import ModelError

__all__ = ["Operation", "RelaxCall", "Tensors", "import_onnx"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One tensor operation. Operands are names of values; names of constants are in `Tensors`.

    `source` is what it was imported from, absent where several operations were merged to one.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    shape: tuple[int, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    source: "RelaxCall | None" = None


@dataclass(frozen=True, slots=True)
class RelaxCall:
    """A call in the imported module, and the names of its tensors in the order of its arguments."""

    call: Any
    module: Any
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tensors:
    """A network as a list of operations in order, its constants, input and output."""

    operations: tuple[Operation, ...]
    constants: Mapping[str, np.ndarray]
    input: str
    input_shape: tuple[int, ...]
    output: str


# what TVM and the Python code of its importer raise on models they do not understand
IMPORT_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    AssertionError,
    ArithmeticError,
)

# what the lowering reads of Relax's attributes
ATTRIBUTES = (
    "strides", "padding", "dilation", "groups", "axis", "axes", "keepdims", "pool_size",
    "count_include_pad",
)  # fmt: skip

# operations on constants only, as exporters leave them around biases and transposed weights
FOLDABLE: Mapping[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "sqrt": np.sqrt,
    "rsqrt": lambda value: 1.0 / np.sqrt(value),
    "negative": np.negative,
    "isnan": np.isnan,  # the importer guards the bounds of Clip
    "where": np.where,
}


def import_onnx(model: bytes) -> Tensors:
    """Return the operations of an ONNX model.

    Raises:
        ModelError: an operator unknown to Relax, a dynamic shape, several inputs or outputs.
    """
    module = _import(model)
    function = module["main"]
    if len(function.params) != 1:
        raise ModelError(
            f"the model has {len(function.params)} inputs; models with one are supported"
        )
    return _flatten(function, module)


def _import(model: bytes) -> Any:
    proto = onnx.load_from_string(model)
    if len(proto.graph.output) != 1:
        raise ModelError(
            f"the model has {len(proto.graph.output)} outputs; models with one are supported"
        )
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where the importer's own remarks belong
            return _clean_up(from_onnx(simplify(proto), keep_params_in_input=False))
    except (tvm.error.OpNotImplemented, NotImplementedError) as error:
        names = re.findall(r"[A-Z][A-Za-z0-9]+", str(error).split(":")[-1])
        known = [name for name in names if name in {node.op_type for node in proto.graph.node}]
        what = ", ".join(dict.fromkeys(known)) or str(error).strip().splitlines()[-1]
        raise ModelError(f"the model uses an unsupported ONNX operator: {what}") from error
    except IMPORT_ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ModelError(f"the model cannot be imported: {reason}") from error


def _clean_up(module: Any) -> Any:
    return tvm.ir.transform.Sequential(
        [
            relax.transform.DecomposeOpsForInference(),
            relax.transform.CanonicalizeBindings(),
            relax.transform.ConvertToDataflow(),
            relax.transform.DeadCodeElimination(),
        ]
    )(module)


def _flatten(function: Any, module: Any) -> Tensors:
    constants: dict[str, np.ndarray] = {}
    operations: list[Operation] = []
    names: dict[Any, str] = {function.params[0]: "input"}
    kind = str(function.params[0].ty.dtype)
    if kind != "float32":
        raise ModelError(f"the model's input is {kind}; models of float32 are supported")

    def name_of(expression: Any) -> str:
        if isinstance(expression, tvm.ir.GenericConst):
            name = f"constant{len(constants)}"
            constants[name] = np.asarray(expression.value.numpy())
            return name
        if expression in names:
            return names[expression]
        raise ModelError(f"the model has an unsupported construct: {type(expression).__name__}")

    for block in function.body.blocks:
        for binding in block.bindings:
            value = binding.value
            if not isinstance(value, relax.Call):
                names[binding.var] = name_of(value)
                continue
            kind, arguments = _operator(value)
            operands = tuple(name_of(one) for one in arguments)
            if not isinstance(binding.var.ty, relax.TensorType):
                raise ModelError(
                    f"the model uses an unsupported operator: {kind} (it has several results)"
                )
            shape = _shape(binding.var)
            output = f"value{len(names)}"
            names[binding.var] = output
            if all(one in constants for one in operands):
                constants[output] = _fold(kind, [constants[one] for one in operands], value, shape)
            else:
                source = RelaxCall(value, module, operands)
                attributes = _attributes(value)
                operations.append(Operation(kind, operands, output, shape, attributes, source))
    parameter = function.params[0]
    return Tensors(
        tuple(operations), constants, "input", _shape(parameter), names[function.body.body]
    )


def _operator(call: Any) -> tuple[str, list[Any]]:
    """Return an operator's short name and its tensor operands."""
    name = getattr(call.op, "name", None)
    if name == "relax.call_tir":  # Relax's importer writes Clip as TE functions named after topi's
        kind = str(call.args[0].name_hint).rstrip("0123456789")
        return kind, list(call.args[1].fields)
    if name is None or name.startswith("relax.call"):
        raise ModelError(f"the model has an unsupported construct: {str(call)[:80]}")
    tensors: list[Any] = []
    for argument in call.args:
        parts = argument.fields if isinstance(argument, relax.Tuple) else [argument]
        tensors += [one for one in parts if _is_tensor(one)]
    return name.removeprefix("relax.").removeprefix("nn."), tensors


def _is_tensor(expression: Any) -> bool:
    return isinstance(expression, tvm.ir.GenericConst) or (
        isinstance(expression, relax.Var) and isinstance(expression.ty, relax.TensorType)
    )


def _attributes(call: Any) -> dict[str, Any]:
    """Return attributes as plain values; scalar arguments of `clip` are attributes too."""
    attributes: dict[str, Any] = {}
    if call.attrs is not None:
        for key in ATTRIBUTES:
            value = getattr(call.attrs, key, None)
            if value is not None:
                attributes[key] = _plain(value)
    scalars = [one for one in call.args if hasattr(one, "value") and not _is_tensor(one)]
    if scalars:
        attributes["scalars"] = [_plain(one.value) for one in scalars]
    return attributes


def _plain(value: Any) -> Any:
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if hasattr(value, "value"):
        return _plain(value.value)
    try:
        return [_plain(one) for one in value]
    except TypeError:
        return str(value)


def _shape(variable: Any) -> tuple[int, ...]:
    try:
        return tuple(int(one) for one in variable.ty.shape)
    except (TypeError, ValueError) as error:
        raise ModelError("the model has dynamic shapes; export it with fixed ones") from error


def _fold(kind: str, operands: list[np.ndarray], call: Any, shape: tuple[int, ...]) -> np.ndarray:
    if kind in ("reshape", "expand_dims", "squeeze"):
        return operands[0].reshape(shape)
    if kind == "permute_dims":
        axes = _attributes(call).get("axes")
        return np.transpose(operands[0], axes)
    if kind == "broadcast_to":
        return np.broadcast_to(operands[0], shape)
    if kind in FOLDABLE:
        return np.asarray(FOLDABLE[kind](*operands), operands[0].dtype)
    raise ModelError(f"the model uses an unsupported operator on constants: {kind}")
