"""Fresh imports: a project's modules, found by their files and compiled from their source.

Source: Python's import system matches bytecode by the source's second and size: see
`SourceLoader`.
"""

from __future__ import annotations

import errno
import os
import sys
import sysconfig
from collections.abc import Callable, Sequence
from importlib.machinery import BYTECODE_SUFFIXES, ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any, Final, NamedTuple

__all__ = ["MISSING", "Bound", "Finder", "Project", "attribute_of", "file_of"]

#: The folders of installed packages, in any environment.
INSTALLED: Final = {"site-packages", "dist-packages"}

#: The value of an attribute that isn't there.
MISSING: Final = object()


class Bound(NamedTuple):
    """A module's name in its parent package, which the import system sets."""

    parent: ModuleType | None
    name: str
    value: object

    @classmethod
    def of(cls, full_name: str) -> Bound:
        parent_name, _, name = full_name.rpartition(".")
        parent = sys.modules.get(parent_name)
        return cls(parent, name, MISSING if parent is None else attribute_of(parent, name, MISSING))

    def restore(self) -> None:
        if self.parent is None:
            return
        if self.value is not MISSING:
            setattr(self.parent, self.name, self.value)
        elif attribute_of(self.parent, self.name, MISSING) is not MISSING:
            delattr(self.parent, self.name)


class Project:
    """The files below a folder, but for installed packages."""

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
            # Both as it is spelled and resolved: a link may lead into the project, or out of it.
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


def attribute_of(module: object, name: str, default: object = None) -> Any:
    """Return a module's attribute, if it is there already: some modules make theirs lazily."""
    try:
        return object.__getattribute__(module, "__dict__").get(name, default)
    except AttributeError:  # sys.modules may hold anything
        return default


def file_of(module: object) -> str | None:
    file = attribute_of(module, "__file__")
    return file if isinstance(file, str) else None


class Finder:
    """Finds modules by the other finders, and has the project's compiled from their source.

    Once installed it stays: a handler may import the rest of its modules at any time later.

    Args:
        is_own_file: Returns True for a file of the project.

    Attributes:
        sought: The project's files that it found, and the paths of those that it did not.
    """

    def __init__(self, is_own_file: Callable[[str], bool]) -> None:
        self._is_own_file: Final = is_own_file
        self.sought: Final[set[str]] = set()

    def install(self) -> None:
        """Install it before the finder of files, and after finders that hook into that."""
        if self not in sys.meta_path:
            place = [*sys.meta_path, PathFinder].index(PathFinder)
            sys.meta_path.insert(place, self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        finders = sys.meta_path[sys.meta_path.index(self) + 1 :]
        # Python 3.11 still has finders of an older kind; it asks them itself after us.
        finders = [each for each in finders if hasattr(each, "find_spec")]
        spec = next(filter(None, (each.find_spec(name, path, target) for each in finders)), None)
        if spec is None:
            # So that a watcher sees when it comes.
            for folder in sys.path if path is None else path:
                place = os.path.join(folder, name.rpartition(".")[2])
                self._note(f"{place}.py", os.path.join(place, "__init__.py"))
        elif spec.origin is not None and spec.has_location:
            self._note(spec.origin)
            loader = spec.loader
            if type(loader) is SourceFileLoader and self._is_own_file(loader.path):
                spec.loader = SourceLoader(loader.name, loader.path)
        return spec

    def _note(self, *files: str) -> None:
        self.sought.update(filter(self._is_own_file, files))


class SourceLoader(SourceFileLoader):
    """Compiles the source as it is now, and writes its bytecode.

    Python takes bytecode for current if the source had the same size and was written in the same
    second: it would not notice a digit that is changed while a server starts.
    """

    def get_data(self, path: str) -> bytes:
        if path.endswith(tuple(BYTECODE_SUFFIXES)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return super().get_data(path)

    def exec_module(self, module: ModuleType) -> None:
        # A package's extension modules stay, so the new package gets them as attributes here.
        for name, child in sys.modules.copy().items():
            parent, _, tail = name.rpartition(".")
            if parent == module.__name__ and child is not None:  # None: not to be imported
                setattr(module, tail, child)
        super().exec_module(module)
