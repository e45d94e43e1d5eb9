"""Settings: options that may also stand in a variable, or in a file.

The command line comes before the environment, that before the file, and that before the default.
The file is the one of ``--config``, else ``[tool.glb]`` of a ``pyproject.toml`` in the current
directory. Its keys are the options' names without the dashes in front.

An error says which option is wrong, where its value comes from, and what that is.

Source: click's *Values from Environment Variables* and *Overriding Defaults*.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import click
from click.core import ParameterSource

from ..model.address import parse
from .binds import all_inherited, check_bind
from .target import TargetError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "ABOVE_ZERO",
    "ADDRESS",
    "BIND",
    "NOT_NEGATIVE",
    "POSITIVE",
    "SECONDS",
    "Bind",
    "Checked",
    "Setting",
    "Whole",
    "argument",
    "as_toml",
    "blaming",
    "config_option",
    "option",
    "print_config_option",
    "refused",
    "source_of",
]

PROJECT_FILE: Final = "pyproject.toml"

#: What holds without a value, as an option's help has it if that is no value either.
_DEFAULT: Final = re.compile(r"\[default: (.*)\]$")

#: Where a context keeps the file's name, and where addresses come from that nothing else says.
_FILE: Final = f"{__name__}.file"
_ADDRESSES: Final = f"{__name__}.addresses"


class _Sourced(click.Parameter):
    """A parameter that has a variable and a key, and whose errors name its source."""

    key: str

    def _name(self, key: str) -> None:
        self.key = key
        self.envvar = f"GLB_{key.upper().replace('-', '_')}"

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        try:
            return super().handle_parse_result(ctx, opts, args)
        except click.BadParameter as error:
            raise refused(ctx, self, error.message.removesuffix(".")) from error


class Setting(_Sourced, click.Option):
    """An option with a variable, ``GLB_`` and its name, and a key in files."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.is_flag:
            self.type = Flag()
        self._name(next(each for each in self.opts if each.startswith("--"))[2:])
        self.show_envvar = True


class Argument(_Sourced, click.Argument):
    """An argument with a variable and a key in files."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert self.name is not None, "arguments have one"
        self._name(self.name)


class Bind(Setting):
    """The option of addresses: inherited sockets, or else ``PORT``, if nothing else says more.

    Heroku, Cloud Run and others give a program its port so. It is one of every host.
    """

    def consume_value(
        self, ctx: click.Context, opts: Mapping[str, Any]
    ) -> tuple[Any, ParameterSource]:
        value, source = super().consume_value(ctx, opts)
        if source is not ParameterSource.DEFAULT:
            return value, source
        port = os.environ.get("PORT")
        try:
            found = all_inherited()
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
        if found:
            ctx.meta[_ADDRESSES] = {self.name: "inherited sockets"}
            return found, ParameterSource.ENVIRONMENT
        if port:
            ctx.meta[_ADDRESSES] = {self.name: "PORT"}
            return (f"0.0.0.0:{port}",), ParameterSource.ENVIRONMENT
        return value, source


option = functools.partial(click.option, cls=Setting)
argument = functools.partial(click.argument, cls=Argument)


# -- types ------------------------------------------------------------------------------------


class Whole(click.IntRange):
    """A whole number of *least* or more, and of *most* at most."""

    def __init__(self, least: int, most: int | None = None) -> None:
        super().__init__(least, most)
        self._wanted = f"{least} or more" if most is None else f"{least} to {most}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        with contextlib.suppress(click.BadParameter):
            return super().convert(value, param, ctx)
        raise click.BadParameter(
            f"must be a whole number, {self._wanted}, got {value!r}", ctx, param
        )


class Number(click.FloatRange):
    """A number of 0 or more, or above 0 with *is_open*.

    It is one that a clock can count to: *nan* passes the check of each range.
    """

    def __init__(self, *, is_open: bool = False) -> None:
        super().__init__(min=0, min_open=is_open)
        self._wanted = "above 0" if is_open else "0 or more"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        with contextlib.suppress(click.BadParameter):
            number = super().convert(value, param, ctx)
            if math.isfinite(number):
                return number
        raise click.BadParameter(f"must be a number, {self._wanted}, got {value!r}", ctx, param)


class Flag(click.types.BoolParamType):
    """Yes or no; the command line has options for both, so that a wrong one is a variable's."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        with contextlib.suppress(click.BadParameter):
            return super().convert(value, param, ctx)
        raise click.BadParameter(f"must be 1 or 0, got {value!r}", ctx, param)


class Checked(click.types.StringParamType):
    """A text that stays as it was written, if *check* raises no ValueError."""

    def __init__(self, name: str, check: Callable[[str], object]) -> None:
        self.name = name
        self._check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = super().convert(value, param, ctx)
        try:
            self._check(text)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return text


POSITIVE: Final = Whole(1)
NOT_NEGATIVE: Final = Whole(0)
SECONDS: Final = Number()
ABOVE_ZERO: Final = Number(is_open=True)
ADDRESS: Final = Checked("address", parse)
BIND: Final = Checked("address", check_bind)


# -- sources ----------------------------------------------------------------------------------


def source_of(context: click.Context, parameter: click.Parameter) -> str:
    """Return where the value of *parameter* comes from, for people."""
    assert parameter.name is not None, "each that has a value has one"
    source = context.get_parameter_source(parameter.name)
    if source is ParameterSource.COMMANDLINE:
        return "the command line"
    if source is ParameterSource.ENVIRONMENT:
        return str(context.meta.get(_ADDRESSES, {}).get(parameter.name, parameter.envvar))
    if source is ParameterSource.DEFAULT_MAP:
        return str(context.meta[_FILE])
    return "default"


