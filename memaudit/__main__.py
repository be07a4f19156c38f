"""`python -m memaudit`, and the entry point of the command."""

import sys

from memaudit.cli.signals import answer_signals, leave_at_signals


def main() -> None:
    """Run the command line and leave with its exit code."""
    answer_signals()
    # Imported late: Ctrl-C during an import must not show a traceback.
    from memaudit.cli.main import run

    code = run(sys.argv[1:])
    leave_at_signals()
    sys.exit(code)


if __name__ == "__main__":
    main()
