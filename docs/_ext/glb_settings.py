"""The settings page: the options of the command line and the arguments of the servers, as they are.

Two directives, for reStructuredText::

    .. glb-options:: serve
    .. glb-arguments:: glb.server:StreamServer

The first reads click's parameters, the second the constructor's signature and the docstrings. So a
new option is on the page by itself, and an argument without a description is an error of the build.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

if TYPE_CHECKING:
    from sphinx.application import Sphinx

#: What gevent's own constructors say of their arguments nowhere: they have no list of them.
GEVENTS: Final = {
    "application": "The WSGI application: called with *environ* and *start_response*.",
    "log": "Where the access log goes: a file, a logger, ``None`` for nowhere; by default stderr.",
    "error_log": "Where errors of requests go: a file, a logger, ``None`` for nowhere; by default"
    " stderr.",
    "handler_class": "The class that serves a connection; derive yours from"
    " `glb.pywsgi.WSGIHandler`.",
    "environ": "What each request's environ has besides.",
}

#: The docstrings that have the arguments of a class, besides those of its bases.
DOCUMENTED_BY: Final = {"glb.pywsgi:WSGIServer": ["glb.http.settings:Settings"]}

_ITEM: Final = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*): +(.*)$")


class Option(NamedTuple):
    """An option of a command, or its argument."""

    name: str
    variable: str | None
    default: str | None
    meaning: str


class Argument(NamedTuple):
    """An argument of a constructor or a function."""

    name: str
    default: str | None
    meaning: str


# -- the command line -------------------------------------------------------------------------


def command_of(name: str) -> click.Command:
    """Return the command ``glb`` *name*."""
    from glb.cli import cli  # noqa: PLC0415  # a test of the arguments needs no click

    return cli.commands[name]


def options_of(command: click.Command) -> Iterator[Option]:
    """Yield the options of *command*, in its order, its arguments first."""
    context = click.Context(command)
    for each in sorted(command.params, key=lambda param: isinstance(param, click.Option)):
        if isinstance(each, click.Option):
            yield _option(each, context)
        else:
            variable = each.envvar if isinstance(each.envvar, str) else None
            yield Option(each.make_metavar(context), variable, None, "")


def _option(option: click.Option, context: click.Context) -> Option:
    names = "/".join([*option.opts, *option.secondary_opts])
    if not option.is_flag:
        is_number = isinstance(option.type, (click.types.IntParamType, click.types.FloatParamType))
        names += " NUMBER" if is_number else f" {option.make_metavar(context)}"
    text = " ".join((option.help or "").split())
    told = re.search(r" ?\[default: (.*)\]$", text)
    if told:
        default: str | None = told[1]
        text = text[: told.start()]
    elif option.show_default and option.default not in (None, ()):
        given = option.default
        default = " ".join(map(str, given)) if isinstance(given, (list, tuple)) else str(given)
    else:
        default = None
    return Option(names, str(option.envvar) if option.envvar else None, default, text)


# -- the servers ------------------------------------------------------------------------------


def find(name: str) -> Any:
    """Return what ``module:name`` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def arguments_of(name: str) -> Iterator[Argument]:
    """Yield the arguments of a class or function, ``module:name``, each with its meaning.

    Raises:
        LookupError: One is described by no docstring.
    """
    thing = find(name)
    meanings = dict(GEVENTS)
    sources = [*reversed(inspect.getmro(thing))] if inspect.isclass(thing) else [thing]
    sources += [find(each) for each in DOCUMENTED_BY.get(name, [])]
    for source in sources:
        if source.__module__.startswith("glb."):
            meanings |= items_of(inspect.getdoc(source) or "")
    for each in inspect.signature(thing).parameters.values():
        if each.kind is each.VAR_KEYWORD:
            each_name = f"**{each.name}"
            default = None
        else:
            each_name = each.name
            default = _default(thing, each)
        if each_name not in meanings:
            raise LookupError(f"no docstring describes the argument {each_name!r} of {name}")
        yield Argument(each_name, default, meanings[each_name])


def _default(thing: Any, parameter: inspect.Parameter) -> str | None:
    if parameter.default is parameter.empty:
        return None
    default = parameter.default
    if default is None:  # the attribute of the class holds
        default = getattr(thing, parameter.name, None)
    return default.__name__ if isinstance(default, type) else repr(default)


def items_of(docstring: str) -> dict[str, str]:
    """Return the items of the sections *Args* and *Attributes*, by name."""
    found: dict[str, str] = {}
    for section in re.findall(r"^(?:Args|Attributes):\n((?: .*\n|\n)+)", docstring + "\n", re.M):
        names: list[str] = []
        for line in section.splitlines():
            start = _ITEM.match(line[4:]) if not line.startswith("     ") else None
            if start:
                names = start[1].split(", ")
                found |= dict.fromkeys(names, start[2])
            else:
                for each in names:
                    found[each] += f" {line.strip()}"
    return {each: text.strip() for each, text in found.items()}


# -- Sphinx -----------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """Return *text* such that reStructuredText shows it as it is."""
    return re.sub(r"([\\*`|_])", r"\\\1", text)


def options_as_rst(name: str) -> list[str]:
    """Return reStructuredText with an entry for each option of the command *name*."""
    command = command_of(name)
    lines = [_plain(each) for each in inspect.cleandoc(command.help or "").splitlines()]
    lines += ["", f".. program:: glb {name}", ""]
    for each in options_of(command):
        lines += [f".. option:: {each.name}", ""]
        facts = [f"Default: {_plain(each.default)}."] if each.default else []
        facts += [f"Variable: ``{each.variable}``."] if each.variable else []
        for text in (_plain(each.meaning), " ".join(facts)):
            lines += [f"   {text}", ""] if text else []
    return lines


def arguments_as_rst(name: str) -> list[str]:
    """Return reStructuredText with a table of the arguments of ``module:name``."""
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 20 15 65", ""]
    lines += ["   * - argument", "     - default", "     - meaning"]
    for each in arguments_of(name):
        default = "" if each.default is None else f"``{each.default}``"
        lines += [f"   * - ``{each.name}``", f"     - {default}", f"     - {each.meaning}"]
    return [*lines, ""]


def setup(app: Sphinx) -> dict[str, object]:
    """Add the directives."""
    from docutils import nodes  # noqa: PLC0415  # the tests have no Sphinx
    from docutils.statemachine import StringList  # noqa: PLC0415
    from sphinx.util.docutils import SphinxDirective  # noqa: PLC0415

    def directive(make: Any) -> type[SphinxDirective]:
        class Generated(SphinxDirective):
            required_arguments = 1

            def run(self) -> list[nodes.Node]:
                name = self.arguments[0]
                node = nodes.container()
                self.state.nested_parse(StringList(make(name), f"<{name}>"), 0, node)
                return [*node.children]

        return Generated

    app.add_directive("glb-options", directive(options_as_rst))
    app.add_directive("glb-arguments", directive(arguments_as_rst))
    return {"parallel_read_safe": True}
