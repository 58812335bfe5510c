"""Ratios, summaries and merging of a race's results, on made-up latencies."""

import json
from pathlib import Path

import pytest
from race_results import (
    Key,
    fastest_peer,
    geometric_mean,
    is_done,
    key_of,
    merge,
    ratio,
    read_entries,
    summarise,
    write_results,
)

from bignas.device_db.errors import InputError
from tests.benchmarks.entries import CODE, make_entry


def test_the_ratio_is_to_the_fastest_peer_of_each_network() -> None:
    first = make_entry("a", {"bignas": 10.0, "mnn": 20.0, "ncnn": 40.0})
    second = make_entry("b", {"bignas": 10.0, "mnn": 80.0, "ncnn": 5.0})
    assert (fastest_peer(first), fastest_peer(second)) == ("mnn", "ncnn")
    assert (ratio(first), ratio(second)) == (0.5, 2.0)
    assert ratio(second, "mnn") == 0.125


def test_our_own_engine_is_no_peer() -> None:
    alone = make_entry("a", {"bignas": 10.0})
    assert fastest_peer(alone) is None
    assert ratio(alone) is None
    (course,) = summarise([alone])
    assert course["geometric_mean_ratio"] is None
    assert course["worst"] is None


def test_geometric_mean() -> None:
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert geometric_mean([0.25, None]) == pytest.approx(0.25)
    assert geometric_mean([]) is None


def test_resnet_stands_apart_and_cifar_has_a_mean_of_its_own() -> None:
    entries = [
        make_entry("mobilenet_v2", {"bignas": 8.0, "mnn": 10.0}, group="usual"),
        make_entry("resnet18", {"bignas": 30.0, "mnn": 10.0}, group="resnet"),
        make_entry("cifar_0", {"bignas": 2.0, "mnn": 10.0, "ncnn": 4.0}),
    ]
    (course,) = summarise(entries)
    assert course["geometric_mean_ratio"] == pytest.approx((0.8 * 0.5) ** 0.5)
    assert course["geometric_mean_ratio_cifar"] == pytest.approx(0.5)
    assert course["geometric_mean_ratio_by_peer"] == pytest.approx({"mnn": 0.4, "ncnn": 0.5})
    assert course["worst"] == "resnet18"
    assert [row["model"] for row in course["models"]] == ["mobilenet_v2", "resnet18", "cifar_0"]


def test_the_share_of_the_peak_and_the_sum_of_kernels() -> None:
    (course,) = summarise([make_entry("a", {"bignas": 2.0, "mnn": 3.0})])
    (row,) = course["models"]
    assert row["peak_share"] == pytest.approx(0.5)  # 50,000 in 2 us: 25 of 50 thousand million
    assert row["kernel_sum_over_network"] == pytest.approx(0.98)
    assert row["alone_sum_over_network"] == pytest.approx(0.9)


def test_results_without_kernels_in_networks_have_no_sum_of_them() -> None:
    older = make_entry("a", {"bignas": 2.0, "mnn": 3.0})
    del older["kernel_sum_us"]
    (course,) = summarise([older])
    (row,) = course["models"]
    assert row["kernel_sum_over_network"] is None
    assert row["alone_sum_over_network"] == pytest.approx(0.9)


def test_each_target_and_number_of_threads_is_summarised_by_itself() -> None:
    entries = [
        make_entry("a", {"bignas": 1.0, "mnn": 2.0}),
        make_entry("a", {"bignas": 3.0, "mnn": 4.0}, threads=2),
        make_entry("a", {"bignas": 4.0, "mnn": 5.0}, target="x86-64-v2"),
    ]
    courses = summarise(entries)
    assert [(one["target"], one["threads"]) for one in courses] == [
        ("native", 1),
        ("native", 2),
        ("x86-64-v2", 1),
    ]
    assert [one["geometric_mean_ratio"] for one in courses] == pytest.approx([0.5, 0.75, 0.8])


def test_pieces_are_merged_in_the_order_of_the_race() -> None:
    old = [make_entry("b", {"bignas": 1.0}), make_entry("a", {"bignas": 2.0}, threads=2)]
    new = [make_entry("a", {"bignas": 3.0}), make_entry("b", {"bignas": 4.0})]
    merged = merge(old, new, ["a", "b"])
    assert [key_of(one) for one in merged] == [
        Key("native", 1, "a"),
        Key("native", 1, "b"),
        Key("native", 2, "a"),
    ]
    assert [one["median_us"]["bignas"] for one in merged] == [3.0, 4.0, 2.0]


def test_an_entry_is_done_while_code_and_engines_are_the_same() -> None:
    entry = make_entry("a", {"bignas": 1.0, "mnn": 2.0})
    assert is_done(entry, ["bignas", "mnn"], CODE)
    assert is_done(entry, ["bignas"], CODE)
    assert not is_done(entry, ["bignas", "ncnn"], CODE)
    assert not is_done(entry, ["bignas"], "other code")
    assert not is_done(None, [], CODE)


def test_results_are_read_back_with_their_summary(tmp_path: Path) -> None:
    path = tmp_path / "results" / "race.json"
    assert read_entries(path) == []
    entries = [make_entry("a", {"bignas": 1.0, "mnn": 2.0})]
    write_results(path, entries, {"cpu": "some processor"})
    assert read_entries(path) == entries
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["cpu"] == "some processor"
    assert document["summary"] == summarise(entries)


@pytest.mark.parametrize("content", ["", "[]", '{"networks": []}'])
def test_another_file_is_not_taken_for_results(tmp_path: Path, content: str) -> None:
    path = tmp_path / "race.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="no results of a race"):
        read_entries(path)
