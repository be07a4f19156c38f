"""Columns for a dataset: the right ones, or none."""

import pickle

import pyarrow.parquet as pq
import pytest
from integrations.conftest import audit_file, corpus_rows, write_rows
from support.fake_run import ByteWiseEngine, audit_with
from support.fakes import ByteTokenizer

from memaudit.corpus import CorpusOptions, read_corpus
from memaudit.errors import CorpusError, UsageError
from memaudit.integrations.hf_datasets import FLAGGED, PROBABILITY, RiskColumns, with_risk


@pytest.fixture
def dataset():
    """The rows as a dataset."""
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_list(corpus_rows())


def test_the_columns_are_those_of_the_risk_table(dataset, finished):
    """What is acted on is what was shown, row for row."""
    table = pq.read_table(finished / "risk.parquet")

    found = with_risk(dataset, finished)

    assert found.column_names == ["id", "text", PROBABILITY, FLAGGED]
    assert found[PROBABILITY][:] == table.column("probability").to_pylist()
    assert found[FLAGGED][:] == table.column("flagged").to_pylist()
    assert 0 < sum(found[FLAGGED][:]) < len(found)


def test_a_row_that_was_not_scored_has_no_probability(dataset, finished):
    """Null is not zero: nothing is known of it."""
    last = with_risk(dataset, finished)[-1]

    assert (last["id"], last[PROBABILITY], last[FLAGGED]) == ("short", None, False)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[:-1],
        lambda rows: [*rows, rows[0]],
        lambda rows: [rows[1], rows[0], *rows[2:]],
        lambda rows: [{**rows[0], "text": rows[0]["text"] + "."}, *rows[1:]],
        lambda rows: [{**rows[0], "id": "another"}, *rows[1:]],
    ],
    ids=["fewer rows", "more rows", "another order", "another text", "another id"],
)
def test_other_rows_are_refused(change, dataset, finished):
    """Probabilities that stand beside the wrong rows are worse than none."""
    others = type(dataset).from_list(change(corpus_rows()))

    with pytest.raises(UsageError, match="a run on another corpus"):
        with_risk(others, finished)


def test_a_dataset_without_text_is_refused(dataset, finished):
    """It cannot be told whether it is the same."""
    with pytest.raises(CorpusError, match="found no text"):
        with_risk(dataset.remove_columns("text"), finished)


def test_rows_without_ids_are_known_by_their_texts(dataset, tmp_path):
    """Many corpora have no ids."""
    rows = [{"text": row["text"]} for row in corpus_rows()]
    audit_file(write_rows(tmp_path / "c.jsonl", rows), tmp_path / "run")

    found = with_risk(dataset.remove_columns("id"), tmp_path / "run")

    assert found[PROBABILITY][0] == pytest.approx(0.98, abs=0.01)


def test_a_row_that_the_run_left_out_keeps_the_others_in_place(dataset, tmp_path):
    """Bad rows count as rows."""
    rows = corpus_rows()
    rows[1] = {"id": "doc-1", "text": None}
    path = write_rows(tmp_path / "c.jsonl", rows)
    audit_file(path, tmp_path / "run", on_bad_row="skip")

    found = with_risk(type(dataset).from_list(rows), tmp_path / "run")

    assert [found[i][PROBABILITY] is None for i in (0, 1, 2)] == [False, True, False]


def test_map_takes_it_also_for_a_stream(dataset, finished):
    """A stream has no length to compare, but every id and every place is."""
    columns = RiskColumns(finished)
    stream = dataset.to_iterable_dataset()

    found = list(stream.map(columns, batched=True, with_indices=True, batch_size=5))

    assert [row[FLAGGED] for row in found] == with_risk(dataset, finished)[FLAGGED][:]


def test_map_refuses_a_row_beyond_the_run(finished):
    """A longer stream is another corpus."""
    with pytest.raises(UsageError, match="here are more"):
        RiskColumns(finished)({"text": ["x"]}, [24])


def test_it_goes_to_other_processes(finished):
    """`map(num_proc=…)` sends it by pickle."""
    columns = pickle.loads(pickle.dumps(RiskColumns(finished)))

    assert columns({"text": ["x"]}, [0])[FLAGGED] == [True]


@pytest.mark.parametrize("message", [{}, {"content": None, "tool_calls": [{"f": 1}]}])
def test_messages_without_ids_are_known_by_what_they_say(message, dataset, tmp_path):
    """In another order each would get the risk of another one, and nobody would see it."""
    rows = [
        {"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", **message}]}
        if message and i % 2
        else {"messages": [{"role": "user", "content": row["text"]}]}
        for i, row in enumerate(corpus_rows())
    ]
    corpus = write_rows(tmp_path / "c.jsonl", rows)
    read = read_corpus(CorpusOptions(str(corpus)), render_messages=ByteTokenizer().render_messages)
    audit_with(ByteWiseEngine(), tmp_path / "run", rows=read, windows="first")

    assert len(with_risk(type(dataset).from_list(rows), tmp_path / "run")) == len(rows)
    with pytest.raises(UsageError, match="the rows have no ids, and their messages are not"):
        with_risk(type(dataset).from_list(rows[::-1]), tmp_path / "run")


def test_what_is_no_dataset_is_told(dataset, finished):
    """A stream has no length; a list has no columns."""
    for other in (corpus_rows(), dataset.to_iterable_dataset()):
        with pytest.raises(UsageError, match="expected a Dataset of datasets, got"):
            with_risk(other, finished)


def test_messages_are_known_by_id_and_number(dataset, tmp_path):
    """Which text they became is up to the teacher's template, which is not at hand."""
    rows = [{"id": row["id"], "text": row["text"]} for row in corpus_rows()]
    audit_file(write_rows(tmp_path / "c.jsonl", rows), tmp_path / "run")
    messages = [
        {"id": row["id"], "messages": [{"role": "user", "content": row["text"]}]} for row in rows
    ]

    found = with_risk(type(dataset).from_list(messages), tmp_path / "run")

    assert found[FLAGGED][0]
    with pytest.raises(UsageError, match="another id"):
        with_risk(type(dataset).from_list(messages[::-1]), tmp_path / "run")
