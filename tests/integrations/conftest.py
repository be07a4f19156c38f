"""A finished run on a corpus of a few rows, for what others' tools make of it."""

import json

import pytest
from msgspec.structs import replace
from support.fake_run import ByteWiseEngine, audit_with
from support.fakes import make_classifier

from memaudit.corpus import CorpusOptions, read_corpus


def corpus_rows():
    """Rows of several risks: one of them thrice, two with one id, one too short."""
    texts = [f"{i * 7919 % 100_003:06} is row {i}" for i in range(20)]
    rows = [{"id": f"doc-{i}", "text": text} for i, text in enumerate(texts)]
    rows += [rows[3], rows[3], {"id": "doc-5", "text": "~~~~~~~~~~~~"}]
    return [*rows, {"id": "short", "text": "short"}]


def write_rows(path, rows):
    """Write rows as jsonl."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def audit_file(path, out, **options):
    """Audit a file with a made-up engine and classifier."""
    rows = read_corpus(CorpusOptions(str(path)))
    classifier = replace(make_classifier(), threshold=0.984)
    return audit_with(ByteWiseEngine(), out, rows=rows, classifier=classifier, **options)


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory):
    """The rows as a file."""
    return write_rows(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", corpus_rows())


@pytest.fixture(scope="session")
def finished(corpus_file, tmp_path_factory):
    """The folder of a run on them."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    audit_file(corpus_file, out)
    return out
