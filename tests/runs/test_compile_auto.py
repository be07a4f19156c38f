"""Whether to compile is found out once for each run, and holds for all of it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.fakes import make_classifier

from memaudit.audit import audit_corpus, score_shard
from memaudit.classifier import save_classifier
from memaudit.dry_run import plan_audit
from memaudit.engines import hf
from memaudit.engines.models import ModelOptions
from memaudit.errors import UsageError
from memaudit.runs.manifest import Shard
from memaudit.runs.models import AuditModels, _settled
from memaudit.runs.options import AuditOptions, RayOptions
from memaudit.windows import WindowShape

ROWS = [{"text": f"text number {i}, which goes on for a while"} for i in range(12)]
AUTO = ModelOptions(device="cpu", compiled=None)


@pytest.fixture
def options(tmp_path):
    """Windows that the texts have room for, and a classifier of two features."""
    save_classifier(make_classifier(), tmp_path / "classifier")
    return AuditOptions(
        str(tmp_path / "classifier"),
        shape=WindowShape(8, 8),
        chunk_size=4,
        threads=1,
        engine="hf",
        model=AUTO,
    )


@pytest.fixture
def found_out(monkeypatch):
    """Let compiling pay, or not; return how many windows that was asked of."""
    asked = []
    monkeypatch.setattr(hf, "compile_blocks", lambda model: None)

    def decide(*, pays):
        def stand_in(eager, compiled, models, window, n_windows):
            asked.append((len(window(n_windows - 1)), n_windows, len(models)))
            return (
                (compiled(), "compiled: it pays") if pays else (eager, "not compiled: it does not")
            )

        monkeypatch.setattr(hf, "faster_engine", stand_in)
        return asked

    return decide


@pytest.mark.parametrize(("pays", "engine"), [(True, "hf-float32-compiled"), (False, "hf-float32")])
def test_what_was_found_out_holds_when_the_run_goes_on(
    tiny_teacher, options, found_out, tmp_path, pays, engine
):
    """Compiled scores differ in the last bits: a run must not hold both."""
    asked = found_out(pays=pays)
    folder = tmp_path / "out"
    first = audit_corpus(tiny_teacher, ROWS, out=folder, options=options)
    files = {p: p.read_bytes() for p in folder.rglob("*.parquet")}
    next((folder / "chunks").iterdir()).unlink()
    found_out(pays=not pays)

    second = audit_corpus(tiny_teacher, ROWS, out=folder, options=options)
    third = audit_corpus(tiny_teacher, ROWS, out=folder, options=options)

    assert asked == [(16, 12, 1)]
    assert {p: p.read_bytes() for p in folder.rglob("*.parquet")} == files
    for result in (first, second, third):
        document = result.document()
        assert document["engine"] == engine
        assert document["compile_choice"].startswith("compiled" if pays else "not compiled")
    named = replace(options, model=replace(AUTO, compiled=pays))
    assert audit_corpus(tiny_teacher, ROWS, out=folder, options=named).names.engine == engine
    other = replace(options, model=replace(AUTO, compiled=not pays))
    with pytest.raises(UsageError, match="engine was"):
        audit_corpus(tiny_teacher, ROWS, out=folder, options=other)


def test_a_run_that_is_started_over_finds_out_anew(tiny_teacher, options, found_out, tmp_path):
    """The machine may be another one."""
    asked = found_out(pays=True)
    audit_corpus(tiny_teacher, ROWS, out=tmp_path / "out", options=options)
    found_out(pays=False)

    again = replace(options, restart=True)
    result = audit_corpus(tiny_teacher, ROWS, out=tmp_path / "out", options=again)

    assert len(asked) == 2
    assert result.names.engine == "hf-float32"


def test_a_dry_run_says_what_would_be_chosen(tiny_teacher, options):
    """So that shards and workers can be told; a tiny run is never worth it."""
    plan = plan_audit(tiny_teacher, ROWS, options=options)

    assert plan.document()["compile_choice"].startswith("not compiled: scoring takes")
    assert json.dumps(plan.document())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"workers": 2}, "--workers"),
        ({"ray": RayOptions()}, "--executor ray"),
        ({"survival": 1.0}, "--cascade"),
        ({"engine": "vllm"}, "--engine vllm"),
    ],
)
def test_parts_that_could_decide_differently_are_told_instead(changes, named, monkeypatch):
    """And a cascade does not know how many windows it leaves."""
    monkeypatch.setattr("memaudit.engines.is_installed", lambda package: True)

    with pytest.raises(UsageError, match=f"--compile auto and {named}") as caught:
        AuditOptions(model=AUTO, **changes)
    assert "give on or off" in caught.value.hint


def test_a_shard_is_told(tiny_teacher, options, tmp_path):
    """Its neighbours run on other machines."""
    with pytest.raises(UsageError, match="--compile auto and --shard"):
        score_shard(tiny_teacher, ROWS, Shard(0, 2), out=tmp_path / "out", options=options)


def test_what_does_not_run_on_a_cpu_is_left_as_it_is():
    """CPU time says nothing of a GPU, and nobody has measured one."""
    engine = SimpleNamespace(name="hf-float32-fused")
    here = AuditModels(None, None, engine.name, "teacher", device="NVIDIA H100")

    settled = _settled(None, (None, None), engine, here, None)

    assert (settled.engine, settled.settle) == (engine.name, None)
    assert settled.compile_choice.startswith("not compiled: that is decided only where")
