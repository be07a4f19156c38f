"""Who made a run: an ed25519 signature over the digests of all of its parts.

Seals and fingerprints find what was damaged, but whoever can write the files can make them anew.
A signature cannot be made without the private key. It stands in `signature.json` of the folder, which
is read only in the exact bytes in which it was written, so that any changed bit is found.
"""

import hashlib
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from memaudit.errors import MissingDependency, UsageError
from memaudit.files import read_small
from memaudit.runs.files import committed_file, opened, output_errors, read_content
from memaudit.runs.folder import EXPOSURE, MANIFEST, ROWS, SUMMARY, RunFolder
from memaudit.text import shown_path

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE = "signature.json"
"""Name in the folder of what is signed."""

MAX_BYTES = 256 << 20
"""Of a signature file: about 100 bytes for each chunk."""

_FORMAT = 1
_MAX_KEY_BYTES = 16_384
_KEY_DIGITS = 64
_CONTEXT = b"memaudit run signature 1\n"
"""Goes before what is signed, so that nothing signed for another purpose fits."""


class Signed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a signature vouches for."""

    run: str
    """Fingerprint of what the run was given. Empty: it is no run."""

    date: str
    """When it was signed, as ISO 8601 in UTC."""

    parts: dict[str, str]
    """SHA-256 of each file, by its name in the folder."""


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `signature.json`."""

    key: str
    """Public key of the signer, in hexadecimal."""

    signature: str
    signed: Signed
    format: int = _FORMAT


def read_signing_key(path: Path) -> "Ed25519PrivateKey":
    """Return the private key in a PEM file, as `openssl genpkey -algorithm ed25519` writes it.

    Raises:
        UsageError: it is no such key, or is encrypted.
        MissingDependency: the package that signs is not installed.
        OutputError: the file cannot be read.
    """
    serialization, ed25519, exceptions = _cryptography()
    with output_errors(path, "read"):
        content = read_small(path, _MAX_KEY_BYTES)
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, exceptions.UnsupportedAlgorithm) as error:
        raise _no_key(path, "a private key") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise _no_key(path, "a private key")
    private: Ed25519PrivateKey = key
    return private


def read_public_keys(value: str) -> tuple[str, ...]:
    """Return public keys in hexadecimal: a key of 64 digits, or those in a file in PEM.

    Raises:
        UsageError: it is neither.
        MissingDependency: the package that reads PEM is not installed.
        OutputError: the file cannot be read.
    """
    if len(value) == _KEY_DIGITS and set(value) <= set("0123456789abcdef"):
        return (value,)
    serialization, ed25519, exceptions = _cryptography()
    path = Path(value)
    with output_errors(path, "read"):
        content = read_small(path, _MAX_KEY_BYTES)
    end = b"-----END PUBLIC KEY-----"
    blocks = [block + end for block in content.split(end)[:-1]]
    try:
        # The library reads the first key of a file and passes over the others.
        keys = [serialization.load_pem_public_key(block.strip()) for block in blocks]
    except (ValueError, exceptions.UnsupportedAlgorithm) as error:
        raise _no_key(path, "public keys") from error
    if not keys or not all(isinstance(key, ed25519.Ed25519PublicKey) for key in keys):
        raise _no_key(path, "public keys")
    return tuple(key.public_bytes_raw().hex() for key in keys)


def sign_folder(folder: Path, key: "Ed25519PrivateKey", parts: Sequence[str] = ()) -> str:
    """Sign a complete run, or named parts of other results; return the public key in hexadecimal.

    Raises:
        UsageError, OutputError: a part is missing or cannot be read, or the signature not written.
    """
    fingerprint, needed = _needed(folder, parts)
    # Scores were made with the counts, but no reader of a run that is whole looks at them: there
    # are signatures without them.
    names = dict.fromkeys((*needed, *_made_from_them(folder), *_there(folder, EXPOSURE)))
    signed = Signed(
        run=fingerprint,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        parts={name: _digest(folder, name) for name in names},
    )
    public = key.public_key().public_bytes_raw().hex()
    signature = Signature(key=public, signature=key.sign(_message(signed)).hex(), signed=signed)
    with committed_file(folder / SIGNATURE) as stream:
        stream.write(_encoded(signature))
    return public


