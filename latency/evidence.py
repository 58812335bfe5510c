"""What latencies are evidence of, for their provenance."""

import hashlib
import platform

from bignas.compile.kernel_identity import code_hash

__all__ = ["PROTOCOL", "evidence_hash", "runtime_version"]

PROTOCOL = 9  # of measuring: latencies by another one are no evidence beside those by this one


def evidence_hash() -> str:
    """Return the hash of what latencies are evidence of: the kernels' code, and this protocol."""
    return hashlib.sha256(f"{code_hash()} {PROTOCOL}".encode()).hexdigest()[:16]


def runtime_version() -> str:
    """Return what measured binaries run on, for provenance records."""
    return f"bignas static runner, {platform.system()} {platform.machine()}"
