"""Data sets made on the spot: what is read, how it is split, and what is refused."""

import io
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from bignas.device_db.errors import DataError
from bignas.supernet.data import ImageData, SplitName, _listing, load_data, preprocess


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("BIGNAS_CACHE", str(tmp_path / "arrays"))


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(count: int, side: int = 8, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def write(
    folder: Path,
    images: Sequence[bytes | Path],
    labels: list[int] | None = None,
    split: str = "train",
) -> Path:
    """One parquet file as the hub has them."""
    labels = [index % 2 for index in range(len(images))] if labels is None else labels
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
    )
    pictures = [
        {"bytes": None, "path": str(one)} if isinstance(one, Path) else {"bytes": one, "path": None}
        for one in images
    ]
    rows = {"picture": pictures, "kind": labels}
    folder.mkdir(exist_ok=True)
    table = datasets.Dataset.from_dict(rows, features=features)
    parquet.write_table(table.data.table, folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pets"


def test_parquet_is_read_and_split(folder: Path) -> None:
    raw = pictures(40)
    write(folder, [png(pixels) for pixels in raw])
    write(folder, [png(pixels) for pixels in pictures(6, seed=1)], split="test")
    data = load_data(str(folder))
    assert (data.name, data.classes, data.mirrorable) == ("pets", ("cat", "dog"), True)
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 6)
    found = {
        image.tobytes() for image in np.concatenate([data.train.images, data.validation.images])
    }
    assert found == {image.tobytes() for image in raw}
    training = {image.tobytes() for image in data.train.images}
    assert {image.tobytes() for image in data.calibration.images} <= training
    pixels = data.train.images.reshape(-1, 3) / 255
    assert np.allclose(data.mean, pixels.mean(axis=0))
    assert np.allclose(data.std, pixels.std(axis=0))
    again = load_data(str(folder))
    assert again.digest == data.digest
    assert np.array_equal(again.validation.labels, data.validation.labels)


def test_missing_splits_are_carved(folder: Path) -> None:
    write(folder, [png(pixels) for pixels in pictures(40)])
    data = load_data(str(folder))
    parts = [data.train.images, data.validation.images, data.test.images]
    assert [len(part) for part in parts] == [32, 4, 4]
    assert len({image.tobytes() for part in parts for image in part}) == 40
    write(folder, [png(pixels) for pixels in pictures(5, seed=2)], split="validation")
    data = load_data(str(folder))
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 5)


def test_image_folders_grey_images_and_sizes(folder: Path) -> None:
    for index, pixels in enumerate(pictures(24, side=12)):
        place = folder / "train" / ("cat" if index % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        shape = pixels[:, :10] if index % 3 else pixels
        shape = shape[..., 0] if index % 4 == 0 else shape
        (place / f"{index}.png").write_bytes(png(shape))
    data = load_data(str(folder))
    assert data.classes == ("cat", "dog")
    assert data.train.images.shape[1:] == (10, 10, 3)
    grey = (data.train.images == data.train.images[..., :1]).all(axis=(1, 2, 3))
    assert 0 < grey.sum() < len(grey)


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK"])
def test_other_modes_are_refused(folder: Path, mode: str) -> None:
    images = [png(pixels) for pixels in pictures(12)]
    buffer = io.BytesIO()
    Image.fromarray(pictures(1)[0]).convert(mode).save(buffer, "TIFF")
    write(folder, [*images, buffer.getvalue()])
    with pytest.raises(DataError, match=f"image 12 .*mode {mode}"):
        load_data(str(folder))


def test_corrupt_images_are_refused(folder: Path) -> None:
    good = [png(pixels) for pixels in pictures(12)]
    write(folder, [*good, b"no image"])
    with pytest.raises(DataError, match=r"image 12 .*cannot be read"):
        load_data(str(folder))
    write(folder, [*good, good[0][:-40]])
    with pytest.raises(DataError, match=r"image 12 .*corrupt"):
        load_data(str(folder))


def test_labels_out_of_range_are_refused(folder: Path) -> None:
    images = [png(pixels) for pixels in pictures(20)]
    write(folder, images)
    write(folder, images, labels=[-1] * 20, split="test")
    with pytest.raises(DataError, match=r"a test label lies outside 0 to 1"):
        load_data(str(folder))


def test_columns_are_found_by_type(folder: Path) -> None:
    folder.mkdir()
    datasets.Dataset.from_dict({"text": ["a"] * 20, "label": [0] * 20}).to_parquet(
        str(folder / "train-00000-of-00001.parquet")
    )
    with pytest.raises(DataError, match="no image column"):
        load_data(str(folder))
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"img": [{"bytes": png(p), "path": None} for p in pictures(12)], "label": [0] * 12}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(
        str(folder / "train-00000-of-00001.parquet")
    )
    with pytest.raises(DataError, match="no class column"):
        load_data(str(folder))


