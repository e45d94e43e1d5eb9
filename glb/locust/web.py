"""The tab *Balance* of locust's web page.

It is locust's own page, and locust's own server. The tab uses locust's extension point, without a
table: locust's would be of another moment, and stand above. A script (``tab.js``) puts verdict,
charts and table in its place, outside of React's elements, and removes them when another tab is
shown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from flask import Blueprint, Response, request

from . import chart, collect, report
from .measure import Measure

__all__ = ["KEY", "TITLE", "extend"]

KEY: Final = "balance"
BLUEPRINT: Final = "glb_balance"
TITLE: Final = "Balance"

SCRIPT: Final = Path(__file__).with_name("tab.js")


def extend(environment: Any, measure: Measure, outstanding: Callable[[], int] = lambda: 0) -> None:
    """Add the tab to the web page of *environment*; once, however often it is called.

    Args:
        environment: locust's, with a `web_ui` that has not answered a request yet.
        measure: What to show.
        outstanding: Returns how many workers' reports are still to come.
    """
    web_ui = environment.web_ui
    app = web_ui.app
    if BLUEPRINT in app.blueprints:
        return
    # All of locust's, and so ours, may be below a path (`--web-base-path`).
    path = (app.blueprints["locust"].url_prefix or "").rstrip("/")
    pages = Blueprint(BLUEPRINT, __name__, url_prefix=f"{path}/{KEY}")
    _add_pages(pages, measure, outstanding, web_ui.auth_required_if_enabled)
    app.register_blueprint(pages)
    for name, more in (
        ("extended_tabs", {"title": TITLE, "key": KEY}),
        ("extended_csv_files", {"href": f"./{KEY}/csv", "title": "Download balance CSV"}),
    ):
        web_ui.template_args[name] = [*(web_ui.template_args.get(name) or []), more]

    def add(response: Response) -> Response:
        """Add ours to an answer of locust's."""
        # With a login, most are to log in.
        if response.status_code == 200:
            if request.endpoint == "locust.index":
                script = f'<script src="./{KEY}/tab.js" defer></script>'
                _insert(response, script)
            elif request.endpoint == "locust.stats_report":
                figures, history = measure.figures(), measure.history
                section = report.html_section(figures, history, is_dark=_is_dark())
                _insert(response, section)
        return response

    app.after_request(add)


def _add_pages(
    pages: Blueprint,
    measure: Measure,
    outstanding: Callable[[], int],
    guarded: Callable[[Callable[[], Any]], Callable[[], Any]],
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
        drawn = chart.draw(measure.figures(), measure.history, is_dark=_is_dark(), width=_width())
        return Response(drawn, mimetype="image/svg+xml")

    @pages.route("/tab.html")
    @guarded
    def tab() -> Response:
        """What the tab shows: all of one moment."""
        figures, still_out = measure.figures(), outstanding()
        words = report.html_body(
            figures, measure.history, is_dark=_is_dark(), width=_width(), outstanding=still_out
        )
        reply = Response(words, mimetype="text/html")
        reply.headers["Cache-Control"] = "no-store"
        return reply

    @pages.route("/tab.js")
    @guarded
    def script() -> Response:
        return Response(SCRIPT.read_text(encoding="utf-8"), mimetype="text/javascript")


def _is_dark() -> bool:
    return request.args.get("theme") == "dark"


def _width() -> int:
    """Return how wide the page says that it is, within reason."""
    width = request.args.get("width", chart.WIDTH, type=int)
    return max(chart.LEAST_WIDTH, min(width, chart.MOST_WIDTH))


def _insert(response: Response, more: str) -> None:
    response.set_data(collect.insert_section(response.get_data(as_text=True), more))
