"""The balance as a picture: the turns of each clone, and their course.

`draw` is a pure function, and its SVG has neither ids nor styles for a whole page: many of them may
stand in one page. Text has the colour of what is around it.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from html import escape as escape_html
from typing import Final

from .measure import Clone, CloneFigures, Figures, Sample

__all__ = ["LEAST_WIDTH", "MOST_WIDTH", "NO_TURNS", "WIDTH", "draw"]

NO_TURNS: Final = "no reply told which clone gave it"

# Okabe and Ito's colours, which colour-blind readers can distinguish; without their black, which is
# text, and with a darker yellow on white, and a lighter blue on black.
ON_LIGHT: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#a89a00")
ON_DARK: Final = ("#4aa3e0", "#e69f00", "#00b985", "#e08fbd", "#9ad4f7", "#f0742a", "#f0e442")

# A clone has a few pixels of the width: more of them would be a grey area.
MOST_CLONES: Final = 128
# The picture is fetched every two seconds: so many points, of all lines, are about 50 kB of it.
MOST_POINTS: Final = 4000
MOST_POINTS_A_LINE: Final = 120
MOST_IN_LEGEND: Final = 16
# More lines would cover each other.
MOST_NESTED: Final = 8

# Workers report every 3 seconds, and a master takes a sample every second: so a rate is one of 3
# samples. Half a second less, as none of them is on time to the millisecond.
RATE_SECONDS: Final = 2.5
# A shorter time without news means that no worker has reported, and not that no client was served.
STALL_SECONDS: Final = 4.0
# The rate of less is noise.
LEAST_SECONDS: Final = 0.5

#: As wide as a page that doesn't say how wide it is, and the least and most that it may be.
WIDTH: Final = 900
LEAST_WIDTH: Final = 320
MOST_WIDTH: Final = 4000
LEFT: Final = 70
RIGHT: Final = 16
HEAD: Final = 62
BARS_HEIGHT: Final = 150
LINES_HEIGHT: Final = 130
# About what a digit or a letter of Roboto is wide and high, of its size.
LETTER_WIDTH: Final = 0.56
LETTER_HEIGHT: Final = 1.1
SMALL: Final = 11

# What no XML may have, not even escaped; a server may call its clone so.
_UNSPEAKABLE: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def draw(
    figures: Figures, history: Sequence[Sample], *, is_dark: bool = False, width: int = WIDTH
) -> str:
    """Return an SVG: turns of each clone as bars, and turns per second of each as lines.

    Args:
        figures: What to draw; of very many clones the first `MOST_CLONES`.
        history: Samples, oldest first.
        is_dark: Whether it is to stand on black.
        width: How many pixels wide; it grows and shrinks with what it stands in.
    """
    if not figures.clones:
        words = _text(width / 2, 50, NO_TURNS, size=16, anchor="middle")
        return _svg(width, 90, NO_TURNS, words)
    palette, ground = (ON_DARK, "#121212") if is_dark else (ON_LIGHT, "#fff")
    clones = figures.clones[:MOST_CLONES]
    share = figures.turns / len(figures.clones)
    bars, bottom = _bars(clones, share, palette, ground, width)
    legend, bottom = _legend(clones, bottom + 26, palette, width)
    if len(clones) < len(figures.clones):
        bottom += 20
        words = f"the first {len(clones)} of {_count(len(figures.clones))} clones"
        legend += _text(LEFT, bottom, words, opacity=0.7)
    lines, bottom = _lines(clones, history, bottom + 44, palette, width)
    return _svg(width, bottom, _label(figures, share), _head(share) + bars + legend + lines)


def _head(share: float) -> str:
    """Return the title, and the key to the line across the bars."""
    return (
        _text(LEFT, 26, "Turns of each clone", size=15)
        + _line(LEFT, 44, LEFT + 26, 44, dashes="6 4", width=1.5)
        + _text(LEFT + 34, 48, f"exact share: {_count(share)}")
    )


def _bars(
    clones: Sequence[CloneFigures], share: float, palette: Sequence[str], ground: str, width: int
) -> tuple[str, float]:
    slot = (width - LEFT - RIGHT) / len(clones)
    thick = min(slot * 0.8, 72)
    top, step = _scale(max(share, *(each.turns for each in clones)), whole=True)
    numbers = _Captions([_count(each.turns) for each in clones], slot)
    names = _Captions([_short(each.clone) for each in clones], slot)
    ceiling = HEAD + (numbers.height if numbers.step == 1 else 0)
    floor = ceiling + BARS_HEIGHT
    out = [_grid(top, step, ceiling, BARS_HEIGHT, width)]
    above = []
    for index, each in enumerate(clones):
        middle = LEFT + slot * (index + 0.5)
        tall = BARS_HEIGHT * each.turns / top
        out.append(
            f'<rect class="glb-clone" data-clone="{_escape(str(each.clone))}" '
            f'data-turns="{each.turns}" x="{_n(middle - thick / 2)}" y="{_n(floor - tall)}" '
            f'width="{_n(thick)}" height="{_n(tall)}" fill="{palette[index % len(palette)]}">'
            f"<title>{_escape(_title_of(each, share))}</title></rect>"
        )
        if numbers.step == 1:
            above.append(numbers.above(middle, floor - tall - 5, _count(each.turns)))
        if index % names.step == 0:
            out.append(names.below(middle, floor + 6, _short(each.clone)))
    level = floor - BARS_HEIGHT * share / top
    out.append(_line(LEFT, level, width - RIGHT, level, dashes="6 4", width=1.5))
    # Read across that line too.
    out.append(f'<g stroke="{ground}" stroke-width="3" paint-order="stroke">{"".join(above)}</g>')
    return "".join(out), floor + 6 + names.height


def _legend(
    clones: Sequence[CloneFigures], top: float, palette: Sequence[str], width: int
) -> tuple[str, float]:
    """Return the colours' names, in as many rows as it takes."""
    if len(clones) > MOST_IN_LEGEND:
        words = f"{len(clones)} clones: point at a bar or a line for its name"
        return _text(LEFT, top, words, opacity=0.7), top
    out, x = [], float(LEFT)
    for index, each in enumerate(clones):
        name = f"clone {_short(each.clone)}"
        wide = 18 + len(name) * SMALL * LETTER_WIDTH + 18
        if x + wide > width and x > LEFT:
            x, top = float(LEFT), top + 18
        colour = palette[index % len(palette)]
        out.append(
            f'<rect x="{_n(x)}" y="{_n(top - 9)}" width="11" height="11" rx="2" fill="{colour}"/>'
            + _text(x + 16, top, name)
        )
        x += wide
    return "".join(out), top


