"""The command group, and the one place where errors become text and exit codes."""

import errno
import io
import os
import select
import sys
from collections.abc import Sequence
from itertools import pairwise

import click
from click.shell_completion import get_completion_class

from memaudit import __version__
from memaudit.cli.command import Group
from memaudit.cli.signals import Stopped, raise_if_stopped
from memaudit.errors import MemauditError, MissingDependency, traceback_of
from memaudit.files import allow_core_dumps, forbid_core_dumps
from memaudit.text import inert, json_text, safe_text

OK = 0
ERROR = 2
INTERRUPTED = 130
CLOSED_PIPE = 141  # 128 + SIGPIPE, as other tools end when nobody reads on

VARIABLE = "_MEMAUDIT_COMPLETE"
"""Set by the completion script of a shell when it asks what could come next."""

_MAX_MESSAGE = 4096
NOT_FOR_A_GATE = (
    "accelerate", "datasets", "gguf", "huggingface_hub", "joblib", "requests", "safetensors",
    "scipy", "sklearn", "tokenizers", "torch", "transformers", "yaml"
)  # fmt: skip
"""Packages that a gate is installed without: see `requirements-gate.txt`."""

# What click takes for true, in any case.
_YES = ("1", "true", "t", "yes", "y", "on")
_NOT_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""What the machine lacks can be met at any line, also of a library: no traceback helps."""
_BAD_NAMES = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS)
"""What is wrong with a name, or with the right to use it, is the user's to mend as well."""

# Text, not modules: the help of the group must import none of them.
_COMMANDS = {
    "demo": ("demo:demo", "Copy a small corpus and teacher to try memaudit on."),
    "diff": ("report:diff", "Show how two runs differ."),
    "doctor": ("doctor:doctor", "Check the installation, devices and engines."),
    "explain": ("report:explain", "Show why one row is at risk."),
    "filter": ("filter:filter_", "Write a corpus without what would be memorized."),
    "fit": ("fit:fit", "Fit a classifier on what verify found."),
    "gate": ("gate:gate", "Hold a run to limits; the exit code is the verdict."),
    "merge": ("runs:merge", "Put the shards of a run together."),
    "predict": ("predict_options:predict", "Predict which examples a student would memorize."),
    "report": ("report:report", "Show what a run found, as a page, Markdown and charts."),
    "status": ("runs:status", "Show how far a run is."),
    "verify": ("verify:verify", "Distil a student and see what it really memorizes."),
}
"""Where each stands below this package, and its line in the help."""


