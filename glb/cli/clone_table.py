"""The table of clones, as a terminal shows it: of ``glb serve``, and of ``glb top``.

It fits its screen, however many clones there are: several stand beside each other, with fewer
columns where there is less room. The busiest come first. Clones without room are counted in the row
of totals.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

__all__ = ["picture"]

#: What `glb.admin` shows of a server, or of a clone, as JSON has it.
Facts = Mapping[str, Any]

_STYLES: Final = {
    "accepting": "green",
    "full": "yellow",
    "backing off": "yellow",
    "draining": "yellow",
    "paused": "dim",
    "stopped": "dim",
    "stalled": "bold red",
}

_SHORT: Final = {
    "accepting": "ok",
    "backing off": "back",
    "paused": "pause",
    "draining": "drain",
    "stopped": "stop",
    "stalled": "stall",
}

#: Between two columns of a clone, and between two clones.
_GAP: Final = 2
_NARROW_GAP: Final = 1
_BETWEEN: Final = " │ "

# A hub that is stuck has a line; of very many, some.
_MOST_STUCK: Final = 4


def _passed_over(clone: Facts) -> str:
    return ", ".join(f"{turns} {why}" for why, turns in clone["passed_over"].items())


def _state(clone: Facts) -> str:
    seconds = clone["stalled_seconds"]
    return f"{clone['shown_state']} {seconds:.0f} s" if seconds else str(clone["shown_state"])


def _number(name: str) -> Callable[[Facts], str]:
    return lambda clone: str(clone[name])


_COLUMNS: Final[dict[str, Callable[[Facts], str]]] = {
    "clone": _number("index"),
    "#": _number("index"),
    "hub": _number("hub"),
    "accepted": _number("accepted"),
    "took": lambda clone: _shortened(clone["accepted"]),
    "active": _number("active"),
    "act": _number("active"),
    "completed": _number("completed"),
    "failed": _number("failed"),
    "passed over": _passed_over,
    "state": _state,
    "": lambda clone: _SHORT.get(clone["shown_state"]) or str(clone["shown_state"]),
}


class _Layout(NamedTuple):
    """Which columns a clone has, and how far they are from each other."""

    names: Sequence[str]
    gap: int


# From the most that may be shown of a clone to the least.
_LAYOUTS: Final = (
    _Layout(
        ("clone", "hub", "accepted", "active", "completed", "failed", "passed over", "state"), _GAP
    ),
    _Layout(("clone", "accepted", "active", "failed", "state"), _GAP),
    _Layout(("clone", "accepted", "active", "state"), _NARROW_GAP),
    _Layout(("#", "took", "act", ""), _NARROW_GAP),
)


def picture(
    servers: Sequence[Facts],
    title: str,
    note: str,
    size: tuple[int, int],
    rates: Mapping[str, float] | None = None,
) -> Group:
    """Return what a screen shows of *servers*.

    Args:
        servers: What ``/clones`` shows of each.
        title, note: The first and the last line.
        size: Columns and lines of the screen.
        rates: Connections a second of each server, by its address.
    """
    width, height = max(1, size[0]), size[1]  # rich takes COLUMNS=0 as it is
    title_lines = math.ceil(max(1, len(title)) / width)
    lines = max(4, (height - title_lines - 1) // max(1, len(servers)))
    parts: list[RenderableType] = [Text(title, style="bold")]
    for server in servers:
        parts += _of_server(server, width, lines, (rates or {}).get(server["address"]))
    return Group(*parts, Text(note, style="dim", no_wrap=True, overflow="ellipsis"))


def _of_server(
    server: Facts, width: int, lines: int, rate: float | None
) -> Sequence[RenderableType]:
    clones = sorted(
        server["clones"], key=lambda each: (-each["active"], -each["accepted"], each["index"])
    )
    head = [_head(server), *_stuck_hubs(server)]
    total = _totals(clones, rate)
    # One line is the table's head. The totals may take more than one.
    room = max(1, lines - len(head) - 1 - math.ceil(len(total.plain) / width))
    has_hubs = len(server["hubs"]) > 1
    has_passed = any(each["passed_over"] for each in clones)
    leave_out = {*([] if has_hubs else ["hub"]), *([] if has_passed else ["passed over"])}
    for layout in _LAYOUTS:
        names = [each for each in layout.names if each not in leave_out]
        widths = [max(len(name), *(len(_COLUMNS[name](each)) for each in clones)) for name in names]
        block_width = sum(widths) + layout.gap * (len(names) - 1)
        most_blocks = max(1, (width + len(_BETWEEN)) // (block_width + len(_BETWEEN)))
        if most_blocks * room >= len(clones) and block_width <= width:
            break
    rows = min(room, math.ceil(len(clones) / min(most_blocks, math.ceil(len(clones) / room))))
    blocks = [clones[at : at + rows] for at in range(0, len(clones), rows)][:most_blocks]
    left_out = len(clones) - sum(map(len, blocks))
    if left_out:
        total.append(f"; {left_out} not shown")
    return [*head, *_lines(blocks, names, widths, layout.gap), total]


def _head(server: Facts) -> Text:
    state = server["shown_state"]
    found = Text.assemble(
        (server["address"], "bold"), "  ", (state, _STYLES.get(state, "")), no_wrap=True
    )
    queue = server["accept_queue"]
    if queue:
        found.append(f"  {queue['depth']} of {queue['limit']} in the accept queue")
    if server["hubs"]:
        worst = max(each["lag_seconds"] for each in server["hubs"])
        found.append(f"  lag {1000 * worst:.0f} ms")
    found.overflow = "ellipsis"
    return found


def _stuck_hubs(server: Facts) -> list[Text]:
    stuck = {each["hub"]: each["stalled_seconds"] for each in server["clones"]}
    found = []
    for hub in server["hubs"]:
        if stuck.get(hub["index"]):
            where = f" at {hub['stalled_at']}" if hub["stalled_at"] else ""
            text = f"hub {hub['index']} stalled {hub['lag_seconds']:.0f} s{where}"
            found.append(Text(text, style="bold red", no_wrap=True, overflow="ellipsis"))
    return found[:_MOST_STUCK]


def _totals(clones: Sequence[Facts], rate: float | None) -> Text:
    def total(name: str) -> int:
        return sum(each[name] for each in clones)

    some = "1 clone" if len(clones) == 1 else f"{len(clones)} clones"
    a_second = "" if rate is None else f" ({rate:.1f}/s)"
    found = Text.assemble(
        (some, "bold"),
        f": {total('accepted')} accepted{a_second}, {total('active')} active,"
        f" {total('completed')} completed, {total('failed')} failed",
    )
    for state, count in Counter(each["shown_state"] for each in clones).items():
        found.append("; " if found.plain.endswith("failed") else ", ")
        found.append(f"{count} {state}", _STYLES.get(state, ""))
    return found


def _lines(
    blocks: Sequence[Sequence[Facts]], names: Sequence[str], widths: Sequence[int], gap: int
) -> list[Text]:
    """Return a head and the rows of *blocks*, which stand beside each other."""
    head = Text(no_wrap=True)
    for at in range(len(blocks)):
        _append(head, at, names, widths, gap, ["bold"] * len(names))
    lines = [head]
    for row in range(max(map(len, blocks))):
        line = Text(no_wrap=True)
        for at, block in enumerate(blocks):
            if row < len(block):
                clone = block[row]
                cells = [_COLUMNS[name](clone) for name in names]
                styles = [""] * (len(names) - 1) + [_STYLES.get(clone["shown_state"], "")]
                _append(line, at, cells, widths, gap, styles)
        lines.append(line)
    return lines


def _append(
    line: Text,
    block: int,
    cells: Sequence[str],
    widths: Sequence[int],
    gap: int,
    styles: Sequence[str],
) -> None:
    if block:
        line.append(_BETWEEN, "dim")
    last = len(cells) - 1
    for index, (cell, wide, style) in enumerate(zip(cells, widths, styles, strict=True)):
        line.append(" " * gap if index else "")
        line.append(cell.ljust(wide) if index == last else cell.rjust(wide), style)


def _shortened(count: int) -> str:
    """Return a count of at most five signs; one of less than 100,000 is exact."""
    if count < 100_000:
        return str(count)
    for unit in "kMGT":
        count /= 1000  # type: ignore[assignment]  # it is shown as a decimal from here on
        if count < 999.5:
            return f"{count:.3g}{unit}" if count < 100 else f"{count:.0f}{unit}"
    return f"{count:.0f}T"
