"""The report in a real browser: no errors, no requests, sortable tables, nothing wider than the screen.

Speaks the WebDriver protocol to chromedriver directly, so that no package is needed for it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic

from bench.screen import Screen
from reports import page, site

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
        self.report = ""  # its address
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

    def reset(self) -> None:
        self.settled()  # else what waits to be written would come after it
        self.run("location.hash = ''")
        self.settled()

    def settled(self) -> str:
        """The hash, once what was chosen stands in it."""
        return self.do("execute/async", script=SETTLE, args=[])

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
    limit = threading.Timer(60, driver.kill)  # for its start
    limit.start()
    try:
        assert driver.stdout is not None
        port = next(line.rsplit(" ", 1)[1].strip(". \n") for line in driver.stdout if "started successfully on port" in line)
        limit.cancel()
        browser = Browser(f"http://127.0.0.1:{port}", str(folder / "profile"))
        pairs = [("resnet20", "resnet110"), ("wrn_16_2", "wrn_40_2")]
        truth = {"none": 0, "ls": 0.2, "tfd": 0.8, "kd": 1.6, "fitnets": -0.2, "at": 1.1}
        records = synthetic.draw(truth, 5, np.random.default_rng(0), pairs=pairs)
        records.append(
            synthetic.record(synthetic.cell("tfd", 7).model_copy(update={"method": {"type": "own.tfd"}, "label": HOSTILE}), 70)
        )
        grid = synthetic.filled(folder / "results", "demo", records, about=HOSTILE)
        report = page.write(grid, folder / "report").page
        browser.report = report.as_uri()
        browser.do("url", url=browser.report)
        yield browser
        browser.close()
    finally:
        limit.cancel()
        driver.terminate()
        try:
            driver.wait(10)
        except subprocess.TimeoutExpired:
            driver.kill()


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


SETTLE = "const done = arguments[arguments.length - 1]; setTimeout(() => done(location.hash), 250);"
SET = """const set = (id, value, kind) => {
  const e = document.getElementById(id);
  e.value = value;
  e.dispatchEvent(new Event(kind));
};"""


@pytest.fixture
def fresh(browser: Browser) -> Iterator[Browser]:
    """The page as it opens; what a test chose is forgotten before and after it."""
    browser.screen(1400)
    browser.reset()
    yield browser
    browser.reset()


def rows_of(browser: Browser, table: str) -> list[str]:
    """The methods of the rows that a table shows."""
    shown = f"[...document.querySelector('{table}').tBodies[0].rows].filter((row) => !row.hidden)"
    return browser.run(f"return {shown}.map((row) => row.dataset.about)")


def test_a_word_filters_every_table_and_greys_out_points(fresh: Browser) -> None:
    fresh.run(SET + "set('find', 'KD, non', 'input')")
    for table in (".short table", ".pair table", "#table-matrix"):
        assert set(rows_of(fresh, table)) == {"kd", "none"} - ({"none"} if table == "#table-matrix" else set())
    off = fresh.run("return [...document.querySelectorAll('#plot .dot')].map((e) => [e.dataset.label, e.matches('.off')])")
    assert all(grey == (label not in ("kd", "none")) for label, grey in off)
    assert "2 of 7 methods" in fresh.run("return document.getElementById('filtered').textContent")
    assert "hides" in fresh.run("return document.querySelector('.pair .left-out').textContent")  # nothing goes in silence
    assert fresh.settled() == "#q=KD%2C%20non"
    fresh.run("document.getElementById('reset').click()")
    assert len(rows_of(fresh, ".short table")) > 5
    assert fresh.run("return document.getElementById('filtered').hidden")


def test_a_box_filters_by_what_a_method_needs(fresh: Browser) -> None:
    fresh.run("document.querySelector('input[value=teacher]').click()")
    assert {"none", "ls", "tfd"} <= set(rows_of(fresh, ".short table"))
    assert not {"kd", "at", "fitnets"} & set(rows_of(fresh, ".short table"))
    assert fresh.settled() == "#hide=teacher"


def test_the_more_students_share_a_teacher_the_better_it_pays(fresh: Browser) -> None:
    frontier = "return document.getElementById('frontier').textContent.split('Hollow')[0]"
    place = "return document.querySelector('#plot .dot[data-label=kd] .mark').getBoundingClientRect().x"
    shared = "return [...document.querySelectorAll('.short [data-about=kd] td')].map((e) => e.innerText)"
    as_written = fresh.run(shared)[-1]
    fresh.run(SET + "set('share', 1, 'input')")
    alone, far = fresh.run(shared), fresh.run(place)
    assert alone[-1] == alone[-2]  # with all of the teacher
    fresh.run(SET + "set('slide', 300, 'input')")
    many, near = fresh.run(shared), fresh.run(place)
    assert near < far
    own, whole = float(many[-3][:-1]), float(many[-2][:-1])
    assert float(many[-1][:-1]) == pytest.approx(own + (whole - own) / 1000, abs=0.011)
    assert "by 1000" in fresh.run("return document.querySelector('.short thead tr').innerText.replaceAll('\\n', ' ')")
    assert "kd" in fresh.run(frontier)
    assert fresh.settled() == "#price=shared&share=1000"
    fresh.run(SET + "set('share', 10, 'input')")
    assert fresh.run(shared)[-1] == as_written != many[-1]


def test_the_axis_shows_what_is_chosen(fresh: Browser) -> None:
    title = "return document.querySelector('.axis-title').textContent"
    assert fresh.run(title) == "Training time, the teacher's training in full, minutes"
    fresh.run(SET + "set('x', 'flops', 'change'); document.querySelector('input[value=own]').click()")
    assert fresh.run(title).startswith("FLOPs, the teacher's training not counted")
    fresh.run(SET + "set('x', 'memory', 'change')")
    assert fresh.run(title) == "Peak device memory, MiB"
    assert fresh.run("return document.getElementById('price').disabled")  # nothing that adds up
    names = "return [...document.querySelectorAll('#x option')].map((e) => e.value)"
    assert fresh.run(names) == ["time", "flops", "memory", "host"]  # energy was not measured


def test_a_link_shows_what_was_chosen(fresh: Browser) -> None:
    fresh.run(
        SET + "set('find', 'tfd', 'input'); set('x', 'flops', 'change'); set('share', 21, 'input'); set('pair', 2, 'change');"
        "document.querySelector('#table-02-wrn_40_2-wrn_16_2-short button').click();"
        "document.querySelector('nav a[href=\"#verdict\"]').click()"
    )
    link = fresh.settled()
    assert link == "#verdict&q=tfd&pair=2&x=flops&price=shared&share=21&sort=02-wrn_40_2-wrn_16_2-short%3A0a"
    look = """return [...document.querySelectorAll('#find, #pair, #x, #share')].map((e) => e.value).concat(
        [...document.querySelectorAll('[aria-sort]')].length, document.querySelector('input[name=price]:checked').value,
        document.querySelector('.short:not([hidden])').dataset.pair, document.getElementById('plot').innerText)"""
    chosen = fresh.run(look)
    fresh.do("url", url="about:blank")
    fresh.do("url", url=fresh.report + link)
    assert fresh.run(look) == chosen
    assert fresh.run("return Math.abs(document.getElementById('verdict').getBoundingClientRect().top) < 150")
    fresh.run("location.hash = 'share=-1&x=__proto__&pair=99&q=%E0%A4%A&sort=:;a:9999a&hide'")  # whatever it holds
    assert fresh.settled()
    assert fresh.run("return document.getElementById('share').value") == "10"
    assert [entry for entry in fresh.log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def test_pointing_shows_value_interval_and_number_of_seeds(fresh: Browser) -> None:
    enter = "document.querySelector(`%s`).dispatchEvent(new PointerEvent('pointerenter'));"
    hint = "return document.getElementById('hint').innerText"
    text = fresh.run(enter % "#plot .dot[data-label=kd]" + hint)
    assert text.startswith("kd\nTop-1 ")
    assert all(part in text for part in ("±", "n = 5", "[", "gain", "of none", "with its teacher"))
    place = """const at = (selector) => document.querySelector(selector).getBoundingClientRect();
      const [hint, point] = [at("#hint"), at("#plot .dot[data-label=kd] .mark")];
      const apart = Math.min(Math.abs(hint.bottom - point.top), Math.abs(hint.top - point.bottom));
      return [hint.left, innerWidth - hint.right, apart]"""
    left, right, distance = fresh.run(place)
    assert min(left, right) > 0
    assert distance < 20
    text = fresh.run(enter % "#table-matrix [data-about=kd] td:nth-child(2)" + hint)
    assert "2 pairs" in text
    assert "[" in text
    text = fresh.run(enter % "#table-matrix [data-about=kd] td:nth-child(3)" + hint)
    assert text.startswith("kd, resnet110 → resnet20")
    fresh.run("document.querySelector('#plot .dot').focus()")  # without a pointer
    assert not fresh.run("return document.getElementById('hint').hidden")


@pytest.mark.parametrize("width", [390, 1400])
def test_the_figure_is_cut_nowhere_and_its_names_differ(fresh: Browser, width: int) -> None:
    fresh.screen(width)
    fresh.settled()
    out = fresh.run(
        """const edge = document.getElementById('plot').getBoundingClientRect();
           return [...document.querySelectorAll('#plot text')].filter((e) => {
             const box = e.getBoundingClientRect();
             return box.left < edge.left - 16 || box.right > Math.min(edge.right + 16, innerWidth) || box.top < edge.top;
           }).map((e) => e.textContent)"""
    )
    assert out == []
    names = fresh.run("return [...document.querySelectorAll('#plot .label')].map((e) => e.textContent)")
    assert len(set(names)) == len(names) == 7


def test_on_a_narrow_screen_no_value_is_off_screen(fresh: Browser) -> None:
    fresh.screen(390)
    edges = "[...document.querySelectorAll('.short:not([hidden]) td')].map((e) => e.getBoundingClientRect().right)"
    assert fresh.run(f"return Math.max(...{edges})") <= 390
    assert fresh.run("return document.querySelector('.short td.num').dataset.title") == "n"


def test_the_methods_stay_in_sight_when_a_table_scrolls(fresh: Browser) -> None:
    fresh.screen(700)
    left = """const box = document.querySelector('.pair .scroll'); box.scrollLeft = %d;
              const name = box.querySelector('td.name');
              return [box.scrollLeft, name.getBoundingClientRect().left - box.getBoundingClientRect().left]"""
    moved, place = fresh.run(left % 200)
    fresh.run(left % 0)
    assert moved > 50
    assert abs(place) < 1


def test_paper_holds_all_sections_and_none_of_the_controls(fresh: Browser) -> None:
    fresh.screen(718)
    fresh.do("goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params={"media": "print"})
    fresh.run("dispatchEvent(new Event('beforeprint'))")
    assert fresh.run("return [...document.querySelectorAll('.bar, .controls, nav')].map((e) => e.offsetHeight)") == [0, 0, 0]
    assert fresh.run("return [...document.querySelectorAll('section details')].every((e) => e.open)")
    assert fresh.run("return document.documentElement.scrollWidth") <= 718
    fresh.do("goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params={"media": ""})


def test_a_page_without_results_fails_nowhere(browser: Browser, tmp_path: Path) -> None:
    try:
        browser.do("url", url=page.write(synthetic.filled(tmp_path, "empty", [])).page.as_uri() + "#q=kd&behind")
        assert browser.run("return document.getElementById('behind') !== null")
        assert [entry for entry in browser.log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    finally:
        browser.do("url", url=browser.report)


@pytest.mark.parametrize("width", [390, 1400])
def test_the_start_page_of_a_site_leads_to_the_reports(browser: Browser, tmp_path: Path, width: int) -> None:
    records = synthetic.draw({"none": 0, "kd": 1}, 3, np.random.default_rng(0))
    folders = [synthetic.filled(tmp_path / "results", name, records, about=HOSTILE) for name in ("one", "two")]
    site.report(folders, tmp_path / "site", Screen(quiet=True))
    try:
        browser.screen(width)
        browser.do("url", url=(tmp_path / "site/index.html").as_uri())
        assert browser.run("return document.documentElement.scrollWidth") == width
        assert browser.run("return document.querySelectorAll('main svg').length") == 2
        assert browser.run("return new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size") == browser.run(
            "return document.querySelectorAll('[id]').length"
        )
        browser.run("document.querySelectorAll('h2 a')[1].click()")
        assert browser.settled() == ""
        assert browser.run("return document.querySelector('h1').innerText") == "two"
        browser.run("document.querySelector('.kicker a').click()")
        assert browser.settled() == ""
        assert "2 grids" in browser.run("return document.querySelector('h1').innerText")
        assert [entry for entry in browser.log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    finally:
        browser.do("url", url=browser.report)


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
