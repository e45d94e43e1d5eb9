"""Targets: what is imported afresh, what stays, and that a failure leaves no trace."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import Event

import glb
from glb.cli.target import Target, TargetError, is_wsgi_by_arguments
from glb.cli.watcher import Watcher

from ..support.helpers import comes_true

LONG_AGO_SECONDS = 1_000_000_000


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory; the process's modules are as before, after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    modules = sys.modules.copy()
    yield tmp_path
    for name in sys.modules.keys() - modules.keys():
        del sys.modules[name]
    sys.modules.update(modules)


def write(path: Path, text: str, second: int | None = None) -> None:
    """Write a module, with the folders that it needs; *second* is when."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if second is not None:
        os.utime(path, (second, second))


def write_app(folder: Path, version: object, before: str = "", second: int | None = None) -> None:
    text = f"{before}\nversion = {version!r}\ndef handle(sock, peer):\n    return version\n"
    write(folder / "app.py", text, second)


def call(handle: Callable[..., Any]) -> Any:
    return handle(None, None)


def loaded(name: str = "app:handle") -> Target:
    target = Target(name)
    target.load()
    return target


# -- loading ------------------------------------------------------------------------------------


def test_load_gives_the_callable_and_its_kind(folder: Path) -> None:
    """A target is a name first, then what the name stands for."""
    write_app(folder, 1)
    target = Target("app:handle")
    assert call(target.load()) == 1
    assert target.is_wsgi is False
    assert target.files() == {str(folder / "app.py")}


def test_a_target_of_a_given_kind_is_not_looked_at(folder: Path) -> None:
    """A callable of no known kind is fine if the kind is given, then and ever after."""
    write(folder / "app.py", "def handle(*args): pass")
    with pytest.raises(TargetError, match="can't tell what 'app:handle' is by its arguments"):
        Target("app:handle").load()
    target = Target("app:handle", is_wsgi=True)
    target.load()
    write(folder / "app.py", "def handle(sock, peer): return 2")
    assert call(target.reload()) == 2
    assert target.is_wsgi is True


@pytest.mark.parametrize("name", ["", ":", "app:", ":handle"])
def test_name_has_a_module_and_no_loose_colon(name: str) -> None:
    """A name without one half is refused at once."""
    with pytest.raises(TargetError, match=r"target must be module:callable, got '"):
        Target(name)


def test_load_that_fails_leaves_no_module(folder: Path) -> None:
    """What the target pulled in before it failed is gone with it."""
    write(folder / "helper.py", "")
    write_app(folder, 1, before="import helper; helper.nothing")
    before = sys.modules.copy()
    with pytest.raises(TargetError, match=r"can't import 'app': AttributeError: .*app\.py:1\)"):
        Target("app:handle").load()
    assert sys.modules == before


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("app.py:handle", "write app:handle"),
        ("./app.py:handle", "write app:handle"),
        ("app.py", "write app"),
        ("package/inner.py:make()", "write package.inner:make()"),
        ("package/__init__.py:handle", "write package:handle"),
        ("/no/where/app.py:handle", "write in /no/where: app:handle"),
    ],
)
def test_a_file_is_no_module_and_the_error_says_what_to_write(
    folder: Path, name: str, right: str
) -> None:
    """Shells complete names of files."""
    write_app(folder, 1)
    with pytest.raises(TargetError) as caught:
        Target(name)
    assert str(caught.value) == f"target must name a module, not a file, got {name!r}: {right}"


def test_a_module_may_be_called_py(folder: Path) -> None:
    """What Python finds is a module, whatever its name ends with."""
    write(folder / "package" / "py.py", "def handle(sock, peer): return 7")
    (folder / "app").write_text("a file of that name, too")
    write_app(folder, 1)
    assert call(Target("package.py:handle").load()) == 7
    assert call(Target("app:handle").load()) == 1


FACTORY = """
made = 0
def make():
    global made
    made += 1
    def handle(sock, peer):
        return {version!r}, made
    return handle
class Holder:
    @staticmethod
    def make():
        return Holder.handle
    @staticmethod
    def handle(sock, peer):
        return "held"
    number = 3
def fail():
    raise RuntimeError("no luck")
def make_nothing():
    pass
def make_of(what):
    pass
"""


