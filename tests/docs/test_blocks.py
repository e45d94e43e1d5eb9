"""Every block of code of the README and the site is run, checked, or marked with a reason."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from . import shell
from .pages import PAGES, ROOT, Block, Page

RUNNER: Final = Path(__file__).with_name("run_blocks.py")

#: The languages of blocks, and what is done with them here.
LANGUAGES: Final = {
    "python": "run",
    "sh": "its commands are checked",
    "toml": "read as settings",
    "json": "read",
    "nginx": "nginx checks it",
    "haproxy": "HAProxy checks it",
    "ini": "its command is checked",
    "dockerfile": "its command is checked",
    "yaml": "its command is checked",
    "text": "shown: what a program prints",
    "": "shown: output, a drawing, a file of another program",
}

CONTRIBUTING: Final = Page.read(ROOT / "CONTRIBUTING.md")

#: They patch the process, or import what does: each is run in a process of its own.
PATCHES: Final = re.compile(r"patch_all|glb\.locust|flask_socketio")


def blocks_of(language: str) -> list[tuple[Page, Block]]:
    return [
        (page, block)
        for page in PAGES
        for block in page.blocks
        if block.language == language and block.reason is None
    ]


def texts_of(language: str) -> list[Any]:
    return [
        pytest.param(block.text, id=f"{page.name}:{block.line}")
        for page, block in blocks_of(language)
    ]


def programs(*, patching: bool) -> list[tuple[Page, list[Block]]]:
    """Return the Python blocks that patch the process, or the others, by page."""
    return [
        (page, [each for each in python if bool(PATCHES.search(each.text)) is patching])
        for page in PAGES
        for python in [
            [each for each in page.blocks if each.language == "python" and not each.reason]
        ]
    ]


def targets_of(page: Page) -> list[str]:
    """Return what *page* has served of its own files, or of the examples."""
    found = []
    for args in shell.glb_commands(page):
        if args[1:2] == ["serve"] and len(args) > 2 and ":" in args[2]:
            module = args[2].partition(":")[0]
            text = files_of(page).get(f"{module}.py")
            if text is not None and not PATCHES.search(text) and args[2] not in found:
                found.append(args[2])
    return found


def files_of(page: Page) -> dict[str, str]:
    return {name: text for name, text in page.files.items() if name.endswith(".py")}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is current, without settings of the environment."""
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name == "PORT" or name.startswith("GLB_"):
            monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each user and group that a page names."""
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: SimpleNamespace(pw_uid=1, pw_gid=1))
    monkeypatch.setattr(grp, "getgrnam", lambda _name: SimpleNamespace(gr_gid=1))


def run(given: dict[str, object]) -> None:
    """Have blocks run in a process of their own: see `run_blocks`."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(RUNNER)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def given_of(blocks: list[Block], targets: list[str], files: dict[str, str]) -> dict[str, object]:
    return {
        "blocks": [(each.line, each.text) for each in blocks],
        "targets": targets,
        "files": files,
    }


@pytest.mark.process
def test_programs_run() -> None:
    """Each block is a program of its own. One that serves is asked; so is what is served of it."""
    run(
        {
            page.name: given_of(blocks, targets_of(page), files_of(page))
            for page, blocks in programs(patching=False)
        }
    )


@pytest.mark.process
@pytest.mark.parametrize(
    ("page", "block"),
    [
        pytest.param(page, block, id=f"{page.name}:{block.line}")
        for page, blocks in programs(patching=True)
        for block in blocks
    ],
)
def test_programs_that_patch_run(page: Page, block: Block) -> None:
    """The same, in a process each."""
    run({page.name: given_of([block], [], {})})


@pytest.mark.thorough
@pytest.mark.usefixtures("account")
@pytest.mark.parametrize(
    ("page", "block"),
    [pytest.param(page, block, id=f"{page.name}:{block.line}") for page, block in blocks_of("sh")],
)
def test_commands_are_real(page: Page, block: Block, folder: Path) -> None:
    """The real parser of options takes those of glb; files, modules and environments exist."""
    for name, text in page.files.items():
        if name.endswith(".toml"):
            (folder / name).write_text(text)
    for words in shell.shell_commands(block.text):
        shell.check(words, page)


