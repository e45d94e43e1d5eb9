"""The balance as text, CSV, JSON and a section of locust's HTML report."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from html import escape
from typing import Any, Final

from .chart import NO_TURNS, draw
from .measure import CloneFigures, Figures, Sample

__all__ = ["COLUMNS", "SECTION", "facts", "html_section", "table", "to_csv", "to_dict"]

#: The figures of each clone.
COLUMNS: Final = tuple(field.name for field in fields(CloneFigures))

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


def html_section(figures: Figures, history: Sequence[Sample], *, is_dark: bool = False) -> str:
    """Return what stands below locust's own report: facts, chart and table."""
    cells = "padding:6px 16px;text-align:right;border-bottom:1px solid #8884"
    rows = [
        "".join(f'<{tag} style="{cells}">{escape(cell)}</{tag}>' for cell in row)
        for tag, row in (("th", COLUMNS), *(("td", _cells(each)) for each in figures.clones))
    ]
    colour = "#fff;background:#121212" if is_dark else "inherit"
    return (
        f'<section {SECTION} style="max-width:1152px;margin:0 auto;padding:0 24px 32px;'
        f'font-family:Roboto,Helvetica,Arial,sans-serif;color:{colour}">'
        '<h2 style="font-weight:400;font-size:2.125rem">Balance</h2>'
        f"<p>{escape(facts(figures))}</p>"
        f"{draw(figures, history, is_dark=is_dark)}"
        '<table style="border-collapse:collapse;font-size:0.875rem">'
        f"{''.join(f'<tr>{row}</tr>' for row in rows)}</table></section>"
    )


def _cells(each: CloneFigures) -> tuple[str, ...]:
    values = (getattr(each, name) for name in COLUMNS)
    return tuple(f"{value:.2f}" if isinstance(value, float) else str(value) for value in values)
