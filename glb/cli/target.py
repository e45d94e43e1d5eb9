"""Targets: the callable that ``glb serve`` serves, and later states of its module.

A `Target` imports its module, and can import it *afresh*: the project's modules get new module
objects, so that old handlers that still run keep their globals. A reload that fails leaves the
modules as they were. A `glb.cli.watcher.Watcher` notices when their files change.

The *project* is all files below the current directory, but for installed packages, and the
target's own package anywhere. Nothing else is imported twice: not libraries, extension modules,
modules from before the target, glb and gevent.

A reload can't undo what the project's modules start, open or register elsewhere during their
import. A library that keeps a program's functions by name goes on with the old ones (Django keeps
its views so, and is refused); one that takes each name once refuses the new ones. An import in the
body of a function finds the newest module, also if the function is an old one.

Imports happen in the calling greenlet, as the first one did, and this hub doesn't turn meanwhile. A
module may patch, or make locks, which another thread would not do the same way.

Source: ``importlib.reload`` runs the new source in the *old* module's namespace, so it isn't used.
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
from collections.abc import Callable, Iterator
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


#: Packages that must not be there twice: the main program, glb and gevent.
NEVER_AFRESH: Final = {"__main__", "__mp_main__", __name__.partition(".")[0], "gevent"}


class TargetError(Exception):
    """A target that can't be served: the text, one line, says why."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))


class Target:
    """A callable, by its name, that can be imported again and again.

    One `load` or `reload` at a time: the caller sees to that.

    Args:
        name: ``module:callable``, where the callable may have dots, or ``module`` for its
            ``application`` or ``app``.
        is_wsgi: True for a WSGI application, False for a handler of (socket, address), None to
            decide by its arguments.

    Raises:
        TargetError: The name has another form.
    """

    def __init__(self, name: str, is_wsgi: bool | None = None) -> None:
        self.name: Final = name
        self._module_name, colon, self._path = name.partition(":")
        if not self._module_name or (colon and not self._path):
            raise TargetError(f"target must be module:callable, got {name!r}")
        self._is_given: Final = is_wsgi is not None
        self._is_wsgi = bool(is_wsgi)
        self._is_djangos = False
        self._before: dict[str, ModuleType] = {}
        self._package = self._module_name
        self._project = Project(os.getcwd())
        self._finder: Final = Finder(self.is_own_file)

    @property
    def is_wsgi(self) -> bool:
        """True for a WSGI application; known after `load`, and the same ever after."""
        return self._is_wsgi

    def load(self) -> Callable[..., Any]:
        """Import the module, from the current directory on, and return the callable.

        Raises:
            TargetError: The module can't be imported, has no such callable, or one of unknown
                kind. The project's modules are gone again.
            KeyboardInterrupt, GreenletExit: Unchanged, since they may come from outside. The
                modules are gone, too.
        """
        folder = os.getcwd()
        self._project = Project(folder)
        self._before = sys.modules.copy()
        sys.path.insert(0, folder)
        with self._undone_on_failure({}):
            try:
                found = importlib.import_module(self._module_name)
            except (KeyboardInterrupt, GreenletExit):
                raise
            except BaseException as error:  # a Timeout, say, of a database that doesn't answer
                raise TargetError(
                    f"can't import {self._module_name!r}: {self.reason(error)}"
                ) from error
            handle = self._find(found)
            if not self._is_given:
                self._is_wsgi = is_wsgi_by_arguments(handle, self.name)
        self._is_djangos = type(handle).__module__.startswith("django.")
        self._package = self._find_package()
        return handle

    def reload(self) -> Callable[..., Any]:
        """Import the project's modules afresh, from their sources, and return the new callable.

        The old callable works on as before.

        Raises:
            TargetError: As `load`, or the new one is of the other kind. All of the project's
                modules are the old ones. New libraries stay: other code may use them by now,
                and some can't be loaded twice.
            KeyboardInterrupt, GreenletExit: Unchanged. All modules are the old ones, too.

        *Switches* if the modules do so as they are imported. A greenlet that is killed here
        leaves the old modules.
        """
        if self._is_djangos:
            raise TargetError("Django keeps the views that it has imported: start glb anew")
        self._finder.install()
        self._finder.sought.clear()
        with self._undone_on_failure(self._modules()):
            importlib.invalidate_caches()
            try:
                found = importlib.import_module(self._module_name)
            except (KeyboardInterrupt, GreenletExit):
                raise
            except BaseException as error:  # a Timeout, say, of a database that doesn't answer
                raise TargetError(self.reason(error)) from error
            handle = self._find(found)
            if not self._is_given and is_wsgi_by_arguments(handle, self.name) != self._is_wsgi:
                kind = "a WSGI application" if self._is_wsgi else "a handler of connections"
                raise TargetError(f"{self.name!r} is not {kind} any more")
        return handle

    def files(self) -> set[str]:
        """Return the files that a reload would read, as far as they are known.

        It includes those that the last one did not find, or failed with: a repair may come.
        """
        found = map(file_of, self._modules().values())
        return {file for file in found if file is not None} | self._finder.sought

    def is_own_file(self, file: str) -> bool:
        """Return True if *file* is in the project's folder."""
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
        if not callable(found):
            raise TargetError(f"target must be callable, got {self.name!r}: {found!r}")
        return found  # type: ignore[no-any-return]  # callable() says so

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
        """Return the modules that are imported afresh."""
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
            # Another thread imports it now, and would miss it in sys.modules.
            or getattr(spec, "_initializing", False)
        ):
            return False
        if f"{name}.".startswith(f"{self._package}."):
            return True
        file = file_of(module)
        if file is not None:
            return self._project.has(file)
        # A namespace, if all of it is the project's: libraries in it would lose parts.
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
        # The author of the project can change a line of the project, not one of a library.
        own = [each for each in places if self._project.has(each[0])] or places
        return f"{kind}: {error} (at {own[-1][0]}:{own[-1][1]})" if own else f"{kind}: {error}"

    # -- undoing ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _undone_on_failure(self, taken: dict[str, ModuleType]) -> Iterator[None]:
        """Remove modules from ``sys.modules``; a failure puts them back, and removes new ones."""
        # A parent that is removed as well keeps its attributes: the new modules get new parents.
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


# Names or annotations of the two arguments in each kind.
WSGI_WORDS: Final = re.compile(r"\benv|environ|start_?resp|wsgi", re.IGNORECASE)
STREAM_WORDS: Final = re.compile(r"sock|conn|client|stream|addr|peer", re.IGNORECASE)


def is_wsgi_by_arguments(handle: Callable[..., Any], name: str) -> bool:
    """Return True for a WSGI application, by the names of its first two parameters.

    Raises:
        TargetError: They fit neither or both kinds; the text has *name*.
    """
    try:
        parameters = [*inspect.signature(handle).parameters.values()][:2]
    except (TypeError, ValueError):  # some builtins have no signature
        parameters = []
    text = " ".join(f"{each.name}: {each.annotation}" for each in parameters)
    is_wsgi, is_stream = (words.search(text) is not None for words in (WSGI_WORDS, STREAM_WORDS))
    if is_wsgi == is_stream:
        raise TargetError(f"can't tell what {name!r} is by its arguments: give --wsgi or --stream")
    return is_wsgi
