"""Corpora made up by a seed, in every format, and their rows read by other means than memaudit's."""

import bz2
import csv
import gzip
import io
import json
import lzma

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

FORMATS = ("jsonl", "ndjson", "json", "array.json", "csv", "tsv", "txt", "parquet", "arrow",
           "stream.arrow", "feather")  # fmt: skip
COMPRESSIONS = (None, "gz", "zst", "bz2", "xz")
LINES = ("jsonl", "ndjson", "json", "txt")

_PIECES = ("the", " quick", "\tbrown", ' "fox"', ", jumps", "; over", " 'lazy'", " dög", "日本", "🙂",
           "\u2028", "|", "\\", "x" * 40)  # fmt: skip


def make_texts(seed):
    """A few texts, some several times, some too short, some empty."""
    rng = np.random.default_rng(seed)
    pool = ["".join(rng.choice(_PIECES, rng.integers(1, 6))) for _ in range(rng.integers(1, 7))]
    pool += ["", "a", pool[0] + " "]
    return [pool[i] for i in rng.integers(len(pool), size=rng.integers(1, 25))]


def write(folder, kind, compression, seed):
    """Write a corpus; return its path."""
    ending = kind.rpartition(".")[2] + (f".{compression}" if compression else "")
    path = folder / f"corpus-{seed}.{ending}"
    path.write_bytes(pack(_WRITERS[kind](make_texts(seed), seed), compression))
    return path


def rows_of(path, kind, compression):
    """Return the rows of a file as values that can be counted."""
    return _READERS[kind](unpack(path.read_bytes(), compression))


def pack(content, compression):
    """Compress."""
    packers = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress,
               "zst": zstandard.ZstdCompressor().compress, None: bytes}  # fmt: skip
    return packers[compression](content)


def unpack(content, compression):
    """Decompress."""
    if compression == "zst":
        return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content)).read()
    unpackers = {"gz": gzip.decompress, "bz2": bz2.decompress, "xz": lzma.decompress, None: bytes}
    return unpackers[compression](content)


def _json_object(text, number, rng):
    bad = rng.random()
    if bad < 0.03:
        return b'{"text": "cut o'
    if bad < 0.05:
        return b'{"text": "\xff"}'
    row = {"text": text, "n": number, "nested": {"b": [1, None], "a": 1.0}}
    if rng.random() < 0.3:
        row = {"id": f"id-{rng.integers(5)}"} | row
    separators = (",", ":") if rng.random() < 0.5 else (" , ", " : ")
    return json.dumps(row, ensure_ascii=rng.random() < 0.5, separators=separators).encode()


def _json_lines(texts, seed):
    rng = np.random.default_rng([seed, 1])
    end = b"\r\n" if rng.random() < 0.3 else b"\n"
    lines = [_json_object(text, i, rng) for i, text in enumerate(texts)]
    lines[0] = json.dumps({"text": texts[0]}).encode()
    lines = [piece for line in lines for piece in ([line, b"  "] if rng.random() < 0.1 else [line])]
    content = end.join(lines) + (end if rng.random() < 0.7 else b"")
    return (b"\xef\xbb\xbf" if rng.random() < 0.2 else b"") + content


def _json_array(texts, seed):
    rng = np.random.default_rng([seed, 2])
    rows = [{"text": text, "n": i} for i, text in enumerate(texts)]
    indent = None if rng.random() < 0.5 else 1
    return b" " * int(rng.integers(3)) + json.dumps(rows, indent=indent).encode() + b"\n"


def _delimited(delimiter):
    def write_rows(texts, seed):
        rng = np.random.default_rng([seed, 3])
        end = "\r\n" if rng.random() < 0.3 else "\n"
        stream = io.StringIO(newline="")
        quoting = csv.QUOTE_ALL if rng.random() < 0.3 else csv.QUOTE_MINIMAL
        writer = csv.writer(stream, delimiter=delimiter, lineterminator=end, quoting=quoting)
        writer.writerow(["before", "text", "after"])
        for number, text in enumerate(texts):
            broken = text.replace(" ", "\n") if rng.random() < 0.3 else text
            fields = [number, broken, "é"]
            writer.writerow(fields[:2] if rng.random() < 0.05 else fields)
            if rng.random() < 0.1:
                stream.write(end)
        return stream.getvalue().encode()

    return write_rows


