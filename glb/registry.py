"""The registry's public face: `entries` returns the open addresses.

The registry itself is `glb.accept.registry`.
"""

from .accept.registry import REGISTRY, Entry, Registry, Share, entries

__all__ = ["REGISTRY", "Entry", "Registry", "Share", "entries"]
