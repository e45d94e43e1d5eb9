"""The plan: how much of everything, for both processes."""

from __future__ import annotations

import enum
import json
from dataclasses import asdict, dataclass
from typing import Final

__all__ = ["Kind", "Plan"]

#: What a connection is held for, on the average of all behaviours, in seconds: as measured, with
#: the default rate. Limits come from it, so that they are met now and then.
MEAN_HOLD_SECONDS: Final = 0.2


class Kind(enum.Enum):
    """What is spoken at an address."""

    STREAM = "stream"
    HTTP = "http"


@dataclass(frozen=True)
class Plan:
    """The options of the command.

    Attributes:
        seconds: For how long clients come.
        rate: How many do, a second, at all addresses together.
        clones: How many clones a server begins with.
        kinds: What is spoken, by the names of `Kind`; each has an address.
        policy: Which ready clone is next, by the names of `glb.model.policy.Policy`.
        actions: Whether anything is done to the servers.
    """

    seconds: float = 60.0
    rate: float = 150.0
    clones: int = 4
    hubs: int = 1
    kinds: tuple[str, ...] = ("stream", "http")
    seed: int = 0
    policy: str = "round_robin"
    actions: bool = True

    @property
    def room(self) -> int:
        """How many connections a server with a limit takes at once, about."""
        return max(8, round(1.5 * MEAN_HOLD_SECONDS * self.rate / len(self.kinds)))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        found = json.loads(text)
        return cls(**{**found, "kinds": tuple(found["kinds"])})
