"""What ``glb serve`` serves: a callable of somebody's module, and the module's later states.

A `Target` imports its module, and imports it *afresh* when asked to: the project's modules get
new module objects, so that what still runs in the old ones keeps their globals. A reload that
fails leaves the modules as they were. A `Watcher` tells when their files have changed.

The *project* is what lies below the current directory and isn't installed there, and the
target's own package wherever it lies. Of the rest nothing is imported twice: libraries, compiled
modules, what was there before the target, glb and gevent.

What can't be undone or done again from here: whatever the project's modules start, open or
register elsewhere as they are imported. A library that keeps a program's functions by name goes on
with the old ones (Django keeps its views so, and is refused); one that takes each name once refuses
the new ones.
An import in the body of a function finds the newest module, also if the function is an old one.

Imports happen in the calling greenlet, as the first one did: nobody is let in meanwhile by this
hub. A module may patch, or make locks, which a thread aside would not do the same way.

Source: ``importlib.reload`` runs the new source in the *old* module's namespace, whence not it.
Its bytecode is matched by the source's second and size: see `_SourceLoader`.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import inspect
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    ExtensionFileLoader,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
)
from types import ModuleType
from typing import Any, Final, NamedTuple

import gevent
from gevent import GreenletExit

__all__ = ["POLL_SECONDS", "Target", "TargetError", "Watcher", "is_wsgi_by_arguments"]

#: Tried in turn when a target is a module alone: WSGI's name, and Flask's.
DEFAULT_ATTRIBUTES: Final = ("application", "app")

# Soon enough for who saves and looks, and 500 files cost a thousandth of it. Werkzeug and
# Django look once a second, too.
POLL_SECONDS: Final = 1.0

#: What must not be there twice: who asks, and the hub's own.
NEVER_AFRESH: Final = {"__main__", "__mp_main__", __name__.partition(".")[0], "gevent"}

#: The folders of installed packages, in whatever environment.
INSTALLED: Final = {"site-packages", "dist-packages"}

#: Of an attribute that isn't there.
MISSING: Final = object()


class TargetError(Exception):
    """It can't be served: the text, one line, says why."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))


class Target:
    """A callable, by its name, that can be imported again and again.

    One `load` or `reload` at a time: callers in several greenlets see to that themselves.

    Args:
        name: ``module:callable``, where the callable may have dots, or ``module`` for its
            ``application`` or ``app``.
        is_wsgi: Whether it is a WSGI application, not a handler of (socket, address). None
            means that its arguments tell.

    Raises:
        TargetError: That is no such name.
    """

    def __init__(self, name: str, is_wsgi: bool | None = None) -> None:
        self.name: Final = name
        self._module_name, colon, self._path = name.partition(":")
        if not self._module_name or (colon and not self._path):
            raise TargetError(f"target must be module:callable, got {name!r}")
        self._is_told: Final = is_wsgi is not None
        self._is_wsgi = bool(is_wsgi)
        self._is_djangos = False
        self._before: dict[str, ModuleType] = {}
        self._package = self._module_name
        self._project = _Project(os.getcwd())
        self._finder: Final = _Finder(self)

    @property
    def is_wsgi(self) -> bool:
        """Whether it is a WSGI application; known once it is loaded, and the same ever after."""
        return self._is_wsgi

    def load(self) -> Callable[..., Any]:
        """Import the module, from the current directory on, and return the callable.

        Raises:
            TargetError: The module can't be imported or has no such callable, or what that is
                can't be told. The project's modules are gone again.
            KeyboardInterrupt, GreenletExit: As they are, since they may come from outside. The
                modules are gone, too.
        """
        folder = os.getcwd()
        self._project = _Project(folder)
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
            if not self._is_told:
                self._is_wsgi = is_wsgi_by_arguments(handle, self.name)
        self._is_djangos = type(handle).__module__.startswith("django.")
        self._package = self._find_package()
        return handle

    def reload(self) -> Callable[..., Any]:
        """Import the project's modules afresh, from their sources, and return the new callable.

        The old callable works on as before.

        Raises:
            TargetError: Anything that `load` tells so, or the new one is of the other kind. All
                of the project's modules are the old ones. Libraries that came meanwhile stay:
                somebody else may have them by now, and some can't be loaded twice.
            KeyboardInterrupt, GreenletExit: As they are. All modules are the old ones, too.

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
            if not self._is_told and is_wsgi_by_arguments(handle, self.name) != self._is_wsgi:
                kind = "a WSGI application" if self._is_wsgi else "a handler of connections"
                raise TargetError(f"{self.name!r} is not {kind} any more")
        return handle

    def files(self) -> set[str]:
        """Return the files that a reload would read, as far as they are known.

        Those that the last one looked for in vain, or failed with, are in it as well: there a
        repair may come.
        """
        found = map(_file_of, self._modules().values())
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
        if not callable(found):
            raise TargetError(f"target must be callable, got {self.name!r}: {found!r}")
        return found  # type: ignore[no-any-return]  # callable() says so

    def _find_package(self) -> str:
        """Return the outermost package of the target that isn't a namespace, or its module."""
        name = ""
        for part in self._module_name.split("."):
            name += part
            if _file_of(sys.modules.get(name)) is not None:
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
        spec = _get(module, "__spec__")
        if (
            self._before.get(name) is module
            or isinstance(getattr(spec, "loader", None), ExtensionFileLoader)
            # Another thread is in the middle of it, and would miss it in sys.modules.
            or getattr(spec, "_initializing", False)
        ):
            return False
        if f"{name}.".startswith(f"{self._package}."):
            return True
        file = _file_of(module)
        if file is not None:
            return self._project.has(file)
        # A namespace, if it is ours alone: libraries below it would miss a part of theirs.
        path = [*(_get(module, "__path__") or ())]
        return bool(path) and all(map(self._project.has, path))

    def reason(self, error: BaseException) -> str:
        """Return the last line of *error*'s traceback, and where in the project it was raised."""
        kind = type(error).__name__
        if isinstance(error, SyntaxError) and error.filename and error.lineno:
            return f"{kind}: {error.msg} (at {error.filename}:{error.lineno})"
        frames = traceback.walk_tb(error.__traceback__)
        places = [(frame.f_code.co_filename, line) for frame, line in frames]
        machinery = (__file__, importlib.__file__)  # and frozen modules have a name in <>
        places = [each for each in places if each[0][:1] != "<" and each[0] not in machinery]
        # Its own line is what its writer can change, not the library's below.
        own = [each for each in places if self._project.has(each[0])] or places
        return f"{kind}: {error} (at {own[-1][0]}:{own[-1][1]})" if own else f"{kind}: {error}"

    # -- undoing ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _undone_on_failure(self, taken: dict[str, ModuleType]) -> Iterator[None]:
        """Take modules out of ``sys.modules``; a failure puts them back, and takes new ones out."""
        # Where the parent is taken as well, it keeps what it has: the new ones get new parents.
        bound = [_Bound.of(name) for name in taken if name.rpartition(".")[0] not in taken]
        for name in taken:
            sys.modules.pop(name, None)
        try:
            yield
        except BaseException:
            for name, module in self._modules().items():
                now = _Bound.of(name)
                if now.value is module:
                    now._replace(value=MISSING).restore()
                sys.modules.pop(name, None)
            sys.modules.update(taken)
            for each in bound:
                each.restore()
            raise


