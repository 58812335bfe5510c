"""The layers that a fused inverted bottleneck stands for."""

from dataclasses import replace

from bignas.device_db.records import Operator, Workload

__all__ = ["parts_of"]


def parts_of(block: Workload) -> tuple[Workload, ...]:
    """Return the layers of an inverted bottleneck: expansion, if any, depthwise, projection."""
    depthwise = replace(
        block,
        operator=Operator.DEPTHWISE,
        in_channels=block.hidden_channels,
        out_channels=block.hidden_channels,
        residual=False,
        hidden_channels=0,
    )
    project = Workload(
        Operator.POINTWISE,
        block.out_height,
        block.out_width,
        block.hidden_channels,
        block.out_channels,
        residual=block.residual,
    )
    if not block.expands:
        return depthwise, project
    expand = Workload(
        Operator.POINTWISE,
        block.height,
        block.width,
        block.in_channels,
        block.hidden_channels,
        activation=block.activation,
    )
    return expand, depthwise, project
