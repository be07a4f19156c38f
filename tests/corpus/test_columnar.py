import gzip
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memaudit.corpus import (
    BadRow,
    CorpusOptions,
    Example,
    Rendered,
    columnar,
    read_corpus,
    unpacked_sizes,
)
from memaudit.corpus.byte_streams import OpenFile
from memaudit.corpus.formats import FORMATS
from memaudit.errors import CorpusError

HELLO = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]

FINEWEB = pa.schema(
    [
        ("text", pa.string()),
        ("id", pa.string()),
        ("dump", pa.string()),
        ("url", pa.string()),
        ("date", pa.string()),
        ("file_path", pa.string()),
        ("language", pa.string()),
        ("language_score", pa.float64()),
        ("token_count", pa.int64()),
    ]
)
WIKITEXT = pa.schema([("text", pa.string())])
NEMOTRON_CC = pa.schema([("id", pa.string()), ("text", pa.string())])


def as_parquet(table: pa.Table, **options) -> bytes:
    """Return a parquet file."""
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def as_arrow(table: pa.Table) -> bytes:
    """Return an Arrow file."""
    file = io.BytesIO()
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


WRITE = {"parquet": as_parquet, "arrow": as_arrow}


def with_invalid_utf8(kind: pa.DataType) -> pa.Array:
    """Return `good`, an invalid byte, `good`, as a column that claims to be text."""
    binary = {
        pa.string(): pa.binary(),
        pa.large_string(): pa.large_binary(),
        pa.string_view(): pa.binary_view(),
    }[kind]
    column = pa.array([b"good", b"\xff", b"good"], binary)
    return pa.Array.from_buffers(kind, 3, column.buffers())


def test_fineweb_is_read_from_its_parquet_files(read):
    """Its ids are those of Common Crawl records."""
    row = {
        "text": "A page.",
        "id": "<urn:uuid:39147604-bfbe-4ed5-b19c-54105f8ae8a7>",
        "dump": "CC-MAIN-2013-20",
        "url": "http://example.org/",
        "date": "2013-05-18T05:48:59Z",
        "file_path": "s3://commoncrawl/example.warc.gz",
        "language": "en",
        "language_score": 0.82,
        "token_count": 3,
    }

    rows = read("000_00000.parquet", as_parquet(pa.Table.from_pylist([row] * 3, schema=FINEWEB)))

    assert [(found.example_id, found.text) for found in rows] == [(row["id"], "A page.")] * 3


def test_wikitext_keeps_its_empty_rows(read):
    """Half of its rows are empty: they are counted, as texts too short for a window."""
    lines = ["", " = Title = \n", "", " A paragraph . \n"]

    rows = read("train.parquet", as_parquet(pa.table({"text": lines}, schema=WIKITEXT)))

    assert [row.text for row in rows if isinstance(row, Example)] == lines
    assert rows[1].example_id == "train.parquet:2"


@pytest.mark.parametrize("extra", [{}, {"metadata": pa.array(["{}", None])}, {"n": [[1], []]}])
def test_nemotron_cc_is_read_whatever_columns_it_has_beside_the_text(read, extra):
    """Its configurations differ in what they say about a text."""
    table = pa.table({"id": ["a", "b"], "text": ["one", "two"]}, schema=NEMOTRON_CC)
    for name, column in extra.items():
        table = table.append_column(name, pa.array(column))

    rows = read("part_000000.parquet", as_parquet(table))

    assert [(row.example_id, row.text) for row in rows] == [("a", "one"), ("b", "two")]


@pytest.mark.parametrize("ending", WRITE)
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_invalid_utf8_is_a_bad_row(read, ending, kind):
    """Writers do not check it, and one row must not cost a shard."""
    rows = read(f"a.{ending}", WRITE[ending](pa.table({"text": with_invalid_utf8(kind)})))

    assert [type(row) for row in rows] == [Example, BadRow, Example]
    assert rows[1].reason == "row 2: invalid UTF-8"


@pytest.mark.parametrize("ending", WRITE)
@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array(["a", None, "b"]), ["a", None, "b"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array(["", "a\0b", "\u2028\ufeff"]), ["", "a\0b", "\u2028\ufeff"]),
        (pa.nulls(2), [None, None]),
        (pa.array([1, 2]), [None, None]),
        (pa.array([["a"], []]), [None, None]),
    ],
    ids=["null", "dictionary", "odd text", "nulls", "numbers", "lists"],
)
def test_columns_of_any_type_give_one_outcome_a_row(texts, ending, column, expected):
    """What is not text is a bad row, whatever it is."""
    assert texts(f"a.{ending}", WRITE[ending](pa.table({"text": column}))) == expected