def test_factory_is_called_for_what_is_served(folder: Path) -> None:
    """At the start and at each reload, in the newest source; an attribute may have attributes."""
    write(folder / "app.py", FACTORY.format(version=1))
    target = Target("app:make()")
    assert call(target.load()) == (1, 1)
    assert target.is_wsgi is False
    write(folder / "app.py", FACTORY.format(version=2))
    assert call(target.reload()) == (2, 1)
    assert call(Target("app:Holder.handle").load()) == "held"
    assert call(Target("app:Holder.make()").load()) == "held"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("app:fail()", r"'app:fail\(\)' failed: RuntimeError: no luck \(at .*app\.py:18\)"),
        ("app:make_nothing()", r"target must be callable, got 'app:make_nothing\(\)': None"),
        ("app:make_of()", r"'app:make_of\(\)' failed: TypeError: make_of\(\) missing 1 required"),
        ("app:Holder.number()", r"a factory must be callable, got 'app:Holder.number\(\)': 3"),
        ("app:make_of(1)", r"called without arguments, got 'app:make_of\(1\)': write 'app:make_of"),
        ("app:()", "target must be module:callable"),
    ],
)
def test_factory_that_makes_nothing_is_refused(folder: Path, name: str, reason: str) -> None:
    """With the reason, and no module left."""
    write(folder / "app.py", FACTORY.format(version=1))
    before = sys.modules.copy()
    with pytest.raises(TargetError, match=reason):
        Target(name).load()
    assert sys.modules == before


def test_factory_that_fails_at_a_reload_leaves_the_old_one(folder: Path) -> None:
    """As an import that fails."""
    write(folder / "app.py", FACTORY.format(version=1))
    target = Target("app:make()")
    old = target.load()
    module = sys.modules["app"]
    write(folder / "app.py", "def make(): raise RuntimeError('no luck')")
    with pytest.raises(TargetError, match=r"'app:make\(\)' failed: RuntimeError: no luck"):
        target.reload()
    assert sys.modules["app"] is module
    assert call(old) == (1, 1)


class Application:
    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        return []

    def method(self, request: Any, client_address: Any) -> None: ...

    def env_first(self, env: Any, start: Any) -> list[bytes]:
        return []

    def annotated(self, a: gevent.socket.socket, b: object) -> None: ...


@pytest.mark.parametrize(
    ("handle", "is_wsgi"),
    [
        (Application(), True),
        (functools.partial(Application()), True),
        (Application().env_first, True),
        (Application().method, False),
        (Application().annotated, False),
        (lambda conn, addr: (conn, addr), False),
        (lambda s, address: (s, address), False),
        (lambda s, a: (s, a), False),
        (lambda c, p: (c, p), False),
        (lambda e, s: (e, s), True),
        (lambda e, sr: (e, sr), True),
        (lambda e, start: (e, start), True),
        (lambda env, s: (env, s), True),
        (lambda environ, start_response, more=None: (environ, start_response, more), True),
        (lambda a, b: (a, b), False),
        (lambda s, s2: (s, s2), False),
        (lambda first, second, *rest, third=3, **more: (first, second, rest, third, more), False),
    ],
)
def test_kind_of_target_shows_in_its_arguments(
    handle: Callable[..., object], is_wsgi: bool
) -> None:
    """By names and annotations of the two arguments it is WSGI or a stream."""
    assert is_wsgi_by_arguments(handle, "target") is is_wsgi


async def coroutine(reader: object, writer: object) -> None:
    """As asyncio's servers call one."""


@pytest.mark.parametrize(
    ("handle", "reason"),
    [
        (lambda a, b, c: (a, b, c), "give --wsgi or --stream$"),
        (lambda a, *, b: (a, b), "give --wsgi or --stream$"),
        (lambda *args: args, "give --wsgi or --stream$"),
        (lambda environ, sock: (environ, sock), "give --wsgi or --stream$"),
        (lambda s: s, "give --wsgi or --stream$"),
        (lambda: None, r"or write 'target\(\)' if it returns the application"),
        (lambda scope, receive, send: (scope, receive, send), "'target' is an ASGI application"),
        (coroutine, "'target' is a coroutine function"),
    ],
)
def test_ambiguous_arguments_raise_with_what_to_write(
    handle: Callable[..., object], reason: str
) -> None:
    """A guess would serve one protocol as another."""
    with pytest.raises(TargetError, match=reason):
        is_wsgi_by_arguments(handle, "target")


def test_builtins_are_of_no_known_kind() -> None:
    """They have no signature."""
    with pytest.raises(TargetError, match="give --wsgi or --stream"):
        is_wsgi_by_arguments(dict, "target")


# -- what is imported afresh --------------------------------------------------------------------


