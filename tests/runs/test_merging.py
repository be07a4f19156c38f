"""Merging: shards that fit make the run that one machine would have made; others are refused."""

import msgspec
import pytest
from support.fake_run import contents, fake_audit

from memaudit.errors import OutputError, UsageError
from memaudit.runs.folder import open_folder
from memaudit.runs.manifest import Shard, read_manifest, write_manifest
from memaudit.runs.shards import merge_runs


def score_shards(folder, count=3, **settings):
    """Score all shards of the fake corpus; return their folders."""
    folders = [folder / f"shard-{index}" for index in range(count)]
    for index, out in enumerate(folders):
        fake_audit(out, shard=Shard(index, count), **settings)
    return folders


@pytest.fixture
def shards(tmp_path):
    """The folders of three shards, scored."""
    return score_shards(tmp_path)


@pytest.mark.parametrize("count", [1, 2, 3, 11, 14])
def test_shards_merged_equal_the_run_that_was_not_split(tmp_path, count):
    """Byte for byte, with more shards than chunks as well, in any order."""
    fake_audit(tmp_path / "whole")
    folders = score_shards(tmp_path, count)

    result = merge_runs(folders[::-1], tmp_path / "merged")

    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    assert (result.rows, result.distinct_windows) == (95, 88)
    assert fake_audit(tmp_path / "merged").kept_windows == 88


def test_a_shard_holds_its_own_chunks_and_no_table(shards):
    """A table of a third of the windows would be taken for the whole."""
    assert [path.name for path in sorted(shards[1].glob("chunks/*"))] == [
        f"{chunk:05}.parquet" for chunk in (1, 4, 7, 10)
    ]
    assert not (shards[1] / "risk.parquet").exists()
    assert not (shards[1] / "summary.json").exists()


def test_a_merge_leaves_the_shards_as_they_were(shards, tmp_path):
    """They may lie on somebody else's disk."""
    before = [contents(folder) for folder in shards]
    merge_runs(shards, tmp_path / "merged")

    assert [contents(folder) for folder in shards] == before


def test_a_merge_may_be_repeated(shards, tmp_path):
    """One that died halfway is continued, and mends what was damaged meanwhile."""
    merge_runs(shards, tmp_path / "merged")
    before = contents(tmp_path / "merged")
    (tmp_path / "merged" / "chunks" / "00002.parquet").write_bytes(b"damaged")
    (tmp_path / "merged" / "chunks" / "00003.parquet").unlink()
    (tmp_path / "merged" / "risk.parquet").unlink()

    merge_runs(shards, tmp_path / "merged")

    assert contents(tmp_path / "merged") == before


def test_a_merge_tells_results_as_asked(shards, tmp_path):
    """Format and length of the list are the merge's to choose."""
    result = merge_runs(shards, tmp_path / "merged", table_format="csv", n_worst=3)

    assert len(result.worst) == 3
    assert (tmp_path / "merged" / "risk.csv").exists()


def refused(folders, out, error=UsageError):
    """Return why a merge is refused; it leaves no folder behind."""
    with pytest.raises(error) as caught:
        merge_runs(folders, out)
    assert caught.value.hint
    assert not out.exists()
    return caught.value.message


def test_a_gap_is_refused(shards, tmp_path):
    """A forgotten machine's third of the corpus is not safe, it is unknown."""
    assert "1 of 3 shards is not given: 1" in refused([shards[0], shards[2]], tmp_path / "merged")
    assert "2 of 3 shards are not given: 1-2" in refused(shards[:1], tmp_path / "merged")


