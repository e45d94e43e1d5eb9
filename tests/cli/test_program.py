"""`glb run`: a program as ``python`` would run it, beside ``python`` itself."""

from __future__ import annotations

import os
import pathlib
import py_compile
import re
import shutil
import signal
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gevent
import pytest

from glb.cli.program import Program, ProgramNotFoundError

from ..support.adopting import run_python

Ran = tuple[int, str, str]

# What a program can see of how it was started. The file's path is as it was given.
pytestmark = pytest.mark.process

TELL = """\
import __main__, sys
print(__name__, sys.argv, sys.path[0], __main__ is sys.modules["__main__"])
print(__main__.__dict__ is globals(), sorted(set(globals()) - {"__main__", "sys"}))
print(__file__, __package__, getattr(__spec__, "name", None), type(__loader__).__name__)
print(__builtins__ is __import__("builtins"), __doc__, __main__.__annotations__)
size: int = 5
print(globals().get("__cached__"), __main__.__annotations__)
import beside
print(beside.__file__)
if "--fail" in sys.argv:
    sys.exit("no luck")
"""


def plainly(*args: str, cwd: pathlib.Path, given: str | None = None) -> Ran:
    """Return the status, stdout and stderr of ``python`` with *args*, and *given* on stdin."""
    done = run_python(*args, cwd=cwd, given=given)
    return done.returncode, done.stdout, done.stderr


def by_glb(
    *args: str, cwd: pathlib.Path, options: tuple[str, ...] = (), given: str | None = None
) -> Ran:
    """The same of ``glb run``; what would be a warning is an error."""
    done = run_python("-W", "error", "-m", "glb", "run", *options, *args, cwd=cwd, given=given)
    return done.returncode, done.stdout, done.stderr


def check_alike(
    cases: dict[str, list[str]], cwd: pathlib.Path, given: str | None = None
) -> list[Ran]:
    """Check that each of *cases*, arguments, runs as by python; return what came of each.

    All at once: most of a child's time is its start.
    """
    with ThreadPoolExecutor(4) as pool:
        ours = [pool.submit(by_glb, *args, cwd=cwd, given=given) for args in cases.values()]
        pythons = [pool.submit(plainly, *args, cwd=cwd, given=given) for args in cases.values()]
    found = dict(zip(cases, (each.result() for each in ours), strict=True))
    assert found == dict(zip(cases, (each.result() for each in pythons), strict=True))
    return [*found.values()]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A current directory with one program in every form."""
    inside = tmp_path / "inside"
    package = inside / "package"
    package.mkdir(parents=True)
    (inside / "beside.py").write_text("")
    (inside / "program.py").write_text(TELL)
    (inside / "__main__.py").write_text(TELL)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(TELL)
    (package / "part.py").write_text("from . import __name__ as parent\nprint(parent)\n" + TELL)
    py_compile.compile(str(inside / "program.py"), cfile=str(inside / "compiled.pyc"))
    with zipfile.ZipFile(inside / "archive.zip", "w") as archive:
        archive.write(inside / "__main__.py", "__main__.py")
        archive.write(inside / "beside.py", "beside.py")
    shutil.copy(inside / "beside.py", tmp_path / "beside.py")
    shutil.copytree(package, tmp_path / "package")
    shutil.copy(inside / "program.py", tmp_path / "program.py")
    return tmp_path


# -- forms ------------------------------------------------------------------------------------

FORMS = {
    "file": ["inside/program.py"],
    "file here": ["program.py", "--fail"],
    "absolute": ["{folder}/inside/program.py"],
    "directory": ["inside", "-x", "--clones", "8"],
    "archive": ["inside/archive.zip"],
    "compiled": ["inside/compiled.pyc"],
    "module": ["-m", "program", "a b", "--", "-m"],
    "package": ["-m", "package"],
    "part": ["-m", "package.part", "--help"],
}


def test_a_program_sees_what_python_would_show_it(folder: pathlib.Path) -> None:
    """Name, arguments, path, `__main__` and its globals, status and stderr: all the same."""
    forms = {form: [each.format(folder=folder) for each in args] for form, args in FORMS.items()}
    statuses = [status for status, *_ in check_alike(forms, folder)]
    assert statuses == ["--fail" in args for args in forms.values()]


def test_a_program_may_come_on_stdin(folder: pathlib.Path) -> None:
    """There too it sees what python would show it: a file named <stdin>, and where it looks."""
    ((status, out, err),) = check_alike({"-": ["-", "a", "-m"]}, folder, given=TELL)
    assert (status, err) == (0, "")
    assert out.startswith("__main__ ['-', 'a', '-m'] ")


def test_options_of_ours_come_before_the_program(folder: pathlib.Path) -> None:
    """What follows the program is the program's; what precedes it reaches gevent's servers."""
    (folder / "places.py").write_text(
        "import gevent.server, sys, glb.accept.exclusions\n"
        "server = gevent.server.StreamServer(('127.0.0.1', 0), print)\n"
        "print(sys.argv[1:], server.clones, server.hubs, glb.accept.exclusions.is_excluded("
        "glb.model.address.parse('127.0.0.1:81')), __name__)\n"
    )
    options = ("--clones", "6", "--hubs", "2", "--exclude", ":80", "--exclude", "localhost:81")
    ran = by_glb("places.py", "--clones", "7", "-m", cwd=folder, options=options)
    assert ran == (0, "['--clones', '7', '-m'] 6 2 True __main__\n", "")


# -- ends -------------------------------------------------------------------------------------

ENDS = {
    "an error with a cause": "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n"
    "    raise KeyError(5) from error\n",
    "a syntax error": "x = (\n",
    "a text": "import sys\nsys.exit('that is all')\n",
    "a module that is missing": "import no_such_module\n",
    "a hook of its own": "import sys\nsys.excepthook = lambda kind, error, trace: print(\n"
    "    'told', kind.__name__, error, trace.tb_frame.f_code.co_name, trace.tb_next)\n"
    "raise OSError('mine')\n",
    "at exit": "import atexit\natexit.register(print, 'last words')\n1 / 0\n",
    "interrupted": "raise KeyboardInterrupt\n",
    # Of one that ends by itself, and whose errors aren't taken for our command line's.
    "an error of click": "import click\nraise click.UsageError('mine')\n",
}
#: A program that is a click command itself.
CLICK = """\
import click
@click.command()
@click.argument("what", default="")
def main(what):
    if what == "use":
        raise click.UsageError("not so")
    if what == "abort":
        raise click.Abort
    print("done")
