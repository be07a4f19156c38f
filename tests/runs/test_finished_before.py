"""A run that is in the folder already: told again without a model, or refused before one is loaded."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_run import contents
from support.fakes import make_classifier

import memaudit
from memaudit.classifier import save_classifier
from memaudit.engines import hf
from memaudit.errors import UsageError
from memaudit.runs import models, opening
from memaudit.runs.options import AuditOptions
from memaudit.windows import WindowShape

TEXTS = [f"text number {i}, which goes on for a while" for i in range(12)]


@pytest.fixture
def rows():
    """A corpus in memory."""
    return [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)]


@pytest.fixture
def options(tmp_path):
    """Windows that the texts have room for, and a classifier of two features."""
    save_classifier(make_classifier(), tmp_path / "classifier")
    shape = WindowShape(8, 8)
    return AuditOptions(str(tmp_path / "classifier"), shape=shape, chunk_size=4, threads=1)


@pytest.fixture
def audit(tiny_teacher, rows, options, tmp_path):
    """Audit the corpus into one folder, with changes."""

    def run(data=rows, teacher=tiny_teacher, **changes):
        return memaudit.audit_corpus(
            Path(teacher), data, out=tmp_path / "out", options=replace(options, **changes)
        )

    return run


@pytest.fixture
def no_models(monkeypatch):
    """Once this is called nothing may be loaded."""

    def refuse(_):
        raise AssertionError("a model is loaded")

    return lambda: monkeypatch.setattr(opening, "load_models", refuse)


def same(folder):
    """Return the files that do not tell the time."""
    return {name: content for name, content in contents(folder).items() if "summary" not in name}


def test_a_finished_run_is_told_again_without_a_model(audit, tmp_path, no_models):
    """Its table has the same bytes, and its summary says that all was there."""
    first = audit()
    no_models()
    before = same(tmp_path / "out")

    again = audit()

    assert same(tmp_path / "out") == before
    assert again.kept_windows == again.distinct_windows
    ignored = ("seconds", "tokens_per_second", "kept_windows")
    told = [
        {k: v for k, v in each.document().items() if k not in ignored} for each in (first, again)
    ]
    assert told[0] == told[1]


def test_another_number_of_threads_is_no_other_run_once_all_is_scored(audit, no_models):
    """Threads round scores; nothing is left to be rounded."""
    first = audit()
    no_models()

    assert audit(threads=2).run == first.run


def test_threads_matter_while_there_is_something_to_score(audit, tmp_path, no_models):
    """Half of a run by one thread and half by two would be neither's."""
    audit()
    no_models()
    (tmp_path / "out" / "chunks" / "00001.parquet").unlink()

    with pytest.raises(UsageError, match="threads was 1, is now 2"):
        audit(threads=2)


def test_a_run_that_the_softmax_kernel_began_does_not_go_on_without_it(
    audit, tmp_path, monkeypatch
):
    """It rounds otherwise; on this machine there may be no compiler for it any more."""
    with monkeypatch.context() as on_gpu:
        on_gpu.setattr(hf, "is_fused", lambda device: True)
        first = audit()
    with monkeypatch.context() as finished:
        finished.setattr(opening, "load_models", None)
        assert audit().names.engine == first.names.engine == "hf-float32-fused"
    (tmp_path / "out" / "chunks" / "00001.parquet").unlink()

    with pytest.raises(UsageError, match=r"was hf-float32-fused, is now hf-float32$"):
        audit()


def test_workers_on_a_gpu_are_named_as_the_engine_that_they_run(tiny_teacher, options, monkeypatch):
    """The manifest is written before a worker has loaded a model."""
    monkeypatch.setattr(models, "_kind_here", lambda device: ("a GPU", True))
    options = replace(options, workers=2)

    found = models.load_models(models.ModelSources(str(tiny_teacher), None, None, options))

    assert found.engine == "hf-float32-fused"


