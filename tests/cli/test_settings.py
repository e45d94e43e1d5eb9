"""Settings: where a value comes from, which comes first, and what is said of a wrong one."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Callable
from typing import TypeAlias

import pytest

from glb.cli.commands import _OF_OTHERS, main
from glb.cli.serve import serve
from glb.cli.settings import Setting

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Run: TypeAlias = Callable[..., tuple[object, str, str]]

#: A value that each option refuses, as it is written on the command line and in a variable; and
#: one of a type that it doesn't have in a file.
WRONG: dict[str, tuple[str, str]] = {
    "config": ("no-such-file.toml", ""),
    "bind": ("nowhere", '[":8000", 8001]'),
    "upgrade-timeout": ("0", '"60"'),
    "pid-file": ("no/such/folder/pid", "1"),
    "clones": ("0", '"4"'),
    "hubs": ("none", "true"),
    "backlog": ("-1", "1.5"),
    "wsgi": ("perhaps", "1"),
    "patch": ("perhaps", '"no"'),
    "certfile": ("no-such.pem", "1"),
    "keyfile": ("no-such.pem", "false"),
    "max-connections": ("many", "[1]"),
    "max-connections-per-clone": ("1.5", '"1"'),
    "accept-rate": ("0", '"fast"'),
    "handshake-timeout": ("-1", "true"),
    "first-byte-timeout": ("nan", '"1"'),
    "proxy-protocol": ("v3", "2"),
    "proxy-allow-ips": ("10.0.0.0/99", "10"),
    "forwarded-allow-ips": ("nowhere", "true"),
    "drain-delay": ("-1", '"1"'),
    "max-request-line": ("0", '"8190"'),
    "max-field-size": ("-1", "true"),
    "max-head-size": ("64k", "1e5"),
    "max-fields": ("0", "[100]"),
    "request-timeout": ("-1", '"30"'),
    "request-histogram": ("perhaps", "1"),
    "max-body": ("-1", "1.0"),
    "body-timeout": ("x", "{}"),
    "send-timeout": ("inf", "[]"),
    "access-log": ("no-such-folder/log", "1"),
    "log-format": ("xml", "true"),
    "log-level": ("loud", "10"),
    "umask": ("888", "7"),
    "user": ("no-such-user", "0"),
    "group": ("no-such-group", "0"),
    "drain-timeout": ("-0.5", "1979-05-27"),
    "admin": ("127.0.0.1:70000", "9000"),
    "stall-limit": ("0", '"10"'),
    "reload": ("perhaps", '"yes"'),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty current directory, and an environment that says nothing."""
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name.startswith("GLB_") or name == "PORT":
            monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return what runs ``glb serve`` in this process: status, stdout, stderr."""

    def run(*args: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["serve", *args])
        return (ended.value.code, *capsys.readouterr())

    return run


def assert_one_line(found: tuple[object, str, str], *parts: str) -> None:
    status, out, err = found
    assert (status, out) == (2, "")
    assert err.startswith("glb: ") and err.count("\n") == 1, err
    for part in parts:
        assert part in err


def printed(run: Run, *args: str) -> tuple[dict[str, object], dict[str, str]]:
    """Return the settings that hold, and where each comes from."""
    status, out, err = run(*args, "--print-config")
    assert (status or 0, err) == (0, "")
    sources = {}
    for line in out.splitlines():
        setting, _, source = line.rpartition("  # ")
        sources[setting.removeprefix("# ").partition(" ")[0]] = source.partition(": ")[0]
    return tomllib.loads(out), sources


# -- which comes first --------------------------------------------------------------------------


def test_command_line_comes_before_environment_before_file_before_default(
    run: Run, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is asked in turn, for each option alone."""
    (folder / "glb.toml").write_text("clones = 2\nhubs = 2\nbacklog = 2\n")
    monkeypatch.setenv("GLB_CLONES", "3")
    monkeypatch.setenv("GLB_HUBS", "3")
    values, sources = printed(run, "--config", "glb.toml", "--clones", "4")
    expected = {
        "clones": (4, "the command line"),
        "hubs": (3, "GLB_HUBS"),
        "backlog": (2, "glb.toml"),
        "drain-timeout": (30.0, "default"),
    }
    assert {key: (values[key], sources[key]) for key in expected} == expected


