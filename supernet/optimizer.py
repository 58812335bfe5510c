"""The optimizer of a supernet: momentum, orthogonalised for dense weights if the recipe says so.

Decisions
- SGD with Nesterov momentum for all, or for all but dense weights, those of convolutions that mix
  channels and of the classifier. Their momentum is replaced by the nearest orthogonal matrix (Muon:
  K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024): all directions
  of a weight learn at one speed, also those that few children ask for. Depthwise kernels are no
  matrices, each channel has its own.
- `torch.optim.Muon` takes parameters of two dimensions only, and always computes in bfloat16, which
  processors without instructions for it emulate. Here that is done in mixed precision only; an
  orthogonal matrix need not be exact.
- Decay of orthogonalised weights is decoupled and has a strength of its own: their steps have a
  size that does not depend on gradients, so what is right for gradients is nothing beside them.
- Weights that a batch norm follows may turn only: their norms say nothing, but the larger they have
  grown the less a step turns them, so that learning fades where nothing asks for it. With norms
  kept the rate is the share of its norm by which a weight moves, whatever its shape. K. Jordan's
  training of CIFAR-10 by Muon (github.com/KellerJordan/cifar10-airbench, airbench94_muon.py) sets
  norms before each step, to a fixed one.
- The one buffer of both kinds is the momentum, so a training state has one form.
- What no child has used has no gradient and stays as it is: rows and columns of zeros stay zeros in
  the orthogonal matrix too.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bignas.supernet.layers import ElasticUnit
from bignas.supernet.network import Supernet

__all__ = ["SupernetOptimizer"]

_STEPS = 5
_FACTORS = (3.4445, -4.7750, 2.0315)  # Jordan's quintic, which takes singular values to about one
_EPSILON = 1e-7
_BUFFER = "momentum_buffer"


class _OrthogonalMomentum(torch.optim.Optimizer):
    """Moves matrices by their orthogonalised Nesterov momentum; decay is decoupled.

    Those of a group with `keep_norms` turn: they move by a share of their norm, which is kept.
    Matrices are orthogonalised in the precision `kind`.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        momentum: float,
        weight_decay: float,
        kind: torch.dtype,
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay})
        self._kind = kind

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                buffer = self.state[parameter][_BUFFER]
                buffer.mul_(group["momentum"]).add_(parameter.grad)
                ahead = parameter.grad.add(buffer, alpha=group["momentum"])
                update = _orthogonalised(ahead, self._kind)
                if group["keep_norms"]:
                    _turn(parameter, update, group["lr"])
                else:
                    _move(parameter, update, group["lr"], group["weight_decay"])


class SupernetOptimizer:
    """Moves the parameters of a network, whose gradients it makes room for.

    `rate` and `orthogonal_rate` are learning rates; with an orthogonal rate of zero dense weights
    learn as the others do. Decay acts once a step, not on batch norms and biases; that of
    orthogonalised weights is decoupled (a share of their rate is taken off the weights). With
    `keep_norms` those of them that a batch norm follows have no decay: they move by the orthogonal
    rate's share of their norm, which stays as it is. In mixed precision orthogonal matrices are
    computed in bfloat16.
    """

    def __init__(
        self,
        network: Supernet,
        *,
        rate: float,
        orthogonal_rate: float,
        momentum: float,
        weight_decay: float,
        orthogonal_decay: float,
        keep_norms: bool,
        mixed: bool = False,
    ) -> None:
        self._parameters = list(network.parameters())
        dense = [p for p in self._parameters if orthogonal_rate > 0.0 and _is_dense(p)]
        plain = [p for p in self._parameters if not (orthogonal_rate > 0.0 and _is_dense(p))]
        groups = [
            {"params": [p for p in plain if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in plain if p.ndim == 1], "weight_decay": 0.0},
        ]
        sgd = torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=True, foreach=True)
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = [(sgd, rate)]
        if dense:
            turning = _normalized(network) if keep_norms else set()
            by_kind = [
                {"params": [p for p in dense if (p in turning) is kind], "keep_norms": kind}
                for kind in (False, True)
            ]
            precision = torch.bfloat16 if mixed else torch.float32
            orthogonal = _OrthogonalMomentum(by_kind, momentum, orthogonal_decay, precision)
            self._optimizers.append((orthogonal, orthogonal_rate))
        for optimizer, _ in self._optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:  # children that are never drawn must not matter
                    parameter.grad = torch.zeros_like(parameter)
                    optimizer.state[parameter][_BUFFER] = torch.zeros_like(parameter)

    def zero_gradients(self) -> None:
        """Set all gradients to zero, in place."""
        for optimizer, _ in self._optimizers:
            optimizer.zero_grad(set_to_none=False)

    def step(self, share: float) -> None:
        """Take one step, at this share of the learning rates."""
        for optimizer, rate in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.step()

    def momenta(self) -> list[Tensor]:
        """The momentum of each parameter, in the order of `network.parameters()`."""
        states: dict[Any, dict[str, Tensor]] = {}
        for optimizer, _ in self._optimizers:
            states |= optimizer.state
        return [states[parameter][_BUFFER] for parameter in self._parameters]


def _move(parameter: Tensor, update: Tensor, rate: float, decay: float) -> None:
    """Move by an orthogonal matrix, scaled for what it does to outputs, after decay."""
    rows, columns = len(update), update[0].numel()
    parameter.mul_(1.0 - rate * decay)
    parameter.add_(update, alpha=-rate * max(1.0, rows / columns) ** 0.5)


def _turn(parameter: Tensor, update: Tensor, rate: float) -> None:
    """Move by `rate` of the norm in the direction of an orthogonal matrix, and keep the norm."""
    norm = parameter.norm()
    full = min(len(update), update[0].numel()) ** 0.5  # the norm of an orthogonal matrix
    parameter.sub_(update * (rate / full * norm))
    parameter.mul_(norm / parameter.norm().clamp_min(_EPSILON))


def _normalized(network: Supernet) -> set[nn.Parameter]:
    """The weights whose outputs a batch norm normalises."""
    units = (unit for unit in network.modules() if isinstance(unit, ElasticUnit))
    return {unit.weight for unit in units if unit.scale is not None}


def _is_dense(parameter: Tensor) -> bool:
    """Whether each output of this weight depends on several channels."""
    return parameter.ndim > 1 and parameter.shape[1] > 1


def _orthogonalised(weight: Tensor, kind: torch.dtype) -> Tensor:
    """About the nearest (semi-)orthogonal matrix, by Newton-Schulz iteration in this precision.

    Rows are outputs; columns in the order of channels-last memory, so that nothing is copied.
    """
    ordered = weight.permute(0, 2, 3, 1) if weight.ndim == 4 else weight
    found = _orthogonal(ordered.flatten(1), kind).view(ordered.shape)
    return found.permute(0, 3, 1, 2) if weight.ndim == 4 else found


def _orthogonal(matrix: Tensor, kind: torch.dtype) -> Tensor:
    linear, cubic, quintic = _FACTORS
    x: Tensor = (matrix / (matrix.norm() + _EPSILON)).to(kind)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(_STEPS):
        product = x @ x.T
        mixed = torch.addmm(product, product, product, beta=cubic, alpha=quintic)
        x = torch.addmm(x, mixed, x, beta=linear)
    return (x.T if tall else x).to(matrix.dtype, memory_format=torch.contiguous_format)
