"""The tab Balance of locust's web page: its chart, its pages, and what they add to locust's."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from html import escape
from xml.etree import ElementTree as ET

import flask
import pytest
from flask.testing import FlaskClient
from flask_login import UserMixin, login_user  # type: ignore[import-untyped]  # has no types
from hypothesis import given
from hypothesis import strategies as st
from locust import User
from locust.env import Environment
from locust.web import WebUI

from glb.locust import report, web
from glb.locust.chart import MOST_CLONES, NO_TURNS, draw
from glb.locust.measure import Clone, CloneFigures, Figures, Measure, Sample

SVG = "{http://www.w3.org/2000/svg}"

# Whatever a server says, also what XML has no way to say.
NAMES = st.text(st.characters(), max_size=40)
COUNTS = st.integers(0, 10**15)


def figures(*turns: int, names: Sequence[Clone] | None = None) -> Figures:
    clones = range(len(turns)) if names is None else names
    return Figures(
        tuple(
            CloneFigures(clone, turns=count, replies=count, p50_ms=2.0, p99_ms=9.5)
            for clone, count in zip(clones, turns, strict=True)
        )
    )


def history(*turns: Sequence[int], names: Sequence[Clone] | None = None) -> list[Sample]:
    """Return a sample a second."""
    clones = range(len(turns[0])) if names is None else names
    return [
        Sample(second, dict(zip(clones, each, strict=True))) for second, each in enumerate(turns)
    ]


def bars(svg: str) -> list[ET.Element]:
    return [each for each in ET.fromstring(svg).iter(f"{SVG}rect") if each.get("class")]


def lines(svg: str) -> list[ET.Element]:
    return [*ET.fromstring(svg).iter(f"{SVG}polyline")]


def words(svg: str) -> list[str]:
    return [each.text or "" for each in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("clones", [1, 4, 16, 64])
def test_the_chart_has_each_clone_with_its_number(clones: int) -> None:
    """A bar with a title, the number over it, the name under it, and a line."""
    turns = [1000 + clone for clone in range(clones)]
    svg = draw(figures(*turns), history([0] * clones, turns, [2 * each for each in turns]))
    assert [each.get("data-turns") for each in bars(svg)] == [str(each) for each in turns]
    for clone, (bar, line) in enumerate(zip(bars(svg), lines(svg), strict=True)):
        (told,) = bar.iter(f"{SVG}title")
        assert (told.text or "").startswith(f"clone {clone}: {turns[clone]:,} turns")
        (told,) = line.iter(f"{SVG}title")
        assert (told.text or "").startswith(f"clone {clone}: ")
        assert str(clone) in words(svg)
        assert f"{turns[clone]:,}" in words(svg)


def test_the_bars_are_as_high_as_their_numbers() -> None:
    """Twice the turns, twice the height; the line stands at the exact share."""
    svg = draw(figures(100, 200, 0, 100), [])
    heights = [float(each.get("height", "")) for each in bars(svg)]
    assert heights[1] == 2 * heights[0] == 2 * heights[3] > 0
    assert heights[2] == 0
    assert "exact share: 100" in words(svg)
    levels = {
        each.get("y1") for each in ET.fromstring(svg).iter(f"{SVG}line") if each.get("y1") != "44"
    }
    assert bars(svg)[0].get("y") in levels
    (label,) = [each.get("aria-label") for each in [ET.fromstring(svg)]]
    assert label is not None
    assert label.startswith("Turns of 4 clones: 0 to 200, exact share 100, Jain's index 0.6667")


@pytest.mark.parametrize(
    ("every", "turns", "shares"),
    [
        pytest.param(
            3, [0, 10, 20, 50, 80, 110, 140], [1 / 3, 1 / 3, 1, 1, 1, 1], id="10, then 30 a second"
        ),
        # Of workers each three seconds, now just before a sample, now just after.
        pytest.param(
            1,
            [0, 0, 0, 30, 30, 30, 60, 60, 60, 60, 90, 90, 120, 120, 120, 150],
            [1, 1, 0.75, 1, 1],
            id="reports",
        ),
        pytest.param(3, [0, 30, 60, 60, 60, 60, 60], [1, 1, 0, 0], id="no client is served"),
        pytest.param(3, [0, 30, 60, 0, 30], [1, 1, 0, 1], id="reset"),
    ],
)
def test_the_lines_are_turns_per_second(every: int, turns: list[int], shares: list[float]) -> None:
    """As the samples say, which count from the beginning; in parts of the most."""
    svg = draw(figures(turns[-1]), [Sample(n * every, {0: told}) for n, told in enumerate(turns)])
    (line,) = lines(svg)
    floor = max(float(each.get("y1", "")) for each in ET.fromstring(svg).iter(f"{SVG}line"))
    heights = [floor - float(point.split(",")[1]) for point in line.get("points", "").split()]
    assert [each / max(heights) for each in heights] == pytest.approx(shares, abs=0.01)


def test_no_clones_are_said_in_words() -> None:
    """A picture of nothing says why."""
    svg = draw(figures(), [])
    assert words(svg) == [NO_TURNS]
    assert ET.fromstring(svg).get("aria-label") == NO_TURNS


def test_very_many_clones_are_few_bars() -> None:
    """The picture stays small, and says what it leaves out."""
    turns = [7] * 2000
    svg = draw(figures(*turns), history(*([n] * 2000 for n in range(599))))
    assert len(bars(svg)) == len(lines(svg)) == MOST_CLONES
    assert f"the first {MOST_CLONES} of 2,000 clones" in words(svg)
    assert len(svg) < 200_000


@given(st.lists(st.tuples(NAMES, COUNTS), max_size=40, unique_by=lambda each: each[0]))
def test_the_chart_is_xml_whatever_clones_are_called(told: list[tuple[str, int]]) -> None:
    """Names are escaped; the same twice is the same picture; on black it says the same."""
    names, turns = [name for name, _ in told], [count for _, count in told]
    samples = [Sample(0.0, {}), *(Sample(n, dict(told)) for n in (1.0, 2.0, 3.0, 4.0))]
    shown = figures(*turns, names=names)
    svg = draw(shown, samples)
    assert draw(shown, samples) == svg
    for bar, name in zip(bars(svg), names, strict=True):
        assert bar.get("data-clone") == name or not name.isprintable()
    assert [each.get("data-turns") for each in bars(svg)] == [str(each) for each in turns]
    assert words(draw(shown, samples, is_dark=True)) == words(svg)


# -- pages -----------------------------------------------------------------------------------------


class AnyUser(User):
    pass


class Pages:
    """Makes environments with a page that isn't served, and clients of it."""

    def __init__(self) -> None:
        self.made: list[Environment] = []

    def environment(self, *, path: str | None = None, login: bool = False) -> Environment:
        environment = Environment(user_classes=[AnyUser])
        self.made.append(environment)
        environment.create_local_runner()
        WebUI(environment, "127.0.0.1", 0, web_base_path=path, web_login=login, delayed_start=True)
        return environment

    def extended(
        self, measure: Measure, *, path: str | None = None, login: bool = False
    ) -> tuple[Environment, FlaskClient]:
        environment = self.environment(path=path, login=login)
        web.extend(environment, measure)
        assert environment.web_ui is not None
        assert environment.web_ui.app is not None
        return environment, environment.web_ui.app.test_client()


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pages]:
    monkeypatch.setattr("sys.argv", ["locust"])  # its page shows the options
    pages = Pages()
    yield pages
    for each in pages.made:
        assert each.runner is not None
        each.runner.quit()


