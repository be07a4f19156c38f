"""Text from outside for logs that are read by machines too."""

from memaudit.safe_text import safe_text


def inert(text: str, max_len: int = 200) -> str:
    """Return the text on one line, in which the log of a CI job finds no command.

    GitHub's runner obeys lines that begin with two colons, wherever a line breaks, and older
    commands after `##[` anywhere in one.
    """
    shown = safe_text(text, max_len)
    return shown.replace("##[", "\\u0023#[").replace("::", ":\\u003a")
