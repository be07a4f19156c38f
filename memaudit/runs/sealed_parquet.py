"""Sealed parquet files: each holds the digest of its own bytes, so that any changed bit is found.

The checksums that parquet itself has cover its pages, not its footer. So the metadata of a file
hold `sha256:` and 64 zeros while it is written; then the zeros give way to the digest of the file
as it stands with them.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from memaudit.runs.files import committed_file, opened, output_errors

_LABEL = b"sha256:"
_BLANK = b"0" * 64
_FOOTER_END = 65_536
"""Bytes at the end of a file that are searched: metadata are the last of a footer but for 1 kB."""
_BLOCK = 1_048_576


class DamagedFileError(Exception):
    """A sealed file is not what was once written, or is another one."""


@contextmanager
def sealed_writer(
    path: Path, schema: pa.Schema, metadata: Mapping[str, str]
) -> Iterator[pq.ParquetWriter]:
    """Open a parquet file that is sealed and takes its name when all went well.

    The same tables give the same bytes, for one version of pyarrow.

    Raises:
        OutputError: it cannot be written.
    """
    sealed = {**metadata, "memaudit.seal": (_LABEL + _BLANK).decode()}
    with committed_file(path, clear=False) as stream:
        # Floats hardly repeat and nobody filters by them: dictionaries and statistics only add
        # bytes. The schema of Arrow is 2.5 kB in a chunk of 40 columns, and stands behind the seal.
        with pq.ParquetWriter(
            stream,
            schema,
            compression="zstd",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
            store_schema=False,
        ) as writer:
            yield writer
            writer.add_key_value_metadata(sealed)
        stream.flush()
        place = _find(stream, _LABEL + _BLANK) + len(_LABEL)
        digest = _digest(stream, place)
        stream.seek(place)
        stream.write(digest)


@contextmanager
def open_sealed(path: Path, metadata: Mapping[str, str]) -> Iterator[pq.ParquetFile]:
    """Open a sealed file for reading, once every bit of it is found as it was written.

    Raises:
        DamagedFileError: a bit has changed, or it was written with other metadata.
        OSError: it is not there or cannot be read.
    """
    # Checked and read through one open file: what takes its name meanwhile changes nothing.
    with opened(path) as stream:
        place = _find(stream, _LABEL)
        seal = _read_at(stream, place + len(_LABEL), len(_BLANK))
        # The digest comes first: no parser meets bytes that were not sealed.
        if seal != _digest(stream, place + len(_LABEL)):
            raise DamagedFileError("changed since it was written")
        try:
            opened_file = pq.ParquetFile(stream, page_checksum_verification=True)
        except pa.ArrowException as error:
            raise DamagedFileError("no parquet") from error
        with opened_file as file:
            found = file.metadata.metadata or {}
            for name, value in metadata.items():
                if found.get(name.encode()) != value.encode():
                    raise DamagedFileError(f"another {name.removeprefix('memaudit.')}")
            yield file


def is_whole(path: Path, metadata: Mapping[str, str]) -> bool:
    """Whether a sealed file is there as it was written.

    Raises:
        OutputError: it cannot be read.
    """
    if not path.exists():
        return False
    try:
        with output_errors(path, "read"), open_sealed(path, metadata):
            return True
    except DamagedFileError:
        return False


def copy_sealed(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Commit a copy of a sealed file, once every bit of it is found as it was written.

    Raises:
        DamagedFileError, FileNotFoundError: as for `open_sealed`.
        OutputError: it cannot be read or written.
    """
    if not source.exists():
        raise FileNotFoundError(source)
    with output_errors(source, "read"), open_sealed(source, metadata):
        pass
    with opened(source) as original, committed_file(target, clear=False) as copy:
        shutil.copyfileobj(original, copy)


def _digest(stream: BinaryIO, place: int) -> bytes:
    """Return the hexadecimal digest of a file in which zeros stand at the place of its seal."""
    total = hashlib.sha256()
    stream.seek(0)
    for start, stop in ((0, place), (place + len(_BLANK), None)):
        stream.seek(start)
        while block := stream.read(_BLOCK if stop is None else min(_BLOCK, stop - stream.tell())):
            total.update(block)
        if stop is not None:
            total.update(_BLANK)
    return total.hexdigest().encode()


def _find(stream: BinaryIO, label: bytes) -> int:
    """Return where the last such label begins."""
    size = stream.seek(0, 2)
    start = max(0, size - _FOOTER_END)
    # The last one: an id among the data may look like a seal.
    place = _read_at(stream, start, _FOOTER_END).rfind(label)
    if place < 0:
        raise DamagedFileError("no seal")
    return start + place


def _read_at(stream: BinaryIO, start: int, size: int) -> bytes:
    stream.seek(start)
    return stream.read(size)
