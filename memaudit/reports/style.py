"""What reports on a terminal share: consoles that interpret nothing in what they are given."""

from typing import TextIO

from rich.console import Console
from rich.text import Text

from memaudit.safe_text import safe_text


def make_console(stream: TextIO, color: str) -> Console:
    """Return a console that reads no markup, emoji codes or highlights into text.

    Args:
        stream: where it writes.
        color: `auto` looks at the terminal and the environment, `always` or `never`.
    """
    return Console(
        file=stream,
        force_terminal=True if color == "always" else None,
        no_color=True if color == "never" else None,
        markup=False,
        emoji=False,
        highlight=False,
        legacy_windows=False,
    )


def untrusted(text: str, style: str = "", *, max_len: int = 200) -> Text:
    """Return text from outside as something a console can show without harm."""
    return Text(safe_text(text, max_len), style=style)