class _Bound(NamedTuple):
    """What a module's name means in its parent, which the import system sets."""

    parent: ModuleType | None
    name: str
    value: object

    @classmethod
    def of(cls, full_name: str) -> _Bound:
        parent_name, _, name = full_name.rpartition(".")
        parent = sys.modules.get(parent_name)
        return cls(parent, name, MISSING if parent is None else _get(parent, name, MISSING))

    def restore(self) -> None:
        if self.parent is None:
            return
        if self.value is not MISSING:
            setattr(self.parent, self.name, self.value)
        elif _get(self.parent, self.name, MISSING) is not MISSING:
            delattr(self.parent, self.name)


class _Project:
    """The files below a folder, but for what is installed there."""

    def __init__(self, folder: str) -> None:
        self._root: Final = os.path.join(os.path.realpath(folder), "")
        paths = sysconfig.get_paths()
        prefixes = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
        prefixes |= {paths["stdlib"], paths["platstdlib"]}
        named = {os.path.join(each, "") for every in prefixes for each in _spellings(every)}
        # An interpreter's prefix is often /usr, and a project may well live below that.
        self._not_ours: Final = tuple(each for each in named if not self._root.startswith(each))
        self._known: Final[dict[str, bool]] = {}  # a watcher asks for all of them each second

    def has(self, path: str) -> bool:
        known = self._known.get(path)
        if known is None:
            # As it is spelled and as it is: a link may lead into the project, or out of it.
            names = _spellings(path)
            known = self._known[path] = any(
                name.startswith(self._root) for name in names
            ) and not any(map(self._is_installed, names))
        return known

    def _is_installed(self, path: str) -> bool:
        parts = path.removeprefix(self._root).split(os.sep)
        return path.startswith(self._not_ours) or not INSTALLED.isdisjoint(parts)


def _spellings(path: str) -> set[str]:
    return {os.path.abspath(path), os.path.realpath(path)}


def _get(module: object, name: str, default: object = None) -> Any:
    """Return a module's attribute, if it is there already: some make theirs when asked."""
    try:
        return object.__getattribute__(module, "__dict__").get(name, default)
    except AttributeError:  # sys.modules may hold anything
        return default


def _file_of(module: object) -> str | None:
    file = _get(module, "__file__")
    return file if isinstance(file, str) else None


# -- importing ----------------------------------------------------------------------------------