def test_project_file_is_read_unless_another_is_named(
    run: Run, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``[tool.glb]`` of the current directory's pyproject.toml, and of no other one."""
    (folder / "pyproject.toml").write_text("[tool.other]\nx = 1\n[tool.glb]\nclones = 5\n")
    (folder / "glb.toml").write_text("hubs = 2\n")
    values, sources = printed(run)
    assert (values["clones"], sources["clones"]) == (5, "pyproject.toml")
    for args in (("--config", "glb.toml"), ()):
        values, sources = printed(run, *args)
        assert "clones" not in values
        assert (values["hubs"], sources["hubs"]) == (2, "glb.toml")
        monkeypatch.setenv("GLB_CONFIG", "glb.toml")


def test_project_file_of_other_tools_says_nothing(run: Run, folder: pathlib.Path) -> None:
    """Most have no table of ours."""
    (folder / "pyproject.toml").write_text("[tool.other]\nx = 1\n")
    assert set(printed(run)[1].values()) == {"default"}


def test_port_is_every_hosts_unless_something_says_more(
    run: Run, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Platforms give a program its port so."""
    monkeypatch.setenv("PORT", "5000")
    values, sources = printed(run)
    assert (values["bind"], sources["bind"]) == (["0.0.0.0:5000"], "PORT")
    (folder / "glb.toml").write_text('bind = "127.0.0.1:1"\n')
    values, sources = printed(run, "--config", "glb.toml")
    assert (values["bind"], sources["bind"]) == (["127.0.0.1:1"], "glb.toml")
    monkeypatch.setenv("GLB_BIND", ":2 unix:/s")
    assert printed(run)[0]["bind"] == [":2", "unix:/s"]
    assert printed(run, "--bind", ":3", "--bind", ":4")[0]["bind"] == [":3", ":4"]
    monkeypatch.delenv("GLB_BIND")
    monkeypatch.setenv("PORT", "http")
    assert_one_line(run(), "--bind from PORT: port must be a number, got 'http'")


def test_target_may_be_a_setting(
    run: Run, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's image says what it serves."""
    (folder / "glb.toml").write_text('target = "no_such_module:app"\n')
    found = run("--no-patch", "--config", "glb.toml")
    assert_one_line(found, "TARGET from glb.toml: can't import 'no_such_module'")
    monkeypatch.setenv("GLB_TARGET", "other_module")
    found = run("--no-patch", "--config", "glb.toml")
    assert_one_line(found, "TARGET from GLB_TARGET: can't import 'other_module'")


def test_printed_settings_are_a_file_that_makes_them(
    run: Run, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is in a value."""
    odd = 'unix:/tmp/"quoted" \\ \x1b[31m é \U0001f600\x7f'
    monkeypatch.setenv("GLB_ACCEPT_RATE", "1e-05")
    first = printed(run, "a:b", "--bind", odd, "--stream", "--max-body", "7")
    assert first[0]["bind"] == [odd]
    monkeypatch.delenv("GLB_ACCEPT_RATE")
    (folder / "glb.toml").write_text(
        "".join(f"{line}\n" for line in _print(run, "a:b", "--bind", odd, "--stream").splitlines())
    )
    again = printed(run, "--config", "glb.toml")[0]
    assert again == {key: value for key, value in first[0].items() if key in again}
    assert again["wsgi"] is False


def test_printed_settings_show_what_holds_without_a_value(run: Run) -> None:
    """As the help has it."""
    lines = _print(run).splitlines()
    assert "# max-body =   # default: 1 GiB" in lines
    assert "# clones =   # default: 4, or as many as there are hubs" in lines
    assert "# certfile =   # default" in lines


def test_wrong_numbers_and_flags_say_what_is_wanted(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In words, not in those of a library."""
    for option, value, wanted in [
        ("--backlog", "-1", "a whole number, 0 to 2147483647"),
        ("--max-body", "1GiB", "a whole number, 0 or more"),
        ("--request-timeout", "30s", "a number, 0 or more"),
        ("--drain-delay", "nan", "a number, 0 or more"),
        ("--stall-limit", "0", "a number, above 0"),
    ]:
        found = run(option, value)
        assert_one_line(found, f"{option} from the command line: must be {wanted}, got {value!r}")
    monkeypatch.setenv("GLB_RELOAD", "2")
    assert_one_line(run(), "--reload from GLB_RELOAD: must be 1 or 0, got '2'")


def test_other_servers_options_have_ours_beside_them(run: Run) -> None:
    """Each is none of ours, and what is named in its place is."""
    names = {name for option in serve.params for name in option.opts}
    for other, ours in _OF_OTHERS.items():
        assert other not in names
        assert_one_line(run(other, "1"), f"No such option {other!r}: write {ours}")
        assert ours.split()[0] in names | {"nothing,"}


def _print(run: Run, *args: str) -> str:
    return run(*args, "--print-config")[1]


def test_help_shows_each_variable(run: Run) -> None:
    """Each option but those that are of one call alone has one."""
    _, out, _ = run("--help")
    words = "".join(out.split())
    for key in WRONG:
        assert f"envvar:GLB_{key.upper().replace('-', '_')}" in words


# -- what is wrong ------------------------------------------------------------------------------


def test_each_option_is_here() -> None:
    """What is added to the command is added to these tests."""
    assert {each.key for each in serve.params if isinstance(each, Setting)} == {*WRONG}


def is_flag(key: str) -> bool:
    return any(
        isinstance(each, Setting) and each.is_flag
        for each in serve.params
        if f"--{key}" in each.opts
    )


@pytest.mark.parametrize("key", [key for key in WRONG if not is_flag(key)])
def test_wrong_option_names_the_command_line(run: Run, key: str) -> None:
    """One line: option, source, value."""
    found = run(f"--{key}", WRONG[key][0])
    assert_one_line(found, f"--{key} from the command line: ", WRONG[key][0])


@pytest.mark.parametrize("key", WRONG)
def test_wrong_variable_is_named(run: Run, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line: option, source, value."""
    name = f"GLB_{key.upper().replace('-', '_')}"
    monkeypatch.setenv(name, WRONG[key][0])
    assert_one_line(run(), f"--{key} from {name}: ", WRONG[key][0])


@pytest.mark.parametrize("key", [key for key in WRONG if key != "config"])
def test_wrong_key_names_its_file(run: Run, key: str, folder: pathlib.Path) -> None:
    """A value that the option refuses, and one of another type."""
    wrong, other = WRONG[key]
    (folder / "glb.toml").write_text(f"{key} = {other}\n")
    found = run("--config", "glb.toml")
    assert_one_line(found, f"--{key} from glb.toml: must be ", ", got ")
    if is_flag(key):
        return
    is_number = wrong.lstrip("-").replace(".", "").isdigit() or wrong in {"nan", "inf"}
    (folder / "glb.toml").write_text(f"{key} = {wrong if is_number else repr(wrong)}\n")
    found = run("--config", "glb.toml")
    assert_one_line(found, f"--{key} from glb.toml: ", wrong)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"clones", "can't read 'glb.toml': "),
        (b"x = '\xff'", "can't read 'glb.toml': 'utf-8' codec can't decode byte 0xff"),
        (b"x = " + b"[" * 100_000, "can't read 'glb.toml': "),
        (b"clone = 4", "unknown key 'clone' in glb.toml: did you mean 'clones'?"),
        (b"max_body = 4", "unknown key 'max_body' in glb.toml: did you mean 'max-body'?"),
        (b"stream = true", "unknown key 'stream' in glb.toml: write wsgi = false"),
        (b"zzz = 4", "unknown key 'zzz' in glb.toml\n"),
        (b"config = 'other.toml'", "unknown key 'config' in glb.toml\n"),
        (b"[tool.glb]\nclones = 1", "unknown key 'tool' in glb.toml: only pyproject.toml has"),
        (b"bind = []", "--bind from glb.toml: must not be empty, got []"),
        (b"bind = [':1', 'nowhere']", "--bind from glb.toml: address must be host:port"),
        (b"bind = 1", "--bind from glb.toml: must be a string, or a list of them, got 1"),
        (b"target = 1", "TARGET from glb.toml: must be a string, got 1"),
    ],
)
def test_wrong_file_is_one_line(run: Run, folder: pathlib.Path, text: bytes, reason: str) -> None:
    """It names the file, and what is wrong in it."""
    (folder / "glb.toml").write_bytes(text)
    assert_one_line(run("--config", "glb.toml"), reason)


def test_file_that_cant_be_read_is_one_line(
    run: Run, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names where the file's own name comes from."""
    found = run("--config", ".")
    assert_one_line(found, "--config from the command line: can't read '.': Is a directory")
    monkeypatch.setenv("GLB_CONFIG", "missing.toml")
    found = run()
    assert_one_line(found, "--config from GLB_CONFIG: can't read 'missing.toml': No such file")
    monkeypatch.delenv("GLB_CONFIG")
    (folder / "pyproject.toml").write_text("[tool]\nglb = 1\n")
    assert_one_line(run(), "can't read 'pyproject.toml': glb must be a table, got 1")


def test_a_setting_that_fails_later_names_its_source(
    run: Run, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel refuses, and what options mean together."""
    monkeypatch.setenv("GLB_BIND", "unix:/no/such/folder/s")
    assert_one_line(run(), "--bind from GLB_BIND: can't bind '/no/such/folder/s': ")
    (folder / "glb.toml").write_text("wsgi = false")
    found = run("--config", "glb.toml")
    assert_one_line(found, "--wsgi from glb.toml: --stream needs a TARGET")
