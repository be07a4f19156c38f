"""Laws of filtering: no row is lost, doubled or changed, whatever the corpus and the format."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.fakes import ByteTokenizer
from support.finished_runs import run_in_memory
from support.generated_corpora import COMPRESSIONS, FORMATS, LINES, rows_of, unpack, write

from memaudit.corpus import CorpusOptions, read_corpus
from memaudit.errors import CorpusError
from memaudit.filtering.selection import FilterOptions
from memaudit.filtering.workflow import filter_corpus

N_EACH = 20
"""Corpora for each of 55 pairs of format and compression: 1,100 in all."""


def make_options(rng):
    """Return any way to filter, but for near-duplicates."""
    limits = [
        {"max_probability": float(rng.random())},
        {"top": int(rng.integers(20))},
        {"expected_at_most": float(rng.integers(30))},
        {},
    ]
    strategies = [
        {"strategy": "drop"},
        {"strategy": "deduplicate"},
        {"strategy": "downsample", "max_copies": int(rng.integers(1, 4))},
    ]
    limit = limits[rng.integers(len(limits))]
    if "expected_at_most" in limit:
        return FilterOptions(**limit)
    return FilterOptions(**limit, **strategies[rng.integers(len(strategies))])


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", FORMATS)
def test_what_stays_and_what_goes_is_what_was_there(kind, compression, template, tmp_path):
    """Whoever cleans a corpus must lose nothing else, and must know what is gone."""
    n_removed = 0
    for seed in range(N_EACH):
        source = write(tmp_path, kind, compression, seed)
        try:
            run = run_in_memory(template, source, seed=seed)
        except CorpusError:  # no row of it has text: there is no run to filter by
            continue
        if not run.is_scored.any():
            continue
        out = tmp_path / f"out-{source.name}"

        result = filter_corpus(
            run, str(source), out, options=make_options(np.random.default_rng(seed))
        )

        removed = pq.read_table(f"{out}.removed.parquet")
        gone = set(removed["row"].to_pylist())
        before = rows_of(source, kind, compression)
        after = rows_of(out, kind, compression)
        assert len(before) == run.n_rows == result.rows
        assert after == [row for index, row in enumerate(before) if index not in gone]
        assert len(gone) == removed.num_rows == result.removed
        assert not {"bad", "too_short"} & {run.row(index).outcome for index in gone}
        n_removed += len(gone)
    assert n_removed > N_EACH


@pytest.mark.parametrize("kind", LINES)
def test_lines_that_stay_keep_every_byte(kind, template, tmp_path):
    """Nobody wants their corpus written anew by a serialiser: spaces, escapes, line ends."""
    for seed in range(50):
        source = write(tmp_path, kind, None, seed)
        run = run_in_memory(template, source, seed=seed)
        out = tmp_path / f"out-{source.name}"

        filter_corpus(run, str(source), out, options=FilterOptions(max_probability=0.3))

        gone = set(pq.read_table(f"{out}.removed.parquet")["row"].to_pylist())
        kept, row = b"", 0
        for line in source.read_bytes().splitlines(keepends=True):
            is_row = bool(line.removeprefix(b"\xef\xbb\xbf").strip())
            kept += b"" if is_row and row in gone else line
            row += is_row
        assert out.read_bytes() == kept


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_cut_is_all_that_a_row_loses(kind, compression, template, tmp_path):
    """Kept and removed and cut rows are the input; a cut row is the input but for the cut."""
    n_cut = 0
    for seed in range(N_EACH):
        source = write(tmp_path, kind, compression, seed)
        try:
            run = run_in_memory(template, source, seed=seed, begin_alike=True)
        except CorpusError:
            continue
        if not run.is_scored.any():
            continue
        out = tmp_path / f"out-{source.name}"

        result = filter_corpus(
            run,
            str(source),
            out,
            options=FilterOptions(max_probability=0.3, strategy="excise"),
            tokenizer=ByteTokenizer(),
        )

        before, after = list(read(source)), list(read(out))
        gone = set(pq.read_table(f"{out}.removed.parquet")["row"].to_pylist())
        parts = {part["row"]: part for part in pq.read_table(f"{out}.excised.parquet").to_pylist()}
        kept = [row for row in before if row.row not in gone]
        assert len(after) == len(kept) == result.rows - result.removed
        assert len(parts) == result.excised
        assert result.not_cut == 0
        for old, new in zip(kept, after, strict=True):
            if old.row in parts:
                part = parts[old.row]
                assert new.text == old.text[: part["start"]] + old.text[part["end"] :]
                assert old.text.encode()[:8] in old.text[: part["end"]].encode()
            else:
                assert getattr(new, "text", None) == getattr(old, "text", None)
        assert all(
            len(before[row].text.encode()) <= 8 + 3 or not _left(before[row]) for row in gone
        )
        unchanged = rows_of(source, kind, compression)
        rest = [row for i, row in enumerate(unchanged) if i not in gone | parts.keys()]
        cut_places = {place for place, old in enumerate(kept) if old.row in parts}
        written = rows_of(out, kind, compression)
        assert [row for i, row in enumerate(written) if i not in cut_places] == rest
        n_cut += result.excised
    assert n_cut > N_EACH / 2


def read(path):
    """The rows as memaudit reads them."""
    return read_corpus(CorpusOptions(str(path)))


def _left(row):
    """What is left of a text without its first window."""
    return row.text.encode()[8:].decode(errors="ignore").strip()


@pytest.mark.parametrize("kind", FORMATS)
def test_no_text_is_lost_as_a_copy(kind, template, tmp_path):
    """A text that occurs once, or begins like another, is nobody's copy."""
    n_removed = 0
    for seed in range(N_EACH):
        source = write(tmp_path, kind, None, seed)
        try:
            run = run_in_memory(template, source, seed=seed, begin_alike=True)
        except CorpusError:
            continue
        out = tmp_path / f"out-{source.name}"
        options = FilterOptions(max_probability=0.0, strategy="deduplicate")

        result = filter_corpus(run, str(source), out, options=options)

        texts = [{getattr(row, "text", None) for row in read(path)} for path in (source, out)]
        assert texts[0] == texts[1]
        assert result.removed == result.removed_copies
        n_removed += result.removed
    assert n_removed > N_EACH / 2


def test_nothing_to_remove_gives_the_same_file(template, tmp_path):
    """A filter that finds nothing must not touch anything, be it an array or a table of lines."""
    for kind in (*LINES, "array.json", "csv", "tsv"):
        for seed in range(20):
            source = write(tmp_path, kind, None, seed)
            run = run_in_memory(template, source, seed=seed)
            out = tmp_path / f"out-{source.name}"

            filter_corpus(run, str(source), out, options=FilterOptions(top=0), replaces=True)

            assert out.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_same_again_gives_the_same_bytes(compression, template, tmp_path):
    """A corpus that is built twice has one digest."""
    source = write(tmp_path, "jsonl", compression, 3)
    run = run_in_memory(template, source)
    outs = [tmp_path / name / source.name for name in ("a", "b")]

    results = [filter_corpus(run, str(source), out) for out in outs]

    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert results[0].outputs[0].sha256 == results[1].outputs[0].sha256
    assert unpack(outs[0].read_bytes(), compression) != unpack(source.read_bytes(), compression)
