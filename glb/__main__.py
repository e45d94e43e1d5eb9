"""`glb` and ``python -m glb``."""

import sys


def main() -> None:
    """Run the command line, or say what it needs."""
    try:
        from .cli import main as run  # noqa: PLC0415  # it may be missing what it imports
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] not in ("click", "rich", "tomli"):
            raise
        sys.exit(f"glb: the command line needs {error.name}: pip install 'glb[cli]'")
    run()


if __name__ == "__main__":
    main()
