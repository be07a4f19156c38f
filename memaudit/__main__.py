"""`python -m memaudit`, and the entry point of the command."""

import signal
import sys

from memaudit.cli.main import run, terminate


def main() -> None:
    """Run the command line and leave with its exit code."""
    signal.signal(signal.SIGTERM, terminate)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
