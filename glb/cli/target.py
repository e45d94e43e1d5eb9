"""Targets: the callable that ``glb serve`` serves, and its module as it is imported afresh.

A `Target` imports its module, and imports it *afresh* when asked to: the project's modules get
new module objects, so that what still runs in the old ones keeps their globals. A reload that
fails leaves the modules as they were. A `glb.cli.watcher.Watcher` says when their files have
changed.

The *project* is the modules below the current directory, without installed packages, and the
target's own package wherever it is. The rest is imported once: libraries, compiled modules, modules
that were imported before the target, glb and gevent.

A reload can't undo what the project's modules have started, opened or registered elsewhere. A
library that keeps a program's functions by name goes on with the old ones (Django keeps its views
so, and is refused). A library that takes each name once refuses the new ones.
An import in the body of a function finds the newest module, also if the function is an old one.

Imports happen in the calling greenlet, as the first one did. Its hub runs nothing else
meanwhile, unless a module waits. A thread would not do: a module may patch, or make locks.

Source: ``importlib.reload`` runs the new source in the *old* module's namespace, so it is not used.
Its bytecode is matched by the source's second and size: see `glb.cli.fresh_import.SourceLoader`.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import (
    ExtensionFileLoader,
)
from types import ModuleType
from typing import Any, Final

from gevent import GreenletExit

from . import fresh_import
from .fresh_import import MISSING, Bound, Finder, Project, attribute_of, file_of

__all__ = ["Target", "TargetError", "is_wsgi_by_arguments"]

#: Tried in turn when a target is a module alone: WSGI's name, and Flask's.
DEFAULT_ATTRIBUTES: Final = ("application", "app")

#: What Django's applications come from, and no library beside it needs.
DJANGOS_SERVER: Final = "django.core.handlers.wsgi"

#: Modules that must not be there twice: this package's, and the hub's own.
NEVER_AFRESH: Final = {"__main__", "__mp_main__", __name__.partition(".")[0], "gevent"}


class TargetError(Exception):
    """It can't be served: the text, one line, says why."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))


