"""A dry run counts what will be found, loads what it must, and writes nothing."""

import dataclasses
import json

import pytest

from memaudit import dry_run
from memaudit.audit import audit_corpus
from memaudit.corpus import CorpusOptions
from memaudit.dry_run import load_sizes, plan_audit
from memaudit.engines.models import load_model
from memaudit.errors import CorpusError, UsageError
from memaudit.runs.options import AuditOptions
from memaudit.windows import WindowShape

OPTIONS = AuditOptions(shape=WindowShape(4, 4), windows="tile", threads=1)


@pytest.fixture
def corpus(tmp_path):
    """Twelve texts, one of them three times and one too short."""
    texts = [f"{i}: the number {i} of 8" for i in range(8)] + ["the same again"] * 3 + ["x"]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return CorpusOptions(str(path))


def test_the_sizes_of_a_model_are_known_without_its_weights(tiny_teacher):
    """A plan for a model too large to load must be right all the same."""
    (sizes, _), model = load_sizes(str(tiny_teacher)), load_model(str(tiny_teacher)).model

    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert sizes.parameters == sum(each.numel() for each in model.parameters())
    assert sizes.head_parameters == head.weight.numel() == 256 * 16
    assert sizes.body_parameters == sizes.parameters - 2 * embeddings.weight.numel()
    assert (sizes.layers, sizes.attention_width) == (1, 16)


def test_a_plan_counts_what_the_audit_finds(tiny_teacher, corpus):
    """It would not be a plan of this audit otherwise."""
    plan = plan_audit(str(tiny_teacher), corpus, options=OPTIONS)
    result = audit_corpus(str(tiny_teacher), corpus, options=OPTIONS)

    assert plan.outcomes == result.outcomes
    assert (plan.windows, plan.distinct_windows) == (result.windows, result.distinct_windows)
    assert plan.tokens == result.tokens
    assert plan.sample is not None
    assert plan.sample.windows == plan.distinct_windows
    assert plan.seconds is not None


def test_a_plan_of_a_cascade_counts_what_it_will_leave_out(tiny_teacher, corpus):
    """At T = 2 the shipped classifier flags nothing that occurs once."""
    options = dataclasses.replace(OPTIONS, survival=1.0)
    plan = plan_audit(str(tiny_teacher), corpus, options=options)
    result = audit_corpus(str(tiny_teacher), corpus, options=options)

    assert 0 < plan.screened_windows == result.screened_windows
    assert plan.tokens == result.tokens


def test_a_reference_is_sized_up_beside_the_teacher(tiny_teacher, tiny_student, corpus):
    """It takes as much memory as it takes."""
    plan = plan_audit(str(tiny_teacher), corpus, student=str(tiny_student), options=OPTIONS)

    assert list(plan.models) == ["teacher", "student"]


def test_a_model_that_does_not_fit_is_planned_without_a_sample(tiny_teacher, corpus, monkeypatch):
    """Half an answer is better than a machine that swaps."""
    monkeypatch.setattr(dry_run, "available_memory", lambda: 0)
    monkeypatch.setattr(dry_run, "load_models", None)

    plan = plan_audit(str(tiny_teacher), corpus, options=OPTIONS)
    assert plan.sample is None
    assert plan.memory > 0


def test_a_plan_fails_as_the_audit_would(tiny_teacher, corpus, tmp_path):
    """A billion tokens later is too late."""
    (tmp_path / "bad.jsonl").write_text("{\n")
    with pytest.raises(CorpusError):
        plan_audit(str(tiny_teacher), tmp_path / "bad.jsonl", options=OPTIONS)
    with pytest.raises(UsageError):
        plan_audit(str(tiny_teacher), corpus, student="s", baseline="b", options=OPTIONS)
