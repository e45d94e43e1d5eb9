"""The balance as text, CSV, JSON and a section of locust's HTML report."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from html import escape
from typing import Any, Final

from .chart import NO_TURNS, draw
from .measure import CloneFigures, Figures, Sample

__all__ = [
    "COLUMNS",
    "MOST_ROWS",
    "SECTION",
    "facts",
    "html_body",
    "html_section",
    "table",
    "to_csv",
    "to_dict",
    "verdict",
]

#: The figures of each clone.
COLUMNS: Final = tuple(field.name for field in fields(CloneFigures))

#: The same on a page: how a column is called, the digits behind the point, and what it has.
PAGE_COLUMNS: Final = (
    ("Clone", 0, "clone"),
    ("# Turns", 0, "turns"),
    ("Off an exact share", 2, ""),
    ("# Replies", 0, "replies"),
    ("# Fails", 0, "failures"),
    ("Average (ms)", 2, "mean_ms"),
    ("Median (ms)", 2, "p50_ms"),
    ("99%ile (ms)", 2, "p99_ms"),
    ("Max (ms)", 2, "max_ms"),
)

#: A page's table ends there, as locust's own do: a browser renders a longer one very slowly.
MOST_ROWS: Final = 500

#: As wide as locust's own report.
REPORT_WIDTH: Final = 1104

#: What marks the section in a report that has it.
SECTION: Final = 'id="glb-balance-report"'


def facts(figures: Figures) -> str:
    """Return the balance in a line."""
    lost = f"{figures.resets} resets, {figures.refusals} refused, {figures.timeouts} timeouts"
    if not figures.turns:
        return f"{NO_TURNS}; {lost}"
    turns = "exact" if figures.is_exact else "not exact"
    return (
        f"{figures.turns} turns of {len(figures.clones)} clones: {turns}, Jain "
        f"{figures.jain:.6g}, spread {figures.spread}, off an equal share by up to "
        f"{figures.deviation:.1f}; {lost}"
    )


def table(figures: Figures) -> list[str]:
    """Return the lines of a table for a terminal."""
    rows = [COLUMNS, *(_cells(each) for each in figures.clones)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(COLUMNS))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return ["Balance", *lines, facts(figures)]


def to_csv(figures: Figures) -> str:
    """Return a line for each clone, under the names of its columns."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for each in figures.clones:
        name, *cells = _cells(each)
        # A spreadsheet takes what begins so for a formula.
        writer.writerow([f"'{name}" if name[:1] in {"=", "+", "-", "@"} else name, *cells])
    return out.getvalue()


def to_dict(figures: Figures, history: Sequence[Sample] = ()) -> dict[str, Any]:
    """Return all that is known, as plain data for JSON."""
    return {
        "turns": figures.turns,
        "replies": figures.replies,
        "jain": figures.jain,
        "spread": figures.spread,
        "deviation": figures.deviation,
        "exact": figures.is_exact,
        "resets": figures.resets,
        "refusals": figures.refusals,
        "timeouts": figures.timeouts,
        "clones": [asdict(each) for each in figures.clones],
        "history": [
            {"seconds": each.seconds, "turns": {str(k): v for k, v in each.turns.items()}}
            for each in history
        ],
    }


def verdict(figures: Figures, outstanding: int = 0) -> str:
    """Return in some words whether turns were exact.

    Args:
        outstanding: How many workers' reports are still to come.
    """
    if not figures.turns:
        return NO_TURNS
    found = f"turns are {'exact' if figures.is_exact else 'not exact'}"
    if outstanding:
        is_one = outstanding == 1
        some = (
            "the report of 1 worker is" if is_one else f"the reports of {outstanding} workers are"
        )
        found = f"provisional: {found} so far; {some} still out"
    return found


def html_body(
    figures: Figures,
    history: Sequence[Sample],
    *,
    is_dark: bool = False,
    width: int = REPORT_WIDTH,
    outstanding: int = 0,
) -> str:
    """Return what a page shows of one moment: verdict, facts, charts and table."""
    share = figures.turns / max(len(figures.clones), 1)
    cells = "padding:6px 16px;text-align:right;border-bottom:1px solid #8884"
    rows = [
        "".join(f'<th style="{cells}">{escape(title)}</th>' for title, *_ in PAGE_COLUMNS),
        *(
            "".join(f'<td style="{cells}">{cell}</td>' for cell in _page_cells(each, share))
            for each in figures.clones[:MOST_ROWS]
        ),
    ]
    more = len(figures.clones) - MOST_ROWS
    rest = f"<p>and {more} clones more: they are in the CSV and in the JSON</p>" if more > 0 else ""
    return (
        f'<p class="glb-verdict" style="font-size:1.25rem;margin:16px 0 4px">'
        f"<strong>{escape(verdict(figures, outstanding))}</strong></p>"
        f'<p class="glb-facts" style="margin:0 0 8px">{escape(facts(figures))}</p>'
        f"{draw(figures, history, is_dark=is_dark, width=width)}"
        '<table style="border-collapse:collapse;font-size:0.875rem;margin-top:16px">'
        f"{''.join(f'<tr>{row}</tr>' for row in rows)}</table>{rest}"
    )


def html_section(figures: Figures, history: Sequence[Sample], *, is_dark: bool = False) -> str:
    """Return what stands below locust's own report."""
    colour = "#fff;background:#121212" if is_dark else "inherit"
    return (
        f'<section {SECTION} style="max-width:1152px;margin:0 auto;padding:0 24px 32px;'
        f'font-family:Roboto,Helvetica,Arial,sans-serif;color:{colour}">'
        '<h2 style="font-weight:400;font-size:2.125rem">Balance</h2>'
        f"{html_body(figures, history, is_dark=is_dark)}</section>"
    )


def _page_cells(each: CloneFigures, share: float) -> Iterator[str]:
    for _, digits, name in PAGE_COLUMNS:
        value = getattr(each, name) if name else each.turns - share
        yield f"{value:.{digits}f}" if isinstance(value, float) else escape(str(value))


def _cells(each: CloneFigures) -> tuple[str, ...]:
    values = (getattr(each, name) for name in COLUMNS)
    return tuple(f"{value:.2f}" if isinstance(value, float) else str(value) for value in values)