class _Finder:
    """Finds modules as they'd be found without it; the project's it has compiled from source.

    It stays once it is there: a handler may import the rest of its modules any time later.

    Attributes:
        sought: The project's files that it found, or where it would have found what it didn't.
    """

    def __init__(self, target: Target) -> None:
        self._target: Final = target
        self.sought: Final[set[str]] = set()

    def install(self) -> None:
        """Come before who finds files, and after who hooks into that."""
        if self not in sys.meta_path:
            place = [*sys.meta_path, PathFinder].index(PathFinder)
            sys.meta_path.insert(place, self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        finders = sys.meta_path[sys.meta_path.index(self) + 1 :]
        # Python 3.11 still knows finders of an older kind; after us it asks them itself.
        finders = [each for each in finders if hasattr(each, "find_spec")]
        spec = next(filter(None, (each.find_spec(name, path, target) for each in finders)), None)
        if spec is None:
            # So that a watcher sees it come.
            for folder in sys.path if path is None else path:
                place = os.path.join(folder, name.rpartition(".")[2])
                self._note(f"{place}.py", os.path.join(place, "__init__.py"))
        elif spec.origin is not None and spec.has_location:
            self._note(spec.origin)
            loader = spec.loader
            if type(loader) is SourceFileLoader and self._target.is_own_file(loader.path):
                spec.loader = _SourceLoader(loader.name, loader.path)
        return spec

    def _note(self, *files: str) -> None:
        self.sought.update(filter(self._target.is_own_file, files))


class _SourceLoader(SourceFileLoader):
    """Compiles what the source says now, and leaves bytecode of that for others.

    Python takes bytecode for the source's if the source had the same size and was written in the
    same second: one digit that is changed while a server starts would go unseen.
    """

    def get_data(self, path: str) -> bytes:
        if path.endswith(tuple(BYTECODE_SUFFIXES)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return super().get_data(path)

    def exec_module(self, module: ModuleType) -> None:
        # A package's compiled modules stay, and nobody else would tell the new package of them.
        for name, child in sys.modules.copy().items():
            parent, _, tail = name.rpartition(".")
            if parent == module.__name__ and child is not None:  # None: not to be imported
                setattr(module, tail, child)
        super().exec_module(module)


# -- watching -----------------------------------------------------------------------------------


class Watcher:
    """Tells of changed files, once they are quiet.

    A file that comes to be watched is taken as it is. One that goes away has changed, and one
    that comes back has: editors save by renaming. Several changes without a period of rest
    between them are one.

    Args:
        files: Returns which to watch, each time.
        changed: Called in the watcher's greenlet after a change.
        period: How often to look, and how long is quiet, in seconds.
    """

    def __init__(
        self,
        files: Callable[[], Iterable[str]],
        changed: Callable[[], object],
        period: float = POLL_SECONDS,
    ) -> None:
        self._files = files
        self._changed = changed
        self._period = period
        self._stamps: dict[str, object] = {}
        self._is_restless = False
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Watch from now on, in a greenlet of this hub. Twice is harmless."""
        if self._greenlet is None:
            self.poll()
            self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Watch no more. Twice is harmless."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill()

    def poll(self) -> None:
        """Look once: what `start` does each period."""
        before = self._stamps
        self._stamps = {file: _stamp(file) for file in self._files()}
        if any(before.get(file, stamp) != stamp for file, stamp in self._stamps.items()):
            self._is_restless = True
        elif self._is_restless:
            self._is_restless = False
            self._changed()

    def note(self) -> None:
        """Take the files that are new among the watched as they are now, not when next polled."""
        self._stamps |= {file: _stamp(file) for file in self._files() if file not in self._stamps}

    def _run(self) -> None:
        while True:
            gevent.sleep(self._period)
            self.poll()


def _stamp(file: str) -> object:
    """Return what is another after each change, or None if there is no such file."""
    try:
        stat = os.stat(file)
    except OSError:
        return None
    # A file that is renamed into place may be as old and as large as the one before.
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


# -- the kind -----------------------------------------------------------------------------------


# What the two arguments are called, or annotated with, in each kind.
WSGI_WORDS: Final = re.compile(r"\benv|environ|start_?resp|wsgi", re.IGNORECASE)
STREAM_WORDS: Final = re.compile(r"sock|conn|client|stream|addr|peer", re.IGNORECASE)


def is_wsgi_by_arguments(handle: Callable[..., Any], name: str) -> bool:
    """Tell a WSGI application from a stream handler by its first two parameters.

    Raises:
        TargetError: They don't tell; *name* is what it is called there.
    """
    try:
        parameters = [*inspect.signature(handle).parameters.values()][:2]
    except (TypeError, ValueError):  # of some builtins nothing is known
        parameters = []
    text = " ".join(f"{each.name}: {each.annotation}" for each in parameters)
    is_wsgi, is_stream = (words.search(text) is not None for words in (WSGI_WORDS, STREAM_WORDS))
    if is_wsgi == is_stream:
        raise TargetError(f"can't tell what {name!r} is by its arguments: give --wsgi or --stream")
    return is_wsgi
