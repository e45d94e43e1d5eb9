"""Programs: run one as ``python`` would, in a process that is set up already.

A `Program` gets a fresh ``__main__``, and ``sys.argv`` and ``sys.path`` as it expects them. Its
exceptions have a traceback that begins in the program, and end the process as usual: with status
1, their own status, or the signal of an interrupt.

Source: the documentation of ``runpy``, and of the interpreter's command line. ``runpy`` itself
removes its ``__main__`` again when the program's first thread has ended, while others need it.
"""

from __future__ import annotations

import importlib.util
import io
import os
import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import BuiltinImporter, SourceFileLoader, SourcelessFileLoader
from types import CodeType, ModuleType, TracebackType
from typing import Any, Final

__all__ = ["Program", "ProgramNotFoundError"]

MAIN: Final = "__main__"


class ProgramNotFoundError(Exception):
    """There is no such program. The text says which; the status is python's own."""

    def __init__(self, text: str, status: int = 2) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Program:
    """A program to run.

    Attributes:
        target: A file, a directory or archive with a ``__main__.py``, ``-`` for stdin, or a
            module's name.
        args: The rest of ``sys.argv``.
        is_module: True if *target* is a module's name.
    """

    target: str
    args: Sequence[str]
    is_module: bool

    def run(self) -> None:
        """Run it, in this thread. Once a process: its ``__main__`` stays.

        Raises:
            ProgramNotFoundError: There is no such program, or it can't be read.
            BaseException: The program's own. ``sys.excepthook`` gets it with a traceback that
                begins in the program.
        """
        try:
            _run(*(self._find_module() if self.is_module else self._find_file()))
        except (SystemExit, ProgramNotFoundError):
            raise
        except BaseException as error:
            _hide_our_frames(error)
            raise

    def _find_file(self) -> tuple[CodeType, str | None, Any, Any]:
        if self.target == "-":
            self._set_up("-", "")
            source = sys.stdin.buffer.read()
            script = compile(source, "<stdin>", "exec", dont_inherit=True)
            return script, "<stdin>", BuiltinImporter, None
        path = os.path.join(os.getcwd(), self.target)  # with its dots, as python has it
        importer: Any = pkgutil.get_importer(os.path.abspath(path))
        if importer is not None:
            path = os.path.abspath(path)
            self._set_up(self.target, path)
            spec = importer.find_spec(MAIN)
            if spec is None:
                raise ProgramNotFoundError(f"can't find {MAIN!r} module in {path!r}", status=1)
            return spec.loader.get_code(MAIN), spec.origin, spec.loader, spec
        try:
            with io.open_code(path) as file:
                source = file.read()
        except OSError as error:
            raise ProgramNotFoundError(f"can't open file {path!r}: {error.strerror}") from None
        self._set_up(self.target, os.path.dirname(os.path.realpath(path)))
        if source.startswith(importlib.util.MAGIC_NUMBER):
            compiled = SourcelessFileLoader(MAIN, path)
            code = compiled.get_code(MAIN)
            assert code is not None, "it raises if there is none"
            return code, path, compiled, None
        loader = SourceFileLoader(MAIN, path)
        return compile(source, path, "exec", dont_inherit=True), path, loader, None

    def _find_module(self) -> tuple[CodeType, str | None, Any, Any]:
        name = self.target
        if name.startswith("."):
            raise ProgramNotFoundError(f"a module's name must not be relative: {name!r}", status=1)
        self._set_up("-m", os.getcwd())
        try:
            spec = importlib.util.find_spec(name)
            if spec is not None and spec.submodule_search_locations is not None:
                spec = importlib.util.find_spec(f"{name}.{MAIN}")
        except ModuleNotFoundError as error:
            # A module that its package needs is missing: the program's own error.
            if error.name is None or not f"{name}.{MAIN}.".startswith(f"{error.name}."):
                raise
            spec = None
        loader: Any = None if spec is None else spec.loader
        get_code = getattr(loader, "get_code", None)
        code = None if spec is None or get_code is None else get_code(spec.name)
        if spec is None or code is None:
            raise ProgramNotFoundError(f"no module named {name!r} could be run", status=1)
        sys.argv[0] = spec.origin or name
        return code, spec.origin, loader, spec

    def _set_up(self, argument: str, first_path: str) -> None:
        sys.argv[:] = [argument, *self.args]
        # It has the directory of the script that started this process, unless an option forbids it.
        if not getattr(sys.flags, "safe_path", sys.flags.isolated):
            sys.path[0] = first_path


def _run(code: CodeType, file: str | None, loader: Any, spec: Any) -> None:
    main = ModuleType(MAIN)
    if sys.version_info < (3, 14):  # later ones make them when needed
        main.__annotations__ = {}
    if sys.version_info < (3, 15):
        vars(main)["__cached__"] = None if spec is None else spec.cached
    vars(main).update(
        __builtins__=sys.modules["builtins"],
        __file__=file,
        __loader__=loader,
        __package__=None if spec is None else spec.parent,
        __spec__=spec,
    )
    # It stays: threads, and modules that import __main__, need it until the process ends.
    sys.modules[MAIN] = main
    if file is None:
        del main.__file__
    exec(code, vars(main))  # noqa: S102  # what else is a program for


def _hide_our_frames(error: BaseException) -> None:
    """Have ``sys.excepthook`` get *error* with the program's frames alone."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    hook = getattr(sys, "excepthook", None)
    if hook is None:
        return  # then the interpreter says so

    def report(kind: Any, value: BaseException, whole: TracebackType | None) -> None:
        sys.excepthook = hook
        if value is error:
            value.__traceback__ = whole = trace
        hook(kind, value, whole)

    sys.excepthook = report