class Target:
    """A callable, by its name, that can be imported again and again.

    One `load` or `reload` at a time: callers in several greenlets see to that themselves.

    Args:
        name: ``module:callable``, where the callable may have dots; ``module:factory()`` for what
            the factory returns, each time; or ``module`` for its ``application`` or ``app``.
        is_wsgi: Whether it is a WSGI application, not a handler of (socket, address). None
            means that its arguments tell.

    Raises:
        TargetError: That is no such name.
    """

    def __init__(self, name: str, is_wsgi: bool | None = None) -> None:
        self.name: Final = name
        self._module_name, colon, path = name.partition(":")
        self._path: Final = path.removesuffix("()")
        self._is_factory: Final = path.endswith("()")
        if not self._module_name or (colon and not self._path):
            raise TargetError(f"target must be module:callable, got {name!r}")
        file = self._module_name
        if os.sep in file or (file.endswith(".py") and os.path.isfile(file)):
            right = f"{_module_of(file)}{colon}{path}"
            raise TargetError(f"target must name a module, not a file, got {name!r}: write {right}")
        if "(" in self._path:
            raise TargetError(
                f"a factory is called without arguments, got {name!r}: write"
                f" {self._module_name + ':' + self._path.partition('(')[0] + '()'!r}"
            )
        self._is_given: Final = is_wsgi is not None
        self._is_wsgi = bool(is_wsgi)
        self._is_djangos = False
        self._before: dict[str, ModuleType] = {}
        self._package = self._module_name
        self._project = Project(os.getcwd())
        self._finder: Final = Finder(self.is_own_file)

    @property
    def is_wsgi(self) -> bool:
        """Whether it is a WSGI application; known once it is loaded, and the same ever after."""
        return self._is_wsgi

    def load(self) -> Callable[..., Any]:
        """Import the module, from the current directory on, and return the callable.

        Raises:
            TargetError: The module can't be imported or has no such callable, or what that is
                isn't known. The project's modules are gone again.
            KeyboardInterrupt, GreenletExit: As they are, since they may come from outside. The
                modules are gone, too.
        """
        folder = os.getcwd()
        self._project = Project(folder)
        self._before = sys.modules.copy()
        sys.path.insert(0, folder)
        with self._undone_on_failure({}):
            with self._told(f"can't import {self._module_name!r}: "):
                found = importlib.import_module(self._module_name)
            handle = self._find(found)
            if not self._is_given:
                self._is_wsgi = is_wsgi_by_arguments(handle, self.name)
        # Also below what a project wraps around its application.
        self._is_djangos = type(handle).__module__.startswith("django.") or (
            DJANGOS_SERVER in sys.modules and DJANGOS_SERVER not in self._before
        )
        self._package = self._find_package()
        return handle

    def check_reload(self) -> None:
        """Check, once it is loaded, that it can be reloaded at all.

        Raises:
            TargetError: It can't: it is of a framework that keeps what it has imported.
        """
        if self._is_djangos:
            raise TargetError(
                "Django keeps the views that it has imported: SIGUSR2 starts a new process"
            )

    def reload(self) -> Callable[..., Any]:
        """Import the project's modules afresh, from their sources, and return the new callable.

        The old callable works on as before.

        Raises:
            TargetError: For a reason of `load`'s, or the new one is of the other kind. All of
                the project's modules are the old ones. Libraries that were imported meanwhile
                stay: other modules may use them, and some can't be loaded twice.
            KeyboardInterrupt, GreenletExit: As they are. All modules are the old ones, too.

        *Switches* if the modules do so as they are imported. A greenlet that is killed here
        leaves the old modules.
        """
        self.check_reload()
        self._finder.install()
        self._finder.sought.clear()
        with self._undone_on_failure(self._modules()):
            importlib.invalidate_caches()
            with self._told(""):
                found = importlib.import_module(self._module_name)
            handle = self._find(found)
            if not self._is_given and is_wsgi_by_arguments(handle, self.name) != self._is_wsgi:
                kind = "a WSGI application" if self._is_wsgi else "a handler of connections"
                raise TargetError(f"{self.name!r} is not {kind} any more")
        return handle

    def files(self) -> set[str]:
        """Return the files that a reload would read, as far as they are known.

        Files that the last reload failed with, or didn't find, are among them: an author may
        repair or add them.
        """
        found = map(file_of, self._modules().values())
        return {file for file in found if file is not None} | self._finder.sought

    def is_own_file(self, file: str) -> bool:
        """Tell whether *file* is a part of the project by its place."""
        return self._project.has(file)

    # -- finding ----------------------------------------------------------------------------

    def _find(self, module: ModuleType) -> Callable[..., Any]:
        """Return the callable of *module*."""
        path = self._path or next((n for n in DEFAULT_ATTRIBUTES if hasattr(module, n)), "")
        if not path:
            names = " or ".join(DEFAULT_ATTRIBUTES)
            raise TargetError(f"target must be module:callable; {self.name!r} has no {names}")
        found: Any = module
        for name in path.split("."):
            try:
                found = getattr(found, name)
            except AttributeError as error:
                raise TargetError(
                    f"there is no {path!r} in module {self._module_name!r}"
                ) from error
        if self._is_factory:
            if not callable(found):
                raise TargetError(f"a factory must be callable, got {self.name!r}: {found!r}")
            with self._told(f"{self.name!r} failed: "):
                found = found()
        if not callable(found):
            raise TargetError(f"target must be callable, got {self.name!r}: {found!r}")
        return found  # type: ignore[no-any-return]  # callable() says so

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turn what the project's code raises into a TargetError, which begins with *what*."""
        try:
            yield
        except (KeyboardInterrupt, GreenletExit):
            raise
        except BaseException as error:  # a Timeout, say, of a database that doesn't answer
            raise TargetError(f"{what}{self.reason(error)}") from error

    def _find_package(self) -> str:
        """Return the outermost package of the target that isn't a namespace, or its module."""
        name = ""
        for part in self._module_name.split("."):
            name += part
            if file_of(sys.modules.get(name)) is not None:
                break
            name += "."
        return name.rstrip(".")

    def _modules(self) -> dict[str, ModuleType]:
        """Return the project's modules: what is imported afresh."""
        return {
            name: module for name, module in sys.modules.copy().items() if self._owns(name, module)
        }

    def _owns(self, name: str, module: object) -> bool:
        if name.partition(".")[0] in NEVER_AFRESH or not isinstance(module, ModuleType):
            return False
        if name == self._module_name:
            return True
        spec = attribute_of(module, "__spec__")
        if (
            self._before.get(name) is module
            or isinstance(getattr(spec, "loader", None), ExtensionFileLoader)
            # Another thread is in the middle of it, and would miss it in sys.modules.
            or getattr(spec, "_initializing", False)
        ):
            return False
        if f"{name}.".startswith(f"{self._package}."):
            return True
        file = file_of(module)
        if file is not None:
            return self._project.has(file)
        # A namespace, if it is ours alone: libraries below it would miss a part of theirs.
        path = [*(attribute_of(module, "__path__") or ())]
        return bool(path) and all(map(self._project.has, path))

    def reason(self, error: BaseException) -> str:
        """Return the last line of *error*'s traceback, and where in the project it was raised."""
        kind = type(error).__name__
        if isinstance(error, SyntaxError) and error.filename and error.lineno:
            return f"{kind}: {error.msg} (at {error.filename}:{error.lineno})"
        frames = traceback.walk_tb(error.__traceback__)
        places = [(frame.f_code.co_filename, line) for frame, line in frames]
        # And frozen modules have a name in <>.
        machinery = (__file__, fresh_import.__file__, importlib.__file__)
        places = [each for each in places if each[0][:1] != "<" and each[0] not in machinery]
        # Its own line is what its writer can change, not the library's below.
        own = [each for each in places if self._project.has(each[0])] or places
        return f"{kind}: {error} (at {own[-1][0]}:{own[-1][1]})" if own else f"{kind}: {error}"

    # -- undoing ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _undone_on_failure(self, taken: dict[str, ModuleType]) -> Iterator[None]:
        """Take modules out of ``sys.modules``; a failure puts them back, and takes new ones out."""
        # Where the parent is taken as well, it keeps what it has: the new ones get new parents.
        bound = [Bound.of(name) for name in taken if name.rpartition(".")[0] not in taken]
        for name in taken:
            sys.modules.pop(name, None)
        try:
            yield
        except BaseException:
            for name, module in self._modules().items():
                now = Bound.of(name)
                if now.value is module:
                    now._replace(value=MISSING).restore()
                sys.modules.pop(name, None)
            sys.modules.update(taken)
            for each in bound:
                each.restore()
            raise


