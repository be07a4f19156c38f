"""The filter block: what it drops in a pipeline that really runs."""

import builtins
import importlib
import json
import pickle
import sys

import pytest
from integrations.conftest import corpus_rows

from memaudit.errors import MissingDependency, OutputError, UsageError

MODULE = "memaudit.integrations.datatrove"


def flagged_ids(finished):
    """Ids that the risk table flags."""
    import pyarrow.parquet as pq

    table = pq.read_table(finished / "risk.parquet").to_pylist()
    return {row["id"] for row in table if row["flagged"]}


def document(example_id):
    """A document with that id."""
    from datatrove.data import Document

    return Document(text="any", id=example_id)


@pytest.fixture
def make_filter(finished):
    """Builds the block for the run."""
    pytest.importorskip("datatrove")
    from memaudit.integrations.datatrove import MemorizationFilter

    return lambda **settings: MemorizationFilter(finished, **settings)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    """The block is for those who have datatrove."""
    really_import = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("datatrove"):
            raise ImportError(name)
        return really_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)

    with pytest.raises(MissingDependency) as caught:
        importlib.import_module(MODULE)
    assert caught.value.hint == "pip install 'memaudit-distill[datatrove]'"


def test_a_pipeline_drops_what_is_flagged(make_filter, finished, corpus_file, tmp_path):
    """Read, filter, write, as a user runs it; what is dropped goes where it is asked to go."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    dropped = JsonlWriter(str(tmp_path / "dropped"), compression=None)
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(str(corpus_file.parent)),
            make_filter(exclusion_writer=dropped),
            JsonlWriter(str(tmp_path / "kept"), compression=None),
        ],
        logging_dir=str(tmp_path / "logs"),
    ).run()

    def ids(folder):
        lines = (tmp_path / folder / "00000.jsonl").read_text().splitlines()
        return [json.loads(line)["id"] for line in lines]

    assert set(ids("dropped")) == flagged_ids(finished)
    assert sorted(ids("kept") + ids("dropped")) == sorted(row["id"] for row in corpus_rows())
    assert "short" in ids("kept")


def test_of_rows_with_one_id_the_riskiest_counts(make_filter):
    """Two rows may share an id; to keep the risky one would be the worse mistake."""
    block = make_filter(max_probability=0.9)

    assert block.filter(document("doc-5")) == (False, "memorization")


def test_a_limit_replaces_the_classifiers_threshold(make_filter):
    """At 1 nothing is dropped, at 0 all that was scored."""
    assert make_filter(max_probability=1).filter(document("doc-0")) is True
    assert make_filter(max_probability=0).filter(document("doc-1")) == (False, "memorization")
    assert make_filter(max_probability=0).filter(document("short")) is True


def test_a_document_that_was_never_scored_is_an_error(make_filter):
    """To keep it would be to say that it is safe."""
    with pytest.raises(UsageError, match="no example with the id stranger"):
        make_filter().filter(document("stranger"))


@pytest.mark.parametrize("limit", [-0.1, 1.1, float("nan")])
def test_a_limit_that_is_no_probability_is_refused(make_filter, limit):
    """Percent are not shares."""
    with pytest.raises(UsageError, match="must be from 0 to 1"):
        make_filter(max_probability=limit)


def test_a_damaged_run_is_refused(make_filter, finished, tmp_path):
    """Nobody may talk the filter round by editing the run."""
    import shutil

    from memaudit.integrations.datatrove import MemorizationFilter

    run = shutil.copytree(finished, tmp_path / "run")
    manifest = run / "manifest.json"
    manifest.write_text(manifest.read_text().replace("0.984", "0.999"))

    with pytest.raises(OutputError):
        MemorizationFilter(run)


def test_it_goes_to_other_processes(make_filter):
    """Executors send the pipeline by pickle."""
    block = pickle.loads(pickle.dumps(make_filter()))

    assert block.filter(document("doc-3")) == (False, "memorization")
