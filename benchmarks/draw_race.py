"""Draws the results of the race: latencies relative to the fastest peer, for each thread count.

    python benchmarks/draw_race.py benchmarks/results/race.json docs/race.png

The same results give the same bytes.
"""

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines import ENGINES, NATIVE, OURS
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from race_results import fastest_peer

from bignas.device_db.files import write_atomically

__all__ = ["draw"]

COLORS = dict(
    zip(ENGINES, ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#7f7f7f"), strict=True)
)
MARKERS = dict(zip(ENGINES, "DosvP^", strict=True))
LIMITS = (0.33, 2.6)  # what is slower still is drawn at the border
TICKS = (0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 2.5)
DOTS_PER_INCH = 110


def main() -> None:
    """Draw a results file of race_engines.py."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--target", default=NATIVE)
    options = parser.parse_args()
    document = json.loads(options.results.read_bytes())
    entries = [entry for entry in document["entries"] if entry["target"] == options.target]
    if not entries:
        parser.error(f"{options.results} has no results for {options.target}")
    write_atomically(options.picture, draw(entries))


def draw(entries: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a PNG picture of one target's entries, a panel for each number of threads."""
    threads = sorted({entry["threads"] for entry in entries})
    rows = max(sum(entry["threads"] == count for entry in entries) for count in threads)
    figure = Figure(figsize=(4.6 * len(threads) + 0.6, 0.27 * rows + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    for index, count in enumerate(threads):
        axes = figure.add_subplot(1, len(threads), index + 1)
        _panel(axes, [entry for entry in entries if entry["threads"] == count])
        axes.set_title("1 thread" if count == 1 else f"{count} threads", fontsize=10)
    shown: dict[str, Artist] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    named = [name for name in ENGINES if name in shown]
    figure.legend(
        [shown[name] for name in named],
        named,
        loc="outside lower center",
        ncols=len(named),
        frameon=False,
        fontsize=9,
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return picture.getvalue()


def _panel(axes: Axes, entries: Sequence[Mapping[str, Any]]) -> None:
    """Draw one line for each network, the first one on top."""
    names = [entry["model"] for entry in entries]
    fastest = [entry["median_us"][fastest_peer(entry) or OURS] for entry in entries]
    axes.axvline(1.0, color="#444444", linewidth=0.8)
    for engine in reversed(list(ENGINES)):  # ours last, on top of the others
        points = [
            (min(entry["median_us"][engine] / us, LIMITS[1]), row)
            for row, (entry, us) in enumerate(zip(entries, fastest, strict=True))
            if engine in entry["median_us"]
        ]
        if points:
            axes.scatter(
                [ratio for ratio, _ in points],
                [row for _, row in points],
                s=34 if engine == OURS else 20,
                color=COLORS[engine],
                marker=MARKERS[engine],
                label=engine,
                clip_on=False,
                zorder=3,
            )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(*LIMITS)
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("latency / latency of the fastest peer", fontsize=9)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)


if __name__ == "__main__":
    main()
