"""Reading a finished run back: what filter, gate and report stand on."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.fake_run import fake_audit

from memaudit.errors import OutputError, UsageError
from memaudit.runs.manifest import Shard
from memaudit.runs.run import read_run


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
