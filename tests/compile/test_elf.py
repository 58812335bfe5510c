"""Where the code of linked kernels lies."""

import ctypes
import subprocess
from pathlib import Path

from bignas.compile.toolchain import CODE_ALIGNMENT, link_shared_library
from bignas.device_db.probe import probe_local

KERNELS = 5


def test_every_kernel_starts_at_a_line_whatever_is_linked_before_it(tmp_path: Path) -> None:
    objects = [tmp_path / f"{number}.o" for number in range(KERNELS)]
    for number, path in enumerate(objects):
        source = path.with_suffix(".c")
        source.write_text(f"int kernel{number}(void) {{ return {number}; }}\n")
        subprocess.run(["cc", "-O1", "-fPIC", "-c", "-o", path, source], check=True)
    network = {"network.c": b"int network(int x) { return x * x; }\n"}
    library = tmp_path / "network.so"
    library.write_bytes(link_shared_library(network, objects, probe_local().target))
    loaded = ctypes.CDLL(str(library))
    kernels = [loaded[f"kernel{number}"] for number in range(KERNELS)]
    assert [kernel() for kernel in kernels] == list(range(KERNELS))
    places = [ctypes.cast(kernel, ctypes.c_void_p).value or 0 for kernel in kernels]
    assert [place % CODE_ALIGNMENT for place in places] == [0] * KERNELS
