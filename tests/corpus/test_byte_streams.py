import bz2
import gzip
import io
import lzma
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from memaudit.corpus import CorpusOptions, read_corpus
from memaudit.corpus.byte_streams import OpenFile, split_lines
from memaudit.errors import CorpusError

PACK = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
}
LINES = b"".join(b'{"text": "row %d"}\n' % number for number in range(1000))


def unpack(packed: bytes, compression: str, **options) -> bytes:
    """Return everything that comes out."""
    file = OpenFile(io.BytesIO(packed), "a", compression, CorpusOptions("a", **options))
    return b"".join(file.blocks())


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("ending", ["jsonl", "JSONL"])
def test_compressed_files_are_read_by_their_ending(texts, compression, ending):
    """Corpora come compressed."""
    content = PACK[compression](LINES)

    assert texts(f"a.{ending}.{compression}", content) == [f"row {n}" for n in range(1000)]


@pytest.mark.parametrize("compression", PACK)
def test_members_that_follow_each_other_are_one_file(compression):
    """Parallel compressors write many members; to read only the first would lose rows."""
    pack = PACK[compression]

    assert unpack(pack(b"one") + pack(b"") + pack(b"two" * 9), compression) == b"one" + b"two" * 9


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_refused(compression, kept):
    """Half a download must not pass as a whole corpus."""
    packed = PACK[compression](LINES)

    with pytest.raises(CorpusError, match=rf"^a: not valid {compression} data, or cut off, at"):
        unpack(packed[: int(len(packed) * kept)], compression)


@pytest.mark.parametrize("compression", PACK)
def test_no_bytes_at_all_are_no_compressed_file(compression):
    """What a failed download leaves is not a shard without rows."""
    with pytest.raises(CorpusError, match=f"^a: not valid {compression} data, it is empty"):
        unpack(b"", compression)
    assert unpack(PACK[compression](b""), compression) == b""


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("content", [b"plain text", b"\x00\x01\x02\x03" * 9])
def test_a_file_that_is_not_compressed_is_refused(compression, content):
    """The ending lied."""
    with pytest.raises(CorpusError, match="not valid"):
        unpack(content, compression)


@pytest.mark.parametrize("compression", PACK)
def test_garbage_after_the_end_is_refused(compression):
    """It may be rows that were meant to be read."""
    with pytest.raises(CorpusError, match="not valid"):
        unpack(PACK[compression](LINES) + b"garbage", compression)


@pytest.mark.parametrize("compression", PACK)
def test_zeros_after_the_end_are_padding(compression):
    """Tape archives pad files to a block."""
    assert unpack(PACK[compression](LINES) + bytes(512), compression) == LINES


@pytest.mark.parametrize("compression", PACK)
def test_a_bomb_is_stopped_by_its_size(compression):
    """What unpacks to far more than anyone meant to read ends in a sentence, not in hours."""
    packed = PACK[compression](bytes(4 * 1024**2))

    with pytest.raises(CorpusError, match="unpacks to more than 1,000,000 bytes") as caught:
        unpack(packed, compression, max_decompressed_bytes=1_000_000)

    assert caught.value.hint == "raise it with --max-decompressed-bytes"


def test_a_bomb_is_stopped_by_its_ratio():
    """A terabyte of zeros is stopped after the first 64 MiB."""
    packed = zstandard.compress(bytes(80 * 1024**2))

    with pytest.raises(CorpusError, match="more than 1,000 times its size") as caught:
        unpack(packed, "zst")

    assert "--max-compression-ratio" in str(caught.value.hint)


def test_no_block_is_large_however_well_it_was_packed():
    """The memory for a bomb is bounded before its size is known."""
    packed = zstandard.compress(bytes(60 * 1024**2))

    blocks = OpenFile(io.BytesIO(packed), "a", "zst", CorpusOptions("a")).blocks()

    assert max(len(block) for block in blocks) <= 33 * 1024**2


@pytest.mark.parametrize("window_log", [28, 31])
def test_a_long_window_is_read(window_log):
    """Large public dumps are written with --long=31; its memory is taken as the text fills it."""
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = packer.compress(b"x" * 1000) + packer.flush()

    assert unpack(packed, "zst") == b"x" * 1000


def test_a_file_packed_twice_is_not_unpacked_twice(tmp_path: Path):
    """Nothing is guessed: the ending inside is not one that is read."""
    path = tmp_path / "a.jsonl.gz.gz"
    path.write_bytes(gzip.compress(gzip.compress(LINES)))

    with pytest.raises(CorpusError, match="unknown ending"):
        read_corpus(CorpusOptions(str(path)))


@given(
    lines=st.lists(st.binary(max_size=20).map(lambda line: line.translate(None, b"\r\n"))),
    end=st.sampled_from([b"\n", b"\r\n"]),
    block_size=st.integers(1, 9),
)
def test_lines_do_not_depend_on_where_blocks_end(lines, end, block_size):
    """A line may be cut anywhere, in its line end too."""
    content = b"".join(line + end for line in lines)
    blocks = (content[at : at + block_size] for at in range(0, len(content), block_size))

    found = list(split_lines(blocks, max_bytes=10))

    mark = b"\xef\xbb\xbf"
    expected = [line if len(line) <= 10 else None for line in lines]
    if expected and expected[0] is not None:
        expected[0] = expected[0].removeprefix(mark)
    assert [line.content for line in found] == expected
    assert [line.length for line in found] == [len(line) for line in lines]
    assert [line.number for line in found] == list(range(1, len(lines) + 1))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.csv", "a.jsonl.gz", "a.txt.zst"])
def test_utf16_is_said_at_once(read, name, encoding):
    """PowerShell writes it: with bad rows skipped, all of the file would be missing."""
    content = '\ufefftext\n{"text": "x"}\n'.encode(encoding)
    content = PACK.get(name.rpartition(".")[2], bytes)(content)

    with pytest.raises(CorpusError, match="UTF-16, expected UTF-8") as error:
        read(name, content)

    assert "iconv" in error.value.hint
