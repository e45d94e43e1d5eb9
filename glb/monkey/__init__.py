"""Monkey patching: exact turns for programs that know nothing of glb.

Two lines on top of a program, or ``glb run`` in place of ``python``::

    import glb.monkey
    glb.monkey.patch_all()

Each module owns one noun::

    patch        what is replaced, and how that is undone
    sockets      shared sockets: a program's own that have become clones
    selectors    select, poll and epoll, in which a clone is readable on its turn

It may import everything of glb but `glb.cli`.
"""

from .patch import get_original, is_patched, patch_all, restore

__all__ = ["get_original", "is_patched", "patch_all", "restore"]
