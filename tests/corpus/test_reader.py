import bz2
import csv
import gzip
import io
import json
import lzma
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import feather

from memaudit.corpus import BadRow, CorpusOptions, Example, read_corpus
from memaudit.errors import CorpusError, UsageError

PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}
TEXTS = st.lists(
    st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1
).filter(any)


def jsonl(texts: list[str | None]) -> bytes:
    """Return a row a text; None is a row without text."""
    return "\n".join(json.dumps({"text": text}) for text in texts).encode()


def json_array(texts: list[str | None]) -> bytes:
    """Return an array of rows."""
    return json.dumps([{"text": text} for text in texts]).encode()


def delimited(texts: list[str | None], dialect: str) -> bytes:
    """Return a record a text; None is a record with a field too many."""
    file = io.StringIO(newline="")
    rows = [[text, "1"] if text is not None else ["", "1", "2"] for text in texts]
    csv.writer(file, dialect, quoting=csv.QUOTE_ALL).writerows([["text", "n"], *rows])
    return file.getvalue().encode()


def parquet(texts: list[str | None]) -> bytes:
    """Return a row a text; None is null."""
    file = io.BytesIO()
    pq.write_table(pa.table({"n": range(len(texts)), "text": pa.array(texts, pa.string())}), file)
    return file.getvalue()


def arrow_file(texts: list[str | None]) -> bytes:
    """Return an Arrow file."""
    file = io.BytesIO()
    feather.write_feather(pa.table({"text": pa.array(texts, pa.large_string())}), file)
    return file.getvalue()


def arrow_stream(texts: list[str | None]) -> bytes:
    """Return an Arrow stream, as `datasets` keeps its own."""
    file = io.BytesIO()
    table = pa.table({"text": pa.array(texts, pa.string())})
    with pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    return file.getvalue()


WRITE = {
    "jsonl": jsonl,
    "ndjson": jsonl,
    "json": json_array,
    "csv": lambda texts: delimited(texts, "excel"),
    "tsv": lambda texts: delimited(texts, "excel-tab"),
    "parquet": parquet,
    "arrow": arrow_stream,
    "feather": arrow_file,
}


@pytest.mark.parametrize("ending", WRITE)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS, packing=st.sampled_from(sorted(PACK)))
def test_every_row_has_one_outcome(tmp_path, ending, texts, packing):
    """What goes in comes out: once, in order, as an example or as a bad row."""
    path = tmp_path / f"a.{ending}{packing}"
    path.write_bytes(PACK[packing](WRITE[ending](texts)))

    rows = list(read_corpus(CorpusOptions(str(path))))

    assert [row.row for row in rows] == list(range(len(texts)))
    found = [row.text if isinstance(row, Example) else None for row in rows]
    assert found == texts
    assert list(read_corpus(CorpusOptions(str(path)))) == rows


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))))
def test_every_line_of_text_has_one_outcome(tmp_path, texts):
    """What a blank line is does not depend on the kind of blank beyond ASCII."""
    path = tmp_path / "a.txt"
    path.write_text("marker\n" + "".join(text + "\n" for text in texts), newline="")

    found = [row.text for row in read_corpus(CorpusOptions(str(path)))]

    assert found == ["marker", *[text for text in texts if text.encode().strip()]]


def test_formats_can_be_mixed_in_a_folder(tmp_path):
    """Totals add up over files of any kind."""
    for ending, write in WRITE.items():
        (tmp_path / f"{ending}.{ending}").write_bytes(write(["one", None, "two"]))

    rows = list(read_corpus(CorpusOptions(str(tmp_path))))

    assert Counter(type(row) for row in rows) == {Example: 16, BadRow: 8}
    assert [row.row for row in rows] == list(range(24))
    assert len({row.example_id for row in rows}) == 24


def test_stdin_is_json_lines():
    """Corpora are piped in."""
    content = io.BytesIO(b'{"text": "one"}\n\n{"text": 2}\n')

    first, second = read_corpus(CorpusOptions("-"), stdin=content)

    assert first == Example(0, "stdin:1", "stdin:1", "one")
    assert second == BadRow(1, "stdin:2", "stdin:3", "line 3: 'text' is a number, expected text")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b""),
        ("a.jsonl", b"\n\n"),
        ("a.jsonl", b"\xef\xbb\xbf"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0)),  # a time would change the name of the test
        ("a.jsonl.zst", zstandard.compress(b"")),
        ("a.json", b""),
        ("a.json", b"[]"),
        ("a.csv", b""),
        ("a.csv", b"text\n"),
        ("a.txt", b" \n"),
        ("a.parquet", parquet([])),
        ("a.arrow", arrow_stream([])),
    ],
)
def test_a_corpus_without_rows_is_an_error(read, name, content):
    """Nothing read must not look like nothing found."""
    with pytest.raises(CorpusError, match="empty, there are no rows"):
        read(name, content)


def test_an_empty_file_among_others_is_no_error(tmp_path):
    """Shards may be empty."""
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.jsonl").write_bytes(jsonl(["one"]))

    assert len(list(read_corpus(CorpusOptions(str(tmp_path))))) == 1


@pytest.mark.parametrize(
    "options", [{"config": "default"}, {"revision": "main"}, {"config": "a", "revision": "b"}]
)
def test_options_for_the_hub_do_not_go_with_files(read, options):
    """They would be without effect."""
    with pytest.raises(UsageError, match="for corpora on the hub"):
        read("a.jsonl", b"", **options)


def test_files_are_closed_when_reading_stops_early(tmp_path):
    """A look at the first rows must not keep files open."""
    (tmp_path / "a.jsonl").write_bytes(jsonl(["one", "two"]))
    before = len(list(Path("/proc/self/fd").iterdir()))

    rows = read_corpus(CorpusOptions(str(tmp_path)))
    next(rows)
    del rows

    assert len(list(Path("/proc/self/fd").iterdir())) == before
