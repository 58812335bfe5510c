"""The example of an application with a network in it compiles, without warnings, and is right."""

import shutil
import subprocess
from pathlib import Path

import pytest

from bignas.supernet.spaces import load_space
from tests.compile.bundles import child_bundle

EXAMPLE = Path(__file__).parents[2] / "examples" / "embed"


def test_an_application_classifies_as_the_network_does(tmp_path: Path) -> None:
    if shutil.which("make") is None or shutil.which("cc") is None:
        pytest.skip("make or cc is missing: apt-get install make gcc libc6-dev")
    bundle = child_bundle(tmp_path / "bundle", load_space("cifar").smallest())
    source = tmp_path / "example"
    shutil.copytree(EXAMPLE, source)
    made = subprocess.run(
        ["make", "--silent", f"BUNDLE={bundle.path}"],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    images, expected = bundle.golden()
    (tmp_path / "images.bin").write_bytes(images.tobytes())
    command = [str(source / "classify"), str(tmp_path / "images.bin")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert len(lines) == len(images)
    for number, (line, scores) in enumerate(zip(lines, expected, strict=True)):
        words = line.split()
        assert line.startswith(f"image {number}: class {scores.argmax()}, score ")
        assert float(words[-1]) == pytest.approx(float(scores.max()), abs=1e-3)
    assert subprocess.run([command[0]], capture_output=True, check=False).returncode == 2
