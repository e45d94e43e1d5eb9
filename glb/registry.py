"""The registry's public face: `entries` tells which addresses are open.

The registry itself is `glb.accept.registry`.
"""

from .accept.registry import REGISTRY, Entry, Registry, Share, entries

__all__ = ["REGISTRY", "Entry", "Registry", "Share", "entries"]