def _text_lines(texts, seed):
    rng = np.random.default_rng([seed, 4])
    lines = [text.encode() for text in texts if text.strip()] or [b"one line"]
    lines = [piece for line in lines for piece in ([b"", line] if rng.random() < 0.1 else [line])]
    return b"\n".join(lines) + (b"\n" if rng.random() < 0.7 else b"")


def _table(texts, seed):
    rng = np.random.default_rng([seed, 5])
    table = pa.table(
        {
            "z": pa.array(rng.integers(9, size=len(texts)), pa.uint8()),
            "text": pa.array(texts, pa.large_string() if rng.random() < 0.5 else pa.string()),
            "when": pa.array([1_000_000 * i for i in range(len(texts))], pa.timestamp("us", "UTC")),
            "list": pa.array([[i, None] for i in range(len(texts))], pa.list_(pa.int16())),
            "kind": pa.array([f"k{i % 3}" for i in range(len(texts))]).dictionary_encode(),
        }
    )
    return table.replace_schema_metadata({"made": "up"}), rng


def _parquet(texts, seed):
    table, rng = _table(texts, seed)
    stream = io.BytesIO()
    codec = str(rng.choice(["zstd", "snappy", "none"]))
    pq.write_table(table, stream, row_group_size=int(rng.integers(1, 9)), compression=codec)
    return stream.getvalue()


def _arrow(new):
    def write_table(texts, seed):
        table, rng = _table(texts, seed)
        stream = io.BytesIO()
        with new(stream, table.schema) as writer:
            writer.write_table(table, max_chunksize=int(rng.integers(1, 9)))
        return stream.getvalue()

    return write_table


def _read_lines(content):
    content = content.removeprefix(b"\xef\xbb\xbf")
    return [line for line in content.replace(b"\r\n", b"\n").split(b"\n") if line.strip()]


def _read_array(content):
    return [json.dumps(row) for row in json.loads(content)]


def _read_delimited(delimiter):
    def read(content):
        reader = csv.reader(io.StringIO(content.decode(), newline=""), delimiter=delimiter)
        header, *records = [tuple(record) for record in reader if record]
        assert header == ("before", "text", "after")
        return records

    return read


def _read_table(open_table):
    def read(content):
        table = open_table(pa.BufferReader(content))
        assert table.column_names == ["z", "text", "when", "list", "kind"]
        assert table.schema.field("z").type == pa.uint8()
        assert table.schema.field("when").type == pa.timestamp("us", "UTC")
        assert table.schema.metadata[b"made"] == b"up"
        return [repr(row) for row in table.to_pylist()]

    return read


_WRITERS = {
    "jsonl": _json_lines,
    "ndjson": _json_lines,
    "json": _json_lines,
    "array.json": _json_array,
    "csv": _delimited(","),
    "tsv": _delimited("\t"),
    "txt": _text_lines,
    "parquet": _parquet,
    "arrow": _arrow(pa.ipc.new_file),
    "stream.arrow": _arrow(pa.ipc.new_stream),
    "feather": _arrow(pa.ipc.new_file),
}
_READERS = {
    "jsonl": _read_lines,
    "ndjson": _read_lines,
    "json": _read_lines,
    "array.json": _read_array,
    "csv": _read_delimited(","),
    "tsv": _read_delimited("\t"),
    "txt": _read_lines,
    "parquet": _read_table(pq.read_table),
    "arrow": _read_table(lambda source: pa.ipc.open_file(source).read_all()),
    "stream.arrow": _read_table(lambda source: pa.ipc.open_stream(source).read_all()),
    "feather": _read_table(lambda source: pa.ipc.open_file(source).read_all()),
}