@pytest.mark.parametrize("ending", WRITE)
def test_messages_are_read_from_nested_columns(texts, ending):
    """Chat corpora are published as parquet."""
    table = pa.table({"messages": [HELLO, None, [], HELLO[:1]], "source": list("abcd")})

    found = texts(
        f"a.{ending}",
        WRITE[ending](table),
        render_messages=lambda found: Rendered(str(found.messages)),
    )

    assert found == [str(HELLO), None, None, str(HELLO[:1])]


def test_only_columns_that_are_used_are_read(texts):
    """A column that cannot be read does not matter if nobody asks for it."""
    table = pa.table({"text": ["a", "b", "c"], "other": with_invalid_utf8(pa.string())})

    assert texts("a.parquet", as_parquet(table)) == ["a", "b", "c"]


@pytest.mark.parametrize("ending", WRITE)
def test_rows_are_numbered_through_groups_and_batches(tmp_path, ending):
    """Row groups and record batches are no boundaries for the reader."""
    texts = [f"row {number}" for number in range(1000)]
    table = pa.Table.from_batches(pa.table({"text": texts}).to_batches(max_chunksize=300))
    content = as_arrow(table) if ending == "arrow" else as_parquet(table, row_group_size=300)
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content)

    rows = list(read_corpus(CorpusOptions(str(path))))

    assert [row.text for row in rows if isinstance(row, Example)] == texts
    assert [row.address for row in rows] == [f"{path}:{number}" for number in range(1, 1001)]


@pytest.mark.parametrize("ending", WRITE)
def test_a_schema_without_the_column_is_an_error(read, ending):
    """The schema says so before a row is read."""
    with pytest.raises(CorpusError, match="found no text") as caught:
        read(f"a.{ending}", WRITE[ending](pa.table({"body": ["a"]})))

    assert caught.value.hint == ("if 'body' holds the text, give --text-column body; columns: body")


def test_a_second_file_without_the_column_is_an_error(tmp_path):
    """Shards of two corpora in one folder would otherwise be half read."""
    (tmp_path / "0.parquet").write_bytes(as_parquet(pa.table({"text": ["a"]})))
    (tmp_path / "1.parquet").write_bytes(as_parquet(pa.table({"txt": ["a"]})))

    rows = read_corpus(CorpusOptions(str(tmp_path), shape="text"))

    assert next(rows).row == 0
    with pytest.raises(CorpusError, match=r"1\.parquet: no column 'text'") as caught:
        next(rows)
    assert caught.value.hint == "did you mean 'txt'? columns: txt"


@pytest.mark.parametrize("ending", WRITE)
def test_a_file_that_is_cut_off_or_something_else_is_refused(read, ending):
    """The error names the file, and holds nothing of it."""
    content = WRITE[ending](pa.table({"text": ["CANARY"] * 100}))

    for damaged in (content[: len(content) // 2], b"CANARY" * 100, content[4:]):
        with pytest.raises(CorpusError, match=rf"a\.{ending}: damaged, or not") as caught:
            read(f"a.{ending}", damaged)
        assert "CANARY" not in caught.value.message


@pytest.mark.parametrize("ending", WRITE)
def test_flipped_bytes_never_crash(read, ending):
    """A damaged file is read or refused; it does not end the program."""
    good = np.frombuffer(WRITE[ending](pa.table({"text": ["one", "two"] * 20})), np.uint8)
    generator = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}

    for _ in range(200):
        damaged = good.copy()
        places = generator.integers(0, len(good), size=3)
        damaged[places] = generator.integers(0, 256, size=3)
        try:
            read(f"a.{ending}", damaged.tobytes())
            outcomes["read"] += 1
        except CorpusError:
            outcomes["refused"] += 1

    assert sum(outcomes.values()) == 200
    assert outcomes["refused"] > 0


def test_a_compressed_file_too_large_for_memory_is_refused(read, monkeypatch):
    """Parquet is read from its end, so it is unpacked as a whole."""
    monkeypatch.setattr("memaudit.corpus.byte_streams.MAX_WHOLE_BYTES", 100)

    with pytest.raises(CorpusError, match="unpacks to more than 100 bytes"):
        read("a.parquet.gz", gzip.compress(as_parquet(pa.table({"text": ["a"]}))))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_every_page_header_is_understood(version, codec, monkeypatch):
    """The headers are walked from one to the next: they end where the column does."""
    texts = [f"{i} " * (i % 300) for i in range(3000)]
    options = {
        "data_page_version": version,
        "compression": codec,
        "data_page_size": 4096,
        "write_batch_size": 50,
    }
    table = pa.table({"text": texts, "nested": [{"a": [text[:9]]} for text in texts]})
    content = as_parquet(table, write_statistics=True, row_group_size=1000, **options)
    sizes = []
    monkeypatch.setattr(unpacked_sizes, "_refuse_bomb", lambda what, *size: sizes.append(size))
    metadata = pq.ParquetFile(io.BytesIO(content)).metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in (0, 1)]

    found = unpacked_sizes.parquet_columns(io.BytesIO(content))
    unpacked_sizes.refuse_large_pages(io.BytesIO(content), {"text", "nested"}, "a.parquet")

    assert [".".join(one.path) for one in found] == [one.path_in_schema for one in columns]
    assert [one.packed for one in found] == [one.total_compressed_size for one in columns]
    assert len(sizes) >= 2 * len(columns)
    # What is said of a column has the headers of its pages in it.
    headers = sum(one.packed for one in found) - sum(packed for _, packed in sizes)
    said = sum(one.total_uncompressed_size for one in columns)
    assert sum(unpacked for unpacked, _ in sizes) + headers == said


