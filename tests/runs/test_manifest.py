"""The manifest: read as it was written, or refused."""

import hashlib
import json

import msgspec
import pytest
from support.fake_run import fake_audit

from memaudit.errors import OutputError, UsageError
from memaudit.runs.manifest import differences, read_manifest, software_versions, write_manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Of a fake run."""
    out = tmp_path_factory.mktemp("manifest") / "run"
    fake_audit(out)
    return read_manifest(out / "manifest.json")


def test_a_manifest_comes_back_as_it_was(manifest, tmp_path):
    """The classifier in it decides what the table says, to the last digit."""
    path = tmp_path / "manifest.json"
    write_manifest(path, manifest)
    first = path.read_bytes()

    assert read_manifest(path) == manifest
    write_manifest(path, read_manifest(path))
    assert path.read_bytes() == first
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_manifest_says_what_a_run_was_given(manifest):
    """For people, and for whoever has to explain a table in a year."""
    inputs = manifest.inputs

    assert (inputs.rows, inputs.distinct_windows, inputs.chunk_size) == (95, 88, 8)
    assert len(inputs.fingerprint) == len(inputs.texts_digest) == 64
    assert set(inputs.versions) >= {"python", "machine", "numpy", "pyarrow", "torch"}
    assert inputs.versions == software_versions()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("manifest", "inputs", "rows"), 94),
        (("manifest", "inputs", "teacher_digest"), "1" * 64),
        (("manifest", "inputs", "versions", "numpy"), "0.0"),
        (("manifest", "classifier", "threshold"), 0.9),
        (("manifest", "classifier", "coefficients"), [0.0, 0.0]),
        (("manifest", "names", "teacher"), "another"),
        (("manifest", "shard"), {"index": 0, "count": 2}),
        (("manifest", "format"), 2),
        (("digest",), "0" * 64),
    ],
)
def test_a_manifest_that_was_edited_is_refused(manifest, tmp_path, place, value):
    """A table would be made by rules that nobody chose."""
    path = tmp_path / "manifest.json"
    write_manifest(path, manifest)
    document = json.loads(path.read_text())
    *parents, last = place
    holder = document
    for name in parents:
        holder = holder[name]
    holder[last] = value
    path.write_text(json.dumps(document))

    with pytest.raises(OutputError, match=r"manifest\.json: changed, damaged or written by"):
        read_manifest(path)


def test_a_manifest_of_a_later_format_is_refused(manifest, tmp_path):
    """Even one that is whole: an older reader would misread the run."""
    path = tmp_path / "manifest.json"
    write_manifest(path, msgspec.structs.replace(manifest, format=2))

    with pytest.raises(OutputError, match="written by another version of memaudit"):
        read_manifest(path)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1", b'{"digest": 1}', b"\xff\xfe", b"[" * 99_999]
)
def test_what_is_no_manifest_is_refused(tmp_path, content):
    """Whatever is found under the name, the answer is a message."""
    (tmp_path / "manifest.json").write_bytes(content)

    with pytest.raises(OutputError, match="changed, damaged"):
        read_manifest(tmp_path / "manifest.json")


def test_a_folder_without_one_is_no_run(tmp_path):
    """A typo in a path is told as such."""
    with pytest.raises(UsageError, match=r"not the folder of a run, it has no manifest\.json"):
        read_manifest(tmp_path / "manifest.json")


def test_equal_inputs_have_no_differences_and_one_fingerprint(manifest):
    """Otherwise no run could be continued."""
    inputs = manifest.inputs
    again = msgspec.structs.replace(inputs, versions=dict(reversed(inputs.versions.items())))

    assert differences(inputs, again) == []
    assert inputs.fingerprint == again.fingerprint


@pytest.mark.parametrize("field", ["rows", "threads", "windows", "texts_digest"])
def test_other_inputs_have_another_fingerprint(manifest, field):
    """It is what binds a chunk to its run."""
    value = {"rows": 1, "threads": 64, "windows": "tile", "texts_digest": "e" * 64}[field]
    other = msgspec.structs.replace(manifest.inputs, **{field: value})

    assert other.fingerprint != manifest.inputs.fingerprint


def test_a_value_with_control_characters_is_shown_safely(manifest):
    """A corpus may have any name; a message must not steer a terminal."""
    other = msgspec.structs.replace(manifest.inputs, corpus={"source": "a\x1b[2Jb"})

    (difference,) = differences(manifest.inputs, other)
    assert "\x1b" not in difference


def test_a_manifest_of_before_a_field_was_added_is_still_whole(manifest, tmp_path):
    """A run of last year must not look damaged because memaudit learned something new."""
    path = tmp_path / "manifest.json"
    write_manifest(path, manifest)
    document = json.loads(path.read_text())["manifest"]
    added = ("raw_digest", "corpus_read", "unused_weights", "compile_choice", "canary")
    assert {document.pop(name) for name in added} == {None}
    assert document["inputs"].pop("answers") is document["inputs"].pop("exposure") is None
    digest = hashlib.sha256(msgspec.json.encode(document, order="sorted")).hexdigest()
    path.write_text(json.dumps({"digest": digest, "manifest": document}))

    assert read_manifest(path) == manifest