def require_signature(folder: Path, keys: Collection[str], parts: Sequence[str] = ()) -> Signature:
    """Return the signature of a folder, once every part is as one of some keys signed it.

    Raises:
        UsageError: it is not signed, or by another key, or a part has changed.
        OutputError: it cannot be read.
        MissingDependency: the package that verifies is not installed.
    """
    shown = shown_path(folder)
    found = _read(folder)
    # Whose key it is comes first: of a stranger even a right signature is worth nothing.
    if found.key not in keys:
        raise UsageError(
            f"{shown}: signed with the key {found.key[:12]}, which is not one that is allowed",
            hint="give its public key with --verify-key, or as one of 'signers' in the policy",
        )
    _, ed25519, exceptions = _cryptography()
    try:
        public = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(found.key))
        public.verify(bytes.fromhex(found.signature), _message(found.signed))
    except (ValueError, exceptions.InvalidSignature) as error:
        raise UsageError(
            f"{shown}: the signature is not of the key {found.key[:12]}",
            hint="it was changed after it was signed: get it again from who made it",
        ) from error
    # Only now: until the signature holds, anybody may have put the names of files into it.
    fingerprint, needed = _needed(folder, parts)
    changed = ["another run"] if found.signed.run != fingerprint else []
    # What is there and was not signed is as bad: it would be read as part of the run.
    for name in dict.fromkeys((*needed, *_made_from_them(folder), *found.signed.parts)):
        if name not in found.signed.parts:
            changed.append(f"{shown_path(name)} was not signed")
        elif not (folder / name).exists():
            changed.append(f"{shown_path(name)} is missing")
        elif _digest(folder, name) != found.signed.parts[name]:
            changed.append(f"{shown_path(name)} was changed")
    if changed:
        raise UsageError(
            f"{shown}: not as it was signed: {', '.join(changed[:5])}",
            hint="get it again from who made it, or sign it again: --sign KEY where it is made",
        )
    return found


def _read(folder: Path) -> Signature:
    path = folder / SIGNATURE
    if not path.exists():
        raise UsageError(
            f"{shown_path(folder)}: not signed",
            hint="give --sign KEY to 'memaudit predict' or 'memaudit verify', where it is made",
        )
    with output_errors(path, "read"):
        content = read_content(path, MAX_BYTES)
    with suppress(ValueError, RecursionError):
        found = msgspec.json.decode(content, type=Signature)
        # A digit in upper case would be the same number in other bytes.
        is_exact = bytes.fromhex(found.signature).hex() == found.signature
        if found.format == _FORMAT and is_exact and _encoded(found) == content:
            return found
    raise UsageError(
        f"{shown_path(path)}: changed, damaged or written by another version of memaudit",
        hint="get it again from who made it, or sign it again: --sign KEY where it is made",
    )


def _needed(folder: Path, parts: Sequence[str]) -> tuple[str, list[str]]:
    """Return the fingerprint of a run, and the names of what its results are made from."""
    if parts:
        return "", list(parts)
    run = RunFolder.read(folder)
    chunks = [f"chunks/{run.plan.path(chunk).name}" for chunk in range(run.plan.n_chunks)]
    return run.manifest.inputs.fingerprint, [MANIFEST, ROWS, *chunks]


def _made_from_them(folder: Path) -> list[str]:
    """Return the names of the results that are there, and of all chunks."""
    names = (SUMMARY, "risk.parquet", "risk.jsonl", "risk.csv")
    chunks = [f"chunks/{path.name}" for path in sorted((folder / "chunks").glob("*.parquet"))]
    return [*_there(folder, *names), *chunks]


def _there(folder: Path, *names: str) -> list[str]:
    return [name for name in names if (folder / name).exists()]


def _digest(folder: Path, name: str) -> str:
    path = folder / name
    with output_errors(path, "read"), opened(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def _message(signed: Signed) -> bytes:
    return _CONTEXT + msgspec.json.encode(signed, order="sorted")


def _encoded(signature: Signature) -> bytes:
    return msgspec.json.format(msgspec.json.encode(signature, order="sorted"), indent=1) + b"\n"


def _no_key(path: Path, expected: str) -> UsageError:
    return UsageError(
        f"{shown_path(path)}: expected {expected} for ed25519 in PEM, not encrypted",
        hint="make one with 'openssl genpkey -algorithm ed25519 -out key.pem', and its public part "
        "with 'openssl pkey -in key.pem -pubout'",
    )


def _cryptography() -> tuple[Any, Any, Any]:
    """Return the modules of the package that are needed, that of its exceptions last."""
    try:
        from cryptography import exceptions
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingDependency("cryptography", needed_for="a signature", extra="sign") from error
    return serialization, ed25519, exceptions