def test_old_handler_keeps_its_globals(folder: Path) -> None:
    """The new callable is of the new source; the old one goes on with what it had."""
    write_app(folder, "old")
    target = Target("app:handle")
    old, old_module = target.load(), sys.modules["app"]
    write_app(folder, "new")
    new = target.reload()
    assert (call(old), call(new)) == ("old", "new")
    assert sys.modules["app"] is not old_module
    assert vars(old_module)["version"] == "old"


def test_source_of_the_same_second_and_size_is_seen(folder: Path) -> None:
    """Bytecode that Python would take for the new source's is passed over, and replaced."""
    write_app(folder, 1, second=LONG_AGO_SECONDS)
    target = loaded()
    cached = Path(importlib.util.cache_from_source(str(folder / "app.py")))
    stale = cached.read_bytes()
    write_app(folder, 2, second=LONG_AGO_SECONDS)
    # Python itself would serve the old one, else there is nothing to be seen here.
    found: dict[str, Any] = {}
    exec(SourceFileLoader("app", str(folder / "app.py")).get_code("app"), found)  # type: ignore[arg-type]  # it is code
    assert found["version"] == 1
    assert call(target.reload()) == 2
    assert cached.read_bytes() != stale
    exec(SourceFileLoader("app", str(folder / "app.py")).get_code("app"), found)  # type: ignore[arg-type]  # it is code
    assert found["version"] == 2


def test_late_import_sees_the_newest_source(folder: Path) -> None:
    """A module that handlers import when they need it is as new as the others."""
    late = "def handle(sock, peer):\n    import late\n    return late.version\n"
    write(folder / "app.py", late)
    write(folder / "late.py", "version = 1", second=LONG_AGO_SECONDS)
    target = Target("app:handle")
    assert call(target.load()) == 1
    write(folder / "late.py", "version = 2", second=LONG_AGO_SECONDS)
    handle = target.reload()
    assert "late" not in sys.modules
    assert call(handle) == 2
    assert target.files() >= {str(folder / "late.py"), str(folder / "app.py")}


def test_new_module_is_found_at_once(folder: Path) -> None:
    """Python remembers what a folder has until its time changes, and times may be coarse."""
    write_app(folder, 1)
    target = loaded()
    assert importlib.util.find_spec("newcomer") is None
    remembered = folder.stat().st_mtime_ns
    write_app(folder, 2, before="import newcomer")
    write(folder / "newcomer.py", "")
    os.utime(folder, ns=(remembered, remembered))
    assert call(target.reload()) == 2


def test_packages_and_their_modules_are_new_as_a_whole(folder: Path) -> None:
    """Modules, packages and namespaces of the project; the old parents keep the old children."""
    write(folder / "package" / "__init__.py", "")
    write(folder / "package" / "inner" / "__init__.py", "")
    write(folder / "package" / "inner" / "leaf.py", "version = 1")
    write(folder / "space" / "leaf.py", "version = 1")
    write_app(folder, 1, before="import package.inner.leaf, space.leaf")
    target = loaded()
    names = {"app", "package", "package.inner", "package.inner.leaf", "space", "space.leaf"}
    old = {name: sys.modules[name] for name in names}
    write(folder / "package" / "inner" / "leaf.py", "version = 22")
    write(folder / "space" / "leaf.py", "version = 22")
    target.reload()
    for name in names:
        assert sys.modules[name] is not old[name]
    for app, version in ((old["app"], 1), (sys.modules["app"], 22)):
        assert vars(app)["package"].inner.leaf.version == version
        assert vars(app)["space"].leaf.version == version


def test_libraries_and_what_was_there_before_stay(folder: Path) -> None:
    """Not imported again: installed below the project, elsewhere, or older than the target."""
    library = folder / "env" / "lib" / "site-packages"
    write(library / "library.py", "")
    write(library / "space" / "theirs.py", "")
    write(folder / "space" / "ours.py", "")
    write(folder / "older.py", "")
    write_app(folder, 1, before="import colorsys, library, older, space.ours, space.theirs")
    sys.path.append(str(library))
    sys.path.insert(0, str(folder))
    importlib.import_module("older")
    target = loaded()
    names = {"colorsys", "library", "older", "space", "space.theirs"}
    old = {name: sys.modules[name] for name in names}
    ours = sys.modules["space.ours"]
    target.reload()
    assert {name: sys.modules[name] for name in names} == old
    # A namespace that is shared has what is new of us, and what is theirs.
    assert sys.modules["space.ours"] is not ours
    assert vars(sys.modules["space"])["ours"] is sys.modules["space.ours"]
    assert vars(sys.modules["space"])["theirs"] is sys.modules["space.theirs"]


