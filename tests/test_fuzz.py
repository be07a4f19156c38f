"""Mutated input of every kind: accepted or refused by a message, and nothing else.

The full counts, and the search with atheris, are programs: `tests/support/fuzz.py`.
"""

import pytest
from support.fuzz import FINDS, TIMES, feed, make_targets, mutations

NAMES = (
    *("reader-jsonl", "reader-ndjson", "reader-json", "reader-csv", "reader-tsv", "reader-parquet"),
    *("reader-arrow", "reader-feather", "reader-txt", "reader-jsonl.gz", "reader-jsonl.bz2"),
    *("reader-jsonl.xz", "reader-jsonl.zst", "policy", "classifier", "manifest", "rows", "chunk"),
    *("signature", "baseline", "summary", "reports"),
)  # fmt: skip


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    """All of them, in one folder."""
    return make_targets(tmp_path_factory.mktemp("fuzz"))


def test_every_target_is_tried(targets):
    """A reader that is added must not be forgotten here."""
    assert set(targets) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_mutated_input_is_accepted_or_refused(name, targets):
    """It comes from people who may want a crash, since a crash may look like a verdict."""
    for seed in targets[name].seeds:
        assert feed(targets[name], seed) == "accepted"

    outcomes, _ = mutations(name, targets[name], 20 if name == "chunk" else 100, seed=1)

    assert set(outcomes) <= {"accepted", "refused"}


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("name", NAMES)
def test_thousands_of_mutated_inputs_are_accepted_or_refused(name, targets):
    """As many as take a minute in all."""
    outcomes, _ = mutations(name, targets[name], min(TIMES.get(name, 1_000), 20_000), seed=2)

    assert set(outcomes) <= {"accepted", "refused"}


@pytest.mark.parametrize("path", sorted(FINDS.glob("*/*")), ids=lambda path: path.name)
def test_what_was_found_once_is_handled(path, targets):
    """Each of these was another exception, or was accepted and must not have been."""
    assert feed(targets[path.parent.name], path.read_bytes()) in ("accepted", "refused")
