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
from typing import Any

import pytest

from glb.program import Program, ProgramNotFoundError

from .adopting import run_python

Ran = tuple[int, str, str]

# What a program can see of how it was started. The file's path is told as it was given.
TELL = """\
import __main__, sys
print(__name__, sys.argv, sys.path[0], __main__ is sys.modules["__main__"])
print(__main__.__dict__ is globals(), sorted(set(globals()) - {"__cached__", "__main__", "sys"}))
print(__file__, __package__, getattr(__spec__, "name", None), type(__loader__).__name__)
print(__builtins__ is __import__("builtins"), __doc__, __annotations__ == {})
import beside
print(beside.__file__)
if "--fail" in sys.argv:
    sys.exit("no luck")
"""


def plainly(*args: str, cwd: pathlib.Path) -> Ran:
    """Return the status, stdout and stderr of ``python`` with *args*."""
    done = run_python(*args, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


def by_glb(*args: str, cwd: pathlib.Path, options: tuple[str, ...] = ()) -> Ran:
    """The same of ``glb run``; what would be a warning is an error."""
    done = run_python("-W", "error", "-m", "glb", "run", *options, *args, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


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


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_program_sees_what_python_would_show_it(form: list[str], folder: pathlib.Path) -> None:
    """Name, arguments, path, `__main__` and its globals, status and stderr: all the same."""
    args = [each.format(folder=folder) for each in form]
    expected = plainly(*args, cwd=folder)
    assert expected[0] == (1 if "--fail" in args else 0)
    assert by_glb(*args, cwd=folder) == expected


def test_options_of_ours_come_before_the_program(folder: pathlib.Path) -> None:
    """What follows the program is the program's; what precedes it reaches gevent's servers."""
    (folder / "places.py").write_text(
        "import gevent.server, sys, glb.adopted\n"
        "server = gevent.server.StreamServer(('127.0.0.1', 0), print)\n"
        "print(sys.argv[1:], server.clones, server.hubs, glb.adopted.is_excluded("
        "glb.address.parse('127.0.0.1:81')), __name__)\n"
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
}


@pytest.mark.parametrize("text", ENDS.values(), ids=ENDS)
def test_a_program_ends_as_by_python(text: str, tmp_path: pathlib.Path) -> None:
    """Status, and a traceback that begins in the program: not a line more or less."""
    (tmp_path / "program.py").write_bytes(text.encode())
    assert by_glb("program.py", cwd=tmp_path) == plainly("program.py", cwd=tmp_path)


def test_an_interrupted_program_ends_by_the_signal(tmp_path: pathlib.Path) -> None:
    """KeyboardInterrupt has its traceback, and the status that shells look at."""
    (tmp_path / "program.py").write_text("raise KeyboardInterrupt\n")
    expected = plainly("program.py", cwd=tmp_path)
    assert expected[0] == -signal.SIGINT
    assert by_glb("program.py", cwd=tmp_path) == expected


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
    expected = (0, "5 5 ['program.py', 'x']\n", "")
    assert plainly("program.py", "x", cwd=tmp_path) == expected
    assert by_glb("program.py", "x", cwd=tmp_path) == expected


@pytest.mark.parametrize("args", [["--help"], ["use"], ["abort"]])
def test_a_program_that_is_a_click_command_is_itself(
    args: list[str], tmp_path: pathlib.Path
) -> None:
    """Its usage, errors and status are its own, and not taken for ours."""
    (tmp_path / "program.py").write_text(
        "import click\n"
        "@click.command()\n"
        "@click.argument('what', default='')\n"
        "def main(what):\n"
        "    if what == 'use':\n        raise click.UsageError('not so')\n"
        "    if what == 'abort':\n        raise click.Abort\n"
        "    print('done')\n"
        "main()\n"
    )
    assert by_glb("program.py", *args, cwd=tmp_path) == plainly("program.py", *args, cwd=tmp_path)


def test_an_error_of_click_that_nobody_catches_is_an_error(tmp_path: pathlib.Path) -> None:
    """Not one of our command line's."""
    (tmp_path / "program.py").write_text("import click\nraise click.UsageError('mine')\n")
    assert by_glb("program.py", cwd=tmp_path) == plainly("program.py", cwd=tmp_path)


def test_a_module_whose_package_fails_tells_its_own_error(tmp_path: pathlib.Path) -> None:
    """What it misses when it is imported isn't that there is no such module."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "__init__.py").write_text("import no_such_thing\n")
    (tmp_path / "broken" / "__main__.py").write_text("")
    status, out, err = by_glb("-m", "broken", cwd=tmp_path)
    assert (status, out) == (1, "")
    assert err.splitlines()[-1] == "ModuleNotFoundError: No module named 'no_such_thing'"
    assert str(tmp_path / "broken" / "__init__.py") in err


# -- what is not there ------------------------------------------------------------------------


def test_what_is_not_there_is_one_line_and_status_2(tmp_path: pathlib.Path) -> None:
    """As python's own status. Which programs those are, see below."""
    expected = (2, "", "glb: can't open file 'missing.py': No such file or directory\n")
    assert by_glb("missing.py", cwd=tmp_path) == expected


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
def test_what_a_program_raises_is_told_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the hook that is there then, with a traceback from the program on; and passed on."""
    (tmp_path / "program.py").write_text("raise ValueError(5)\n")
    told: list[Any] = []
    monkeypatch.setattr(sys, "excepthook", lambda *args: told.append(args))
    with pytest.raises(ValueError, match="5") as caught:
        Program(str(tmp_path / "program.py"), (), is_module=False).run()
    ((kind, error, trace),) = told
    assert (kind, error) == (ValueError, caught.value)
    assert trace.tb_frame.f_code.co_filename == str(tmp_path / "program.py")
    sys.excepthook(kind, error, trace)
    assert len(told) == 1  # the interpreter, at its end, is told nothing more


@pytest.mark.usefixtures("process")
def test_a_program_that_is_not_there_changes_nothing(tmp_path: pathlib.Path) -> None:
    """Nor one that can't be read: no `__main__`, no hook."""
    before = (sys.modules["__main__"], [*sys.argv], [*sys.path], sys.excepthook)
    with pytest.raises(ProgramNotFoundError, match=r"can't open file .*missing"):
        Program(str(tmp_path / "missing.py"), ("x",), is_module=False).run()
    assert (sys.modules["__main__"], sys.argv, sys.path, sys.excepthook) == before


@pytest.mark.usefixtures("process")
def test_an_exit_is_passed_on(tmp_path: pathlib.Path) -> None:
    """`SystemExit` isn't told, and has what it was given."""
    (tmp_path / "program.py").write_text("import sys\nsys.exit(sys.argv[1:])\n")
    hook = sys.excepthook
    with pytest.raises(SystemExit, match=r"\['a', 'b'\]"):
        Program(str(tmp_path / "program.py"), ("a", "b"), is_module=False).run()
    assert sys.excepthook is hook


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    ("target", "is_module", "text"),
    [
        ("empty", False, "can't find '__main__' module in 'empty'"),
        (".", False, "can't find '__main__' module in '.'"),
        ("no_such", True, "there is no module 'no_such' that could be run"),
        ("no.such", True, "there is no module 'no.such' that could be run"),
        ("alone", True, "there is no module 'alone' that could be run"),
        ("sys", True, "there is no module 'sys' that could be run"),
        ("here.py", True, "there is no module 'here.py' that could be run"),
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
    with pytest.raises(ProgramNotFoundError, match=f"^{re.escape(text)}$"):
        Program(target, (), is_module).run()
    assert sys.modules["__main__"] is main
