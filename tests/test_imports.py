"""The house: what importing glb costs, and that imports go down the floors only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import glb

#: From the ground up; the package's docstring has the same picture.
FLOORS = [
    {  # words
        "_version",
        "address",
        "balance",
        "clones",
        "errors",
        "limits",
        "states",
        "stats",
    },
    {  # kernel
        "crossings",
        "guard",
        "hubs",
        "leaks",
        "originals",
        "reserve",
        "signals",
        "sockets",
    },
    {"registry", "ring", "turns"},  # state
    {  # handles
        "acceptor",
        "adopted",
        "branch",
        "connection",
        "descriptor",
        "dispatcher",
        "ending",
        "exclusions",
        "handlers",
        "listener",
        "polls",
        "seats",
        "standby",
        "waiting",
    },
    {"__init__"},  # what `import glb` gives
    {"http"},  # a package: it knows no server
    {"draining", "gate", "pywsgi", "rolling", "server"},  # servers
    {"__main__", "cli", "console", "demo", "monkey", "program", "target"},  # doors
]
#: Who may open, duplicate or set an option on a socket; the registry only names its type.
KERNEL = "sockets"

HOME = Path(glb.__file__).parent
HTTP = sorted(path.stem for path in (HOME / "http").glob("*.py"))
MODULES = sorted(path.stem for path in HOME.glob("*.py"))
LOCUST = sorted(path.stem for path in (HOME / "locust").glob("*.py"))


def imports_of(module: str) -> set[str]:
    """Return glb's modules that *module* imports anywhere, but for its annotations alone."""
    found = set()
    tree = ast.parse((HOME / f"{module}.py").read_text(encoding="utf-8"))
    for node in run_at_all(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package, _, name = alias.name.partition(".")
                if package == "glb":
                    found.add(name.partition(".")[0] or "__init__")
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            if node.level == 0:
                if parts.pop(0) != "glb":
                    continue
                parts = parts or [""]
            if parts[0]:
                found.add(parts[0])
            else:  # "from . import name": a module, or something of the package's own
                names = {alias.name for alias in node.names}
                found |= {name if name in MODULES else "__init__" for name in names}
    return found


def run_at_all(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes but those under ``if TYPE_CHECKING:``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from run_at_all(node)


def floor_of(module: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if module in floor)


def test_every_module_has_a_floor() -> None:
    """A new module is given its place in this test's table, and in the package's docstring."""
    assert set(MODULES) <= set().union(*FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_the_floors_only(module: str) -> None:
    """No module imports from a floor above its own, not even inside of a function."""
    above = {name for name in imports_of(module) if floor_of(name) > floor_of(module)}
    assert above == set()


def http_imports(module: str) -> tuple[set[str], set[str]]:
    """Return what a module of the package http imports of it, and of the rest of glb."""
    inside: set[str] = set()
    outside: set[str] = set()
    tree = ast.parse((HOME / "http" / f"{module}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):  # imports for types alone as well
        if isinstance(node, ast.ImportFrom) and node.level:
            name = (node.module or "__init__").partition(".")[0]
            (inside if node.level == 1 else outside).add(name)
        elif isinstance(node, ast.ImportFrom):
            outside |= {name for name in [node.module or ""] if name.split(".")[0] == "glb"}
        elif isinstance(node, ast.Import):
            outside |= {each.name for each in node.names if each.name.split(".")[0] == "glb"}
    return inside, outside


@pytest.mark.parametrize("module", HTTP)
def test_http_knows_no_server(module: str) -> None:
    """What serves a connection's requests imports what a program holds, and what is below that."""
    _, outside = http_imports(module)
    assert outside <= set().union(*FLOORS[: FLOORS.index({"__init__"})])


def test_http_imports_nothing_in_a_circle() -> None:
    """The package's modules have an order, and its door imports none of them."""
    graph = {module: http_imports(module)[0] for module in HTTP}
    assert set(TopologicalSorter(graph).static_order()) == set(HTTP)
    assert graph["__init__"] == set()


@pytest.mark.parametrize("module", ["body", "head", "reply", "settings"])
def test_words_of_http_wait_for_nothing(module: str) -> None:
    """Heads, bodies and replies can be read, and tested, without a server or a loop."""
    inside, outside = http_imports(module)
    assert outside == set()
    assert inside <= {"body", "head"}


@pytest.mark.parametrize("module", HTTP)
def test_http_reads_the_time_of_day_only(module: str) -> None:
    """Date and the access log have the program's time, as gevent's; nothing waits by it."""
    tree = ast.parse((HOME / "http" / f"{module}.py").read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"monotonic", "perf_counter", "sleep", "_thread", "get_original"}


@pytest.mark.parametrize("module", LOCUST)
def test_load_tests_need_only_words_of_glb(module: str) -> None:
    """And its cheap sockets: they run where there is no server, whoever's that is."""
    tree = ast.parse((HOME / "locust" / f"{module}.py").read_text(encoding="utf-8"))
    for node in run_at_all(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 2:
            assert node.module in {*FLOORS[0], "connection"}, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert (node.module or "").split(".")[0] != "glb", ast.unparse(node)


def test_no_module_imports_itself_in_a_circle() -> None:
    """On one floor as well, imports have an order."""
    graph = {module: imports_of(module) for module in MODULES}
    assert set(TopologicalSorter(graph).static_order()) >= set(MODULES)


def test_the_test_sees_imports() -> None:
    """The two tests above would pass as well if nothing was found."""
    assert imports_of("registry") == {
        "address",
        "errors",
        "originals",
        "reserve",
        "sockets",
        "stats",
        "turns",
    }
    assert imports_of("clones") == set()
    assert "cli" in imports_of("__main__")


@pytest.mark.parametrize("module", sorted(FLOORS[0] | {"ring"}))
def test_words_know_neither_gevent_nor_sockets(module: str) -> None:
    """Plain data and decisions: they can be read, and tested, without a loop."""
    tree = ast.parse((HOME / f"{module}.py").read_text(encoding="utf-8"))
    for node in run_at_all(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        # `_socket` has the constants and inet_pton() that address needs, and opens nothing.
        assert not {name.partition(".")[0] for name in names} & {"gevent", "socket", "select"}


@pytest.mark.parametrize("module", [name for name in MODULES if floor_of(name) < len(FLOORS) - 1])
def test_one_module_opens_and_duplicates_sockets(module: str) -> None:
    """Below the doors, calls that make a descriptor stand in one file."""
    tree = ast.parse((HOME / f"{module}.py").read_text(encoding="utf-8"))
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    opening = {"_socket.socket", "_socket.dup", "os.dup", "os.dup2", "_socket.socketpair"}
    assert bool(called & opening) is (module == KERNEL)


def modules_after(statement: str) -> set[str]:
    """Return what a fresh interpreter has loaded after *statement*."""
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", [name for name in MODULES if floor_of(name) < len(FLOORS) - 1])
def test_one_module_binds_the_originals(module: str) -> None:
    """Below the doors, clocks and what gevent patches come from one file."""
    tree = ast.parse((HOME / f"{module}.py").read_text(encoding="utf-8"))
    names: set[str | None] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(alias.name for alias in node.names)}
    assert bool(names & {"time", "_thread", "get_original"}) is (module == "originals")


def test_import_glb_is_light() -> None:
    """Neither TLS nor WSGI nor anything of the doors is loaded for who binds a listener."""
    heavy = {"ssl", "gevent.ssl", "gevent.pywsgi", "click", "rich"}
    heavy |= {"glb.server", "glb.pywsgi", "glb.cli", "glb.console", "glb.demo", "glb.monkey"}
    heavy |= {"glb.http"}
    loaded = modules_after("import glb")
    assert "glb.listener" in loaded
    assert loaded & heavy == set()


def test_import_glb_patches_nothing_and_starts_no_hub() -> None:
    """Who imports glb has decided nothing yet: no monkey patching, no loop, no thread."""
    program = (
        "import glb, threading, gevent.monkey, gevent._hub_local as hub_local\n"
        "assert not gevent.monkey.saved, gevent.monkey.saved\n"
        "assert hub_local.get_hub_if_exists() is None\n"
        "assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_each_name_of_the_package_is_there() -> None:
    """``from glb import *`` gives what ``__all__`` says, each with a docstring or a value."""
    for name in glb.__all__:
        assert getattr(glb, name)


def test_a_module_stands_in_for_gevents_as_a_whole() -> None:
    """Whoever changes ``from gevent import pywsgi`` finds every public name here."""
    import gevent.pywsgi
    import gevent.server

    import glb.pywsgi
    import glb.server

    assert set(gevent.server.__all__) <= set(glb.server.__all__)
    assert set(gevent.pywsgi.__all__) <= set(glb.pywsgi.__all__)
