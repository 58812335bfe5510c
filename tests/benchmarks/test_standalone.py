"""Comparing children with networks trained alone: which ones, by what recipe, and the figures."""

import json
from pathlib import Path
from typing import Any

import pytest
from standalone import can_be_alone, earlier, recipe, summary

from bignas.supernet.checkpoint import Checkpoint
from bignas.supernet.drawing import spread_children
from bignas.supernet.network import Supernet
from bignas.supernet.recipe import TrainConfig
from bignas.supernet.spaces import load_space

SPACE = load_space("cifar")


def row(inherited: float, standalone: float) -> dict[str, Any]:
    splits = ("validation", "test")
    return {
        "arch": SPACE.smallest().to_dict(),
        "inherited_top1": dict.fromkeys(splits, inherited),
        "standalone_top1": dict.fromkeys(splits, standalone),
    }


def test_figures_are_those_of_inherited_minus_standalone() -> None:
    found = summary([row(0.5, 0.6), row(0.7, 0.65), row(0.9, 0.8)])
    for split in ("validation", "test"):
        assert found[split]["mean_difference"] == pytest.approx(0.05 / 3)
        assert found[split]["worst_difference"] == pytest.approx(-0.1)
        assert found[split]["spearman"] == pytest.approx(1)
    assert summary([row(0.5, 0.6)])["test"]["spearman"] is None


def test_the_recipe_is_the_supernets_but_for_what_needs_other_children() -> None:
    config = TrainConfig(epochs=7, learning_rate=0.3, label_weight=0.5, seed=3)
    checkpoint = Checkpoint(
        SPACE, Supernet(SPACE).state_dict(), (0.0,) * 3, (1.0,) * 3, ("a",) * 10, "x", "y", 1, 1,
        config.to_dict(),
    )  # fmt: skip
    found, given = recipe(checkpoint, {}).to_dict(), config.to_dict()
    changed = {key for key in given if found[key] != given[key]}
    assert changed == {"distillation", "label_weight", "evaluate_every_epochs"}
    assert recipe(checkpoint, {"epochs": 2}).epochs == 2


def test_children_that_would_be_other_networks_alone_are_left_out() -> None:
    archs = spread_children(SPACE, 6, 0, lambda arch: can_be_alone(SPACE, arch))
    assert len(archs) == 6
    assert all(SPACE.only(arch).layers(arch) == SPACE.layers(arch) for arch in archs)


def test_earlier_results_count_for_the_same_weights_and_recipe_only(tmp_path: Path) -> None:
    path, content = tmp_path / "x.json", {"weights": "w", "recipe": {"epochs": 1}}
    assert earlier(path, content) == {}
    path.write_text(json.dumps({**content, "children": [row(0.5, 0.6)]}))
    assert list(earlier(path, content)) == [SPACE.smallest().key]
    with pytest.raises(SystemExit, match="other weights"):
        earlier(path, {**content, "weights": "v"})
