"""Metrics: what servers count, in the form that Prometheus reads.

The values are read when Prometheus asks. The meaning of each name stands beside it; the text format
is prometheus_client's.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from ..http.durations import BOUNDS
from .view import SHOWN_STATES, ServerView

__all__ = ["Metrics"]

_CLONE = ("address", "clone", "hub")
_HUB = ("address", "hub")


class Metrics:
    """The metrics of some servers, and of their process.

    Args:
        views: Returns a view of each server.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, views: Callable[[], Iterable[ServerView]]) -> None:
        self._views = views
        self._registry = CollectorRegistry()
        self._registry.register(self)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)

    def text(self) -> bytes:
        """Return all of them, as Prometheus reads them."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        # The registry calls it at registration, in place of `collect`.
        return []

    def collect(self) -> Iterator[Metric]:
        views = [*_told_apart(self._views())]
        yield from _of_clones(views)
        yield from _of_hubs(views)
        yield _durations(views)
        depth = GaugeMetricFamily(
            "glb_accept_queue_depth", "Connections that wait to be accepted.", labels=("address",)
        )
        limit = GaugeMetricFamily(
            "glb_accept_queue_limit",
            "Connections that may wait to be accepted.",
            labels=("address",),
        )
        pauses = CounterMetricFamily(
            "glb_accept_pauses",
            "How often nothing was accepted for a while.",
            labels=("address", "reason"),
        )
        for view in views:
            for reason, count in view.pauses.items():
                pauses.add_metric([view.address, reason], count)
            if view.queue is not None:
                depth.add_metric([view.address], view.queue.depth)
                limit.add_metric([view.address], view.queue.limit)
        yield depth
        yield limit
        yield pauses


def _told_apart(views: Iterable[ServerView]) -> Iterator[ServerView]:
    """Yield *views*; where servers share an address, the later ones have a number behind it."""
    seen: Counter[str] = Counter()
    for view in views:
        seen[view.address] += 1
        number = seen[view.address]
        yield view if number == 1 else replace(view, address=f"{view.address} ({number})")


def _of_clones(views: list[ServerView]) -> Iterator[Metric]:
    counters: dict[str, Any] = {
        name: CounterMetricFamily(f"glb_connections_{name}", text, labels=_CLONE)
        for name, text in {
            "accepted": "Connections that the clone was given.",
            "completed": "Connections whose handler returned.",
            "failed": "Connections whose handler raised, was killed, or could not be spawned.",
        }.items()
    }
    active = GaugeMetricFamily(
        "glb_connections_active", "Connections for which a handler runs.", labels=_CLONE
    )
    state = GaugeMetricFamily(
        "glb_clone_state", "1 for the state that the clone is in.", labels=(*_CLONE, "state")
    )
    for view in views:
        for clone in view.clones:
            labels = [view.address, str(clone.index), str(clone.hub)]
            for name, family in counters.items():
                family.add_metric(labels, getattr(clone, name))
            active.add_metric(labels, clone.active)
            shown, _ = view.shown(clone)
            for each in SHOWN_STATES:
                state.add_metric([*labels, each], float(shown == each))
    yield from counters.values()
    yield active
    yield state


def _of_hubs(views: list[ServerView]) -> Iterator[Metric]:
    lag = GaugeMetricFamily(
        "glb_hub_lag_seconds", "Seconds that the hub takes to answer.", labels=_HUB
    )
    stalls = CounterMetricFamily(
        "glb_hub_stalls", "How often the hub did not answer for the stall limit.", labels=_HUB
    )
    taken_back = CounterMetricFamily(
        "glb_connections_taken_back",
        "Connections that another hub got, as this one had not begun them in time.",
        labels=_HUB,
    )
    timeouts = CounterMetricFamily(
        "glb_timeouts",
        "How often the time of a client, or of a request, was over.",
        labels=(*_HUB, "kind"),
    )
    for view in views:
        for index, pulse in enumerate(view.pulses):
            lag.add_metric([view.address, str(index)], pulse.lag)
            stalls.add_metric([view.address, str(index)], pulse.stalls)
        for index, count in enumerate(view.taken_back):
            taken_back.add_metric([view.address, str(index)], count)
        for index, kinds in enumerate(view.timeouts):
            for kind, count in kinds.items():
                timeouts.add_metric([view.address, str(index), kind], count)
    yield from (lag, stalls, taken_back, timeouts)


def _durations(views: list[ServerView]) -> Metric:
    found = HistogramMetricFamily(
        "http_server_request_duration_seconds",
        "How long requests took, from the end of the head to the end of the reply.",
        labels=("address", "http_request_method", "http_response_status_code"),
    )
    bounds = [*map(str, BOUNDS), "+Inf"]
    for view in views:
        for (method, code), counts in view.durations.items():
            seconds, *counted = counts
            buckets = [*zip(bounds, itertools.accumulate(counted), strict=True)]
            found.add_metric([view.address, method, str(code)], buckets, seconds)
    return found
