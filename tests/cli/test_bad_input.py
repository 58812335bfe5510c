"""Mistakes that several commands meet alike: one line, exit code 2, nothing left behind."""

import errno
import os
from pathlib import Path

import pytest

from bignas.latency.predictor import LatencyPredictor
from tests.cli.helpers import SPACE, refused, run

Arguments = tuple[object, ...]

# commands that take a space, and what else they need; nothing of that is reached
WITH_SPACE: list[Arguments] = [
    ("profile", "{}"),
    ("predictor", "fit", "{}"),
    ("predictor", "evaluate", "{}"),
    ("predict", "{}", "--arch", "biggest"),
    ("train", "{}", "--data", "digits", "--out", "made/c.safetensors"),
]
WITH_DEVICE: list[Arguments] = [
    *WITH_SPACE[:4],
    ("search", "none", "--data", "digits", "--budget", "1ms", "--out", "made"),
    ("compile", "none", "--arch", "biggest", "--data", "digits", "--out", "made"),
    ("compile", "none.onnx", "--out", "made"),
]
WITH_CHECKPOINT: list[Arguments] = [
    ("evaluate", "{}", "--arch", "biggest", "--data", "digits"),
    ("search", "{}", "--data", "digits", "--budget", "1ms", "--out", "made"),
    ("compile", "{}", "--arch", "biggest", "--data", "digits", "--out", "made"),
    ("accuracy", "fit", "{}", "--data", "digits", "--out", "made.json"),
    ("accuracy", "evaluate", "{}", "--data", "digits"),
]
WITH_BUNDLE: list[Arguments] = [
    ("verify", "{}"),
    ("bench", "{}"),
    ("run", "{}", "--input", "x.npy", "--output", "made.npy"),
]


def filled(arguments: Arguments, value: object) -> Arguments:
    return tuple(value if one == "{}" else one for one in arguments)


@pytest.mark.parametrize("arguments", WITH_SPACE, ids=str)
def test_an_unknown_or_malformed_space(arguments: Arguments) -> None:
    assert "cifar" in refused(*filled(arguments, "nowhere"))
    bad = Path("bad.toml")
    bad.write_text(SPACE.replace("kernels = [3]", "kernels = [0]"))
    assert "kernels" in refused(*filled(arguments, bad))


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("stem_stride = 1", 'stem_stride = "one"', "stem_stride"),
        ("channels = [8]", "channels = [-8]", "channels"),
        ("channels = [8]", "channels = { min = 16, max = 8 }", "min 16 is greater than max 8"),
        ("stem_stride = 1", "stem_stride = 1\nwings = 2", "wings"),
        ("stem_stride = 1", "", "stem_stride"),
        ("[[stages]]", "[[stages", "TOML"),
        ("depths = [1, 2]", "depths = [2, 1]", "depths"),
    ],
)
def test_a_malformed_space_is_explained(old: str, new: str, word: str) -> None:
    Path("bad.toml").write_text(SPACE.replace(old, new))
    line = refused("predict", "bad.toml", "--arch", "biggest")
    assert word in line
    assert "bad.toml" in line


@pytest.mark.parametrize("arguments", WITH_DEVICE, ids=str)
def test_an_unknown_device(arguments: Arguments, space_file: Path) -> None:
    line = refused(*filled(arguments, space_file), "--device", "nobody")
    assert "nobody" in line
    assert "local" in line


@pytest.mark.parametrize("content", [None, b"", b"\x80\x04K\x01.", b"\x00" * 100, b"{}" * 50])
@pytest.mark.parametrize("arguments", WITH_CHECKPOINT, ids=lambda value: str(value[0]))
def test_a_file_that_is_no_checkpoint(arguments: Arguments, content: bytes | None) -> None:
    path = Path("bad.safetensors")
    if content is not None:
        path.write_bytes(content)
    assert str(path) in refused(*filled(arguments, path))


