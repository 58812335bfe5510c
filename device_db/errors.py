"""The exception tree of bignas.

The library raises these and nothing else on purpose; only the command line turns them into messages
and exit codes. Errors of third parties are mapped to this tree at the boundary where they arise.

    BignasError                    exit 1   the work failed
      InputError                   exit 2   a user's mistake: one line, what is wrong, what to do
        UnknownDeviceError         a device name that the store does not hold
        UnknownSpaceError          neither a built-in search space nor a file
        SpaceError                 a malformed search space
        ArchitectureError          an architecture outside its search space, or malformed
        DataError                  an image data set that cannot be loaded or does not fit
        BudgetError                a limit without unit, not positive, or contradicted by another
        CheckpointError            a checkpoint that is corrupt, foreign or of another space
        BundleError                a bundle that is incomplete, corrupt or of another version
        ModelError                 a model with an unsupported operator or shape
        OutputError                a file or folder that cannot be written
        StoreError                 a database that cannot be opened, is newer, corrupt or foreign
        TargetError                a malformed or unsupported target or device description
        RemoteError                an RPC tracker, key or server that cannot be used
      InfeasibleBudgetError        no architecture of the space keeps all limits
      VerificationError            a binary whose results differ from the reference
      MeasurementError             a measurement that failed or must not be used as evidence
        ServerLostError            a remote server that died or fell silent: another one may do
      ToolchainError               compiler or linker failed
        MissingToolError           exit 2   compiler or linker not installed: what to install
      TrainingError                training diverged or was interrupted beyond repair
"""

from typing import ClassVar

__all__ = [
    "ArchitectureError",
    "BignasError",
    "BudgetError",
    "BundleError",
    "CheckpointError",
    "DataError",
    "InfeasibleBudgetError",
    "InputError",
    "MeasurementError",
    "MissingToolError",
    "ModelError",
    "OutputError",
    "RemoteError",
    "ServerLostError",
    "SpaceError",
    "StoreError",
    "TargetError",
    "ToolchainError",
    "TrainingError",
    "UnknownDeviceError",
    "UnknownSpaceError",
    "VerificationError",
]


class BignasError(Exception):
    """Base of every error that bignas raises on purpose."""

    exit_code: ClassVar[int] = 1


class InputError(BignasError):
    """A user's mistake. The message is one clear line: what is wrong and what to do."""

    exit_code: ClassVar[int] = 2


class UnknownDeviceError(InputError):
    """A device name that the store does not hold."""


class UnknownSpaceError(InputError):
    """A search space that is neither built in nor a readable file."""


class SpaceError(InputError):
    """A malformed search space."""


class ArchitectureError(InputError):
    """An architecture outside its search space, or a malformed file of architectures."""


class DataError(InputError):
    """An image data set that cannot be loaded or does not fit the space."""


class BudgetError(InputError):
    """A limit without a unit, not a positive number, or contradicted by another one."""


class CheckpointError(InputError):
    """A checkpoint that is corrupt, foreign, newer than this version or of another space."""


class BundleError(InputError):
    """A compiled bundle that is incomplete, corrupt or of another version."""


class ModelError(InputError):
    """A model, or a workload of one, with an unsupported operator or shape."""


class OutputError(InputError):
    """A file or folder that cannot be written."""


class StoreError(InputError):
    """A database that cannot be opened, is newer than this version, corrupt or foreign."""


class TargetError(InputError):
    """A malformed or unsupported target or device description."""


class RemoteError(InputError):
    """An RPC tracker that does not answer, a key without servers, or a server that does not fit."""


class InfeasibleBudgetError(BignasError):
    """No architecture of the space keeps all limits."""


class VerificationError(BignasError):
    """A binary whose results differ from those of the reference."""


class MeasurementError(BignasError):
    """A measurement that failed, or that must not be used as latency evidence."""


class ServerLostError(MeasurementError):
    """A server of a remote device that died or fell silent; another one may do."""


class ToolchainError(BignasError):
    """A compiler or linker that failed."""


class MissingToolError(ToolchainError, InputError):
    """A compiler or linker that is not installed; the message names the package."""


class TrainingError(BignasError):
    """Training that diverged or cannot go on."""
