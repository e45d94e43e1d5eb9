"""Monkey patching: exact turns for programs that know nothing of glb.

Two lines on top of a program, or ``glb run`` in place of ``python``::

    import glb.monkey
    glb.monkey.patch_all()

Each module owns one noun::

    patch        what is patched, and how it is undone
    sockets      a program's own sockets, which have become clones
    selectors    a program's select, poll and epoll, which are told on their clones' turns

It may import everything of glb but `glb.cli`.
"""

from .patch import get_original, is_patched, patch_all, restore

__all__ = ["get_original", "is_patched", "patch_all", "restore"]
