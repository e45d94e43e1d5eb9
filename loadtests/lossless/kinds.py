"""Scenarios that are the same with each kind of server, one after another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from .answers import Answer, Promise, Tell
from .load import Load, loaded
from .process import Client, Server
from .words import KINDS

__all__ = ["Found", "Loaded", "OfEachKind", "Pair"]


@dataclass
class Found:
    """What was promised and seen, of all kinds."""

    promises: list[Promise] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)


class Pair:
    """A process of servers, with one of *kind* on *port*, and one of clients."""

    def __init__(self, server: Server, client: Client, kind: str, port: int) -> None:
        self.server: Final = server
        self.client: Final = client
        self.kind: Final = kind
        self.port: Final = port

    @property
    def is_http(self) -> bool:
        return self.kind == "http"


@dataclass(frozen=True)
class OfEachKind(ABC):
    """A scenario that opens a server of each kind, and asks the same of it."""

    name: ClassVar[str]

    clones: int = 4
    hubs: int = 1

    @property
    def steps(self) -> int:
        return len(KINDS)

    def run(self, tell: Tell) -> Answer:
        found = Found()
        with Server() as server, Client() as client:
            for kind, title in KINDS.items():
                tell(f"{self.name}: {title}")
                with self.opened(server, client, kind) as pair:
                    self.ask(pair, title, found)
            self.ask_more(server, client, tell, found)
        return Answer(self.question(), found.promises, found.notes)

    @contextmanager
    def opened(self, server: Server, client: Client, kind: str) -> Iterator[Pair]:
        port = server.ask("open", kind=kind, hubs=self.hubs, **self.options())
        yield Pair(server, client, kind, port)
        server.ask("close")

    def options(self) -> dict[str, Any]:
        """Return what a server is opened with."""
        return {"clones": self.clones}

    @abstractmethod
    def question(self) -> str: ...

    @abstractmethod
    def ask(self, pair: Pair, title: str, found: Found) -> None:
        """Ask it of *pair*, and add what was *found*."""

    def ask_more(  # noqa: B027  # most have nothing more
        self, server: Server, client: Client, tell: Tell, found: Found
    ) -> None:
        """Ask what is not the same of each kind."""


@dataclass(frozen=True)
class Loaded(OfEachKind, ABC):
    """One under a load of *rate* connections/s."""

    rate: float = 500
    #: How long a handler is at work.
    handler_seconds: float = 0.02
    pause_seconds: float = 0.5

    def options(self) -> dict[str, Any]:
        return {**super().options(), "seconds": self.handler_seconds}

    @contextmanager
    def loaded(self, pair: Pair, title: str, found: Found) -> Iterator[Load]:
        """Put the load on it in the block; then add what became of it."""
        with loaded(pair.client, pair.port, self.rate, is_http=pair.is_http) as load:
            yield load
        found.promises += load.promises(title)
        found.notes += load.notes(title)
