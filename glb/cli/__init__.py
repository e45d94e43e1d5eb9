"""The command line: `glb`, and ``python -m glb``.

Each module owns one noun::

    commands    the commands and their options
    console     output on the terminal
    demo        counted turns
    program     a program that `glb run` starts
    target      an application that `glb serve` imports
    fresh_import, watcher, reload    how and when it is imported afresh

It may import everything of glb, and needs click and rich.
"""

from .commands import cli, main

__all__ = ["cli", "main"]
