"""Where a finding is, for what shows it beside a file."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from memaudit.corpus.discovery import has_known_ending
from memaudit.text import shown_path

_WITHOUT_LINES = (".parquet", ".arrow", ".feather")


@dataclass(frozen=True, slots=True)
class Location:
    """A line of a file."""

    path: str
    """Relative to the folder of the project, safe to show."""

    line: int
    """From 1; 1 where the format has no lines."""


def find_location(address: str, root: str) -> Location | None:
    """Return the file and line of an address.

    Args:
        address: `<file>:<line or row>`, untrusted.
        root: absolute folder of the project.

    Returns:
        None if the row is not from a file.
    """
    name, _, place = address.rpartition(":")
    if not has_known_ending(name):
        return None
    path = PurePosixPath(shown_path(name))
    if path.is_absolute():
        inside = path.is_relative_to(root)
        path = path.relative_to(root) if inside else PurePosixPath(path.name)
    has_lines = not any(ending in path.name.lower() for ending in _WITHOUT_LINES)
    is_number = place.isascii() and place.isdigit() and len(place) < 10
    return Location(str(path), max(1, int(place)) if has_lines and is_number else 1)
