"""What becomes of the memory that a process frees."""

import ctypes

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's mallopt
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> None:
    """Let the allocator of this process reuse large blocks instead of returning them (glibc).

    Every activation would otherwise be mapped and filled with zeros by the kernel, step by step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _LARGEST_INT)
