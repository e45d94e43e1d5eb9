"""Servers seen from outside: their health, their clones and their metrics over HTTP.

`Admin` answers on a hub thread of its own, so that it answers while every hub of the servers is
stuck. It is off unless a program, or ``glb serve --admin``, makes one.

This package may import everything but `glb.cli`.
"""

from __future__ import annotations

from .server import Admin

__all__ = ["Admin"]
