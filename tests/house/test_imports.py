"""The house: what importing glb costs, and that imports go down only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

import glb
from glb.accept.registry import entries
from glb.hubs.greenlet_pool import PROOF
from glb.model.policy import Policy
from glb.model.states import State

pytestmark = pytest.mark.thorough

_BELOW_SERVERS: Final = {"originals", "model", "hubs", "net", "accept", "serve"}
_SERVERS: Final = {*_BELOW_SERVERS, "_version", "server", "http", "pywsgi"}

#: What each package, and each module beside them, may import of glb, beside itself: packages, and
#: modules. Imports for types alone count.
MAY_IMPORT: Final[dict[str, set[str]]] = {
    "_version": set(),
    "originals": set(),  # clocks and locks, for all but the plain data
    "model": set(),  # nothing but the standard library: see below
    "hubs": {"originals", "model"},
    "net": {"originals", "model"},
    "accept": {"originals", "model", "hubs", "net"},
    "serve": _BELOW_SERVERS - {"serve"},
    "server": _BELOW_SERVERS,
    "http": _BELOW_SERVERS,
    "pywsgi": _SERVERS - {"pywsgi"},
    "upgrade": {*_BELOW_SERVERS, "server", "until_signal"},
    "monkey": _SERVERS,
    "admin": {*_SERVERS, "monkey"},
    "cli": {*_SERVERS, "monkey", "admin", "upgrade"},
    "gunicorn": _SERVERS,
    "locust": {"model", "net.connection"},
    # What is public under a name of its own.
    "": {
        "_version",
        "registry",
        "handlers",
        "balance",
        "states",
        "model",
        "accept",
        "net",
        "serve",
        "until_signal",
        "upgrade",
    },
    "until_signal": {"model", "serve"},
    "__main__": {"cli"},
    "balance": {"model"},
    "handlers": {"hubs"},
    "registry": {"accept"},
    "states": {"model"},
}

#: Imports against that table, by importer. The list can only become shorter: a new one is a
#: failure, and so is one that is listed here and isn't there any more.
AGAINST_THE_TABLE: Final = {
    ("model.clone", "server"),  # the type of a clone's `server`
}

#: What opens and duplicates sockets.
_OPENING: Final = {"net.sockets", "net.unix_files", "net.passed"}

HOME: Final = Path(glb.__file__).parent

#: Each module, by its name without "glb."; a package's is the package's.
MODULES: Final = {
    ".".join(path.relative_to(HOME).with_suffix("").parts)
    .removesuffix("__init__")
    .rstrip("."): path
    for path in sorted(HOME.rglob("*.py"))
}
HTTP: Final = [name for name in MODULES if name.startswith("http.")]
MODEL: Final = [name for name in MODULES if name.startswith("model.")]

#: What people start, and what is patched before anything else.
DOORS: Final = ("__main__", "cli", "gunicorn", "locust", "monkey", "monkey.patch")
BELOW_THE_DOORS: Final = [
    name
    for name in MODULES
    if name not in DOORS and not name.startswith(("cli.", "gunicorn.", "locust."))
]


def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports_of(module: str) -> set[str]:
    """Return glb's modules that *module* imports, anywhere and for whatever reason."""
    names: set[str] = set()
    package = ["glb", *module.split(".")] if module else ["glb"]
    if MODULES[module].stem != "__init__":
        package.pop()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else []
            where = ".".join([*parts, *filter(None, [node.module])])
            for alias in node.names:
                # "from package import name": a module, or something of the package's own
                name = f"{where}.{alias.name}"
                names.add(name if name.removeprefix("glb.") in MODULES else where)
    return {name.removeprefix("glb").lstrip(".") for name in names if f"{name}.".startswith("glb.")}


EDGES: Final = {(module, name) for module in MODULES for name in imports_of(module)}


def package_of(module: str) -> str:
    return module.partition(".")[0]


def may_import(module: str, name: str) -> bool:
    allowed = MAY_IMPORT[package_of(module)]
    return package_of(module) == package_of(name) or not allowed.isdisjoint(
        {package_of(name), name}
    )


def find_circle(edges: set[tuple[str, str]]) -> list[str]:
    """Return modules that import each other in a circle; none if there are none."""
    graph: dict[str, set[str]] = {}
    for module, name in edges:
        graph.setdefault(module, set()).add(name)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [*error.args[1]]
    return []


def test_every_module_is_in_the_table() -> None:
    """A new package, or a module beside the packages, is given its row; no row is without one."""
    assert {package_of(module) for module in MODULES} == {*MAY_IMPORT}


def test_imports_go_down_only() -> None:
    """Each import is as the table says, but for those listed; and each of these is there."""
    assert {edge for edge in EDGES if not may_import(*edge)} == AGAINST_THE_TABLE