@pytest.fixture
def measure() -> Measure:
    made = Measure()
    for number in range(10):
        made.record(f"{number % 4}/4", 2.0)
    made.fail(ConnectionResetError())
    made.sample(0.0)
    made.sample(5.0)
    return made


@pytest.mark.parametrize("path", [None, "", "/load", "/load/"])
def test_the_pages_have_the_figures(pages: Pages, measure: Measure, path: str | None) -> None:
    """CSV, JSON, chart and what the tab shows; below the path that locust's are below."""
    _, client = pages.extended(measure, path=path)
    top = (path or "").rstrip("/")
    told = client.get(f"{top}/balance/csv")
    assert told.mimetype == "text/csv"
    assert "_balance.csv" in told.headers["Content-Disposition"]
    table = [*csv.DictReader(io.StringIO(told.text))]
    assert [(row["clone"], row["turns"]) for row in table] == [*zip("0123", "3322", strict=True)]
    told = client.get(f"{top}/balance/json")
    assert told.mimetype == "application/json"
    assert told.get_json() == report.to_dict(measure.figures(), measure.history)
    told = client.get(f"{top}/balance/chart.svg")
    assert told.mimetype == "image/svg+xml"
    assert told.text == draw(measure.figures(), measure.history)
    told = client.get(f"{top}/balance/tab.html?theme=dark&width=1700")
    body = report.html_body(measure.figures(), measure.history, is_dark=True, width=1700)
    assert told.text == body
    told = client.get(f"{top}/balance/tab.js")
    assert told.mimetype == "text/javascript"