def test_a_page_that_unpacks_to_more_than_fits_is_refused(read, monkeypatch):
    """75 kB became 5 GB of memory; a column that nobody asks for is not even looked at."""
    monkeypatch.setattr(unpacked_sizes, "_LARGEST_PART", 100_000)
    long = as_parquet(pa.table({"text": ["short", "x" * 200_000]}), compression="zstd")
    with pytest.raises(
        CorpusError, match=r"page of column text unpacks from \d+ to 200,0\d\d bytes"
    ):
        read("a.parquet", long)
    other = as_parquet(pa.table({"text": ["short"], "blob": ["x" * 200_000]}), compression="zstd")
    assert [row.text for row in read("b.parquet", other)] == ["short"]


@pytest.mark.parametrize("place", ["packed", "unpacked"])
@pytest.mark.parametrize("size", [(1 << 40) + (1 << 31) - 9, (1 << 31) - 9, -(1 << 33) + 9])
def test_a_page_longer_than_its_file_is_damaged_whatever_its_last_bits_say(
    place, size, monkeypatch
):
    """2 kB took 2 GB: Arrow makes room for as much as the last 32 bits of a length say."""
    content = io.BytesIO(as_parquet(pa.table({"text": ["one", "two"]})))
    read = unpacked_sizes._struct

    def changed(stream):
        header = read(stream)
        is_page = all(isinstance(header.get(i), int) for i in (1, 2, 3)) and 4 not in header
        return header | {3 if place == "packed" else 2: size} if is_page else header

    monkeypatch.setattr(unpacked_sizes, "_struct", changed)

    # Of what is unpacked, as much as a page can be is refused with its own words.
    is_bomb = place == "unpacked" and 0 <= size < 1 << 31
    with pytest.raises(CorpusError if is_bomb else ValueError, match=r"unpacks|longer"):
        unpacked_sizes.refuse_large_pages(content, {"text"}, "a.parquet")


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("as_dictionary", [False, True])
def test_an_arrow_buffer_that_unpacks_to_more_than_fits_is_refused(
    read, monkeypatch, kind, codec, as_dictionary
):
    """In batches and in dictionaries; of large text that packs as text does, nothing is refused."""

    def arrow(texts, compression):
        column = pa.array(texts)
        table = pa.table({"text": column.dictionary_encode() if as_dictionary else column})
        stream = io.BytesIO()
        options = pa.ipc.IpcWriteOptions(compression=compression)
        new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        with new(stream, table.schema, options=options) as writer:
            writer.write_table(table)
        return stream.getvalue()

    monkeypatch.setattr(unpacked_sizes, "_LARGEST_PART", 100_000)
    texts = ["short", "x" * 200_000]
    with pytest.raises(CorpusError, match=r"a buffer unpacks from \d+ to 200,005 bytes"):
        read("a.arrow", arrow(texts, codec))
    assert [row.text for row in read("b.arrow", arrow(texts, None))] == texts
    varied = [np.random.default_rng(i).bytes(90_000).hex() for i in range(2)]
    assert [row.text for row in read("c.arrow", arrow(varied, codec))] == varied


def test_a_header_that_nests_without_end_is_an_error():
    """Whatever a header holds, it is an error of the file and no crash."""
    for header in (
        b"",
        b"\x1c" * 60_000,
        b"\x19\xfc\xff\xff\xff\xff\x0f",
        b"\xff" * 20,
    ):
        with (
            pytest.raises(CorpusError, match="damaged"),
            columnar._as_corpus_error("a.parquet"),
        ):
            unpacked_sizes._struct(io.BytesIO(header))