main()
"""
CLICKS = [["--help"], ["use"], ["abort"]]


def test_a_program_ends_as_by_python(tmp_path: pathlib.Path) -> None:
    """Status, and a traceback that begins in the program: not a line more or less."""
    for number, text in enumerate(ENDS.values()):
        (tmp_path / f"end{number}.py").write_bytes(text.encode())
    cases = {what: [f"end{number}.py"] for number, what in enumerate(ENDS)}
    for args in CLICKS:
        cases[f"click {args}"] = ["click_program.py", *args]
    (tmp_path / "click_program.py").write_text(CLICK)
    if "libuv" in gevent.config.loop.__module__:
        # There gevent's patch ends it with status 1, as `python -m gevent.monkey` does.
        del cases["interrupted"]
    ran = dict(zip(cases, check_alike(cases, tmp_path), strict=True))
    assert {status for status, *_ in ran.values()} >= {0, 1, 2}
    assert ran.get("interrupted", (-signal.SIGINT,))[0] == -signal.SIGINT


def test_signals_are_the_programs(tmp_path: pathlib.Path) -> None:
    """Its handlers are called while it sleeps, and SIGINT is a KeyboardInterrupt that cleans up."""
    (tmp_path / "program.py").write_text(
        "import os, signal, threading, time\n"
        "calls = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: calls.append('terminated'))\n"
        "threading.Timer(0, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "while not calls:\n    time.sleep(0.001)\n"
        "print(calls)\n"
        "try:\n    signal.raise_signal(signal.SIGINT)\n    time.sleep(60)\n"
        "finally:\n    print('cleaned up')\n"
    )
    status, out, err = by_glb("program.py", cwd=tmp_path)
    assert (status, out) == (-signal.SIGINT, "['terminated']\ncleaned up\n")
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert f"{os.sep}glb{os.sep}" not in err


def test_a_program_on_stdin_ends_as_by_python(tmp_path: pathlib.Path) -> None:
    """Its traceback has the lines' numbers, and its status is its own."""
    text = "# \u00e4\ndef fail():\n    1 / 0\nfail()\n"
    ((status, _, err),) = check_alike({"-": ["-"]}, tmp_path, given=text)
    assert status == 1
    assert 'File "<stdin>", line 3, in fail' in err


def test_threads_that_outlive_the_main_one_find_main(tmp_path: pathlib.Path) -> None:
    """`__main__` stays until the process ends, as do the program's globals and its argv."""
    (tmp_path / "program.py").write_text(
        "import sys, threading, time\n"
        "number = 5\n"
        "def work():\n"
        "    threading.main_thread().join(0.05)\n"
        "    time.sleep(0.01)\n"
        "    import __main__\n"
        "    print(__main__.number, number, sys.argv, flush=True)\n"
        "threading.Thread(target=work).start()\n"
    )
    ran = check_alike({"threads": ["program.py", "x"]}, tmp_path)
    assert ran == [(0, "5 5 ['program.py', 'x']\n", "")]


