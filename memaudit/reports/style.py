"""What reports on a terminal share: consoles that interpret nothing in what they are given."""

from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from memaudit.text import inert, safe_text


class _InertConsole(Console):
    """Writes no command for a CI job, whatever it is asked to print."""

    def print(self, *objects: Any, **options: Any) -> None:
        with self.capture() as printed:
            super().print(*objects, **options)
        self.file.write(inert(printed.get()))


def make_console(stream: TextIO, color: str) -> Console:
    """Return a console that reads no markup, emoji codes or highlights into text.

    Args:
        stream: where it writes.
        color: `auto` looks at the terminal and the environment, `always` or `never`.
    """
    return _InertConsole(
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
