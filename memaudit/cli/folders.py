"""Folders of runs on the command line: on a disk, or in an object store."""

from pathlib import Path
from typing import Any

import click


class FolderType(click.ParamType[Path]):
    """A folder, made or not, or a place such as `s3://bucket/run`."""

    name = "folder"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path, once it is no file."""
        if not isinstance(value, str):
            path: Path = value
            return path
        if "://" in value:
            from memaudit.runs.files import open_path

            return open_path(value)
        checked: Path = click.Path(path_type=Path, file_okay=False).convert(value, param, ctx)
        return checked
