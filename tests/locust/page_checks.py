"""The tab Balance as a browser shows it: a real locust, and Debian's Chromium without a window."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import gevent
import pytest

from ..support.bounds import ENDLESS_SECONDS
from ..support.ports import free_port

CHROMIUM: Final = shutil.which("chromium")
DRIVER: Final = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("selenium") is None, reason="needs selenium"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium"),
    pytest.mark.skipif(DRIVER is None, reason="needs chromedriver (Debian's chromium-driver)"),
]


#: So many requests, of which clones 0, 1, ... of 4 have one each in turn; two without a clone.
TURNS: Final = 203
#: One more is counted when the test has been stopped, and its user finishes what it is at.
LATE: Final = 1
BEFORE: Final = [51, 51, 51, 50]
OF_CLONES: Final = [51, 51, 51, 51]

LOCUSTFILE: Final = """
import itertools
import gevent
import glb.locust
from locust import User, constant, events, task
from locust.exception import StopUser

numbers = itertools.count()
ended = gevent.event.Event()

@events.test_stopping.add_listener
def stopping(**_):
    # More than the two seconds in which the page asks again.
    gevent.spawn_later(3, ended.set)

def fire(user, number, clone, exception=None):
    user.environment.events.request.fire(
        request_type="ASK", name="ask", response_time=1 + number % 7, response_length=3,
        response=None, context=clone, exception=exception, start_time=0, url=None)

class Asks(User):
    wait_time = constant(0.01)

    @task
    def ask(self):
        number = next(numbers)
        if number < TURNS:
            fire(self, number, {"glb_clone": f"{number % 4}/4"})
        elif number < TURNS + 2:
            fire(self, number, {}, ConnectionResetError("gone"))
        elif number == TURNS + 2:
            ended.wait()
            fire(self, number, {"glb_clone": "3/4"})
        else:
            raise StopUser
