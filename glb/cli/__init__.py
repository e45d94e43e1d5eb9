"""The command line: `glb`, and ``python -m glb``.

Each module owns one noun::

    commands    what people type
    serve       ``glb serve``, and the server that it starts
    settings    where the values of its options come from
    page        what it serves without a target
    service     its servers, from their start to their end
    binds       what --bind says, and the listeners that come of it
    supervisor  what systemd and a pid file learn of the service
    access_log  what it writes of requests
    privileges  the user and group that it becomes
    console     what they see
    clone_table, live  the table of clones, while they serve
    top, source  the same of another process
    demo        turns, counted
    program     a program that `glb run` starts
    hints       what it says of one that gets nothing by it
    target      an application that `glb serve` imports, and imports afresh
    fresh_import, watcher, reload    how it does, and when

It may import everything of glb, and needs click and rich (and, on Python 3.10, tomli).
"""

from .commands import cli, main

__all__ = ["cli", "main"]
