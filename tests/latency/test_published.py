"""Published tables are read as they are, and refused in one line when something is wrong."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bignas.device_db.errors import InputError
from bignas.latency.published_files import load_table, load_transformers

OPERATORS = ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3"]


def arrays(**change: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    table: dict[str, Any] = {
        "arch": rng.integers(0, 4, (30, 6)).astype(np.int8),
        "op_names": np.array(OPERATORS),
        "devices": np.array(["board", "phone"]),
        "latency_ms": rng.uniform(2, 9, (2, 30)),
    }
    return {name: value for name, value in (table | change).items() if value is not None}


def saved(folder: Path, **change: Any) -> Path:
    path = folder / "table.npz"
    np.savez(path, **arrays(**change))
    return path


def spoiled(value: float, count: int = 1) -> Any:
    latency_ms = arrays()["latency_ms"]
    latency_ms[1, :count] = value
    return latency_ms


def test_a_table_is_read_as_it_is(tmp_path: Path) -> None:
    table = load_table(saved(tmp_path))
    assert table.devices == ("board", "phone")
    assert np.array_equal(table.latencies(["phone"])[0], arrays()["latency_ms"][1])
    assert np.array_equal(table.choices, arrays()["arch"])
    problem = table.problem(["board"])
    assert problem.features.shape == (30, 24)
    assert (problem.features.sum(axis=1) == 6).all()
    assert table.option_counts().sum(axis=1).tolist() == [6] * 30


def test_macs_of_a_cell_count_its_convolutions(tmp_path: Path) -> None:
    table = load_table(saved(tmp_path))
    macs = table.macs()
    assert macs is not None
    expected = (table.choices == 2).sum(axis=1) + 9 * (table.choices == 3).sum(axis=1)
    assert macs == pytest.approx(expected)
    assert np.array_equal(table.layers(), (table.choices >= 2).sum(axis=1))


def test_macs_of_a_chain_of_blocks_grow_with_expansion_and_kernel(tmp_path: Path) -> None:
    names = np.array(["skip", "k3_e1_g2", "k3_e1", "k3_e6", "k5_e6"])
    arch = np.repeat(np.arange(5), 2)[:, None] * np.ones((1, 22), dtype=np.int64)
    latency_ms = np.ones((2, 10))
    table = load_table(saved(tmp_path, op_names=names, arch=arch, latency_ms=latency_ms))
    macs = table.macs()
    assert macs is not None
    assert (np.diff(macs[::2]) > 0).all()
    # MobileNet-like blocks at 224 pixels: some hundred million
    assert 1e8 < macs[6] < 1e9


def test_unknown_operators_have_no_macs(tmp_path: Path) -> None:
    table = load_table(saved(tmp_path, op_names=np.array(["a", "b", "c", "skip"])))
    assert table.macs() is None
    assert len(table.problem(["board"]).estimates) == 1


def test_architectures_may_be_several_tables_of_integers(tmp_path: Path) -> None:
    kernel = np.tile([[3, 7], [5, 3]], (15, 1))
    path = saved(tmp_path, arch=None, op_names=None, kernel=kernel, resolution=np.arange(30) % 3)
    table = load_table(path)
    assert table.options[0] == ("kernel_3", "kernel_5")
    assert table.one_hot().shape == (30, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latency_ms": spoiled(np.nan, 3)}, "'phone' has 3 missing latencies"),
        ({"latency_ms": spoiled(np.inf)}, "'phone' has infinite latencies"),
        ({"latency_ms": spoiled(-1)}, "'phone' has latencies that are not positive"),
        ({"latency_ms": spoiled(0)}, "not positive"),
        ({"latency_ms": spoiled(1e7)}, "are these milliseconds"),
        ({"latency_ms": spoiled(1e-7)}, "absurd range"),
        ({"latency_ms": spoiled(4000.0, 15) + 0.1}, "units mixed"),
        ({"latency_ms": np.ones((3, 30))}, r"shape \(3, 30\); expected \[2 devices"),
        ({"latency_ms": np.ones(30)}, "expected"),
        ({"latency_ms": np.ones((2, 29))}, "expected 29 rows"),
        ({"latency_ms": np.full((2, 30), "fast")}, "not numbers"),
        ({"latency_ms": None}, "'latency_ms' is missing"),
        ({"devices": None}, "'devices' is missing"),
        ({"devices": np.array(["board", "board"])}, "'board' stands in it twice"),
        ({"arch": None, "op_names": None}, "architectures are missing"),
        ({"op_names": None}, "needs 'op_names'"),
        ({"op_names": np.array(["a", "b", "c", "a"])}, "a name twice"),
        ({"arch": np.full((30, 6), 4)}, "outside the 4"),
        ({"arch": np.zeros((30, 6))}, "not integers"),
        ({"arch": np.zeros((30, 0), dtype=np.int8)}, "expected 30 rows"),
    ],
)
def test_bad_tables_are_refused_in_one_line(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, **change)
    with pytest.raises(InputError, match=message) as caught:
        load_table(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_files_that_are_no_tables(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a table in NPZ format"):
        load_table(path)
    with pytest.raises(InputError, match="cannot read the table"):
        load_table(tmp_path / "absent.npz")


def test_a_single_array_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "table.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(InputError, match="not a table in NPZ format"):
        load_table(path)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    path = saved(tmp_path, devices=np.array(["board", {"phone": 1}], dtype=object))
    with pytest.raises(InputError, match="not a table"):
        load_table(path)


def test_unknown_devices_are_named_with_the_known_ones(tmp_path: Path) -> None:
    table = load_table(saved(tmp_path))
    with pytest.raises(InputError, match=re.escape("'toaster'; it has board, phone")):
        table.latencies(["board", "toaster"])


HEADER = "width,layers,latency_mean_encoder,latency_mean_decoder,latency_std_encoder\n"


def test_transformers_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(HEADER + "512,6,1.5,2.5,0.1\n640,3,2,3,0.1\n", encoding="utf-8")
    table = load_transformers(path)
    assert table.columns == ("width", "layers")
    assert table.latency_ms.tolist() == [4, 5]
    assert table.column("layers").tolist() == [6, 3]
    with pytest.raises(InputError, match="'depth' is missing"):
        table.column("depth")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'latency_mean_encoder' is missing"),
        ("width,latency_mean_encoder\n1,2\n", "'latency_mean_decoder' is missing"),
        (HEADER, "no rows"),
        (HEADER + "512,6,1,2,0.1\n512,6,1\n", "line 3 has 3 values"),
        (HEADER + "512,six,1,2,0.1\n640,3,2,3,0.1\n", "line 2: could not convert"),
        (HEADER + "512,6,1,-2,0.1\n640,3,2,3,0.1\n", "decoder has latencies that are not"),
        (HEADER + "512,6,,2,0.1\n640,3,2,3,0.1\n", "encoder has 1 missing"),
        (HEADER + "512,nan,1,2,0.1\n640,3,2,3,0.1\n", "missing or not finite"),
        (HEADER.replace("layers", "width") + "1,1,1,1,1\n1,1,1,1,1\n", "column stands in it"),
    ],
)
def test_bad_transformer_tables_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        load_transformers(path)
    assert str(path) in str(caught.value)
