"""Reading a finished run back: what filter, gate and report stand on."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.fake_run import fake_audit
from support.finished_runs import finish_run, write_jsonl

from memaudit.errors import OutputError, UsageError
from memaudit.runs.manifest import Shard, read_manifest
from memaudit.runs.run import read_run
from memaudit.runs.sealed_parquet import sealed_writer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that went through."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    fake_audit(out)
    return out


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it, to spoil."""
    return shutil.copytree(whole, tmp_path / "run")


def test_the_probabilities_are_those_of_the_risk_table(whole):
    """What is acted on is what was shown."""
    table = pq.read_table(whole / "risk.parquet")

    found = read_run(whole)

    assert np.array_equal(
        found.probabilities, table.column("probability").to_numpy(), equal_nan=True
    )
    assert found.is_flagged.tolist() == table.column("flagged").to_pylist()
    assert found.n_rows == found.manifest.inputs.rows == table.num_rows
    assert found.outcomes == {"scored": 93, "too_short": 1, "bad": 1}
    assert (~found.is_scored).sum() == 2


def test_a_row_is_found_by_its_place(whole):
    """A report names the row that it speaks of."""
    table = pq.read_table(whole / "risk.parquet").to_pylist()

    found = read_run(whole)

    for index in (0, 50, 94):
        row = found.row(index)
        expected = table[index]
        assert (row.example_id, row.row, row.address, row.outcome) == tuple(
            expected[name] for name in ("id", "row", "address", "outcome")
        )


def test_a_risk_table_that_was_edited_changes_nothing(run):
    """The table is an output: nobody may talk a gate round by editing it."""
    before = read_run(run).probabilities
    (run / "risk.parquet").write_bytes(b"all is well")
    (run / "summary.json").unlink()

    assert np.array_equal(read_run(run).probabilities, before, equal_nan=True)


def test_a_missing_chunk_is_named(run):
    """Half a run must never be acted on as if it were whole."""
    (run / "chunks" / "00003.parquet").unlink()

    with pytest.raises(UsageError, match=r"1 of 11 chunks are not there \(missing: 3\)"):
        read_run(run)


@pytest.mark.parametrize("name", ["chunks/00003.parquet", "rows.parquet", "manifest.json"])
def test_a_changed_bit_is_found(run, name):
    """Whoever signs a release must not do so on a damaged file."""
    content = bytearray((run / name).read_bytes())
    content[len(content) // 3] ^= 1
    (run / name).write_bytes(content)

    with pytest.raises(OutputError):
        read_run(run)


def test_a_shard_is_no_run(tmp_path):
    """A third of a corpus would pass for all of it."""
    fake_audit(tmp_path, shard=Shard(0, 3))

    with pytest.raises(UsageError, match="only shard 0/3"):
        read_run(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path):
    """A typo in a path must not pass a gate."""
    with pytest.raises(UsageError, match="not the folder of a run"):
        read_run(tmp_path)


def test_texts_that_share_a_window_are_counted_apart(tmp_path):
    """A header in 32 documents is one window and 32 texts; two equal documents are one text."""
    documents = [f"header01 of document {i}" for i in range(5)]
    source = write_jsonl(tmp_path / "c.jsonl", [*documents, documents[0], None, None])
    finish_run(source, tmp_path / "run", recited=["header01"], on_bad_row="skip")

    risks = read_run(tmp_path / "run").risks

    assert (risks.n_flagged, risks.n_flagged_texts, risks.n_flagged_windows) == (6, 5, 1)
    assert risks.texts.copies.tolist() == [2, 1, 1, 1, 1]
    assert risks.expected_texts.mean == pytest.approx(5 / 6 * risks.expected.mean)
    file = pq.read_table(tmp_path / "run" / "rows.parquet")
    assert file["text"].to_pylist() == [0, 1, 2, 3, 4, 0, 6, 7]


def test_a_run_that_compared_windows_alone_is_read_as_it_was_meant(tmp_path):
    """Rows without the column of an older version still have a summary."""
    source = write_jsonl(tmp_path / "c.jsonl", ["header01 and one", "header01 and two"])
    finish_run(source, tmp_path / "run", recited=["header01"])
    path = tmp_path / "run" / "rows.parquet"
    fingerprint = read_run(tmp_path / "run").manifest.inputs.fingerprint
    table = pq.read_table(path).drop_columns(["text"])
    with sealed_writer(path, table.schema, {"memaudit.run": fingerprint}) as writer:
        writer.write_table(table)

    assert read_run(tmp_path / "run").risks.n_flagged_texts == 1


def test_too_many_rows_beyond_the_training_are_told(whole):
    """A few such rows are in every corpus: only from a twentieth on the probabilities suffer."""
    risks = read_run(whole).risks
    vars(risks)["out_of_range"] = {"zlib_entropy": 0.051, "entropy": 0.05}

    assert risks.unfamiliar == {"zlib_entropy": 0.051}


ROW_CHANGES = {
    "a window before the first": lambda t: put(t, "windows", [[-1]] * len(t)),
    "a window behind the last": lambda t: put(t, "windows", [[2**62]] * len(t)),
    "one window for all": lambda t: put(t, "windows", [[0]] * len(t)),
    "no windows": lambda t: put(t, "windows", [[]] * len(t)),
    "missing windows": lambda t: put(t, "windows", [None] * len(t)),
    "missing numbers": lambda t: put(t, "windows", [[None]] * len(t)),
    "missing texts": lambda t: put(t, "text", [None] * len(t)),
    "missing ids": lambda t: put(t, "id", [None] * len(t)),
    "an outcome that there is not": lambda t: put(t, "outcome", ["harmless"] * len(t)),
    "all too short": lambda t: put(
        put(t, "outcome", ["too_short"] * len(t)), "windows", [[]] * len(t)
    ),
    "numbers for texts": lambda t: t.set_column(3, "outcome", pa.array([1] * len(t))),
    "a column less": lambda t: t.drop_columns(["reason"]),
    "one row": lambda t: t.slice(0, 1),
    "no row": lambda t: t.slice(0, 0),
    "rows twice": lambda t: pa.concat_tables([t, t]),
}


def put(table, name, values):
    """Return the table with other values in a column."""
    place = table.schema.get_field_index(name)
    return table.set_column(place, name, pa.array(values, table.schema.field(name).type))


@pytest.mark.parametrize("kind", ROW_CHANGES)
def test_rows_that_were_sealed_again_must_be_those_of_the_manifest(tmp_path, kind):
    """A number before the first window would be looked up from the end, and find a harmless one."""
    fake_audit(tmp_path)
    path = tmp_path / "rows.parquet"
    fingerprint = read_manifest(tmp_path / "manifest.json").inputs.fingerprint
    table = ROW_CHANGES[kind](pq.read_table(path).replace_schema_metadata(None))
    path.unlink()
    with sealed_writer(path, table.schema, {"memaudit.run": fingerprint}) as writer:
        writer.write_table(table)

    with pytest.raises(OutputError, match=r"rows\.parquet: missing or damaged"):
        list(read_run(tmp_path).each_row())
