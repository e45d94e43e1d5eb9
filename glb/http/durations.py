"""Durations: a histogram of how long requests take, as OpenTelemetry defines it.

Each thread counts in a table of its own, without a lock. A reader adds the tables up.

Source: OpenTelemetry's semantic conventions for HTTP metrics, ``http.server.request.duration``.
"""

from __future__ import annotations

from typing import Final

from ..originals import native_ident

__all__ = ["BOUNDS", "Durations", "Table", "counts_of"]

#: The upper ends of all buckets but the last, in seconds, as the conventions advise.
BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

# A client may make up any method, and each would be a time series for ever.
_METHODS: Final = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
)
_OTHER_METHOD: Final = "_OTHER"

#: By status and method: the sum of the requests' seconds, and how many fell into each bucket.
Table = dict[int, dict[str, list[float]]]


def counts_of(table: Table, method: str, code: int | None) -> list[float]:
    """Return the counts of requests with this method and status, and add them to *table*.

    Args:
        table: One that has no counts by these names.
        method: Counts as ``_OTHER`` if HTTP doesn't define it.
        code: The status; negative if the reply was cut off. ``None`` or 101, for a connection that
            has left HTTP, get counts that are in no table, as a websocket's time is no request's.
    """
    if code is None or code == 101:
        return _new_counts()
    code = abs(code)
    method = method if method in _METHODS else _OTHER_METHOD
    return table.setdefault(code, {}).setdefault(method, _new_counts())


def _new_counts() -> list[float]:
    return [0.0, *[0] * (len(BOUNDS) + 1)]


class Durations:
    """The durations of a server's requests."""

    def __init__(self) -> None:
        self._tables: Final[dict[int, Table]] = {}

    def table_here(self) -> Table:
        """Return the table of this thread, which alone may write there."""
        return self._tables.setdefault(native_ident(), {})

    def total(self) -> dict[tuple[str, int], list[float]]:
        """Return the sums of all threads, by method and status. From any thread."""
        found: dict[tuple[str, int], list[float]] = {}
        for table in self._tables.copy().values():
            for code, methods in table.copy().items():
                for method, counts in methods.copy().items():
                    key = (method, code)
                    before = found.get(key, _new_counts())
                    found[key] = [one + other for one, other in zip(before, counts, strict=True)]
        return found