@pytest.mark.parametrize("path", [None, "/load"])
def test_locusts_page_has_the_tab_and_its_script(
    pages: Pages, measure: Measure, path: str | None
) -> None:
    """The tab and its CSV by what locust has for it; the script once."""
    environment, client = pages.extended(measure, path=path)
    assert environment.web_ui is not None
    for _ in range(2):
        told = client.get(f"{path or ''}/")
        assert told.status_code == 200
        assert told.text.count('src="./balance/tab.js"') == 1
        assert told.text.index("tab.js") < told.text.rindex("</body>")
        arguments = environment.web_ui.template_args
        assert arguments["extended_tabs"] == [{"title": "Balance", "key": "balance"}]
        assert not arguments.get("extended_tables")
        assert [each["href"] for each in arguments["extended_csv_files"]] == ["./balance/csv"]


def test_the_tab_is_of_one_moment(pages: Pages, measure: Measure) -> None:
    """Verdict and charts stand above the table, and all of them show the same turns."""
    _, client = pages.extended(measure)
    told = client.get("/balance/tab.html")
    assert told.headers["Cache-Control"] == "no-store"
    places = [told.text.index(each) for each in ("glb-verdict", "glb-facts", "<svg", "<table")]
    assert places == sorted(places)
    table = told.text[places[-1] :]
    found = re.findall(r"<tr><td[^>]*>(\d)</td><td[^>]*>(\d)</td><td[^>]*>([-\d.]+)</td>", table)
    assert found == [
        ("0", "3", "0.50"),
        ("1", "3", "0.50"),
        ("2", "2", "-0.50"),
        ("3", "2", "-0.50"),
    ]
    assert re.findall(r'data-turns="(\d)"', told.text) == ["3", "3", "2", "2"]
    measure.record("2/4", 2.0)
    again = client.get("/balance/tab.html").text
    assert re.findall(r'data-turns="(\d)"', again) == ["3", "3", "3", "2"]
    assert re.findall(r"<tr><td[^>]*>\d</td><td[^>]*>(\d)</td>", again) == ["3", "3", "3", "2"]


@pytest.mark.parametrize(
    ("width", "drawn"), [("1700", 1700), ("1", 320), ("99999", 4000), ("x", 900), ("", 900)]
)
def test_the_charts_are_as_wide_as_the_page(
    pages: Pages, measure: Measure, width: str, drawn: int
) -> None:
    """With letters of the same size; what isn't a width is the usual one."""
    _, client = pages.extended(measure)
    told = client.get(f"/balance/tab.html?width={width}").text
    assert f'viewBox="0 0 {drawn} ' in told
    svg = told[told.index("<svg") : told.index("</svg>") + 6]
    assert "max-width" not in svg
    ends = [float(each.get("x2") or 0) for each in ET.fromstring(svg).iter(f"{SVG}line")]
    assert max(ends) == drawn - 16


