"""The native runner of a bundle: one static program that checks, measures and runs the network.

It needs no file but the golden ones, so it runs in an empty file system. It links no C library
either, unless a fallback kernel calls a function that the runner does not bring itself.
"""

from importlib import resources

from bignas.compile.cpu_features import required_features
from bignas.compile.elf import undefined_symbols
from bignas.compile.network import CompiledNetwork, network_sources
from bignas.compile.toolchain import link_standalone
from bignas.device_db.device import Device
from bignas.device_db.errors import ToolchainError
from bignas.device_db.target import MachineArchitecture

__all__ = ["PROVIDED", "build_runner"]

# what the runner's sources offer to kernels in the place of a C library
PROVIDED = frozenset(
    (
        "memcpy", "memmove", "memset", "memcmp",
        "expf", "logf", "powf", "erff", "sinf", "cosf",
        "floorf", "ceilf", "truncf", "rintf", "nearbyintf", "roundf",
    )
)  # fmt: skip

_SETTINGS = "settings.c"
# what the runner does without, by whether it starts threads: it does so without a C library
_THREADS = {False: ("pool.c", "pool.h", "pool_posix.c", "pool_raw.c"), True: ("pool_posix.c",)}
_SUPPORTED = (
    MachineArchitecture.X86_64,
    MachineArchitecture.AARCH64,
    MachineArchitecture.RISCV64,
)


def build_runner(network: CompiledNetwork, device: Device, tolerance: float) -> bytes:
    """Return the program; `tolerance` is the allowed error of its self-check.

    Raises:
        ToolchainError: an architecture that the runner is not written for, or no compiler for it.
    """
    architecture = device.target.architecture
    if architecture not in _SUPPORTED or "linux" not in device.target.triple:
        known = ", ".join(_SUPPORTED)
        raise ToolchainError(
            f"no native runner for {device.target.triple}: it is written for Linux on {known}"
        )
    folder = resources.files("bignas.compile.runner")
    shared = {
        one.name: one.read_bytes()
        for one in sorted(folder.iterdir(), key=lambda one: one.name)
        if one.name.endswith((".c", ".h")) and one.name not in _THREADS[device.threads > 1]
    }
    sources = network_sources(network.plan)
    sources[_SETTINGS] = _settings(device, tolerance).encode()
    own = {name: content for name, content in sources.items() if name not in shared}
    called = {name for path in network.objects for name in undefined_symbols(path.read_bytes())}
    with_library = not called <= PROVIDED
    return link_standalone(own, shared, network.objects, device.target, with_library)


def _settings(device: Device, tolerance: float) -> str:
    features = "".join(f'"{name}", ' for name in required_features(device.target))
    return f"""/* Settings of one bundle. */
#include "settings.h"

#include <stddef.h>

const char *const settings_device = "{device.name}";
const char *const settings_processor = "{device.target.cpu}";
const int settings_threads = {device.threads};
const char *const settings_features[] = {{{features}NULL}};
const double settings_tolerance = {tolerance!r};
"""