@pytest.mark.parametrize("write", WRITE.values(), ids=WRITE)
def test_lists_of_numbers_in_lists_become_arrays(write, tmp_path, monkeypatch):
    """A captured row holds tens of thousands of numbers; rows become objects a few at a time."""
    monkeypatch.setattr(columnar, "_BYTES_AT_ONCE", 64)
    values = [[[0.5, -1.0], [], None, [2.0, None]], None, [], [[3.0]]]
    table = pa.table(
        {
            "text": list("abcd"),
            "top_values": pa.array(values, pa.list_(pa.list_(pa.float32()))),
            "token_ids": pa.array([[[1]]] * 4, pa.large_list(pa.list_(pa.uint64()))),
        }
    )
    path = tmp_path / f"corpus.{'parquet' if write is as_parquet else 'arrow'}"
    path.write_bytes(write(table))

    rows = list(read_corpus(CorpusOptions(str(path), captured=True)))

    found = [row.captured["top_values"] for row in rows]
    assert found[1:3] == [None, []]
    np.testing.assert_array_equal(found[3], [[3.0]])
    expected = [[0.5, -1.0], [], [], [2.0, np.nan]]
    for one, other in zip(found[0], expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [row.captured["token_ids"][0].tolist() for row in rows] == [[1]] * 4
    # Nobody else sees them, and the texts are the same.
    plain = list(read_corpus(CorpusOptions(str(path))))
    assert [(row.text, row.captured) for row in plain] == [(letter, {}) for letter in "abcd"]


CODED = {
    "dictionary": pa.dictionary(pa.int8(), pa.string(), ordered=True),
    "view": pa.string_view(),
    "list of views": pa.list_(pa.string_view()),
    "list of a dictionary": pa.list_(pa.dictionary(pa.int32(), pa.string())),
}


@pytest.mark.parametrize("ending", ["parquet", "arrow", "stream"])
@pytest.mark.parametrize("kind", CODED.values(), ids=CODED)
def test_nothing_of_a_row_that_goes_stays_in_the_file(kind, ending, tmp_path):
    """A dictionary and the buffers behind views outlive their rows: the secret would still be there."""
    texts = [f"text {n} {'of no row any more' if n % 3 else 'that stays'}" for n in range(12)]
    is_list = pa.types.is_list(kind)
    column = pa.array([[text] if is_list else text for text in texts], type=kind)
    table = pa.table({"id": list(range(12)), "text": column})
    path, out = tmp_path / "corpus", io.BytesIO()
    if ending == "parquet":
        pq.write_table(table, path, row_group_size=5, compression="none")
    else:
        new = pa.ipc.new_file if ending == "arrow" else pa.ipc.new_stream
        with new(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=5)
    at = ("text", 0) if is_list else ("text",)
    # Row 9 has its number cut out, row 8 is what is asked for last of a batch.
    decisions = iter([{at: ((4, 6),)} if n == 9 else n % 3 == 0 for n in range(12)])
    with path.open("rb") as file:
        format_ = FORMATS["parquet" if ending == "parquet" else "arrow"]
        opened = OpenFile(file, "corpus", None, CorpusOptions("corpus"))
        format_.copy(opened, lambda: next(decisions), out)

    out.seek(0)
    left = {
        "parquet": pq.read_table,
        "arrow": lambda stream: pa.ipc.open_file(stream).read_all(),
        "stream": lambda stream: pa.ipc.open_stream(stream).read_all(),
    }[ending](out)
    expected = ["text 0 that stays", "text 3 that stays", "text 6 that stays", "text that stays"]
    assert left["id"].to_pylist() == [0, 3, 6, 9]
    assert left["text"].to_pylist() == [[text] if is_list else text for text in expected]
    assert left.schema == table.schema
    assert b"of no row" not in out.getvalue()


def test_an_arrow_file_without_batches_is_copied(tmp_path):
    """A shard that got no rows has a schema and nothing else, be a column a dictionary or not."""
    schema = pa.schema([("text", CODED["dictionary"])])
    with pa.ipc.new_file(tmp_path / "corpus", schema):
        pass
    out = io.BytesIO()
    with (tmp_path / "corpus").open("rb") as file:
        opened = OpenFile(file, "corpus", None, CorpusOptions("corpus"))
        FORMATS["arrow"].copy(opened, lambda: True, out)

    out.seek(0)
    assert pa.ipc.open_file(out).schema == schema
