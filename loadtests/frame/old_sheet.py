"""What reports of load tests have in common: tables, promises, the forms they are written in."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pathlib
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, ClassVar

from rich.console import Console

from .figures import ERRORS, EXACT, Figure, Results
from .old_promise import Promise
from .process import Contender
from .promise import NOTHING, number
from .sheet import Table

#: What a column says of a contender, by its name.
Cell = Callable[[str], str]


@dataclass(frozen=True)
class Sheet:
    """A run that is over. Subclasses say which tables there are, and what was promised."""

    results: Results
    contenders: Sequence[Contender]
    cpus: str
    command: str

    #: The packages whose versions are shown.
    packages: ClassVar[Sequence[str]] = ("gevent", "greenlet")

    #: Draws a sheet into a file, where matplotlib is installed: "module:function".
    plotter: ClassVar[str] = ""

    # -- what subclasses say --------------------------------------------------------------------

    def heading(self) -> str:
        raise NotImplementedError

    def tables(self) -> list[Table]:
        raise NotImplementedError

    def promises(self) -> Sequence[Promise]:
        raise NotImplementedError

    def plan_as_json(self) -> dict[str, Any]:
        """Return how much of everything there was."""
        raise NotImplementedError

    def ratios_as_json(self, contender: Contender, figure: Figure) -> dict[str, float | None]:
        """Return *contender*'s *figure* beside that of others."""
        raise NotImplementedError

    def contender_as_json(self, contender: Contender) -> dict[str, Any]:
        """Return what there is to say of *contender* beside its figures."""
        return {"title": contender.title, "failed": self.results.failed.get(contender.name)}

    def remark(self, promise: Promise) -> str:
        """Return what is to be said of *promise* beside the verdict, if anything."""
        return ""

    def gap(self, contender: Contender) -> str:
        """Return why there are no figures of *contender*; "" if there are."""
        return "failed" if contender.name in self.results.failed else ""

    # -- what it was measured with ------------------------------------------------------------

    def surroundings(self) -> str:
        """Return the versions, the kernel and the number of CPUs: no names, no paths."""
        words = [f"{platform.python_implementation()} {platform.python_version()}"]
        for package in self.packages:
            if importlib.util.find_spec(package) is not None:
                words.append(f"{package} {metadata.version(package)}")
        words.append(f"{platform.system()} {platform.release()}")
        words.append(f"{os.cpu_count()} CPUs")
        return ", ".join(words)

    # -- pieces of tables -----------------------------------------------------------------------

    def promised(self) -> Table:
        """Return the table of what was promised, and whether it was kept."""
        rows = []
        for promise in self.promises():
            value, is_kept = promise.measured(self.results), promise.is_kept(self.results)
            verdict = {None: "not measured", True: "kept", False: "NOT KEPT"}[is_kept]
            rows.append(
                (
                    promise.says,
                    f"{'>=' if promise.is_floor else '<='} {promise.limit:g}",
                    NOTHING if value is None else number(value),
                    verdict + self.remark(promise),
                )
            )
        return Table("What glb promises", ("promise", "limit", "measured", ""), rows)

    def all_kept(self) -> bool:
        """Return True if every promise was measured and kept."""
        return all(promise.is_kept(self.results) for promise in self.promises())

    def table(
        self,
        title: str,
        first: str,
        contenders: Iterable[Contender],
        *columns: tuple[str, Cell],
    ) -> Table:
        """Return a row for each of *contenders*, with *columns*: what stands above, and a cell."""
        rows = []
        for contender in contenders:
            if gap := self.gap(contender):
                cells = [gap, *[NOTHING] * (len(columns) - 1)]
            else:
                cells = [cell(contender.name) for _, cell in columns]
            rows.append((contender.title, *cells))
        return Table(title, (first, *(head for head, _ in columns)), rows)

    def median(self, figure: Figure, unit: str = "") -> Cell:
        return lambda name: _written(self.results.median(name, figure), figure, unit)

    def worst(self, figure: Figure) -> Cell:
        return lambda name: _written(max(self.results.of(name, figure), default=None), figure)

    def beside(self, base: str, figure: Figure) -> Cell:
        """The ratio to *base*'s."""

        def cell(name: str) -> str:
            value = self.results.ratio(name, base, figure)
            return NOTHING if value is None else number(value)

        return cell

    def is_exact(self, name: str) -> str:
        """Tell whether the order was exact in every round."""
        samples = self.results.of(name, EXACT)
        return ("yes" if min(samples) == 1 else "no") if samples else NOTHING

    def errors(self, name: str) -> str:
        count = sum(self.results.of(name, ERRORS))
        return f"{count:,.0f} errors" if count else ""

    # -- forms --------------------------------------------------------------------------------

    def print(self, _console: Console) -> None:
        """Print the tables."""
        for table in self.tables():
            print(table.text())
        print(self.heading())
        for name, reason in self.results.failed.items():
            print(f"{name} failed: {reason}")

    def markdown(self) -> str:
        tables = [table.markdown() for table in self.tables()]
        return "\n".join([f"`{self.command}`", "", self.heading(), "", *tables])

    def as_json(self) -> dict[str, Any]:
        results = self.results
        contenders = {}
        for contender in self.contenders:
            measured = {
                figure.name: {
                    "unit": figure.unit,
                    "median": statistics.median(samples),
                    "min": min(samples),
                    "max": max(samples),
                    "rounds": samples,
                    **self.ratios_as_json(contender, figure),
                }
                for figure, samples in results.samples.get(contender.name, {}).items()
            }
            contenders[contender.name] = {
                **self.contender_as_json(contender),
                "figures": measured,
            }
        promises = [
            {
                **asdict(promise),
                "figure": promise.figure.name,
                "measured": promise.measured(results),
                "kept": promise.is_kept(results),
            }
            for promise in self.promises()
        ]
        return {
            "command": self.command,
            "surroundings": self.surroundings(),
            "cpus": self.cpus,
            "plan": self.plan_as_json(),
            "contenders": contenders,
            "promises": promises,
        }

    def write(self, folder: pathlib.Path) -> list[pathlib.Path]:
        """Write JSON, Markdown and the plot, if there may be one; return the files."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / "results.json", folder / "results.md"]
        files[0].write_text(json.dumps(self.as_json(), indent=2) + "\n")
        files[1].write_text(self.markdown())
        if self.plotter and importlib.util.find_spec("matplotlib") is not None:
            files.append(folder / "results.png")
            module, function = self.plotter.split(":")
            getattr(importlib.import_module(module), function)(self, files[-1])
        return files


def _written(value: float | None, figure: Figure, unit: str = "") -> str:
    return NOTHING if value is None else f"{value:,.{figure.digits}f}{unit}"