def test_main_glb_and_gevent_stay(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """In glb's own folder, modules that glb imports late are not the project's."""
    root = Path(glb.__file__).parents[1]
    write_app(folder, 1)
    sys.path.insert(0, str(folder))
    monkeypatch.chdir(root)
    target = loaded()
    newcomers = {}
    for name in ("glb.newcomer", "gevent.newcomer", "__mp_main__", "newcomer"):
        module = newcomers[name] = ModuleType(name)
        module.__file__ = str(root / f"{name}.py")
        monkeypatch.setitem(sys.modules, name, module)
    main = sys.modules["__main__"]
    target.reload()
    assert sys.modules["__main__"] is main
    newcomers.pop("newcomer")
    assert "newcomer" not in sys.modules
    for name, module in newcomers.items():
        assert sys.modules[name] is module


def test_package_of_an_installed_target_is_afresh(folder: Path) -> None:
    """A target that is a library's is a project by itself: it was upgraded, and is asked for."""
    library = folder / "site-packages"
    write(library / "space" / "site" / "__init__.py", "")
    write(library / "space" / "site" / "views.py", "version = 1")
    write(library / "space" / "other.py", "")
    app = "import space.other\nfrom .views import version\ndef handle(sock, peer): return version"
    write(library / "space" / "site" / "app.py", app)
    sys.path.append(str(library))
    target = loaded("space.site.app:handle")
    other = sys.modules["space.other"]
    write(library / "space" / "site" / "views.py", "version = 22")
    assert call(target.reload()) == 22
    assert sys.modules["space.other"] is other
    assert str(library / "space" / "site" / "views.py") in target.files()


def test_project_below_the_interpreters_prefix_is_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Python in /usr, /usr/src/app is not a part of Python; an environment below it is."""
    monkeypatch.setattr(sys, "base_prefix", str(folder.parent))
    monkeypatch.setattr(sys, "prefix", str(folder / "env"))
    write(folder / "env" / "tool.py", "")
    write(folder / "helper.py", "")
    write_app(folder, 1, before="import helper, tool")
    sys.path.append(str(folder / "env"))
    target = loaded()
    helper, tool = sys.modules["helper"], sys.modules["tool"]
    target.reload()
    assert sys.modules["helper"] is not helper
    assert sys.modules["tool"] is tool


def test_links_into_the_project_and_out_of_it_are_its(tmp_path: Path) -> None:
    """A module belongs to the project by the name it was found under, or by where it lies."""
    (tmp_path / "elsewhere").mkdir()
    project = tmp_path / "project"
    write_app(project, 1)
    write(tmp_path / "elsewhere" / "real.py", "")
    (project / "linked.py").symlink_to(tmp_path / "elsewhere" / "real.py")
    (tmp_path / "current").symlink_to(project / "sources")
    write(project / "sources" / "below.py", "")
    write_app(project, 1, before="import linked, below")
    sys.path.append(str(tmp_path / "current"))
    os.chdir(project)
    target = loaded()
    old = [sys.modules["linked"], sys.modules["below"]]
    target.reload()
    assert sys.modules["linked"] is not old[0]
    assert sys.modules["below"] is not old[1]


def test_compiled_module_stays_and_the_new_package_has_it(folder: Path) -> None:
    """Some can't be loaded twice; the package's attribute is set as an import would have."""
    found = importlib.util.find_spec("_json")
    if found is None or not str(found.origin).endswith(tuple(EXTENSION_SUFFIXES)):
        pytest.skip("this Python has _json built in")
    write(folder / "package" / "__init__.py", "")
    shutil.copy(str(found.origin), folder / "package")
    app = "import package._json\ndef handle(sock, peer): return package._json, package"
    write(folder / "app.py", app)
    target = Target("app:handle")
    compiled, package = call(target.load())
    again, new_package = call(target.reload())
    assert again is compiled
    assert new_package is not package


def test_import_hooks_go_on_working(folder: Path) -> None:
    """A finder that watches imports, as tracers do, comes before ours, and sees each."""
    seen = []

    class Hook:
        @staticmethod
        def find_spec(name: str, *_: object) -> ModuleSpec | None:
            seen.append(name)
            return None

    sys.meta_path.insert(sys.meta_path.index(PathFinder), Hook)
    write_app(folder, 1)
    target = loaded()
    target.reload()
    target.reload()
    assert seen == ["app"] * 3
    assert sys.meta_path.index(Hook) < sys.meta_path.index(PathFinder) - 1


# -- failures -----------------------------------------------------------------------------------


BROKEN = {
    "import shelf.book; 1 / 0": r"ZeroDivisionError: division by zero \(at .*/app\.py:2\)",
    "import shelf.book; fail(": r"SyntaxError: .* \(at .*/app\.py:2\)",
    "import shelf.book; raise SystemExit('no\\nluck')": r"SystemExit: no luck \(at .*/app\.py:2\)",
    "import shelf.book, no_such": r"ModuleNotFoundError: No .* 'no_such' \(at .*/app\.py:2\)",
    # What the project asked of a library, not where in the library it was refused.
    "import shelf.book, os; os.environ['NO']": r"KeyError: 'NO' \(at .*/app\.py:2\)",
    "import shelf.book; number = 3": "there is no 'handle' in module 'app'",
    "import shelf.book; handle = 3": "target must be callable, got 'app:handle': 3",
    "def handle(one): pass": "can't tell what 'app:handle' is by its arguments",
    "def handle(environ, start): pass": "'app:handle' is not a handler of connections any more",
}


@pytest.mark.parametrize("source", BROKEN)
def test_reload_that_fails_leaves_all_as_it_was(source: str, folder: Path) -> None:
    """The same modules, the same attributes of their parents, and one line that says why."""
    write(folder / "shelf" / "__init__.py", "")
    write(folder / "shelf" / "book.py", "")
    write(folder / "shelf" / "older.py", "")
    write_app(folder, "old", before="import shelf.book")
    sys.path.insert(0, str(folder))
    shelf = importlib.import_module("shelf")  # a parent that stays; its child comes later
    target = Target("app:handle")
    old = target.load()
    before, on_shelf = sys.modules.copy(), vars(shelf).copy()
    write(folder / "app.py", f"import shelf.older, mag.paper\n{source}")
    write(folder / "mag" / "paper.py", "")
    with pytest.raises(TargetError) as caught:
        target.reload()
    assert re.fullmatch(f"{BROKEN[source]}.*", str(caught.value))
    assert sys.modules == before
    assert vars(shelf) == on_shelf
    assert call(old) == "old"
    write_app(folder, "new")
    assert call(target.reload()) == "new"


def test_interrupt_is_passed_on_and_leaves_all_as_it_was(folder: Path) -> None:
    """An interrupt or a kill in an import is raised, and the old modules stay."""
    write_app(folder, 1)
    target = loaded()
    for name in ("KeyboardInterrupt", "gevent.GreenletExit"):
        before = sys.modules.copy()
        write_app(folder, 2, before=f"import gevent; raise {name}")
        with pytest.raises((KeyboardInterrupt, gevent.GreenletExit)):
            target.reload()
        assert sys.modules == before


def test_library_that_a_failed_reload_brought_stays(folder: Path) -> None:
    """Others may hold it by now, and some of them can't be loaded a second time."""
    write(folder / "site-packages" / "fresh_library.py", "")
    sys.path.append(str(folder / "site-packages"))
    write_app(folder, 1)
    target = loaded()
    write_app(folder, 2, before="import fresh_library; 1 / 0")
    with pytest.raises(TargetError):
        target.reload()
    library = sys.modules["fresh_library"]
    write_app(folder, 3, before="import fresh_library")
    assert call(target.reload()) == 3
    assert sys.modules["fresh_library"] is library


def test_files_of_a_failed_reload_are_among_its_files(folder: Path) -> None:
    """So that a repair is seen: of a new module that is broken, or isn't there yet."""
    write(folder / "broken.py", "fail(")
    write_app(folder, 1)
    target = loaded()
    for module in ("broken", "absent"):
        write_app(folder, 2, before=f"import {module}")
        with pytest.raises(TargetError):
            target.reload()
        assert target.files() >= {str(folder / "app.py"), str(folder / f"{module}.py")}
    write_app(folder, 3)
    target.reload()
    assert target.files() == {str(folder / "app.py")}


# -- watching -----------------------------------------------------------------------------------


class Watched:
    """A watcher of files in a folder, and how often it called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = {"a", "b"}
        self.calls = 0
        for name in self.names:
            write(folder / name, name, second=LONG_AGO_SECONDS)
        self.watcher = Watcher(lambda: {str(folder / name) for name in self.names}, self.count)
        self.watcher.poll()

    def count(self) -> None:
        self.calls += 1

    def poll(self) -> int:
        """Look once more; return how many calls there were ever."""
        self.watcher.poll()
        return self.calls


def test_change_is_reported_once_it_is_quiet(folder: Path) -> None:
    """A save of several files, over several looks, is one change."""
    watched = Watched(folder)
    assert watched.poll() == 0
    write(folder / "a", "changed")
    assert watched.poll() == 0
    write(folder / "b", "changed")
    assert watched.poll() == 0
    assert [watched.poll(), watched.poll(), watched.poll()] == [1, 1, 1]
    write(folder / "b", "changed again")
    assert [watched.poll(), watched.poll(), watched.poll()] == [1, 2, 2]


def test_save_by_renaming_is_one_change(folder: Path) -> None:
    """Of the same size, age and name; also when the file is missed in between."""
    watched = Watched(folder)
    write(folder / "new", "x", second=LONG_AGO_SECONDS)
    (folder / "a").unlink()
    assert watched.poll() == 0
    (folder / "new").rename(folder / "a")
    assert [watched.poll(), watched.poll(), watched.poll()] == [0, 1, 1]
    write(folder / "new", "y", second=LONG_AGO_SECONDS)
    (folder / "new").rename(folder / "a")
    assert [watched.poll(), watched.poll(), watched.poll()] == [1, 2, 2]


def test_file_that_goes_is_a_change_and_its_return_another(folder: Path) -> None:
    """What is missing is missed."""
    watched = Watched(folder)
    (folder / "a").unlink()
    assert [watched.poll(), watched.poll(), watched.poll()] == [0, 1, 1]
    write(folder / "a", "a", second=LONG_AGO_SECONDS)
    assert [watched.poll(), watched.poll(), watched.poll()] == [1, 2, 2]


def test_other_set_of_files_is_no_change(folder: Path) -> None:
    """Modules come and go with a reload; what comes is taken as it is when it is noted."""
    watched = Watched(folder)
    write(folder / "c", "c")
    watched.names = {"b", "c", "absent"}
    watched.watcher.note()
    assert [watched.poll(), watched.poll()] == [0, 0]
    write(folder / "absent", "there")
    assert [watched.poll(), watched.poll()] == [0, 1]
    watched.names.add("a")
    watched.watcher.note()
    write(folder / "a", "changed since")
    assert [watched.poll(), watched.poll()] == [1, 2]


def test_watcher_polls_by_itself_until_it_is_stopped(folder: Path) -> None:
    """A greenlet looks each period; twice started is once, and stopped is stopped."""
    write_app(folder, 1)
    target = loaded()
    seen = Event()
    watcher = Watcher(target.files, seen.set, period=0.001)
    watcher.start()
    watcher.start()
    try:
        write_app(folder, 22)
        assert seen.wait(10)
    finally:
        watcher.stop()
        watcher.stop()
    polled: list[int] = []
    quiet = Watcher(lambda: polled.append(1) or (), seen.set, period=0.001)  # type: ignore[func-returns-value]  # it counts
    quiet.start()
    assert comes_true(lambda: len(polled) > 2)
    quiet.stop()
    count = len(polled)
    gevent.sleep(0.01)
    assert len(polled) == count


def test_django_is_not_imported_afresh(folder: Path) -> None:
    """It would silently go on with the old views."""
    write(
        folder / "app.py",
        """
class Handler:
    def __call__(self, environ, start_response):
        return []

Handler.__module__ = "django.core.handlers.wsgi"
application = Handler()
""",
    )
    target = loaded("app:application")
    for refusing in (target.check_reload, target.reload):
        with pytest.raises(TargetError, match=r"has imported: SIGUSR2 starts a new process$"):
            refusing()
    write(folder / "plain.py", "def handle(sock, peer): pass")
    loaded("plain:handle").check_reload()


def test_a_timeout_in_an_import_is_reported_as_any_failure(folder: Path) -> None:
    """It is no Exception, but a database that doesn't answer is no reason to end."""
    write_app(folder, 1)
    target = loaded()
    # An unclosed one would leave libuv with a timer whose memory is free.
    write_app(folder, 2, "import gevent\nwith gevent.Timeout(0.001): gevent.sleep(10)")
    with pytest.raises(TargetError, match="Timeout"):
        target.reload()
    write_app(folder, 3)
    assert call(target.reload()) == 3
