"""`python -m memaudit`, and the entry point of the command."""

import atexit
import os
import sys
import threading
import traceback
from contextlib import suppress
from typing import NoReturn

from memaudit.cli.signals import Stopped, answer_signals, leave_at_signals

ERROR = 2


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    code = ERROR
    try:
        answer_signals()
        # Imported late: Ctrl-C during an import must not show a traceback.
        from memaudit.cli.main import run

        code = run(sys.argv[1:])
        leave_at_signals()
    except Stopped as stopped:
        code = stopped.exit_code
    except BaseException:
        with suppress(Exception):  # standard error may be what has failed
            traceback.print_exc()
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End the process once its threads, its exit handlers and its output have ended.

    Python would take torch and transformers apart first, for seconds in which whoever reads our
    output waits for its end.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # what Python itself calls first
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        # Python would end with 1, which means that a gate has failed.
        code = code or ERROR
    os._exit(code)


if __name__ == "__main__":
    main()