def test_a_module_whose_package_fails_shows_its_own_error(tmp_path: pathlib.Path) -> None:
    """What it misses when it is imported isn't that there is no such module."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "__init__.py").write_text("import no_such_thing\n")
    (tmp_path / "broken" / "__main__.py").write_text("")
    status, out, err = by_glb("-m", "broken", cwd=tmp_path)
    assert (status, out) == (1, "")
    assert err.splitlines()[-1] == "ModuleNotFoundError: No module named 'no_such_thing'"
    assert str(tmp_path / "broken" / "__init__.py") in err


# -- what is not there ------------------------------------------------------------------------


def test_what_is_not_there_is_one_line_and_pythons_status(tmp_path: pathlib.Path) -> None:
    """2 for a file, 1 for a module, as python has it. Which programs those are, see below."""
    for args, status, text in (
        (["missing.py"], 2, f"can't open file '{tmp_path}/missing.py': No such file or directory"),
        (["-m", "missing"], 1, "no module named 'missing' could be run"),
    ):
        assert by_glb(*args, cwd=tmp_path) == (status, "", f"glb: {text}\n")
        assert plainly(*args, cwd=tmp_path)[0] == status


def test_options_that_cannot_be_are_one_line_and_status_2(tmp_path: pathlib.Path) -> None:
    """The program isn't begun."""
    (tmp_path / "program.py").write_text("print('begun')\n")
    status, out, err = by_glb("program.py", cwd=tmp_path, options=("--exclude", ":http"))
    assert (status, out) == (2, "")
    assert err.startswith("glb: ") and "':http'" in err and err.count("\n") == 1


# -- in this process --------------------------------------------------------------------------


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put back what a program's start changes."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.setattr(sys, "argv", [*sys.argv])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.mark.usefixtures("process")
def test_an_error_of_a_program_reaches_the_hook_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the hook that is there then, with a traceback from the program on; and passed on."""
    (tmp_path / "program.py").write_text("raise ValueError(5)\n")
    told: list[Any] = []

    def hook(*args: Any) -> None:
        told.append(args)

    monkeypatch.setattr(sys, "excepthook", hook)
    with pytest.raises(ValueError, match="5") as caught:
        Program(str(tmp_path / "program.py"), (), is_module=False).run()
    assert told == []  # the interpreter calls the hook, at its end
    error = caught.value
    sys.excepthook(type(error), error, error.__traceback__)
    ((kind, value, trace),) = told
    assert (kind, value) == (ValueError, error)
    assert trace is error.__traceback__
    assert trace is not None
    assert trace.tb_frame.f_code.co_filename == str(tmp_path / "program.py")
    assert sys.excepthook is hook


@pytest.mark.usefixtures("process")
def test_another_error_reaches_the_hook_as_it_is(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes first may not be the program's: the hook gets it whole, and is back."""
    (tmp_path / "program.py").write_text("raise ValueError(5)\n")
    told: list[Any] = []
    hook = told.append
    monkeypatch.setattr(sys, "excepthook", lambda *args: hook(args))
    original = sys.excepthook
    with pytest.raises(ValueError, match="5"):
        Program(str(tmp_path / "program.py"), (), is_module=False).run()
    try:
        raise KeyError("another")
    except KeyError as error:
        other = error
    given = (KeyError, other, other.__traceback__)
    sys.excepthook(*given)
    assert told == [given]
    assert other.__traceback__ is given[2]
    assert sys.excepthook is original


@pytest.mark.usefixtures("process")
def test_a_program_that_is_not_there_changes_nothing(tmp_path: pathlib.Path) -> None:
    """Nor one that can't be read: no `__main__`, no hook."""
    before = (sys.modules["__main__"], [*sys.argv], [*sys.path], sys.excepthook)
    with pytest.raises(ProgramNotFoundError, match=r"can't open file .*missing") as caught:
        Program(str(tmp_path / "missing.py"), ("x",), is_module=False).run()
    assert caught.value.status == 2
    assert (sys.modules["__main__"], sys.argv, sys.path, sys.excepthook) == before


@pytest.mark.usefixtures("process")
def test_an_exit_is_passed_on(tmp_path: pathlib.Path) -> None:
    """`SystemExit` has no traceback, and its own status."""
    (tmp_path / "program.py").write_text("import sys\nsys.exit(sys.argv[1:])\n")
    hook = sys.excepthook
    with pytest.raises(SystemExit, match=r"\['a', 'b'\]"):
        Program(str(tmp_path / "program.py"), ("a", "b"), is_module=False).run()
    assert sys.excepthook is hook


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    ("target", "is_module", "text"),
    [
        ("empty", False, "can't find '__main__' module in '{folder}/empty'"),
        (".", False, "can't find '__main__' module in '{folder}'"),
        ("no_such", True, "no module named 'no_such' could be run"),
        ("no.such", True, "no module named 'no.such' could be run"),
        ("alone", True, "no module named 'alone' could be run"),
        ("sys", True, "no module named 'sys' could be run"),
        ("here.py", True, "no module named 'here.py' could be run"),
    ],
)
def test_what_cannot_be_run_is_named(
    target: str,
    is_module: bool,
    text: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A directory without `__main__.py`, a package without one, a module that isn't Python's."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "__init__.py").write_text("")
    (tmp_path / "here.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "alone", raising=False)
    monkeypatch.delitem(sys.modules, "here", raising=False)
    main = sys.modules["__main__"]
    expected = text.replace("{folder}", str(tmp_path))
    with pytest.raises(ProgramNotFoundError, match=f"^{re.escape(expected)}$") as caught:
        Program(target, (), is_module).run()
    assert caught.value.status == 1
    assert sys.modules["__main__"] is main