def test_the_table_has_no_circle() -> None:
    """A package that may import another is never imported by it, not even by way of a third."""
    rows = {(package, package_of(name)) for package, names in MAY_IMPORT.items() for name in names}
    assert find_circle(rows) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Not within a package either."""
    assert find_circle(EDGES - AGAINST_THE_TABLE) == []


def test_the_test_sees_imports() -> None:
    """The tests above would pass as well if nothing was found."""
    assert imports_of("registry") == {"accept.registry"}
    assert imports_of("model.clone") == {"server"}  # for types
    assert imports_of("monkey.selectors") == {
        "accept.descriptor",
        "accept.readiness",
        "accept.readiness_event",
        "monkey.sockets",
    }
    assert "monkey" in imports_of("cli.commands")  # within a function
    assert imports_of("cli") == {"cli.commands"}
    assert {"registry", "accept.listener"} <= imports_of("")


@pytest.mark.parametrize("module", ["body", "durations", "head", "reply", "settings"])
def test_words_of_http_wait_for_nothing(module: str) -> None:
    """Heads, bodies and replies can be read, and tested, without a server or a loop."""
    assert imports_of(f"http.{module}") <= {
        "http.body",
        "http.durations",
        "http.head",
        "model.forwarded",
        "model.limits",
        "originals",
    }


@pytest.mark.parametrize("module", HTTP)
def test_http_reads_the_time_of_day_only(module: str) -> None:
    """Date and the access log have the program's time, as gevent's; nothing waits by it."""
    tree = tree_of(module)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"monotonic", "perf_counter", "sleep", "_thread", "get_original"}


def run_at_all(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes but those under ``if TYPE_CHECKING:``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from run_at_all(node)


@pytest.mark.parametrize("module", [*MODEL, "accept.ring"])
def test_plain_data_knows_neither_gevent_nor_sockets(module: str) -> None:
    """Plain data and decisions can be read, and tested, without a loop."""
    for node in run_at_all(tree_of(module)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        # `_socket` has the constants and inet_pton() that address needs, and opens nothing.
        assert not {name.partition(".")[0] for name in names} & {"gevent", "socket", "select"}


@pytest.mark.parametrize("module", BELOW_THE_DOORS)
def test_one_package_opens_and_duplicates_sockets(module: str) -> None:
    """Below the doors, calls that make a descriptor stand in three files of `glb.net`."""
    called = {
        ast.unparse(node.func) for node in ast.walk(tree_of(module)) if isinstance(node, ast.Call)
    }
    opening = {"_socket.socket", "_socket.dup", "os.dup", "os.dup2", "_socket.socketpair"}
    assert bool(called & opening) is (module in _OPENING)


@pytest.mark.parametrize("module", [name for name in BELOW_THE_DOORS if name not in HTTP])
def test_one_module_binds_the_originals(module: str) -> None:
    """Below the doors, clocks and what gevent patches come from one file."""
    names: set[str | None] = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(alias.name for alias in node.names)}
    assert bool(names & {"time", "_thread", "get_original"}) is (module == "originals")


def modules_after(statement: str) -> set[str]:
    """Return what a fresh interpreter has loaded after *statement*."""
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    return set(done.stdout.split())


def test_import_glb_is_light() -> None:
    """Neither TLS nor WSGI nor anything of the doors is loaded to bind a listener."""
    heavy = {"ssl", "gevent.ssl", "gevent.pywsgi", "click", "rich"}
    heavy |= {
        "glb.server",
        "glb.http",
        "glb.pywsgi",
        "glb.monkey",
        "glb.cli",
        "glb.gunicorn",
        "glb.locust",
    }
    loaded = modules_after("import glb")
    assert "glb.accept.listener" in loaded
    assert loaded & heavy == set()


def test_import_glb_patches_nothing_and_starts_no_hub() -> None:
    """An import of glb decides nothing yet: no monkey patching, no loop, no thread."""
    program = (
        "import glb, threading, gevent.monkey, gevent._hub_local as hub_local\n"
        "assert not gevent.monkey.saved, gevent.monkey.saved\n"
        "assert hub_local.get_hub_if_exists() is None\n"
        "assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_public_modules_keep_their_names() -> None:
    """What is documented under a name of `glb` is there after ``import glb``."""
    assert (glb.handlers.PROOF, glb.states.State) == (PROOF, State)
    assert (glb.balance.Policy, glb.registry.entries) == (Policy, entries)


def test_each_name_of_the_package_is_there() -> None:
    """``from glb import *`` gives what ``__all__`` says, each with a docstring or a value."""
    for name in glb.__all__:
        assert getattr(glb, name)


def test_a_module_stands_in_for_gevents_as_a_whole() -> None:
    """After a change of ``from gevent import pywsgi`` every public name is here."""
    import gevent.pywsgi
    import gevent.server

    import glb.pywsgi
    import glb.server

    assert set(gevent.server.__all__) <= set(glb.server.__all__)
    assert set(gevent.pywsgi.__all__) <= set(glb.pywsgi.__all__)
