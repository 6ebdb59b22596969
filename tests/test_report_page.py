"""The report in a real browser: no errors, no requests, sortable tables, nothing wider than the screen.

Speaks the WebDriver protocol to chromedriver directly, so that no package is needed for it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import synthetic

from reports import page

TOOLS = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
MISSING = [name for name, path in TOOLS.items() if path is None]
REASON = f"not on PATH: {', '.join(MISSING)}"
if MISSING and os.environ.get("REQUIRE_BROWSER") == "1":
    raise RuntimeError(f"REQUIRE_BROWSER=1, but {REASON}")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=REASON)

HOSTILE = '<img src="https://example.org/x.png" onerror=alert(1)> ' + "long" * 40
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars"),
]


class Browser:
    def __init__(self, server: str, profile: str) -> None:
        self.server = server
        options = {"binary": TOOLS["chromium"], "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        self.session = self._call("/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def _call(self, path: str, body: dict[str, Any] | None, method: str = "POST") -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.server + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def do(self, path: str, **body: Any) -> Any:
        return self._call(f"/session/{self.session}/{path}", body)

    def run(self, script: str) -> Any:
        return self.do("execute/sync", script=script, args=[])

    def screen(self, width: int, dark: bool = False) -> None:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.do("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=metrics)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.do("goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params={"features": scheme})

    def log(self, kind: str) -> list[dict[str, Any]]:
        return self.do("se/log", type=kind)

    def close(self) -> None:
        self._call(f"/session/{self.session}", None, "DELETE")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("browser")
    driver = subprocess.Popen([TOOLS["chromedriver"], "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        port = next(line.rsplit(" ", 1)[1].strip(". \n") for line in driver.stdout if "started successfully on port" in line)
        browser = Browser(f"http://127.0.0.1:{port}", str(folder / "profile"))
        pairs = [("resnet20", "resnet110"), ("wrn_16_2", "wrn_40_2")]
        truth = {"none": 0, "ls": 0.2, "tfd": 0.8, "kd": 1.6, "fitnets": -0.2, "at": 1.1}
        records = synthetic.draw(truth, 5, np.random.default_rng(0), pairs=pairs)
        records.append(
            synthetic.record(synthetic.cell("tfd", 7).model_copy(update={"method": {"type": "own.tfd"}, "label": HOSTILE}), 70)
        )
        grid = synthetic.filled(folder / "results", "demo", records, about=HOSTILE)
        report = page.write(grid, folder / "report").page
        browser.do("url", url=report.as_uri())
        yield browser
        browser.close()
    finally:
        driver.terminate()
        driver.wait(10)


def test_nothing_fails_and_nothing_is_requested(browser: Browser) -> None:
    assert browser.run("return document.querySelectorAll('table').length") > 5
    assert browser.run("return document.querySelectorAll('main img, main iframe').length") == 0
    assert [entry for entry in browser.log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    asked = [url for url in asked if not url.startswith(("data:", "chrome:"))]  # the browser's own first tab
    assert len(asked) == 1
    assert asked[0].startswith("file:")


@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_is_no_wider_than_the_screen(browser: Browser, width: int) -> None:
    browser.screen(width)
    assert browser.run("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
    # Whatever sticks out must lie in something that scrolls.
    out = browser.run(
        """return [...document.querySelectorAll('main *, header *')].filter(e => {
             if (e.getBoundingClientRect().right <= innerWidth + 1 || e.closest('svg')) return false;
             for (let p = e.parentElement; p; p = p.parentElement)
               if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(p).overflowX)) return false;
             return true;
           }).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert out == []


def test_tables_sort_on_click_numbers_as_numbers_and_gaps_last(browser: Browser) -> None:
    column = "const t = document.querySelector('.pair table');"
    read = column + "return [...t.tBodies[0].rows].map(r => r.cells[3].dataset.key)"
    press = column + "t.tHead.rows[0].cells[3].querySelector('button').click(); return t.tHead.rows[0].cells[3].ariaSort"
    for direction, sign in (("ascending", 1), ("descending", -1)):
        assert browser.run(press) == direction
        keys = browser.run(read)
        numbers = [float(key) for key in keys if key]
        assert numbers == sorted(numbers, key=lambda value, sign=sign: sign * value)
        assert len(numbers) > 3
        assert keys[-1] == ""  # none has no gain over itself
    first = "const t = document.querySelector('.pair table'); t.tHead.rows[0].cells[0].querySelector('button').click();"
    names = browser.run(first + "return [...t.tBodies[0].rows].map(r => r.cells[0].innerText.toLowerCase().slice(0, 3))")
    assert names == sorted(names)


def test_light_and_dark_differ_in_page_and_figures(browser: Browser) -> None:
    colors = """const s = e => getComputedStyle(e);
      return [s(document.body).backgroundColor, s(document.body).color, s(document.querySelector('.drawing text')).fill]"""
    browser.screen(1400)
    light = browser.run(colors)
    browser.screen(1400, dark=True)
    dark = browser.run(colors)
    assert all(one != other for one, other in zip(light, dark, strict=True))


def test_figures_are_described(browser: Browser) -> None:
    labels = browser.run("return [...document.querySelectorAll('.drawing')].map(e => e.getAttribute('aria-label'))")
    assert len(labels) >= 8
    assert all(len(label) > 60 for label in labels)
