"""Check what `python -m build` made: the files, and that both install and serve.

    python .ci/check_release.py DIST

The wheel has every file of `glb/` that git knows, and nothing else. In an empty environment it is
installed without extras, and `import glb` serves a connection; then with the extra `cli`, and the
commands `glb --version` and `glb serve` do what they should. Each other extra brings all that its
part of glb imports, in an empty environment of its own.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import venv
import zipfile

ROOT = pathlib.Path(__file__).parent.parent

#: Without these there are no types, no tab in locust's page, no licence.
NEEDED = ("glb/py.typed", "glb/locust/tab.js", "glb/__main__.py")

#: What each extra is for. The extra `cli` is tried by its commands.
EXTRAS = {
    "gunicorn": "import glb.gunicorn",
    "locust": "import glb.locust",
    "metrics": "import glb.admin.metrics, prometheus_client",
}

SERVES = """
import sys
import gevent, glb, glb.server
from gevent import socket
assert "site-packages" in glb.__file__, glb.__file__
assert glb.__version__ == sys.argv[1], glb.__version__
server = glb.server.StreamServer(("127.0.0.1", 0), lambda sock, _: sock.sendall(b"it serves"))
with gevent.Timeout(10), server:
    server.start()
    with socket.create_connection(server.address) as client:
        print(client.makefile().read())
"""

APPLICATION = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"it serves"]
"""


def run(*command: str | pathlib.Path, folder: pathlib.Path | None = None) -> str:
    """Run *command* and return what it printed; end with its errors if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def check(is_so: bool, otherwise: str) -> None:
    if not is_so:
        sys.exit(otherwise)


def check_files(wheel: pathlib.Path, sdist: pathlib.Path) -> None:
    """The wheel has the package and its data, the sdist also what builds it."""
    known = set(run("git", "ls-files", "glb", folder=ROOT).splitlines())
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    packed = {name for name in names if ".dist-info/" not in name}
    check(packed <= known, f"{wheel.name} has what isn't in glb/: {sorted(packed - known)}")
    check(known <= packed, f"{wheel.name} lacks {sorted(known - packed)}")
    check(set(NEEDED) <= packed, f"{wheel.name} lacks one of {NEEDED}")
    licences = [name for name in names if name.endswith("licenses/LICENSE")]
    check(len(licences) == 1, f"{wheel.name} has no licence")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    lacking = (known | {"pyproject.toml", "README.md", "LICENSE"}) - inside
    check(not lacking, f"{sdist.name} lacks {sorted(lacking)}")
    print(f"{wheel.name}: {len(packed)} files, all of glb/ and nothing else")


def check_install(wheel: pathlib.Path, version: str, folder: pathlib.Path) -> None:
    """An environment in which there is nothing but the wheel and what it asks for."""
    venv.create(folder / "empty", with_pip=True)
    programs = folder / "empty" / "bin"
    pip = (programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, wheel, folder=folder)
    print("without extras:", run(programs / "python", "-c", SERVES, version, folder=folder).strip())
    run(*pip, f"{wheel}[cli]", folder=folder)
    said = run(programs / "glb", "--version", folder=folder).strip()
    check(said.endswith(version), f"glb --version says {said!r}, and the wheel is {version}")
    print("glb --version:", said)
    (folder / "program.py").write_text(APPLICATION)
    command = [programs / "glb", "serve", "program:application", "--bind", "127.0.0.1:0"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        assert server.stdout is not None
        try:
            words = ""
            while (found := re.search(r"127\.0\.0\.1:(\d+)", words)) is None:
                line = server.stdout.readline()
                check(bool(line), f"glb serve ended: {words}")
                words += line
            with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/", timeout=10) as reply:
                print("glb serve:", reply.read().decode())
        finally:
            server.terminate()


def check_extras(wheel: pathlib.Path, folder: pathlib.Path) -> None:
    """An environment for each extra: one may import what only another one brings."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    extras = set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE)) - {"cli"}
    check(extras == set(EXTRAS), f"the extras are {sorted(extras)}: say in EXTRAS what each is for")
    for extra, imports in EXTRAS.items():
        venv.create(folder / extra, with_pip=True)
        python = folder / extra / "bin" / "python"
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*pip, f"{wheel}[{extra}]", folder=folder)
        run(python, "-c", imports, folder=folder)
        print(f"glb[{extra}]: {imports}")


def main() -> None:
    (dist,) = map(pathlib.Path, sys.argv[1:])
    (wheel,) = dist.glob("*.whl")
    (sdist,) = dist.glob("*.tar.gz")
    version = wheel.name.split("-")[1]
    check_files(wheel, sdist)
    with tempfile.TemporaryDirectory() as folder:
        check_install(wheel.resolve(), version, pathlib.Path(folder))
        check_extras(wheel.resolve(), pathlib.Path(folder))


if __name__ == "__main__":
    main()
