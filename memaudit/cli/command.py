"""What commands and options of memaudit do that click's do not: groups, bundles, and no accidents."""

import functools
import json
import math
import os
import re
import sys
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from memaudit.cli.signals import Stopped, raise_if_stopped
from memaudit.errors import UsageError
from memaudit.files import is_special
from memaudit.runs.files import committed_file, open_path, output_folder, read_content
from memaudit.text import json_text, number_of, shown_path

if TYPE_CHECKING:
    from memaudit.progress import Progress, ReportProgress
    from memaudit.reports.page import Page

HEADINGS = (
    "Input",
    "Models",
    "Corpus",
    "Windows",
    "Training",
    "Limits",
    "Output",
    "Speed",
    "Many machines",
)
"""Groups of options in `--help`, in the order in which they are shown."""

COMMON = "Most used"
# numpy and pyarrow count in 64 bits.
_TOO_LARGE = 2**63
OTHER = "Other"

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Option(click.Option):
    """An option with the heading that it stands under."""

    def __init__(self, *args: Any, heading: str = OTHER, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.heading = heading

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Listen to the variable that is called like the option, also where its parameter is not."""
        found = super().resolve_envvar_value(ctx)
        if found is None and self.allow_from_autoenv and ctx.auto_envvar_prefix:
            flag = self.opts[0].lstrip("-").replace("-", "_").upper()
            return os.environ.get(f"{ctx.auto_envvar_prefix}_{flag}") or None
        return found


class _Careful(click.Command):
    """A command that no variable can turn into its own help, which ends with 0."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return --help, which listens to the command line alone."""
        found = super().get_help_option(ctx)
        if found is not None:
            found.allow_from_autoenv = False
        return found


# A UserDict: `get` and `values` of a plain dict would go round `__getitem__`.
class _Imported(UserDict[str, Any]):
    """Commands by name; `module:function` becomes the command when somebody asks for it."""

    def __getitem__(self, name: str) -> click.Command:
        found: str | click.Command = super().__getitem__(name)
        if isinstance(found, str):
            module, _, function = found.partition(":")
            found = self.data[name] = getattr(import_module(module), function)
        return found  # type: ignore[return-value]  # what stands in the module is a command


class Group(_Careful, click.Group):
    """A group whose commands are imported when one is named: its own help needs none of them."""

    def __init__(self, *args: Any, later: Mapping[str, tuple[str, str]], **settings: Any) -> None:
        """Take commands as (`module:function`, line in the group's help) by name."""
        super().__init__(*args, **settings)
        self._lines = {name: line for name, (_, line) in later.items()}
        self.commands = _Imported({name: where for name, (where, _) in later.items()})

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the line of each command."""
        with formatter.section("Commands"):
            formatter.write_dl(self._named(ctx))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the names that could come next."""
        names = [
            CompletionItem(name, help=line)
            for name, line in self._named(ctx)
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def _named(self, ctx: click.Context) -> list[tuple[str, str]]:
        return [
            (name, self._lines.get(name) or self.commands[name].get_short_help_str())
            for name in self.list_commands(ctx)
        ]


class Command(_Careful):
    """A command whose help has its options in groups, those that most people need first."""

    def __init__(self, *args: Any, common: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.common = tuple(common)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each group under its heading."""
        groups: dict[str, list[tuple[str, str]]] = {}
        rank = {flag: place for place, flag in enumerate(self.common)}
        # A stable sort: options of equal rank stay in the order of their declaration.
        for param in sorted(self.get_params(ctx), key=lambda x: rank.get(x.opts[0], 0)):
            record = param.get_help_record(ctx)
            if record is not None and record[1]:  # arguments stand in the usage line
                heading = COMMON if param.opts[0] in rank else getattr(param, "heading", OTHER)
                groups.setdefault(heading, []).append(record)
        for heading in (COMMON, *HEADINGS, OTHER):
            if heading in groups:
                with formatter.section(heading):
                    formatter.write_dl(groups[heading])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line, unless a model or the corpus is named twice or a value is empty."""
        # Read once more: what click makes of it no longer tells how often an option was given, and
        # that a path was empty.
        parser = self.make_parser(ctx)
        # A shell that asks for completions has half a command line, which may be wrong so far.
        given, _, order = ({}, [], []) if ctx.resilient_parsing else parser.parse_args([*args])
        for param in order:
            value = given.get(param.name or "")
            name = param.opts[0] if isinstance(param, click.Option) else param.human_readable_name
            if value == "" or (isinstance(value, list) and "" in value):
                # As a path it would be the working folder: all that lies there, as the corpus.
                raise UsageError(
                    f"{name} is empty",
                    hint="give it a value, or leave it out; "
                    "a variable of the shell that nobody has set is empty",
                )
            is_one = not param.multiple and getattr(param, "metavar", "") in ("MODEL", "CORPUS")
            if is_one and order.count(param) > 1:
                raise UsageError(
                    f"{param.opts[0]} is given {order.count(param)} times, and takes one value",
                    hint="a folder or a glob names several files; each teacher takes a run of its own",
                )
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, unless a name among its values cannot be written, or two outputs share one."""
        for param in self.params:
            value = ctx.params.get(param.name or "")
            for part in value if isinstance(value, tuple) else (value,):
                try:
                    # Bytes that are no UTF-8 arrive as lone surrogates: no file can hold them.
                    str(part if isinstance(part, str | os.PathLike) else "").encode()
                except UnicodeEncodeError:
                    raise click.BadParameter(
                        "it is not UTF-8, and so cannot be kept in a manifest; rename the file.",
                        ctx,
                        param,
                    ) from None
        # Of two outputs under one name the second would replace the first without a word.
        named: dict[str, str] = {}
        for param in self.params:
            path = ctx.params.get(param.name or "")
            if getattr(param, "heading", OTHER) != "Output" or not isinstance(path, Path):
                continue
            # A folder, a device or a pipe can be named twice.
            if path.is_file() or not path.exists():
                other = named.setdefault(os.path.realpath(path), param.opts[0])
                if other != param.opts[0]:
                    raise click.UsageError(f"{other} and {param.opts[0]} name the same file", ctx)
        return super().invoke(ctx)


class CountRange(click.IntRange):
    """A whole number that a machine can count to; click takes numbers of any length."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number, if it is one."""
        number: int = super().convert(value, param, ctx)
        if number >= _TOO_LARGE:
            self.fail("the number is too large.", param, ctx)
        return number

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return what stands for the number in `--help`."""
        return "N"


class FiniteRange(click.FloatRange):
    """A number in a range; click takes `nan` and `inf` for numbers too."""

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return what stands for the number in `--help`."""
        return "SHARE" if self.max == 1 else "N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number, if it is one."""
        number: float = click.FLOAT.convert(value, param, ctx)
        # Before the range: a comparison with nan is false, so no range refuses it.
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        checked: float = super().convert(number, param, ctx)
        return checked


class SwitchType(click.Choice[str]):
    """A choice that was a switch: its variable goes on to take what switches take."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return one of the choices."""
        switched = dict.fromkeys(("1", "true", "t", "yes", "y"), "on")
        switched |= dict.fromkeys(("0", "false", "f", "no", "n"), "off")
        return super().convert(switched.get(str(value).lower(), value), param, ctx)


class DeviceType(click.ParamType[str]):
    """Where models run."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name of a device, whether or not this machine has it."""
        # Whether it is there only torch can say, and a typo must not wait for its import.
        if not re.fullmatch(r"auto|cpu|split|cuda(:\d{1,3})?", str(value)):
            self.fail(f"{value!r} is not one of auto, cpu, cuda, cuda:1, split.", param, ctx)
        return str(value)


def variables_used(context: click.Context) -> Iterator[str]:
    """Yield the names of the variables that options of a command took their values from."""
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        if source is not click.core.ParameterSource.ENVIRONMENT:
            continue
        # The parameter's name and the option's: both are listened to.
        for called in (param.name or "", param.opts[0].lstrip("-").replace("-", "_")):
            variable = f"{context.auto_envvar_prefix}_{called.upper()}"
            if os.environ.get(variable):
                yield variable
                break


class FolderType(click.ParamType[Path]):
    """A folder, made or not, on a disk or in an object store such as `s3://bucket/run`."""

    name = "folder"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return what stands for the folder in `--help`."""
        return "DIR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path, once it is no file."""
        if not isinstance(value, str):
            path: Path = value
            return path
        if "://" in value:
            return open_path(value)
        checked: Path = click.Path(path_type=Path, file_okay=False).convert(value, param, ctx)
        return checked


@dataclass(frozen=True, slots=True)
class Shown:
    """How a command shows its result."""

    as_json: bool
    color: str
    """`auto`, `always` or `never`."""
    quiet: bool = False

    def tell(self, document: Any, page: "Page") -> None:
        """Print a result: the document if JSON was asked for, else the page."""
        from memaudit.reports.terminal import print_page

        if self.as_json:
            click.echo(json_text(document))
        else:
            print_page(page, color=self.color)

    def signed(self, key: str) -> None:
        """Name the key that results were signed with; a document is the only thing printed."""
        if not self.as_json:
            click.echo(f"Signed with the key {key}.")

    @contextmanager
    def working(
        self, what: str, *, is_logged: bool = False
    ) -> "Iterator[Callable[[Progress], None]]":
        """Say what is done until the result is there: on a terminal, in a log if it takes long."""
        # Neither numpy nor pyarrow comes before the first word: they take most of a second.
        from memaudit.reports.terminal import show_progress

        quiet = self.quiet or not (is_logged or sys.stderr.isatty())
        with show_progress(quiet=quiet, color=self.color, start=what) as show:
            yield show

    def reading(self, *runs: Path) -> AbstractContextManager[object]:
        """Say likewise which runs are read."""
        return self.working(f"reading {' and '.join(map(_shown_run, runs))}")

    @contextmanager
    def watched(self, hint: str | None = None) -> "Iterator[ReportProgress]":
        """Show progress, and notice signals that a library dropped.

        Args:
            hint: how to go on after a signal. None: whoever calls says it.
        """
        try:
            with self.working("load models", is_logged=True) as show:

                def report(progress: "Progress") -> None:
                    raise_if_stopped()
                    show(progress)

                yield report
        except Stopped as stopped:
            raise Stopped(stopped.number, hint=hint) from None


def _shown_run(run: Path) -> str:
    """Return a run's name, with the rows that it says it has; those are not checked yet."""
    try:
        # Nobody vouches for the file yet, so it is read within bounds, and anything may be in it.
        found = json.loads(read_content(run / "manifest.json", 1_048_576))
        return f"{shown_path(run)} ({number_of(found['manifest']['inputs']['rows'], 'row')})"
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return shown_path(run)


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, for its owner alone, in a folder that is made if missing."""
    # Of a pipe or a device the folder, such as /dev, need not be one that may be written.
    folder = nullcontext() if is_special(path) else output_folder(path.parent)
    with folder, committed_file(path) as stream:
        stream.write(content)


def option(
    flag: str,
    help: str,
    type: Any = None,
    default: Any = ...,
    *,
    heading: str,
    name: str | None = None,
    short: str | None = None,
    **settings: Any,
) -> Decorator:
    """Declare an option under a heading; as `click.option` does it.

    Args:
        flag: such as `--top`.
        help: what it means.
        type: of click, or the words that it is one of.
        default: shown in `--help`. Without one a flag is False, and any other option None.
        heading: of the group in `--help`.
        name: of the command's parameter; None: as the flag.
        short: such as `-q`.
        settings: others of `click.option`.
    """
    names = [each for each in (short, flag, name) if each is not None]
    if default is not ...:
        settings = {"show_default": default is not None, "default": default} | settings
    kind = click.Choice(type) if isinstance(type, tuple) else type
    return click.option(*names, cls=Option, heading=heading, help=help, type=kind, **settings)


def bundle(*options: Decorator) -> Callable[[Callable[..., object]], Decorator]:
    """Declare options that a command is handed as one value.

    Below it stands the function that makes that value of the options' own. The command has a
    parameter of its name, and it is called before the command is.

    Args:
        options: what `option` has returned.
    """
    return lambda build: functools.partial(_with_bundle, build, options)


def _with_bundle(
    build: Callable[..., object], options: Sequence[Decorator], command: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(command)
    def with_bundle(**values: Any) -> Any:
        own = {key: values.pop(key) for key in keys}
        return command(**{build.__name__: build(**own)}, **values)

    before = len(getattr(with_bundle, "__click_params__", []))
    # Decorators apply from the bottom up, and so do these: help shows them as they are listed.
    for declare in reversed(options):
        declare(with_bundle)
    keys = [param.name for param in with_bundle.__click_params__[before:]]  # type: ignore[attr-defined]
    return with_bundle
