"""Workers: several processes make the files that one would have made."""

from functools import partial
from pathlib import Path

import pytest
from support.fake_run import contents, fake_audit, load_failing, load_fakes, make_fake_models

from memaudit.errors import MemauditError, ModelError
from memaudit.runs.workers import score_in_workers


def audit_with_workers(out, load, n_workers=2):
    """Audit the fake rows with workers."""
    from dataclasses import replace

    from support.fake_run import audit_rows, fake_options, fake_rows
    from support.fakes import make_classifier

    models = replace(make_fake_models(), score=partial(score_in_workers, load, n_workers))
    return audit_rows(fake_rows(88), models, make_classifier(), out=out, options=fake_options())


def test_two_workers_write_what_one_process_writes(tmp_path):
    """Whoever scores a chunk, and in whatever order, it is the same chunk."""
    fake_audit(tmp_path / "one")

    audit_with_workers(tmp_path / "two", partial(load_fakes, 0.0))

    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [1, 3, 14])
def test_any_number_of_workers_will_do(tmp_path, n_workers):
    """More than there are chunks, too."""
    fake_audit(tmp_path / "one")

    audit_with_workers(tmp_path / "many", partial(load_fakes, 0.0), n_workers)

    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_a_worker_that_is_killed_is_replaced(tmp_path):
    """The system kills who takes too much memory; its chunk must not be lost."""
    fake_audit(tmp_path / "one")
    load = partial(load_failing, "is killed once", str(tmp_path / "marker"))

    audit_with_workers(tmp_path / "two", load)

    assert (tmp_path / "marker").exists()
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.slow
def test_trouble_at_every_chunk_ends_the_run(tmp_path):
    """Not after an endless night of restarts."""
    load = partial(load_failing, "is killed", "")

    with pytest.raises(ModelError, match=r"3 chunks in a row .* exit code -9") as caught:
        audit_with_workers(tmp_path / "run", load, n_workers=3)

    assert "--chunk-size" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_a_chunk_that_kills_its_workers_ends_as_error_rows(tmp_path):
    """Here the one with row 24; the rest of the run goes on."""
    load = partial(load_failing, "is killed by row 24", "")

    result = audit_with_workers(tmp_path / "run", load, n_workers=2)

    assert result.outcomes == {"scored": 85, "too_short": 1, "bad": 1, "error": 8}
    assert result.failures == {3: "3 processes died at it, the last with exit code -9"}


def test_what_a_worker_refuses_is_told_as_if_it_happened_here(tmp_path):
    """Message and hint survive the way through a pipe."""
    with pytest.raises(MemauditError, match="broken weights") as caught:
        audit_with_workers(tmp_path / "run", partial(load_failing, "refuses", ""), n_workers=1)

    assert caught.value.hint == "get them again"
    assert not (tmp_path / "run").exists()


def test_a_worker_that_crashes_shows_where(tmp_path):
    """A bug in a worker must not look like a broken pipe."""
    with pytest.raises(RuntimeError, match=r"(?s)worker 0 crashed:.*ZeroDivisionError"):
        audit_with_workers(tmp_path / "run", partial(load_failing, "crashes", ""), n_workers=1)


@pytest.mark.slow
def test_two_workers_with_real_models_write_what_one_process_writes(tmp_path):
    """Floats from torch, with the same number of threads."""
    from memaudit.audit import audit_corpus
    from memaudit.engines.models import ModelOptions
    from memaudit.runs.options import AuditOptions

    root = Path(__file__).parents[2]
    for workers in (1, 2):
        options = AuditOptions(
            model=ModelOptions(device="cpu", offline=True),
            threads=1,
            workers=workers,
            chunk_size=32,
        )
        audit_corpus(
            str(root / "models" / "demo-teacher"),
            root / "sample_data" / "demo.jsonl",
            out=tmp_path / str(workers),
            options=options,
        )

    assert contents(tmp_path / "2") == contents(tmp_path / "1")
