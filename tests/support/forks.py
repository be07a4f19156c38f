"""Work in a fork of this process, which has imported everything already."""

import os


def fork(work):
    """Do some work in a process of its own; return its id."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def exit_of(pid):
    """Return how a process ended: its exit code, or minus a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
