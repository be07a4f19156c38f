"""`memaudit demo`: a small corpus and a small teacher that was trained on it, to try memaudit on."""

import shlex
import shutil
from pathlib import Path

import click

from memaudit.classifier import shipped_classifiers_dir
from memaudit.cli.command import Command
from memaudit.cli.options import FOLDER
from memaudit.errors import OutputError
from memaudit.runs.files import output_errors, output_folder
from memaudit.text import inert, shown_path

_MODELS = ("demo-teacher", "demo-student", "demo-baseline")
_CORPUS = "demo.jsonl"


@click.command(cls=Command)
@click.argument("folder", metavar="[DIR]", type=FOLDER, default=Path("demo"))
def demo(folder: Path) -> None:
    """Copy a corpus of 518 rows and the models that go with it into DIR, by default demo.

    They come with memaudit: nothing is downloaded. Then it says what to try.
    """
    # Nothing is replaced: the folder may be somebody's own.
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(
            f"{shown_path(folder)}: the folder is not empty",
            hint="give another one: memaudit demo DIR",
        )
    models = shipped_classifiers_dir()
    with output_folder(folder), output_errors(folder):
        shutil.copyfile(models.parent / "sample_data" / _CORPUS, folder / _CORPUS)
        for model in _MODELS:
            # Contents alone: a package may be installed without the right to write.
            shutil.copytree(models / model, folder / model, copy_function=shutil.copyfile)
    teacher, corpus = (shlex.quote(shown_path(folder / each)) for each in (_MODELS[0], _CORPUS))
    lines = (
        f"{corpus}: 518 rows, 200 different texts",
        f"{teacher}: a model trained on them, with a student and a baseline",
        "",
        "Next, about a minute:",
        f"  memaudit predict --teacher {teacher} --data {corpus}",
    )
    click.echo(inert("\n".join(lines)))