def _lines(
    clones: Sequence[CloneFigures],
    history: Sequence[Sample],
    top: float,
    palette: Sequence[str],
    width: int,
) -> tuple[str, float]:
    inner = width - LEFT - RIGHT
    out = [_text(LEFT, top, "Turns per second", size=15)]
    top += 22
    floor = top + LINES_HEIGHT
    times, rates = _rates([each.clone for each in clones], history)
    if len(times) < 2:
        words = "a few seconds more, and there is a rate to draw"
        return out[0] + _text(LEFT, top, words, opacity=0.7), top + 16
    most, step = _scale(max(max(each) for each in rates))
    began, ended = times[0], times[-1]
    out.append(_grid(most, step, top, LINES_HEIGHT, width))
    xs = [LEFT + inner * (each - began) / (ended - began) for each in times]
    # Where turns are exact all lines are one. So the first is wide, and each that lies on it
    # narrower: all are seen.
    more = min(2.0, 7 / max(len(clones) - 1, 1)) if len(clones) <= MOST_NESTED else 0
    for index, (each, line) in enumerate(zip(clones, rates, strict=True)):
        points = " ".join(
            f"{_n(x)},{_n(floor - LINES_HEIGHT * rate / most)}"
            for x, rate in zip(xs, line, strict=True)
        )
        thick = 1.5 + more * (len(clones) - 1 - index)
        # The same colour comes again after seven: then it has dashes.
        again = index // len(palette)
        dashes = f' stroke-dasharray="{2 + 4 * (again % 3)} 3"' if again else ""
        out.append(
            f'<polyline points="{points}" fill="none" stroke="{palette[index % len(palette)]}" '
            f'stroke-width="{_n(thick)}" stroke-linejoin="round"{dashes}>'
            f"<title>clone {_escape(str(each.clone))}: {_count(line[-1])} turns per second at last"
            "</title></polyline>"
        )
    for seconds in _ticks(began, ended):
        x = LEFT + inner * (seconds - began) / (ended - began)
        out.append(_text(x, floor + 18, f"{_count(seconds)} s", anchor="middle", opacity=0.7))
    return "".join(out), floor + 30


