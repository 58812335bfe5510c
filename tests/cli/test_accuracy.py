"""bignas accuracy, on a tiny supernet two steps old."""

import shutil
from pathlib import Path

import pytest

from bignas.supernet.checkpoint import read_checkpoint, save_checkpoint
from bignas.supernet.data import load_data
from bignas.supernet.spaces import load_space
from bignas.supernet.train import TrainConfig, train
from tests.cli.helpers import SPACE, files_here, refused, run, run_json

ALONE = ("--data", "digits", "--processes", 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet of 16 children."""
    folder = tmp_path_factory.mktemp("accuracy")
    (folder / "space.toml").write_text(SPACE.replace("kernels = [3]", "kernels = [3, 5]"))
    space = load_space(str(folder / "space.toml"))
    config = TrainConfig(epochs=1, batch_size=64, max_train_images=128, threads=1)
    train(space, load_data("digits"), folder / "net.safetensors", config)
    return folder / "net.safetensors"


@pytest.fixture
def net(trained: Path) -> Path:
    """The checkpoint in a folder of the test's own, as its predictor is written beside it."""
    return Path(shutil.copy(trained, "net.safetensors"))


def test_a_predictor_is_fitted_beside_its_checkpoint_and_evaluated(net: Path) -> None:
    fitted = run_json("accuracy", "fit", net, *ALONE, "--children", 10)
    assert fitted["path"] == "net.accuracy.json"
    assert (fitted["children"], fitted["n"]) == (10, 10)
    written = Path(fitted["path"]).read_bytes()
    assert run_json("accuracy", "fit", net, *ALONE, "--children", 10) == fitted
    assert Path(fitted["path"]).read_bytes() == written

    found = run_json("accuracy", "evaluate", net, *ALONE, "--children", 2)
    assert found["n"] == len(found["children"]) == 2
    errors = [abs(one["predicted"] - one["evaluated"]) for one in found["children"]]
    assert found["mae"] == pytest.approx(sum(errors) / 2)
    text = run("accuracy", "evaluate", net, *ALONE, "--children", 2)
    assert (text.exit_code, text.stderr) == (0, "")
    assert "rank correlation" in text.stdout


def test_fresh_children_run_out(net: Path) -> None:
    run_json("accuracy", "fit", net, *ALONE, "--children", 10)
    assert "fewer than 100" in refused("accuracy", "evaluate", net, *ALONE)


def test_too_few_children_cannot_be_learned_from(net: Path) -> None:
    assert "at least" in refused("accuracy", "fit", net, *ALONE, "--children", 3)


def test_a_predictor_of_other_weights_is_refused(net: Path) -> None:
    assert "accuracy fit" in refused("accuracy", "evaluate", net, *ALONE)
    run_json("accuracy", "fit", net, *ALONE, "--children", 10)
    content = read_checkpoint(net)
    for value in content.weights.values():
        value.add_(0.01)
    save_checkpoint(net, content)
    before = files_here()
    assert "other weights" in refused("accuracy", "evaluate", net, *ALONE)
    Path("net.accuracy.json").write_text("{}")
    assert "not an accuracy predictor" in refused("accuracy", "evaluate", net, *ALONE)
    assert files_here() == before