"""


class Page:
    """A locust with a web page, and a browser that shows it."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        self.address = address

    def open(self, query: str = "") -> None:
        self.driver.get(self.address + query)

    def wait(self, has: Callable[[], Any]) -> Any:
        """Return what *has* returns, when that is something."""
        from selenium.common.exceptions import (
            NoSuchElementException,
            StaleElementReferenceException,
        )
        from selenium.webdriver.support.ui import WebDriverWait

        # What is looked at may be drawn anew meanwhile.
        passing = [NoSuchElementException, StaleElementReferenceException]
        wait = WebDriverWait(self.driver, ENDLESS_SECONDS, 0.05, passing)
        return wait.until(lambda _: has())

    def find(self, what: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements("css selector", what)
        return found

    def click(self, tab: str) -> None:
        def named() -> Any:
            return next((each for each in self.find("[role=tab]") if each.text == tab.upper()), 0)

        self.wait(named).click()

    def look(self, what: str, at: str) -> list[Any]:
        """Return what the page's elements have, all of one moment: they are drawn anew at times."""
        script = f"return [...document.querySelectorAll(arguments[0])].map(each => each.{at})"
        found: list[Any] = self.driver.execute_script(script, what)
        return found

    def turns(self) -> list[int]:
        """Return what the chart's bars say."""
        return [int(each) for each in self.look("#glb-balance .glb-clone", "dataset.turns")]

    def table(self) -> list[list[str]]:
        rows: list[list[str]] = self.look("#glb-balance tr", "innerText.split('\\t')")
        return rows[1:]

    def facts(self) -> str:
        (text,) = self.look("#glb-balance .glb-facts", "textContent")
        assert isinstance(text, str)
        return text

    def errors(self) -> list[str]:
        """Return what the browser complained of since it was asked last."""
        return [each["message"] for each in self.driver.get_log("browser")]


def ask(address: str, posted: bytes | None = None) -> str:
    with urllib.request.urlopen(address, posted, ENDLESS_SECONDS) as reply:
        text: str = reply.read().decode()
    return text


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = CHROMIUM or ""
    options.set_capability("goog:loggingPrefs", {"browser": "WARNING"})
    profile = tmp_path_factory.mktemp("profile")
    for each in (
        "--headless=new",
        "--no-sandbox",  # a container has none to give
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--window-size=1300,1400",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(each)
    started = Chrome(options=options, service=Service(executable_path=DRIVER))
    yield started
    started.quit()


@pytest.fixture(scope="module", params=["", "/load"])
def locust(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Begin a test, and yield the address of its page, which stays when the test is stopped."""
    file = tmp_path_factory.mktemp("locust") / "locustfile.py"
    file.write_text(f"TURNS = {TURNS}\n{LOCUSTFILE}")
    port = free_port()
    address = f"http://127.0.0.1:{port}{request.param}"
    args = ["--autostart", "-u", "8", "-r", "8", "--web-host", "127.0.0.1"]
    args += ["--web-port", str(port), "--web-base-path", request.param, "--host", "tcp://nowhere"]
    log = file.with_name("log")
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "locust", "-f", str(file), *args],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": "."},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + ENDLESS_SECONDS
        while True:
            try:
                ask(f"{address}/")
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                gevent.sleep(0.05)
        yield address
        process.terminate()
        process.wait(ENDLESS_SECONDS)
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def page(driver: Any, locust: str) -> Page:
    return Page(driver, f"{locust}/")


def test_the_tab_shows_each_clone_live_and_to_the_last_turn(page: Page) -> None:
    """Chart, table and facts show what was served, with what came after the test was stopped."""
    page.open()
    page.click("Balance")
    page.wait(lambda: page.turns() == BEFORE)
    ask(f"{page.address}stop", b"")
    page.wait(lambda: page.turns() == OF_CLONES)
    page.wait(
        lambda: (
            [row[:2] for row in page.table()]
            == [[str(clone), str(turns)] for clone, turns in enumerate(OF_CLONES)]
        )
    )
    assert page.facts().startswith("204 turns of 4 clones: exact, Jain 1, spread 0")
    assert "2 resets, 0 refused, 0 timeouts" in page.facts()
    words = page.look("#glb-balance svg text", "textContent")
    assert {"clone 0", "clone 1", "clone 2", "clone 3", "exact share: 51"} <= {*words}
    assert len(page.look("#glb-balance polyline", "tagName")) == 4
    assert page.errors() == []


def test_it_shows_what_csv_and_json_have(page: Page) -> None:
    """The link that the page has for it leads to the same numbers."""
    page.open("?tab=reports")
    links = page.wait(lambda: page.find("main a[href$='balance/csv']"))
    assert [each.text for each in links] == ["Download balance CSV"]
    rows = csv.DictReader(io.StringIO(ask(links[0].get_attribute("href"))))
    assert [int(row["turns"]) for row in rows] == OF_CLONES
    told = json.loads(ask(f"{page.address}balance/json"))
    assert [each["turns"] for each in told["clones"]] == OF_CLONES
    assert told["turns"] == TURNS + LATE
    page.open("?tab=balance")
    page.wait(lambda: page.turns() == OF_CLONES)


def test_the_chart_is_on_its_tab_alone(page: Page) -> None:
    """It goes with the tab, whose successor has its place, and comes again, once."""
    page.open("?tab=balance")
    page.wait(lambda: len(page.turns()) == 4)
    for other in ("Statistics", "Charts", "Logs"):
        page.click(other)
        page.wait(lambda: not page.find("#glb-balance"))
        page.click("Balance")
        page.wait(lambda: len(page.turns()) == 4)
        assert len(page.find("#glb-balance")) == 1
        (tabs,) = page.look("[role=tablist]", "getBoundingClientRect().bottom")
        (verdict,) = page.look("#glb-balance .glb-verdict", "getBoundingClientRect().top")
        (chart,) = page.look("#glb-balance svg", "getBoundingClientRect().bottom")
        (table,) = page.look("#glb-balance table", "getBoundingClientRect().top")
        assert tabs <= verdict < chart <= table
        (wide,) = page.look("#glb-balance svg", "getBoundingClientRect().width")
        (box,) = page.look("#glb-balance", "clientWidth")
        assert wide > 0.9 * box
    assert page.errors() == []


def test_the_back_button_leaves_the_chart_where_its_tab_is(page: Page) -> None:
    """The address changes then, but not the tab that locust shows."""
    page.open("?tab=stats")
    page.click("Balance")
    page.wait(lambda: len(page.turns()) == 4)
    page.driver.back()
    page.wait(lambda: "tab=stats" in page.driver.current_url)
    assert len(page.turns()) == 4
    assert page.errors() == []


def test_the_chart_has_the_colours_of_the_theme(page: Page) -> None:
    """Text follows at once, and bars with the next look."""
    page.open("?tab=balance")

    def colours() -> list[str]:
        text = page.look("#glb-balance svg text", "computedStyleMap().get('fill').toString()")
        return [*text[:1], *page.look("#glb-balance .glb-clone", "getAttribute('fill')")[:1]]

    page.wait(lambda: len(colours()) == 2)
    light = colours()
    page.find("header .MuiIconButton-root")[-1].click()
    page.wait(lambda: not {*colours()} & {*light})
    page.driver.execute_script("localStorage.clear()")
    assert page.errors() == []


def test_the_report_shows_the_section(page: Page) -> None:
    """Below locust's own, with the same bars."""
    page.open("stats/report?theme=light")
    page.wait(lambda: len(page.find("#glb-balance-report .glb-clone")) == 4)
    page.wait(lambda: page.find("#root h2"))
    (above,) = page.look("#root", "getBoundingClientRect().bottom")
    (below,) = page.look("#glb-balance-report", "getBoundingClientRect().top")
    assert above <= below