# -- the kind -----------------------------------------------------------------------------------


# What the two arguments are called, or annotated with, in each kind.
WSGI_WORDS: Final = re.compile(r"\benv|environ|\bstart|wsgi", re.IGNORECASE)
STREAM_WORDS: Final = re.compile(r"sock|conn|client|stream|addr|peer", re.IGNORECASE)

# What both of them may be short for, where no word tells: (s, a) and (c, p), or (e, s) and
# (e, sr).
WSGI_PAIR: Final = (("environ",), ("start_response", "sr"))
ASGI_NAMES: Final = ["scope", "receive"]
VARIABLE: Final = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}

STREAM_PAIR: Final = (("socket", "connection", "client"), ("address", "peer"))


def is_wsgi_by_arguments(handle: Callable[..., Any], name: str) -> bool:
    """Tell a WSGI application from a stream handler by its first two parameters.

    What takes two, and calls them neither as WSGI does nor by another known name, is a handler.

    Raises:
        TargetError: They are of neither; *name* is what it is called there.
    """
    try:
        parameters = [*inspect.signature(handle).parameters.values()]
    except (TypeError, ValueError):  # of some builtins nothing is known
        parameters = []
    text = " ".join(f"{each.name}: {each.annotation}" for each in parameters[:2])
    names = [each.name for each in parameters[:2]]
    if inspect.iscoroutinefunction(handle) and names != ASGI_NAMES:
        raise TargetError(f"{name!r} is a coroutine function, which glb can't serve")
    is_wsgi, is_stream = (words.search(text) is not None for words in (WSGI_WORDS, STREAM_WORDS))
    if is_wsgi == is_stream:
        is_neither = not is_wsgi
        is_wsgi, is_stream = (_is_short_for(names, pair) for pair in (WSGI_PAIR, STREAM_PAIR))
        if is_wsgi == is_stream:
            if names == ASGI_NAMES:
                raise TargetError(f"{name!r} is an ASGI application, which glb can't serve")
            if is_neither and _is_called_with_two(parameters):
                return False  # whatever it calls them: WSGI's names are looked at in any case
            hint = "give --wsgi or --stream"
            if not parameters and inspect.isfunction(handle):
                hint += f", or write {name + '()'!r} if it returns the application"
            raise TargetError(f"can't tell what {name!r} is by its arguments: {hint}")
    return is_wsgi


def _is_called_with_two(parameters: Sequence[inspect.Parameter]) -> bool:
    """Tell whether two arguments by position are what is needed."""
    by_position = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    needed = [each for each in parameters if each.default is each.empty]
    needed = [each for each in needed if each.kind not in VARIABLE]
    return len(needed) == 2 and all(each.kind in by_position for each in needed)


def _is_short_for(names: Sequence[str], pair: Sequence[Sequence[str]]) -> bool:
    return len(names) == len(pair) and all(
        any(word.startswith(name.lower()) for word in words)
        for name, words in zip(names, pair, strict=True)
    )


def _module_of(file: str) -> str:
    """Return how a module is called whose file is *file*, which may be elsewhere."""
    path = os.path.relpath(file).removesuffix(".py").removesuffix(f"{os.sep}__init__")
    if path.startswith(os.pardir):
        return f"in {os.path.dirname(file)}: {os.path.basename(path)}"
    return path.replace(os.sep, ".")