def test_an_overlap_is_refused(shards, tmp_path):
    """It means that somebody mixed up folders."""
    message = refused([*shards, shards[1]], tmp_path / "merged")
    assert "shard 1/3 is given twice" in message
    others = score_shards(tmp_path / "halves", 2)
    assert "parts of 2 and of 3 overlap" in refused([shards[0], *others], tmp_path / "merged")
    fake_audit(tmp_path / "whole")
    assert "overlap" in refused([*shards, tmp_path / "whole"], tmp_path / "merged")


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"chunk_size": 16}, "chunk size was 8, is now 16"),
        ({"teacher_digest": "1" * 64}, "teacher digest was 000000000000, is now 111111111111"),
        ({"n_windows": 87}, "rows was 95, is now 94"),
        ({"threads": 2}, "threads was None, is now 2"),
    ],
)
def test_shards_of_different_runs_are_refused(shards, tmp_path, settings, difference):
    """One machine with other models or other data would spoil the table unseen."""
    other = tmp_path / "other"
    fake_audit(other, shard=Shard(2, 3), **settings)

    message = refused([*shards[:2], other], tmp_path / "merged")

    assert "are of different runs: " in message
    assert difference in message


@pytest.mark.parametrize(
    ("damage", "message"), [("removed", "missing: 4"), ("changed", "damaged: 4")]
)
def test_a_shard_that_is_not_done_is_refused(shards, tmp_path, damage, message):
    """Its command given again mends it; the merge does not know its models."""
    chunk = shards[1] / "chunks" / "00004.parquet"
    if damage == "removed":
        chunk.unlink()
    else:
        chunk.write_bytes(chunk.read_bytes()[:-1] + b"2")

    assert message in refused(shards, tmp_path / "merged")

    fake_audit(shards[1], shard=Shard(1, 3))
    assert merge_runs(shards, tmp_path / "merged").rows == 95


def test_a_shard_at_work_is_refused(shards, tmp_path):
    """Its chunks may be replaced while they are copied."""
    with open_folder(shards[2]):
        assert "in use by process" in refused(shards, tmp_path / "merged", OutputError)


def test_a_shard_without_its_rows_is_refused(shards, tmp_path):
    """Which row has which window is told there alone."""
    (shards[0] / "rows.parquet").write_bytes(b"damaged")

    assert "rows.parquet: missing or damaged" in refused(shards, tmp_path / "merged", OutputError)


def test_a_folder_that_is_no_run_is_refused(shards, tmp_path):
    """A typo in a path."""
    assert "not the folder of a run" in refused([*shards[:2], tmp_path], tmp_path / "merged")


def test_a_merge_into_another_run_is_refused(shards, tmp_path):
    """Results that are there are not overwritten by those of something else."""
    out = tmp_path / "other"
    fake_audit(out, chunk_size=16)
    before = contents(out)

    with pytest.raises(UsageError, match="holds another run: chunk size was 16, is now 8"):
        merge_runs(shards, out)

    assert contents(out) == before


def test_a_merge_into_one_of_the_shards_is_refused(shards):
    """It would make a shard a whole run; a merge into itself must not hang either."""
    before = contents(shards[0])

    with pytest.raises((UsageError, OutputError)):
        merge_runs(shards, shards[0])

    assert contents(shards[0]) == before


def test_another_shard_in_the_same_folder_is_refused(shards):
    """The command of another machine, with --out left as it was."""
    with pytest.raises(UsageError, match="holds another run: shard was 1/3, is now 2/3"):
        fake_audit(shards[1], shard=Shard(2, 3))
    with pytest.raises(UsageError, match="shard was 1/3, is now none"):
        fake_audit(shards[1])


def test_a_manifest_that_claims_another_shard_does_not_help(shards, tmp_path):
    """A manifest edited by hand leaves chunks that are not there."""
    manifest = read_manifest(shards[0] / "manifest.json")
    write_manifest(
        shards[0] / "manifest.json", msgspec.structs.replace(manifest, shard=Shard(1, 3))
    )

    message = refused([shards[0], shards[2], score_shards(tmp_path / "x")[0]], tmp_path / "merged")

    assert "chunks are not there (missing: 1, 4, 7, 10)" in message