@click.group(
    cls=Group,
    later={name: (f"memaudit.cli.{where}", line) for name, (where, line) in _COMMANDS.items()},
    context_settings={
        "auto_envvar_prefix": "MEMAUDIT",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
# No variable may turn a command into one that prints something harmless and ends with 0.
@click.version_option(__version__, message="%(prog)s %(version)s", allow_from_autoenv=False)
@click.option(
    "--core-dumps",
    is_flag=True,
    allow_from_autoenv=False,
    help="Let the system write an image of a process that crashes; corpus text is in it.",
)
def cli(*, core_dumps: bool) -> None:
    """Predict, before a distillation, which examples of a corpus a student would memorize.

    Every option can also be set by a variable such as MEMAUDIT_PREDICT_TEACHER. Exit codes:
    0 done, 1 a gate failed, 2 error, 130, 141 and 143 stopped by Ctrl-C, a closed pipe, SIGTERM.
    """
    # Once allowed, forbidding does nothing: who reads a corpus forbids them again.
    if core_dumps:
        allow_core_dumps()
    forbid_core_dumps()


@cli.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands and options of memaudit.

    \b
    bash: put   source <(memaudit completion bash)   into ~/.bashrc
    zsh:  put   source <(memaudit completion zsh)    into ~/.zshrc, after compinit
    fish: memaudit completion fish > ~/.config/fish/completions/memaudit.fish
    """  # noqa: D301  \b is click's sign for lines that stay as they are
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "memaudit", VARIABLE).source())


def run(arguments: Sequence[str]) -> int:
    """Run a command and return the exit code of the process."""
    # Before click parses: what it refuses is told as a document too.
    by_variable = any(
        os.environ.get(f"MEMAUDIT_{name.upper()}_{ending}", "").lower() in _YES
        for name in cli.commands
        if name in arguments
        for ending in ("JSON", "AS_JSON")
    )
    by_format = ("--output-format", "json") in pairwise(arguments)
    by_format = by_format or "--output-format=json" in arguments
    as_json = "--json" in arguments or by_format or by_variable
    # Closed by whoever started us: the next file that is opened would take its place.
    if sys.stdout is None:
        return _fail("standard output is closed", "send it to a file or to /dev/null", False)
    try:
        code = _invoke(arguments)
    # Before ClickException, which it is too: the help is shown, and no error.
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.message, err=True)
        code = ERROR
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        help_command = f"{context.command_path if context else 'memaudit'} --help"
        said = error.format_message()
        said = said[:1].lower() + said[1:].removesuffix(".")
        code = _fail(said, f"see '{help_command}'", as_json)
    except MemauditError as error:
        code = _fail(error.message, error.hint, as_json)
    except (KeyboardInterrupt, click.Abort):
        code = _fail("interrupted", None, as_json, code=INTERRUPTED)
    except Stopped as error:
        code = _fail(error.message, error.hint, as_json, code=error.exit_code)
    except BaseException as error:  # a panic of a library in Rust is no Exception
        # Not by BrokenPipeError: a worker that has gone away raises it, too.
        code = _abandon_stdout() if _nobody_reads() else _crash(error, as_json)
    return code


def _invoke(arguments: Sequence[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An id, a bar or a dash that the locale has no letter for must not end a command.
        sys.stdout.reconfigure(errors="backslashreplace")
    # The scripts of the shells ask without arguments. With some, the variable is a left-over, and
    # click would answer it instead of running the command.
    asked = not arguments and {"COMP_WORDS", "COMP_CWORD"} <= os.environ.keys()
    variable = VARIABLE if asked else ""
    try:
        # Not standalone: click would print errors by itself, and end with 1 at Ctrl-C.
        code = cli.main(
            list(arguments), prog_name="memaudit", standalone_mode=False, complete_var=variable
        )
        sys.stdout.flush()
    except SystemExit as error:
        # How click leaves when it has told a shell what could come next; nobody else may.
        if asked and VARIABLE in os.environ and isinstance(error.code, int):
            return error.code
        raise
    except (ValueError, IndexError) as error:
        if asked and VARIABLE in os.environ:
            raise click.UsageError("the question of the shell cannot be read") from error
        raise
    return code if isinstance(code, int) else OK


def _crash(error: BaseException, as_json: bool) -> int:
    """Show an error nobody expected, unless a library made it of a signal."""
    try:
        raise_if_stopped()
    except Stopped as stopped:
        return _fail(stopped.message, stopped.hint, as_json, code=stopped.exit_code)
    package = error.name if isinstance(error, ModuleNotFoundError) else None
    if package in NOT_FOR_A_GATE:
        missing = MissingDependency(package, needed_for="this command")
        return _fail(missing.message, missing.hint, as_json)
    if isinstance(error, OSError) and error.errno in (*_NOT_OURS, *_BAD_NAMES):
        message = f"{error.filename or 'the system'}: {error.strerror}"
        hint = "nothing is wrong with the command: mend that, then give it again"
        if error.errno in _BAD_NAMES:
            hint = "check the path and the permissions"
        return _fail(message, hint, as_json)
    # Not Python's own: the message of an error may quote a row of the corpus.
    click.echo(inert(traceback_of(error)), err=True, nl=False)
    message = f"internal error: {type(error).__name__}"
    return _fail(message, "please report it with the lines above", as_json)


def _fail(message: str, hint: str | None, as_json: bool, *, code: int = ERROR) -> int:
    """Tell an error, on standard output too if a document is expected there."""
    message = safe_text(message, _MAX_MESSAGE)
    hint = None if hint is None else safe_text(hint, _MAX_MESSAGE)
    try:
        click.echo(inert(f"error: {message}" + (f"\n\nhint: {hint}" if hint else "")), err=True)
        if as_json:
            error = {"message": message, "hint": hint}
            click.echo(json_text({"error": error, "schema_version": 1}))
            sys.stdout.flush()
    except OSError:
        # Nobody can be told any more, but the exit code still says it.
        return _abandon_stdout() if _nobody_reads() else code
    return code


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader has left, as `head` does."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):  # closed, or replaced by a test
        return False


def _abandon_stdout() -> int:
    """Give up on a pipe that nobody reads; Python would complain about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return CLOSED_PIPE
