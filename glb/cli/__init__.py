"""The command line: `glb`, and ``python -m glb``.

Each module owns one noun::

    commands    ``glb``, ``glb demo`` and ``glb run``
    serve       ``glb serve``, and the server that it starts
    settings    its options, each with its sources
    page        its page without a target
    service     its servers, from their start to their end
    binds       its addresses, and their listeners
    supervisor  its state for systemd, and its pid file
    access_log  its line for each request
    privileges  the user and group that it becomes
    console     the terminal
    clone_table, live  the table of clones, while they serve
    top, source  the same of another process
    demo        turns, counted
    program     a program that `glb run` starts
    hints       a line for a program that gets nothing by it
    target      an application that `glb serve` imports, and imports afresh
    fresh_import, watcher, reload    how it does, and when

It may import everything of glb, and needs click and rich (and, on Python 3.10, tomli).
"""

from .commands import cli, main

__all__ = ["cli", "main"]
