"""Headless Chromium, driven over its DevTools protocol: enough to load a page and use it."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import WebSocketClientConnection, websocket_connect

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-port=0", "--remote-allow-origins=*",
)  # fmt: skip
SECONDS_TO_START = 60.0


def chromium() -> str | None:
    """The program, where it is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Page:
    """A page and what happened in it: requests, and errors of its script and console."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._loaded = asyncio.Event()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.requests: list[str] = []
        self.errors: list[str] = []

    async def listen(self) -> None:
        """Take messages until the connection ends."""
        while (text := await self._connection.read_message()) is not None:
            message = json.loads(text)
            if "id" in message:
                self._answers.pop(message["id"]).set_result(message)
            else:
                self._note(message["method"], message.get("params", {}))

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"]["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])

    async def call(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        future = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._connection.write_message(
            json.dumps({"id": number, "method": method, "params": params})
        )
        answer = await asyncio.wait_for(future, SECONDS_TO_START)
        assert "error" not in answer, answer
        return answer["result"]

    async def open(self, path: Path, width: int, height: int) -> None:
        """Load a file in a window of this size, and wait until it is loaded."""
        for domain in ("Page", "Network", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        await self.call("Page.navigate", url=path.absolute().as_uri())
        await asyncio.wait_for(self._loaded.wait(), SECONDS_TO_START)

    async def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def centre(self, selector: str) -> tuple[float, float]:
        """Scroll the first element of a selector into view; where its centre then is."""
        box = await self.value(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
            " one.scrollIntoView({block: 'center'}); const box = one.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        return box[0], box[1]

    async def hover(self, selector: str) -> None:
        """Move the mouse over an element."""
        x, y = await self.centre(selector)
        await self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def click(self, selector: str) -> None:
        """Click an element."""
        x, y = await self.centre(selector)
        for kind in ("mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    async def screenshot(self) -> bytes:
        """The window as PNG."""
        shot = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])


@asynccontextmanager
async def open_page(path: Path, width: int = 1100, height: int = 900) -> AsyncIterator[Page]:
    """Yield a page that has loaded a file; the browser ends with the block."""
    program = chromium()
    assert program is not None
    with tempfile.TemporaryDirectory(
        prefix="bignas-chromium-", ignore_cleanup_errors=True
    ) as profile:
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            connection = await _connect(Path(profile) / "DevToolsActivePort")
            page = Page(connection)
            listening = asyncio.create_task(page.listen())
            await page.open(path, width, height)
            yield page
            connection.close()
            await listening
        finally:
            family = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait(SECONDS_TO_START)
            with contextlib.suppress(ProcessLookupError):  # its helpers still write to the profile
                os.killpg(process.pid, signal.SIGKILL)
            psutil.wait_procs(family, SECONDS_TO_START)


async def _connect(port_file: Path) -> WebSocketClientConnection:
    """Connect to the browser's only page; the browser writes its port once it is up."""
    for _ in range(int(SECONDS_TO_START * 10)):
        if port_file.exists() and port_file.read_text().count("\n"):
            break
        await asyncio.sleep(0.1)
    port = port_file.read_text().split()[0]
    answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/json")
    target = next(one for one in json.loads(answer.body) if one["type"] == "page")
    return await websocket_connect(target["webSocketDebuggerUrl"])