def test_the_verdict_is_provisional_while_reports_are_out(pages: Pages, measure: Measure) -> None:
    """It says of how many workers."""
    environment = pages.environment()
    left = [2]
    web.extend(environment, measure, lambda: left[0])
    assert environment.web_ui is not None and environment.web_ui.app is not None
    client = environment.web_ui.app.test_client()
    for count, words in [
        (2, "provisional: turns are exact so far; the reports of 2 workers are still out"),
        (1, "provisional: turns are exact so far; the report of 1 worker is still out"),
        (0, "turns are exact"),
    ]:
        left[0] = count
        assert f"<strong>{words}</strong>" in client.get("/balance/tab.html").text
    measure.record("0/4", 1.0)
    assert "<strong>turns are exact</strong>" not in client.get("/balance/tab.html").text
    assert report.verdict(Figures(())) == NO_TURNS


def test_other_extensions_of_the_page_stay(pages: Pages, measure: Measure) -> None:
    """Tabs that were there before, rows of others, and being called twice."""
    environment = pages.environment()
    ui = environment.web_ui
    assert ui is not None
    assert ui.app is not None
    ui.template_args["extended_tabs"] = [{"title": "Cache", "key": "cache"}]
    web.extend(environment, measure)
    web.extend(environment, measure)

    def theirs(response: flask.Response) -> flask.Response:
        if flask.request.path == "/stats/requests":
            data = response.get_json()
            response.set_data(json.dumps({**data, "extended_stats": [{"key": "cache"}]}))
        return response

    ui.app.after_request(theirs)  # the last is asked first
    told = ui.app.test_client().get("/stats/requests").get_json()
    assert told["extended_stats"] == [{"key": "cache"}]
    assert [each["key"] for each in ui.template_args["extended_tabs"]] == ["cache", "balance"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_report_has_the_section(pages: Pages, measure: Measure, theme: str) -> None:
    """As the last of its body, shown and downloaded."""
    _, client = pages.extended(measure)
    for query in (f"theme={theme}", f"theme={theme}&download=1"):
        told = client.get(f"/stats/report?{query}")
        section = report.html_section(measure.figures(), measure.history, is_dark=theme == "dark")
        assert told.text.count(section) == 1
        assert told.text.rstrip().endswith("</html>")
        assert told.text.index(section) > told.text.rindex("window.theme")
        assert ("Content-Disposition" in told.headers) == query.endswith("download=1")


def test_nothing_is_shown_without_the_login_that_locust_asks_for(
    pages: Pages, measure: Measure
) -> None:
    """Each page sends an unknown user to the login, without a figure; then it shows them."""
    environment, client = pages.extended(measure, login=True)
    ui = environment.web_ui
    assert ui is not None and ui.app is not None
    ui.app.secret_key = "of the test"

    class Known(UserMixin):  # type: ignore[misc]  # has no types
        id = "who"

    ui.login_manager.user_loader(lambda _: Known())

    def enter() -> str:
        login_user(Known())
        return "welcome"

    ui.app.add_url_rule("/enter", view_func=enter)
    ours = ["/balance/csv", "/balance/json", "/balance/chart.svg", "/balance/tab.html"]
    for path in [*ours, "/balance/tab.js", "/", "/stats/requests", "/stats/report"]:
        told = client.get(path)
        assert told.status_code == 302
        assert told.headers["Location"].startswith("/login")
        assert "balance" not in told.text.replace("next=%2Fbalance", "")
    assert client.get("/enter").text == "welcome"
    for path in ours:
        assert client.get(path).status_code == 200
    assert "glb-verdict" in client.get("/balance/tab.html").text


def test_a_table_of_very_many_clones_ends(pages: Pages) -> None:
    """As locust's own do, after 500 rows; it says how many more there are."""
    measure = Measure()
    measure.record("0/2000", 1.0)
    _, client = pages.extended(measure)
    told = client.get("/balance/tab.html").text
    assert told.count("<tr>") == report.MOST_ROWS + 1
    assert "and 1500 clones more" in told


def test_what_a_server_calls_its_clone_is_no_markup(pages: Pages) -> None:
    """Neither on the tab nor in the report: it is shown as it is."""
    measure = Measure()
    evil = "<img src=x onerror=alert(1)>"
    measure.record(evil, 1.0)
    _, client = pages.extended(measure)
    for path in ("/balance/tab.html", "/balance/chart.svg", "/stats/report"):
        told = client.get(path).text
        assert "<img src=x" not in told
        assert escape(evil) in told
