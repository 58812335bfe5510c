"""The report: one file, no network, text from files stays text, hover and click work."""

import asyncio
import json
import os
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bignas.device_db.errors import InputError
from bignas.search.report import write_report
from bignas.search.result import RESULT
from tests.search.chromium import Page, chromium, open_page
from tests.search.runs import make_cross, make_run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\u2028"


class _Elements(HTMLParser):
    """All elements of a page, with their attributes, and the text of the one with the data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id") == "data"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.data += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


def page_of(run: Path) -> _Elements:
    return _Elements(write_report(run).read_text(encoding="utf-8"))


def test_the_file_refers_to_nothing_outside_itself(tmp_path: Path) -> None:
    make_run(tmp_path)
    for _, attributes in page_of(tmp_path).found:
        for name in ("src", "href", "action", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:")


def test_it_holds_what_was_found(tmp_path: Path) -> None:
    result = make_run(tmp_path, ("local", "older"))
    content = json.loads(page_of(tmp_path).data)
    (run,) = content["runs"]
    assert run["devices"] == ["local", "older"]
    assert [one["best"] for one in run["candidates"]].count(True) == 1
    assert run["candidates"][0]["arch"] == result.best.architecture.to_dict()
    assert sum(one["front"] for one in run["candidates"]) == len(result.front)
    assert len(run["candidates"]) == len(result.finalists)
    assert len(run["trials"]) == 40
    assert len(run["kernels"]) == len(result.kernels)
    assert all(0 < one["roofline"] <= 1 for one in run["kernels"])
    assert len(run["stages"]) == len(result.best.architecture.stages) + 2


def test_runs_for_several_devices_share_a_page(tmp_path: Path) -> None:
    make_cross(tmp_path, ("a", "b"))
    content = json.loads(page_of(tmp_path).data)
    assert [run["devices"] for run in content["runs"]] == [["a"], ["b"]]
    assert [[at["device"] for at in one["devices"]] for one in content["cross"]] == [["a", "b"]] * 2


def test_text_of_files_stays_text(tmp_path: Path) -> None:
    make_run(tmp_path)
    plain = [tag for tag, _ in page_of(tmp_path).found]
    _change(tmp_path, lambda result: result.update(space=HOSTILE, strategy=HOSTILE))
    page = page_of(tmp_path)
    assert [tag for tag, _ in page.found] == plain
    assert json.loads(page.data)["runs"][0]["name"].startswith(HOSTILE)


def _change(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    result = json.loads((run / RESULT).read_text())
    change(result)
    (run / RESULT).write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda result: result.update(format_version=99), "format version 99"),
        (lambda result: result.pop("format_version"), "format version 1"),
        (lambda result: result.pop("best"), "damaged"),
        (lambda result: result["best"].update(arch=5), "JSON object"),
        (lambda result: result["best"].update(top1="much"), "damaged"),
        (lambda result: result["kernels"][0].update(workload="fft"), "malformed"),
    ],
)
def test_what_is_no_run_of_this_version_is_refused_in_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], complaint: str
) -> None:
    make_run(tmp_path)
    _change(tmp_path, change)
    with pytest.raises(InputError, match=complaint) as caught:
        write_report(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


def test_a_folder_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished run"):
        write_report(tmp_path)
    (tmp_path / RESULT).write_bytes(b"\xff\x00")
    with pytest.raises(InputError, match="damaged"):
        write_report(tmp_path)


# --- in a browser ---------------------------------------------------------------------------------

in_a_browser = pytest.mark.skipif(
    chromium() is None and os.environ.get("CI") != "true", reason="chromium is not installed"
)


def use(path: Path, steps: Callable[[Page], Any], width: int = 1100) -> Page:
    """Open a page, do what `steps` says, and return what happened."""

    async def run() -> Page:
        async with open_page(path, width) as page:
            await steps(page)
            return page

    return asyncio.run(run())


@in_a_browser
@pytest.mark.slow
def test_the_front_can_be_looked_at(tmp_path: Path) -> None:
    result = make_run(tmp_path, ("local", "older"))

    async def steps(page: Page) -> None:
        marks = "document.querySelectorAll('#front .measured').length"
        assert await page.value(marks) == len(result.finalists)
        assert await page.value("document.querySelectorAll('#front .explored').length") == 40
        assert (await page.value("document.querySelector('#front .step').getTotalLength()")) > 10
        assert await page.value("document.getElementById('tip').hidden")
        await page.hover("#front .measured.best")
        tip = await page.value("document.getElementById('tip').innerText")
        assert f"resolution {result.best.architecture.resolution}" in tip
        assert "older" in tip
        columns = "document.querySelectorAll('#comparison thead th').length"
        assert await page.value(columns) == 0
        await page.click("#front .measured.best")
        assert await page.value(columns) == 2
        await page.click("#front .measured:not(.best)")
        assert await page.value(columns) == 3
        await page.click("#front .measured.best")
        assert await page.value(columns) == 2
        assert await page.value("document.querySelectorAll('#kernels tbody tr').length") == len(
            result.kernels
        )
        assert not await page.value("document.getElementById('cross-section').hidden")
        for figure in ("agreement", "progress"):
            count = f"document.querySelectorAll('#{figure} circle').length"
            assert await page.value(count) > 0

    path = write_report(tmp_path)
    page = use(path, steps)
    assert page.errors == []
    assert page.requests == [path.as_uri()]


@in_a_browser
@pytest.mark.slow
def test_it_fits_a_phone_and_runs_nothing_from_files(tmp_path: Path) -> None:
    make_cross(tmp_path, ("a", "b"))
    for name in ("a", "b"):
        _change(tmp_path / name, lambda result: result.update(space=HOSTILE, strategy=HOSTILE))

    async def steps(page: Page) -> None:
        assert await page.value("document.documentElement.scrollWidth <= innerWidth")
        assert await page.value("document.querySelectorAll('img').length") == 0
        assert "onerror" in await page.value("document.getElementById('provenance').innerText")
        assert await page.value("document.querySelectorAll('#cross tbody tr').length") == 2
        await page.value(
            "const one = document.getElementById('run'); one.value = 1;"
            " one.dispatchEvent(new Event('change'))"
        )
        assert "on b" in await page.value("document.getElementById('headline').innerText")

    path = write_report(tmp_path)
    page = use(path, steps, width=390)
    assert page.errors == []
    assert page.requests == [path.as_uri()]