@pytest.mark.thorough
@pytest.mark.usefixtures("folder", "account")
@pytest.mark.parametrize("page", [pytest.param(each, id=each.name) for each in PAGES])
def test_commands_of_glb_are_real_wherever_they_stand(page: Page) -> None:
    """In sentences, units of systemd, and lists of Docker and Kubernetes as well."""
    for words in shell.glb_commands(page):
        shell.check(words, page)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "page", [pytest.param(each, id=each.name) for each in [*PAGES, CONTRIBUTING]]
)
def test_load_tests_and_environments_are_real_wherever_they_stand(page: Page) -> None:
    """Their options and contenders, too."""
    for words in shell.other_commands(page):
        shell.check(words, page)


@pytest.mark.thorough
@pytest.mark.parametrize("text", texts_of("toml"))
def test_settings_are_read(text: str, folder: Path) -> None:
    """Each key of a file of settings is an option, and each value is of its type."""
    from glb.cli.serve import serve

    is_table = "[tool.glb]" in text
    (folder / ("pyproject.toml" if is_table else "glb.toml")).write_text(text)
    serve.make_context("serve", [] if is_table else ["--config", "glb.toml"])


@pytest.mark.thorough
@pytest.mark.parametrize("text", texts_of("json"))
def test_json_is_json(text: str) -> None:
    """It can be read."""
    assert json.loads(text)


@pytest.mark.thorough
@pytest.mark.process
@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
@pytest.mark.parametrize("text", texts_of("nginx"))
def test_nginx_takes_its_configuration(text: str, tmp_path: Path) -> None:
    """As ``nginx -t`` says; a part is put where it belongs."""
    if "events" not in text:
        upstream = "upstream app { server 127.0.0.1:8000; }"
        text = f"events {{}} http {{ {upstream} server {{ listen 127.0.0.1:8080; {text} }} }}"
    text = re.sub("^pid .*$", "", text, flags=re.MULTILINE)
    file = tmp_path / "nginx.conf"
    file.write_text(f"pid {tmp_path}/nginx.pid; {text}")
    command = [str(shutil.which("nginx")), "-t", "-p", str(tmp_path), "-c", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.thorough
@pytest.mark.process
@pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs haproxy")
@pytest.mark.parametrize("text", texts_of("haproxy"))
def test_haproxy_takes_its_configuration(text: str, tmp_path: Path) -> None:
    """As ``haproxy -c`` says."""
    file = tmp_path / "haproxy.cfg"
    file.write_text(text)
    command = [str(shutil.which("haproxy")), "-c", "-f", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.thorough
@pytest.mark.parametrize("page", [pytest.param(each, id=each.name) for each in PAGES])
def test_each_block_is_of_a_kind_that_is_checked(page: Page) -> None:
    """A new language has to be named here, with what is done about it. Directives are Sphinx's."""
    for block in page.blocks:
        assert block.language in LANGUAGES or block.language.startswith("{"), block
        assert block.reason is None or len(block.reason) > 10, block


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("glb serve app:app --clone 4", "--clone"),
        ("python -m loadtests.bench --round 4", "--round"),
        ("python -m loadtests.bench --only nginx", "nginx"),
        ("python -m loadtests.lossless deploys", "deploys"),
        ("python -m loadtests.nothing", "loadtests.nothing"),
        ("tox run -e nothing", "nothing"),
    ],
)
def test_a_wrong_option_is_found(command: str, wrong: str) -> None:
    """The tests above would pass as well if nothing was parsed."""
    page = Page(ROOT / "README.md", f"Say `{command}`.", [])
    (words,) = [*shell.glb_commands(page), *shell.other_commands(page)]
    with pytest.raises(AssertionError, match=wrong):
        shell.check(words, page)


@pytest.mark.thorough
def test_an_install_of_another_program_is_found() -> None:
    """A package index has another program by the name of glb: pages install from a clone."""
    page = Page(ROOT / "README.md", "", [])
    shell.check(["pip", "install", ".[cli]"], page)
    with pytest.raises(AssertionError, match="another program"):
        shell.check(["pip", "install", "glb[cli]"], page)