def test_what_is_no_data(folder: Path) -> None:
    with pytest.raises(DataError, match="no data folder"):
        load_data(str(folder))
    folder.mkdir()
    with pytest.raises(DataError, match="cannot load data") as caught:
        load_data(str(folder))
    assert "\n" not in str(caught.value)
    (folder / "train.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="cannot load data"):
        load_data(str(folder))
    (folder / "train.parquet").unlink()
    write(folder, [png(pixels) for pixels in pictures(4)])
    with pytest.raises(DataError, match="at least 10"):
        load_data(str(folder))


def test_digits() -> None:
    data = load_data("digits")
    assert data.train.images.shape[1:] == (32, 32, 3)
    assert len(data.classes) == 10
    assert not data.mirrorable
    total = len(data.train) + len(data.validation) + len(data.test)
    assert total == 1797
    with pytest.raises(DataError, match="no split 'exam'"):
        data.split("exam")


def test_preprocessing() -> None:
    images = np.stack(pictures(5, side=16))
    mean, std = (0.2, 0.4, 0.6), (0.1, 0.2, 0.3)
    same = preprocess(images, 16, mean, std)
    expected = (images / 255.0 - mean) / std
    assert np.allclose(same.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
    for resolution in (9, 24):
        batch = preprocess(images, resolution, mean, std)
        assert batch.shape == (5, 3, resolution, resolution)
        single = preprocess(images[3:4], resolution, mean, std)
        assert np.array_equal(batch[3:4].numpy(), single.numpy())
    flat = np.full((1, 16, 16, 3), 51, dtype=np.uint8)
    assert np.allclose(preprocess(flat, 11, (0.2,) * 3, std).numpy(), 0.0, atol=1e-5)


def equal(one: ImageData, other: ImageData) -> bool:
    """Whether two data sets hold the same."""
    same = all(
        np.array_equal(one.split(name).images, other.split(name).images)
        and np.array_equal(one.split(name).labels, other.split(name).labels)
        for name in SplitName
    )
    facts = [
        (it.name, it.classes, it.mean, it.std, it.digest, it.mirrorable) for it in (one, other)
    ]
    return same and facts[0] == facts[1]


def decode_nothing(*_: object) -> None:
    pytest.fail("read, although nothing has changed")


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        pytest.fail("decoded, although the arrays were kept")

    monkeypatch.setattr("bignas.supernet.stored_images.StoredSplit.decode", decode)


def test_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, [png(pixels) for pixels in pictures(40)])
    first = load_data(str(folder))
    forbid_decoding(monkeypatch)
    assert equal(load_data(str(folder)), first)
    monkeypatch.setattr("bignas.supernet.stored_images.datasets.load_dataset", decode_nothing)
    assert equal(load_data(str(folder)), first)


def test_images_outside_the_folder_that_change(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(40)]
    for path, pixels in zip(paths, pictures(40), strict=True):
        path.write_bytes(png(pixels))
    folder = write(tmp_path / "pets", paths)
    first = load_data(str(folder))
    paths[3].write_bytes(png(pictures(1, seed=9)[0]))
    assert load_data(str(folder)).digest != first.digest


def test_other_images_are_other_data(folder: Path) -> None:
    write(folder, [png(pixels) for pixels in pictures(40)])
    first = load_data(str(folder))
    write(folder, [png(pixels) for pixels in pictures(40, seed=1)])
    assert load_data(str(folder)).digest != first.digest
    write(folder, [png(pixels) for pixels in pictures(40)], labels=[1, *[0] * 39])
    assert load_data(str(folder)).digest != first.digest


def test_images_in_files_that_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, pixels in enumerate(pictures(40)):
        path = tmp_path / "pets" / "train" / ("cat" if index % 2 else "dog") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels))
    first = load_data(str(tmp_path / "pets"))
    path.write_bytes(png(pictures(1, seed=9)[0]))
    assert load_data(str(tmp_path / "pets")).digest != first.digest
    forbid_decoding(monkeypatch)
    load_data(str(tmp_path / "pets"))
    monkeypatch.chdir(tmp_path)
    load_data("pets")
    monkeypatch.setattr("bignas.supernet.stored_images.datasets.load_dataset", decode_nothing)
    load_data("pets")


def test_files_in_linked_folders_that_change(folder: Path, tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere", [png(pixels) for pixels in pictures(40)])
    folder.mkdir()
    assert _listing(folder) is not None
    (folder / "train").symlink_to(elsewhere, target_is_directory=True)
    assert _listing(folder) is None


@pytest.mark.parametrize("part", ["train.images", "calibration.images", "test.labels", "none"])
def test_a_damaged_cache_is_made_again(folder: Path, tmp_path: Path, part: str) -> None:
    write(folder, [png(pixels) for pixels in pictures(40)])
    first = load_data(str(folder))
    (kept,) = (tmp_path / "arrays" / "data").iterdir()
    for path in kept.glob(f"{part}.npy"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    if part == "none":
        (kept / "description.json").write_text("{", encoding="utf-8")
    assert equal(load_data(str(folder)), first)
    assert equal(load_data(str(folder)), first)


def test_a_cache_that_cannot_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BIGNAS_CACHE", str(tmp_path / "file"))
    write(folder, [png(pixels) for pixels in pictures(40)])
    assert equal(load_data(str(folder)), load_data(str(folder)))
