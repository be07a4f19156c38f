"""transformers, kept from writing to the terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the library's warnings and progress bars off the terminal meanwhile."""
    from transformers.utils import logging

    switches: Any = logging
    verbosity, had_bars = switches.get_verbosity(), switches.is_progress_bar_enabled()
    switches.set_verbosity_error()
    switches.disable_progress_bar()
    try:
        yield
    finally:
        switches.set_verbosity(verbosity)
        if had_bars:
            switches.enable_progress_bar()
