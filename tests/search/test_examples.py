"""What the documentation shows does what it says."""

import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from bignas.compile.bundle import Bundle
from bignas.search.constraint import LatencyBudget
from bignas.search.result import RESULT
from bignas.search.strategy import create_strategy, strategy_names
from bignas.supernet.train import TrainConfig
from tests.cli.helpers import SPACE, run
from tests.cli.test_tutorials import commands
from tests.search.synthetic import make_space, search

ROOT = Path(__file__).parents[2]


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_tutorial_s_strategy_is_found_and_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The strategy is installed as pip would do it: a module and the entry points beside it."""
    text = (ROOT / "docs/tutorials/own_strategy.md").read_text(encoding="utf-8")
    (module,) = code_blocks(text, "python")
    (project,) = code_blocks(text, "toml")
    (tmp_path / "walker.py").write_text(module)
    described = tomllib.loads(project)["project"]
    folder = tmp_path / f"{described['name']}-{described['version']}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Name: {described['name']}\nVersion: 1\n")
    ((group, entries),) = described["entry-points"].items()
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (folder / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "walker" in strategy_names()
    space, budget = make_space(), LatencyBudget(2.0)
    runs = [search(create_strategy("walker", space, 1), space, budget, 120) for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(runs[0]) >= 120
    first, best = runs[0][0].score, max(trial.score for trial in runs[0])
    assert best > first
    sys.modules.pop("walker")


@pytest.mark.slow
def test_the_loop_in_fifteen_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("BIGNAS_DB", f"sqlite:///{tmp_path / 'store.sqlite'}")
    monkeypatch.setenv("BIGNAS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.toml").write_text(SPACE)
    example = runpy.run_path(str(ROOT / "examples/search_in_fifteen_lines.py"))
    result = example["search"](
        tmp_path / "run",
        budget_ms=1.0,
        space_name=str(tmp_path / "tiny.toml"),
        training=TrainConfig(epochs=1, batch_size=64, max_train_images=128, threads=1),
        minutes=0.5,
        subnets=4,
        evaluations=4,
    )
    assert result.best.kept
    assert (tmp_path / "run" / RESULT).exists()
    Bundle.load(tmp_path / "run" / result.bundle).check_files()


SMALL = {  # options that come last go first
    "train": ["--epochs", "1", "--max-images", "128"],
    "profile": ["--minutes", "0.5", "--subnets", "6"],
    "search": ["--evaluations", "4", "--budget", "5ms"],
}


@pytest.mark.slow
def test_the_tutorial_of_data_leads_to_a_binary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its commands, in its order, in small form."""
    torch.set_num_threads(1)
    monkeypatch.setenv("BIGNAS_DB", f"sqlite:///{tmp_path / 'store.sqlite'}")
    monkeypatch.setenv("BIGNAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/tutorials/own_data.md").read_text(encoding="utf-8")
    (script,) = code_blocks(text, "python")
    (space,) = code_blocks(text, "toml")
    Path("shapes.py").write_text(script)
    Path("shapes.toml").write_text(space)
    runpy.run_path("shapes.py")
    shown = commands(text)
    assert {"train", "evaluate", "profile", "search", "verify", "bench"} <= {
        one[0] for one in shown
    }
    for words in shown:
        result = run(*words, *SMALL.get(words[0], []))
        assert result.exit_code == 0, (words, result.output)
    assert Path("runs/shapes/report.html").exists()