@pytest.mark.parametrize("arguments", WITH_CHECKPOINT, ids=lambda value: str(value[0]))
def test_a_damaged_checkpoint_and_a_foreign_one(arguments: Arguments, checkpoint: Path) -> None:
    data = checkpoint.read_bytes()
    Path("cut.safetensors").write_bytes(data[: len(data) // 2])
    assert "cut.safetensors" in refused(*filled(arguments, "cut.safetensors"))
    foreign = len(b"{}").to_bytes(8, "little") + b"{}"
    Path("foreign.safetensors").write_bytes(foreign)
    assert "not a bignas" in refused(*filled(arguments, "foreign.safetensors"))
    state = checkpoint.with_name(f"{checkpoint.name}.state")
    assert "not a bignas" in refused(*filled(arguments, state))


@pytest.mark.parametrize(
    "arguments", [WITH_CHECKPOINT[0], *WITH_CHECKPOINT[1:], WITH_SPACE[4]], ids=str
)
def test_unknown_data(
    arguments: Arguments, checkpoint: Path, space_file: Path, predictor: LatencyPredictor
) -> None:
    source = space_file if arguments[0] == "train" else checkpoint
    given = tuple("./nowhere" if one == "digits" else one for one in filled(arguments, source))
    assert "./nowhere" in refused(*given)


@pytest.mark.parametrize(
    "arguments", [WITH_SPACE[3], WITH_CHECKPOINT[0], WITH_CHECKPOINT[2]], ids=lambda one: one[0]
)
def test_an_architecture_that_is_none_of_the_space(
    arguments: Arguments, space_file: Path, checkpoint: Path
) -> None:
    source = space_file if arguments[0] == "predict" else checkpoint
    Path("outside.json").write_text(
        '{"resolution": 8, "stem_channels": 8, "head_channels": 17,'
        ' "stages": [{"channels": 8, "depth": 1, "kernel": 3, "expand": 1}]}'
    )
    Path("broken.json").write_text('[{"resolution": 8]')
    cases = {
        "outside.json": "head_channels = 17",
        "broken.json": "JSON",
        "missing.json": "missing.json",
        "random:0": "random:0",
        "random:9": "from 1 to 8",
    }
    for text, words in cases.items():
        given = tuple(text if one == "biggest" else one for one in filled(arguments, source))
        assert words in refused(*given)


@pytest.mark.parametrize("arguments", WITH_BUNDLE, ids=lambda one: one[0])
def test_a_folder_that_is_no_bundle(arguments: Arguments) -> None:
    assert "nowhere" in refused(*filled(arguments, "nowhere"))
    folder = Path("empty")
    folder.mkdir()
    assert "manifest.json" in refused(*filled(arguments, folder))
    (folder / "manifest.json").write_text("{}")
    assert "manifest.json" in refused(*filled(arguments, folder))
    (folder / "manifest.json").write_bytes(b"\xff")
    assert "manifest.json" in refused(*filled(arguments, folder))
    Path("file").touch()
    assert "file" in refused(*filled(arguments, "file"))


@pytest.mark.parametrize(
    "arguments",
    [
        WITH_SPACE[4],
        *WITH_CHECKPOINT[1:],
        ("compile", "x.onnx", "--out", "made"),
        ("demo", "--out", "made"),
        ("run", "{}", "--input", "x.npy", "--output", "made"),
        ("device", "export", "local", "--out", "made"),
    ],
    ids=str,
)
def test_a_place_that_cannot_be_written(arguments: Arguments) -> None:
    file = Path("file")
    file.write_text("kept")
    for place in (file / "below", file / "far" / "below"):
        given = tuple(place if str(one).startswith("made") else one for one in arguments)
        assert str(file) in refused(*filled(given, "cifar"))
    if arguments[0] in ("search", "compile", "demo"):
        given = tuple(file if one == "made" else one for one in arguments)
        assert "a file stands in its place" in refused(*filled(given, "cifar"))
    assert file.read_text() == "kept"


def disk_full(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk(
    call: str,
    bundle: Path,
    checkpoint: Path,
    space_file: Path,
    predictor: LatencyPredictor,
    measured: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = bundle / "golden_inputs.npy"
    Path("run").mkdir()
    monkeypatch.setattr(os, call, disk_full)
    commands: list[Arguments] = [
        ("run", bundle, "--input", inputs, "--output", "made.npy"),
        ("device", "export", "local", "--out", "made.json"),
        ("predictor", "fit", space_file),
        ("search", checkpoint, "--data", "digits", "--budget", "9s", "--out", "run"),
    ]
    for arguments in commands:
        assert "disk full" in refused(*arguments)
    few = ("--epochs", 1, "--max-images", 64, "--batch-size", 64, "--threads", 1)
    result = run("train", space_file, "--data", "digits", "--out", "made", *few)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: cannot write made")
    assert "disk full" in result.stderr
    assert not Path("made").exists()
