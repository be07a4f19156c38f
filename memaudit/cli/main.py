"""The command group, and the one place where errors become text and exit codes."""

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise

import click

from memaudit import __version__
from memaudit.cli.completion import VARIABLE, completion
from memaudit.cli.filter import filter_
from memaudit.cli.fit import fit
from memaudit.cli.gate import gate
from memaudit.cli.merge import merge
from memaudit.cli.predict import predict
from memaudit.cli.report import report
from memaudit.cli.signals import Stopped, raise_if_stopped
from memaudit.cli.status import status
from memaudit.cli.study import study
from memaudit.cli.verify import verify
from memaudit.errors import MemauditError
from memaudit.text import inert, json_text, safe_text

OK = 0
ERROR = 2
INTERRUPTED = 130

_MAX_MESSAGE = 4096
_NOT_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""What the machine lacks can be met at any line, also of a library: no traceback helps."""


@click.group(
    context_settings={
        "auto_envvar_prefix": "MEMAUDIT",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    }
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Predict, before a distillation, which examples of a corpus a student would memorize.

    Every option can also be set by a variable such as MEMAUDIT_PREDICT_TEACHER. Exit codes:
    0 done, 1 a gate has failed, 2 error, 130 and 143 stopped by a signal.
    """


cli.add_command(completion)
cli.add_command(filter_)
cli.add_command(fit)
cli.add_command(gate)
cli.add_command(predict)
cli.add_command(status)
cli.add_command(merge)
cli.add_command(report)
cli.add_command(study)
cli.add_command(verify)


def run(arguments: Sequence[str]) -> int:
    """Run a command and return the exit code of the process."""
    as_json = _wants_json(arguments)
    try:
        code = _invoke(arguments)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.message, err=True)
        code = ERROR
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        help_command = f"{context.command_path if context else 'memaudit'} --help"
        code = _fail(_lowered(error.format_message()), f"see '{help_command}'", as_json)
    except MemauditError as error:
        code = _fail(error.message, error.hint, as_json)
    except (KeyboardInterrupt, click.Abort):
        code = _fail("interrupted", None, as_json, code=INTERRUPTED)
    except Stopped as error:
        code = _fail(error.message, error.hint, as_json, code=error.exit_code)
    except BrokenPipeError:
        code = _abandon_stdout()
    except Exception as error:
        code = _crash(error, as_json)
    return code


def _invoke(arguments: Sequence[str]) -> int:
    try:
        code = cli.main(list(arguments), prog_name="memaudit", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as error:
        if VARIABLE in os.environ:  # click has told a shell what could come next
            return error.code if isinstance(error.code, int) else ERROR
        # click's own answer to a closed pipe, with the code that means a failed gate here.
        raise BrokenPipeError from error
    return code if isinstance(code, int) else OK


def _crash(error: Exception, as_json: bool) -> int:
    """Show an error nobody expected, unless a library made it of a signal."""
    try:
        raise_if_stopped()
    except Stopped as stopped:
        return _fail(stopped.message, stopped.hint, as_json, code=stopped.exit_code)
    if isinstance(error, OSError) and error.errno in _NOT_OURS:
        message = f"{error.filename or 'the system'}: {error.strerror}"
        return _fail(
            message, "nothing is wrong with the command: mend that, then give it again", as_json
        )
    click.echo(inert("".join(traceback.format_exception(error))), err=True, nl=False)
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
    except BrokenPipeError:
        return _abandon_stdout()
    return code


def _abandon_stdout() -> int:
    """Give up on a pipe that nobody reads; Python would complain about it at exit."""
    click.echo("error: standard output was closed before all was written", err=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ERROR


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether a document is expected even if the arguments cannot be parsed."""
    by_variable = (
        os.environ.get(f"MEMAUDIT_{name.upper()}_JSON", "").lower() in ("1", "true", "yes", "on")
        for name in cli.commands
        if name in arguments
    )
    asked = "--json" in arguments or "--output-format=json" in arguments
    return asked or ("--output-format", "json") in pairwise(arguments) or any(by_variable)


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:].removesuffix(".")