def test_text_of_a_finished_run_is_shown_with_any_number_of_threads(audit):
    """Text needs the tokenizer, so the models are loaded; that is no reason to refuse either."""
    audit()

    result = audit(threads=2, show_text=4)

    assert result.worst[0].text is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk_size": 8}, "chunk size was 4, is now 8"),
        ({"shape": WindowShape(4, 8)}, "prefix tokens was 8, is now 4"),
        ({"windows": "tile"}, "windows was first, is now tile"),
        ({"on_bad_row": "skip"}, "on bad row was error, is now skip"),
        ({"data": [{"id": str(i), "text": text} for i, text in enumerate(TEXTS[:-1])]},
         "it has 11 rows, the run 12"),
        ({"data": [{"id": str(i), "text": text + "!"} for i, text in enumerate(TEXTS)]},
         "a text was changed"),
        ({"data": [{"id": f"{i}x", "text": text} for i, text in enumerate(TEXTS)]},
         "row 1 is another one"),
    ],
)  # fmt: skip
def test_another_run_is_refused_before_models_are_loaded(
    audit, tmp_path, no_models, changes, message
):
    """Loading takes minutes, and nobody wants to wait for a no."""
    audit()
    no_models()
    before = contents(tmp_path / "out")

    with pytest.raises(UsageError, match="holds another run") as refused:
        audit(**changes)

    assert message in refused.value.message
    assert contents(tmp_path / "out") == before


def test_another_teacher_is_refused_before_it_is_loaded(audit, tiny_student, no_models):
    """Its files tell."""
    audit()
    no_models()

    with pytest.raises(UsageError, match="teacher digest was"):
        audit(teacher=tiny_student)


def test_restart_scores_anew(audit, tmp_path):
    """Though all is there."""
    audit()

    assert audit(restart=True).kept_windows == 0


def test_the_command_given_again_loads_no_torch(tiny_teacher, rows, options, tmp_path):
    """A summary that takes seven seconds is not looked at twice."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["predict", "--teacher", tiny_teacher, "--data", corpus, "--out", tmp_path / "out"]
    arguments += ["--prefix-tokens", 8, "--suffix-tokens", 8, "--classifier", options.classifier]
    code = (
        "import sys; from memaudit.cli.main import run; code = run(sys.argv[1:]);"
        "print('heavy', sorted({'torch', 'transformers'} & {*sys.modules})); sys.exit(code)"
    )

    first, again = (
        subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments), "-q"],
            check=True, capture_output=True, text=True, timeout=120,
        ).stdout
        for _ in range(2)
    )  # fmt: skip

    assert "heavy ['torch', 'transformers']" in first
    assert "heavy []" in again
    assert again.splitlines()[0] == first.splitlines()[0]


def test_a_result_is_a_table_a_frame_and_short_in_a_notebook(audit, tmp_path):
    """The table is the one that was written; the frame is the table."""
    import pyarrow.parquet as pq

    result = audit()

    assert result.table.equals(pq.read_table(tmp_path / "out" / "risk.parquet"))
    assert result.to_pandas()["id"].tolist() == [str(i) for i in range(12)]
    assert result.table_path == tmp_path / "out" / "risk.parquet"
    assert repr(result).startswith("<AuditResult: 0 of 12 examples are at risk, expect ")
    assert len(repr(result)) < 300


def test_a_result_without_a_folder_has_its_table_too(tiny_teacher, rows, options, tmp_path):
    """Nothing is left on the disk by then."""
    kept = memaudit.audit_corpus(tiny_teacher, rows, out=tmp_path / "out", options=options)

    result = memaudit.audit_corpus(tiny_teacher, rows, options=options)

    assert result.table_path is None
    assert result.table.equals(kept.table)


def test_a_notebook_shows_no_markup_of_an_id(audit, rows):
    """Ids are untrusted."""
    rows[0]["id"] = "<script>alert(1)</script>"

    page = audit()._repr_html_()

    assert "<script>" not in page
    assert page.startswith("<p>0 of 12 examples are at risk, expect ")
