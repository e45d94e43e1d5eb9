"""The greenlet pool's public face: `PROOF` says if handlers run in recycled greenlets here.

The pool itself is `glb.hubs.greenlet_pool`.
"""

from .hubs.greenlet_pool import PROOF

__all__ = ["PROOF"]