def refused(
    context: click.Context, parameter: click.Parameter | str, reason: object
) -> click.UsageError:
    """Return the error of a value that is refused for *reason*; of *parameter*, or of its name."""
    if isinstance(parameter, str):
        parameter = next(each for each in context.command.params if each.name == parameter)
    source = source_of(context, parameter)
    by = "by" if source == "default" else "from"
    return click.UsageError(f"{_shown(parameter)} {by} {source}: {reason}")


def _shown(parameter: click.Parameter) -> str:
    is_option = isinstance(parameter, click.Option)
    return parameter.opts[0] if is_option else parameter.human_readable_name


@contextlib.contextmanager
def blaming(name: str, what: str = "") -> Iterator[None]:
    """Turn what glb and the kernel say of the value of parameter *name* into a usage error."""
    try:
        yield
    except (OSError, TypeError, ValueError, TargetError) as error:
        reason = getattr(error, "strerror", None) or error
        raise refused(click.get_current_context(), name, f"{what}{reason}") from error


# -- files ------------------------------------------------------------------------------------


def config_option() -> Callable[[Any], Any]:
    """Return the option that names the file. It is read before other options are looked at."""
    return option(
        "--config",
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_use_file,
        help="A TOML file of settings, whose keys are these options' names. The command line and"
        " variables come before it. [default: [tool.glb] of pyproject.toml]",
    )


def print_config_option() -> Callable[[Any], Any]:
    """Return the flag that has the settings printed, as a file that would make them."""
    return click.option(
        "--print-config",
        is_flag=True,
        help="Print the settings in force, as TOML, each with its source; serve nothing.",
    )


def _use_file(context: click.Context, parameter: click.Parameter, path: str | None) -> None:
    if path is None:
        if not os.path.exists(PROJECT_FILE):
            return
        path = PROJECT_FILE
    context.meta[_FILE] = path
    try:
        found = _read(path)
    except OSError as error:
        raise refused(context, parameter, f"can't read {path!r}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of a thousand brackets
        raise refused(context, parameter, f"can't read {path!r}: {error}") from error
    context.default_map = _checked(context, path, found)


def _read(path: str) -> Mapping[str, Any]:
    with open(path, "rb") as file:
        found: Any = tomllib.load(file)
    if os.path.basename(path) == PROJECT_FILE:
        for name in ("tool", "glb"):
            found = found.get(name, {})
            if not isinstance(found, dict):
                raise ValueError(f"{name} must be a table, got {found!r}")
    return found  # type: ignore[no-any-return]  # TOML's outermost is a table


def _checked(context: click.Context, path: str, found: Mapping[str, Any]) -> dict[str, Any]:
    settings = {each.key: each for each in _settings(context)}
    values = {}
    for key, value in found.items():
        setting = settings.get(key)
        if setting is None:
            raise click.UsageError(f"unknown key {key!r} in {path}{_hint(key, settings)}")
        assert setting.name is not None, "as above"
        values[setting.name] = _of_its_type(setting, value, path)
    return values


def _settings(context: click.Context) -> Iterator[_Sourced]:
    """Return what may stand in a file."""
    for each in context.command.params:
        if isinstance(each, _Sourced) and each.key != "config":
            yield each


def _hint(key: str, settings: Mapping[str, _Sourced]) -> str:
    import difflib  # noqa: PLC0415  # nothing else needs it

    for name, setting in settings.items():
        if f"--{key}" in setting.secondary_opts:
            return f": write {name} = false"
    if key == "tool":
        return f": only {PROJECT_FILE} has [tool.glb], and here its keys stand alone"
    close = difflib.get_close_matches(key.replace("_", "-"), settings, n=1)
    return f": did you mean {close[0]!r}?" if close else ""


def _of_its_type(setting: _Sourced, value: Any, path: str) -> Any:
    """Return *value*, if it is of the type that TOML has for it: "8" is no number there."""
    kind: tuple[type, ...] = (str,)
    what = "a string"
    if getattr(setting, "is_flag", False):
        kind, what = (bool,), "true or false"
    elif isinstance(setting.type, click.types.FloatParamType):
        kind, what = (int, float), "a number"
    elif isinstance(setting.type, click.types.IntParamType):
        kind, what = (int,), "a whole number"
    is_list = getattr(setting, "multiple", False)
    given = value if is_list and isinstance(value, list) else [value]
    for each in given:
        # Python takes true for 1.
        if not isinstance(each, kind) or isinstance(each, bool) is not (bool in kind):
            some = f"{what}, or a list of them" if is_list else what
            raise click.UsageError(f"{_shown(setting)} from {path}: must be {some}, got {each!r}")
    if is_list and not given:
        raise click.UsageError(f"{_shown(setting)} from {path}: must not be empty, got []")
    return given if is_list else value


# -- printing ---------------------------------------------------------------------------------


def as_toml(context: click.Context) -> str:
    """Return the settings of *context* as a file that would make them."""
    lines = []
    for each in _settings(context):
        assert each.name is not None, "as above"
        value = context.params[each.name]
        is_set = value is not None and value != ()
        shown = _toml(value) if is_set else ""
        mark = "" if is_set else "# "
        source = _toml(source_of(context, each))[1:-1]
        default = None if is_set else _DEFAULT.search(getattr(each, "help", None) or "")
        if default is not None:
            source += f": {default[1]}"
        lines.append(f"{mark}{each.key} = {shown}  # {source}\n")
    return "".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{"".join(map(_escaped, value))}"'
    if isinstance(value, Iterable):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08x}"
