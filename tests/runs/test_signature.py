"""Signatures: who made a run, and that nothing of it has changed since."""

import shutil

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.fake_run import fake_audit

from memaudit.errors import MemauditError, UsageError
from memaudit.runs.signature import (
    read_public_keys,
    read_signing_key,
    require_signature,
    sign_folder,
)

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)


def public(key):
    """Return a public key in hexadecimal."""
    return key.public_key().public_bytes_raw().hex()


def pem(key, password=None):
    """Return a private key as openssl writes it."""
    kept = serialization.NoEncryption()
    if password is not None:
        kept = serialization.BestAvailableEncryption(password)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, kept)


def public_pem(key):
    """Return a public key as openssl writes it."""
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, kind)


@pytest.fixture(scope="module")
def signed_once(tmp_path_factory):
    """A run that was signed."""
    folder = tmp_path_factory.mktemp("signed") / "run"
    fake_audit(folder)
    sign_folder(folder, KEY)
    return folder


@pytest.fixture
def signed(signed_once, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(signed_once, tmp_path / "run")


def test_a_run_that_was_signed_is_known_to_be_as_it_was(signed):
    """Whoever has the public key alone can tell."""
    found = require_signature(signed, [public(OTHER), public(KEY)])

    assert found.key == public(KEY)
    assert {"manifest.json", "rows.parquet", "chunks/00000.parquet"} < set(found.signed.parts)
    assert (signed / "signature.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "rows.parquet", "chunks/00003.parquet", "summary.json", "risk.parquet"],
)
def test_any_changed_bit_of_a_part_is_found(signed, name):
    """One bit can turn a finding into none."""
    path = signed / name
    content = bytearray(path.read_bytes())
    for place in range(0, len(content), max(1, len(content) // 60)):
        content[place] ^= 1 << place % 8
        path.write_bytes(content)

        with pytest.raises(MemauditError):
            require_signature(signed, [public(KEY)])
        content[place] ^= 1 << place % 8


def test_any_changed_bit_of_the_signature_itself_is_found(signed):
    """Also one that changes nothing for a lenient reader, such as the case of a digit."""
    path = signed / "signature.json"
    content = bytearray(path.read_bytes())
    for place in range(len(content)):
        for bit in (place % 8, 5):  # bit 5 makes an upper-case letter of a lower-case one
            content[place] ^= 1 << bit
            path.write_bytes(content)
            with pytest.raises(UsageError):
                require_signature(signed, [public(KEY)])
            content[place] ^= 1 << bit


def test_the_counts_that_scores_were_made_with_are_signed(signed):
    """Whoever continues the run would read them."""
    (signed / "exposure.parquet").write_bytes(b"counts")
    require_signature(signed, [public(KEY)])  # signed before counts were
    sign_folder(signed, KEY)
    require_signature(signed, [public(KEY)])
    (signed / "exposure.parquet").write_bytes(b"Counts")

    with pytest.raises(UsageError, match=r"exposure\.parquet was changed"):
        require_signature(signed, [public(KEY)])


@pytest.mark.parametrize("name", ["chunks/00001.parquet", "rows.parquet", "risk.parquet"])
def test_a_part_that_is_gone_is_missed(signed, name):
    """Nobody may leave out what speaks against a corpus."""
    (signed / name).unlink()

    with pytest.raises(UsageError, match="is missing"):
        require_signature(signed, [public(KEY)])


def test_a_part_that_was_added_is_found(signed):
    """It would be read as a result of the run."""
    shutil.copy(signed / "risk.parquet", signed / "risk.csv")
    shutil.copy(signed / "chunks" / "00000.parquet", signed / "chunks" / "99999.parquet")

    with pytest.raises(
        UsageError, match=r"risk\.csv was not signed, chunks/99999\.parquet was not signed"
    ):
        require_signature(signed, [public(KEY)])


def test_a_signature_of_another_run_is_refused(signed, tmp_path):
    """Else the signature of a harmless run would do for all."""
    fake_audit(tmp_path / "other", n_windows=40)
    shutil.copy(signed / "signature.json", tmp_path / "other")

    with pytest.raises(UsageError, match="another run"):
        require_signature(tmp_path / "other", [public(KEY)])


def test_a_forger_with_a_key_of_their_own_is_refused(signed):
    """Chunks can be edited and sealed again, and signed, but not with our key."""
    sign_folder(signed, OTHER)

    with pytest.raises(UsageError, match="not one that is allowed"):
        require_signature(signed, [public(KEY)])


def test_keys_rotate(signed, tmp_path):
    """While old runs are in use both keys are allowed; then the old one is dropped."""
    both = tmp_path / "both.pem"
    both.write_bytes(public_pem(KEY) + public_pem(OTHER))
    keys = read_public_keys(str(both))
    assert keys == (public(KEY), public(OTHER))

    assert require_signature(signed, keys).key == public(KEY)
    sign_folder(signed, OTHER)
    assert require_signature(signed, keys).key == public(OTHER)
    with pytest.raises(UsageError, match="not one that is allowed"):
        require_signature(signed, [public(KEY)])


def test_a_run_that_nobody_signed_is_refused(signed):
    """Dropping the signature must not be a way round it."""
    (signed / "signature.json").unlink()

    with pytest.raises(UsageError, match="not signed"):
        require_signature(signed, [public(KEY)])


def test_keys_are_what_openssl_writes(tmp_path):
    """Nobody should need a tool of ours to keep a key."""
    (tmp_path / "key.pem").write_bytes(pem(KEY))

    assert public(read_signing_key(tmp_path / "key.pem")) == public(KEY)
    assert read_public_keys(public(KEY)) == (public(KEY),)


def other_kinds():
    """Files that hold no key that fits."""
    curve = ec.generate_private_key(ec.SECP256R1())
    return [
        b"", b"abc", b"\xff" * 100, pem(KEY, b"secret"), public_pem(KEY), pem(curve),
        pem(KEY).replace(b"MC4", b"MC5"),
    ]  # fmt: skip


@pytest.mark.parametrize("content", other_kinds(), ids=range(7))
def test_what_is_no_private_key_is_refused(tmp_path, content):
    """Before the work of hours, with a message."""
    (tmp_path / "key.pem").write_bytes(content)

    with pytest.raises(UsageError, match="expected a private key"):
        read_signing_key(tmp_path / "key.pem")


@pytest.mark.parametrize("content", [b"", pem(KEY), b"-----END PUBLIC KEY-----", b"a" * 64])
def test_what_is_no_public_key_is_refused(tmp_path, content):
    """No key at all would mean that any signature does, or none."""
    (tmp_path / "key.pem").write_bytes(content)

    with pytest.raises(UsageError, match="expected public keys"):
        read_public_keys(str(tmp_path / "key.pem"))