def _rates(
    clones: Sequence[Clone], history: Sequence[Sample]
) -> tuple[list[float], list[list[float]]]:
    """Return points in time, and for each clone its turns per second then."""
    history = [*_news(history)]
    points = max(2, min(MOST_POINTS_A_LINE, MOST_POINTS // len(clones)))
    step = max(1, math.ceil(len(history) / points))
    ends = range((len(history) - 1) % step, len(history), step)  # with the last
    seconds = [each.seconds for each in history]
    times: list[float] = []
    rates: list[list[float]] = [[] for _ in clones]
    last = 0
    for end in ends:
        now = seconds[end]
        # Thinned out, what is left out counts: a rate is one since the point before.
        start = min(max(bisect_right(seconds, now - RATE_SECONDS, 0, end) - 1, 0), last)
        passed, last = now - seconds[start], end
        if passed < LEAST_SECONDS:
            continue
        before, after = history[start].turns, history[end].turns
        times.append(now)
        for clone, line in zip(clones, rates, strict=True):
            # Counts that were reset have a sample of before.
            line.append(max(after.get(clone, 0) - before.get(clone, 0), 0) / passed)
    return times, rates


def _news(history: Sequence[Sample]) -> Iterator[Sample]:
    """Leave out samples equal to the one before, unless that is old."""
    kept = None
    for each in history:
        if kept is None or each.turns != kept.turns or each.seconds - kept.seconds >= STALL_SECONDS:
            kept = each
            yield each


class _Captions:
    """How words over or under slots of *slot* pixels are set: level, upright, or some of them."""

    def __init__(self, words: Sequence[str], slot: float) -> None:
        longest = max(map(len, words))
        self.is_upright = longest * SMALL * LETTER_WIDTH > slot - 3
        self.size = float(SMALL)
        self.height = self.size
        #: Every how many have room.
        self.step = 1
        if self.is_upright:
            self.size = min(self.size, max(slot / LETTER_HEIGHT, 8))
            self.height = longest * self.size * LETTER_WIDTH
            self.step = math.ceil(self.size * LETTER_HEIGHT / slot)

    def above(self, x: float, y: float, words: str) -> str:
        """Return what ends at *y*."""
        return self._set(x, y, words, "start" if self.is_upright else "middle")

    def below(self, x: float, y: float, words: str) -> str:
        """Return what begins at *y*."""
        return self._set(
            x,
            y if self.is_upright else y + self.size,
            words,
            "end" if self.is_upright else "middle",
        )

    def _set(self, x: float, y: float, words: str, anchor: str) -> str:
        if not self.is_upright:
            return _text(x, y, words, anchor=anchor)
        return _text(x + self.size * 0.36, y, words, anchor=anchor, size=self.size, turn=-90)


def _label(figures: Figures, share: float) -> str:
    """Return the picture in words, for screen readers."""
    turns = [each.turns for each in figures.clones]
    return (
        f"Turns of {_count(len(turns))} clones: {_count(min(turns))} to {_count(max(turns))}, "
        f"exact share {_count(share)}, Jain's index {figures.jain:.4f}, "
        f"spread {_count(figures.spread)}"
    )


def _title_of(each: CloneFigures, share: float) -> str:
    off = each.turns - share
    return (
        f"clone {each.clone}: {_count(each.turns)} turns, "
        f"{'+' if off > 0 else ''}{_count(off)} off an exact share; "
        f"{_count(each.replies)} replies, {_count(each.failures)} failures, "
        f"p50 {_count(each.p50_ms)} ms, p99 {_count(each.p99_ms)} ms"
    )


def _scale(most: float, *, whole: bool = False) -> tuple[float, float]:
    """Return where an axis ends, which is never 0, and how far its lines are from each other."""
    most = max(most, 1.0 if whole else 0.1)
    rough = most / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * n for n in (1, 2, 2.5, 5, 10) if unit * n >= rough * (1 - 1e-9))
    if whole:
        step = max(1.0, math.ceil(step))
    return step * math.ceil(most / step - 1e-9), step


def _ticks(began: float, ended: float) -> Iterator[float]:
    """Yield about six round points in time."""
    rough = max((ended - began) / 6, 1.0)
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
    step = next((n for n in steps if n >= rough), math.ceil(rough / 3600) * 3600)
    for n in range(math.ceil(began / step), math.floor(ended / step) + 1):
        yield n * step


def _grid(top: float, step: float, y: float, height: float, width: int) -> str:
    out = []
    for n in range(round(top / step) + 1):
        level = y + height - height * n * step / top
        out.append(_line(LEFT, level, width - RIGHT, level, opacity=0.4 if n == 0 else 0.12))
        out.append(_text(LEFT - 8, level + 4, _count(n * step), anchor="end", opacity=0.7))
    return "".join(out)


def _line(
    x: float,
    y: float,
    to_x: float,
    to_y: float,
    *,
    opacity: float = 1.0,
    width: float = 1.0,
    dashes: str = "",
) -> str:
    return (
        f'<line x1="{_n(x)}" y1="{_n(y)}" x2="{_n(to_x)}" y2="{_n(to_y)}" stroke="currentColor" '
        f'stroke-width="{_n(width)}"'
        + (f' stroke-dasharray="{dashes}"' if dashes else "")
        + (f' stroke-opacity="{opacity}"' if opacity < 1 else "")
        + "/>"
    )


def _text(
    x: float,
    y: float,
    words: str,
    *,
    size: float = SMALL,
    anchor: str = "start",
    opacity: float = 1.0,
    turn: int = 0,
) -> str:
    return (
        f'<text x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}"'
        + (f' text-anchor="{anchor}"' if anchor != "start" else "")
        + (f' opacity="{opacity}"' if opacity < 1 else "")
        + (f' transform="rotate({turn} {_n(x)} {_n(y)})"' if turn else "")
        + f">{_escape(words)}</text>"
    )


def _svg(width: int, height: float, label: str, body: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_n(height)}" role="img" '
        f'aria-label="{_escape(label)}" fill="currentColor" '
        'font-family="Roboto, Helvetica, Arial, sans-serif" '
        f'style="display:block;width:100%;height:auto">{body}</svg>'
    )


def _escape(words: str) -> str:
    """Return *words* as XML can say them."""
    return escape_html(_UNSPEAKABLE.sub("\N{REPLACEMENT CHARACTER}", words))


def _short(clone: Clone) -> str:
    """Return its name, of which a bar has room."""
    name = str(clone)
    return name if len(name) <= 14 else f"{name[:13]}…"


def _count(number: float) -> str:
    """Return a number for people: whole ones as they are, others to two places."""
    return f"{number:,.2f}".rstrip("0").rstrip(".")


def _n(number: float) -> str:
    """Return a coordinate."""
    return f"{number:.1f}".removesuffix(".0")
