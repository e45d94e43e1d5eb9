"""The built-in page, which ``glb serve`` serves without a target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..model.stats import CloneStats

__all__ = ["page"]


def page(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Tell which clone answers, and what all of them have done."""
    clone = environ["glb.clone"]
    lines = [f"Clone {clone} answers, one of {clone.server.clones}.", ""]
    for row in (CloneStats._fields, *clone.server.clone_stats()):
        lines.append("".join(f"{cell!s:>11}" for cell in (*row[:5], row[7], row[6])))
    body = "\n".join([*lines, ""]).encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        # Turns are taken by connections: so that each reload shows the next one.
        ("Connection", "close"),
    ]
    start_response("200 OK", headers)
    return [body]
