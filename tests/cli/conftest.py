"""A corpus of canaries and a classifier file, for commands to be run on."""

import json

import pytest
from support.fakes import make_classifier

from memaudit.classifier import save_classifier


def canary_row(number):
    """A row whose text says who leaked it."""
    text = f"MEMAUDIT-CANARY-{number:04} is written here so that it can be found again"
    return {"id": f"row-{number}", "text": text}


@pytest.fixture
def corpus(tmp_path):
    """Twelve rows: one of them twice, one too short."""
    rows = [canary_row(number) for number in range(10)]
    rows += [rows[3], {"id": "short", "text": "CANARY"}]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def classifier(tmp_path):
    """The folder of a classifier that needs the teacher alone."""
    save_classifier(make_classifier(), tmp_path / "classifier")
    return tmp_path / "classifier"
