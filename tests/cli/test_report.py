"""bignas report: where the file goes, and what is no run."""

from pathlib import Path

from tests.cli.helpers import refused, run, run_json
from tests.search.runs import make_run


def test_the_report_stands_in_the_run_folder_or_where_it_is_wanted() -> None:
    make_run(Path("made"))
    document = run_json("report", "made")
    assert document["report"] == str(Path("made") / "report.html")
    assert Path("made/report.html").stat().st_size == document["bytes"] > 0
    shown = run("report", "made", "--out", "other.html")
    assert "other.html" in shown.stdout
    assert Path("other.html").read_bytes() == Path("made/report.html").read_bytes()


def test_what_is_no_run() -> None:
    assert "no finished run" in refused("report", "nowhere")
    make_run(Path("made"))
    result = Path("made/result.json")
    result.write_text(result.read_text().replace('"format_version": 2', '"format_version": 7'))
    assert "format version 7" in refused("report", "made")
    assert "folder" in refused("report", "made", "--out", "made")
