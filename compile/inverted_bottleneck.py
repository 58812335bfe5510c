"""The layers that a fused inverted bottleneck stands for, and the schedule of each."""

from dataclasses import replace

from bignas.compile.schedule import Schedule
from bignas.device_db.workload import Operator, Workload

__all__ = ["parts_of", "schedules_of_parts"]


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


def schedules_of_parts(block: Workload, schedule: Schedule) -> tuple[Schedule, ...]:
    """Return the schedule of each layer within the block's kernel."""
    expand = Schedule(schedule.tile, schedule.vectors)
    window = Schedule(schedule.window_tile, 1, 2)
    project = Schedule(schedule.project_tile, schedule.project_vectors)
    return (expand, window, project) if block.expands else (window, project)
