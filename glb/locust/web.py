"""The tab *Balance* of locust's web page.

It is locust's own page, and locust's own server. The tab and its table use locust's extension
points. There is none for a chart, so a script (``tab.js``) puts one below the table, outside of
React's elements, and removes it when another tab is shown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, Final

from flask import Blueprint, Response, request

from . import chart, collect, report
from .measure import CloneFigures, Measure

__all__ = ["KEY", "TITLE", "extend"]

KEY: Final = "balance"
BLUEPRINT: Final = "glb_balance"
TITLE: Final = "Balance"

#: Figures of a clone: the name in locust's page, the title, and the digits behind the point.
COLUMNS: Final = (
    ("clone", "Clone", 0),
    ("turns", "# Turns", 0),
    ("share", "Off an exact share", 2),
    ("replies", "# Replies", 0),
    ("failures", "# Fails", 0),
    ("mean_ms", "Average (ms)", 2),
    ("p50_ms", "Median (ms)", 2),
    ("p99_ms", "99%ile (ms)", 2),
    ("max_ms", "Max (ms)", 2),
)

# locust's own tables end there: the page renders a longer one very slowly.
MOST_ROWS: Final = 500

SCRIPT: Final = Path(__file__).with_name("tab.js")

# States that locust's page takes for the end of a test, after which it polls no more; but figures
# still come while users finish their requests.
ENDING: Final = frozenset({"cleanup", "stopping"})


def extend(environment: Any, measure: Measure) -> None:
    """Add the tab to the web page of *environment*; once, however often it is called.

    Args:
        environment: locust's, with a `web_ui` that has not answered a request yet.
        measure: What to show.
    """
    web_ui = environment.web_ui
    app = web_ui.app
    if BLUEPRINT in app.blueprints:
        return
    # All of locust's, and so ours, may be below a path (`--web-base-path`).
    path = (app.blueprints["locust"].url_prefix or "").rstrip("/")
    pages = Blueprint(BLUEPRINT, __name__, url_prefix=f"{path}/{KEY}")
    _add_pages(pages, measure, web_ui.auth_required_if_enabled)
    app.register_blueprint(pages)
    structure = [
        {"key": key, "title": title, **({"round": digits} if digits else {})}
        for key, title, digits in COLUMNS
    ]
    for name, more in (
        ("extended_tabs", {"title": TITLE, "key": KEY}),
        ("extended_tables", {"key": KEY, "structure": structure}),
        ("extended_csv_files", {"href": f"./{KEY}/csv", "title": "Download balance CSV"}),
    ):
        web_ui.template_args[name] = [*(web_ui.template_args.get(name) or []), more]

    def add(response: Response) -> Response:
        """Add ours to an answer of locust's."""
        # With a login, most are to log in.
        if response.status_code == 200:
            if request.endpoint == "locust.request_stats":
                _add_rows(response, measure)
            elif request.endpoint == "locust.index":
                script = f'<script src="./{KEY}/tab.js" defer></script>'
                _insert(response, script)
            elif request.endpoint == "locust.stats_report":
                is_dark = request.args.get("theme") == "dark"
                section = report.html_section(measure.figures(), measure.history, is_dark=is_dark)
                _insert(response, section)
        return response

    app.after_request(add)


def _add_pages(
    pages: Blueprint, measure: Measure, guarded: Callable[[Callable[[], Any]], Callable[[], Any]]
) -> None:
    """Add the pages, each of which asks for a login if locust's do."""

    @pages.route("/csv")
    @guarded
    def csv() -> Response:
        reply = Response(report.to_csv(measure.figures()), mimetype="text/csv")
        name = time.strftime("Locust_%Y-%m-%d-%Hh%M_balance.csv")
        reply.headers["Content-Disposition"] = f"attachment;filename={name}"
        return reply

    @pages.route("/json")
    @guarded
    def json_() -> Response:
        data = report.to_dict(measure.figures(), measure.history)
        return Response(json.dumps(data), mimetype="application/json")

    @pages.route("/chart.svg")
    @guarded
    def svg() -> Response:
        return Response(_chart(measure), mimetype="image/svg+xml")

    @pages.route("/tab.html")
    @guarded
    def tab() -> Response:
        """What stands below the table: all of one moment."""
        facts = escape(report.facts(measure.figures()))
        words = f'<p style="margin:24px 0 8px">{facts}</p>{_chart(measure)}'
        reply = Response(words, mimetype="text/html")
        reply.headers["Cache-Control"] = "no-store"
        return reply

    @pages.route("/tab.js")
    @guarded
    def script() -> Response:
        return Response(SCRIPT.read_text(encoding="utf-8"), mimetype="text/javascript")


def _chart(measure: Measure) -> str:
    return chart.draw(
        measure.figures(), measure.history, is_dark=request.args.get("theme") == "dark"
    )


def _add_rows(response: Response, measure: Measure) -> None:
    """Add the table's rows to the statistics that locust's page asks for.

    locust keeps an answer for two seconds, and we get it as we have left it.
    """
    data = response.get_json()
    others = [each for each in data.get("extended_stats") or [] if each["key"] != KEY]
    data["extended_stats"] = [*others, {"key": KEY, "data": _rows(measure)}]
    if data.get("state") in ENDING:
        data["state"] = "running"
    response.set_data(json.dumps(data))


def _rows(measure: Measure) -> list[dict[str, Any]]:
    figures = measure.figures()
    share = figures.turns / max(len(figures.clones), 1)
    return [_row(each, share) for each in figures.clones[:MOST_ROWS]]


def _row(each: CloneFigures, share: float) -> dict[str, Any]:
    return {
        key: each.turns - share if key == "share" else getattr(each, key) for key, _, _ in COLUMNS
    }


def _insert(response: Response, more: str) -> None:
    response.set_data(collect.insert_section(response.get_data(as_text=True), more))
