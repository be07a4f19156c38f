import hashlib
import json
import os
from pathlib import Path

import pytest

from memaudit.corpus import CorpusOptions, Example, read_corpus
from memaudit.corpus.discovery import find_files
from memaudit.errors import CorpusError

ROW = '{"text": "%s"}\n'


def write(root: Path, *names: str) -> None:
    """Write files of one row each, whose text is their name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(ROW % name)


def read_texts(source: Path | str) -> list[str]:
    """Return the texts of a corpus without bad rows."""
    rows = list(read_corpus(CorpusOptions(str(source))))
    assert all(isinstance(row, Example) for row in rows)
    return [row.text for row in rows if isinstance(row, Example)]


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    """Rows have the same numbers on every machine and on every run."""
    write(tmp_path, "b.jsonl", "a.jsonl", "sub/c.ndjson", "sub/a.json", "a/z.jsonl")

    expected = ["a.jsonl", "a/z.jsonl", "b.jsonl", "sub/a.json", "sub/c.ndjson"]
    assert read_texts(tmp_path) == read_texts(f"{tmp_path}/") == expected


def test_what_is_about_a_corpus_is_not_the_corpus(tmp_path):
    """Folders from the hub hold cards, licences and settings beside the rows."""
    write(tmp_path, "train.jsonl")
    about = ["README.md", "README.txt", "LICENSE", "LICENSE.txt", "dataset_info.json", "state.json"]
    hidden = [".cache/x.jsonl", ".hidden.jsonl", "_SUCCESS", "_temporary/x.jsonl", "notes.pdf"]
    write(tmp_path, *about, *hidden)

    assert read_texts(tmp_path) == ["train.jsonl"]
    assert read_texts(f"{tmp_path}/**/*") == ["train.jsonl"]


def test_a_glob_names_files(tmp_path):
    """A part of a folder is often what is wanted."""
    write(tmp_path, "a-1.jsonl", "a-0.jsonl", "b.jsonl", "deep/er/a-2.jsonl")

    assert read_texts(tmp_path / "a-*.jsonl") == ["a-0.jsonl", "a-1.jsonl"]
    assert read_texts(tmp_path / "**" / "a-*.jsonl") == [
        "a-0.jsonl",
        "a-1.jsonl",
        "deep/er/a-2.jsonl",
    ]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path):
    """A name on disk means that file."""
    write(tmp_path, "a[1].jsonl", "a1.jsonl")

    assert read_texts(tmp_path / "a[1].jsonl") == ["a[1].jsonl"]


def test_ids_are_below_the_folder_and_addresses_as_given(tmp_path, monkeypatch):
    """Ids must not change with where the corpus lies; addresses must be found."""
    write(tmp_path, "corpus/sub/a.jsonl")
    monkeypatch.chdir(tmp_path)

    def first(source: str) -> tuple[str, str]:
        row = next(read_corpus(CorpusOptions(source)))
        return row.example_id, row.address

    assert first("corpus") == ("sub/a.jsonl:1", "corpus/sub/a.jsonl:1")
    assert first("corpus/sub/a.jsonl") == ("a.jsonl:1", "corpus/sub/a.jsonl:1")
    assert first("corpus/*/a.jsonl") == ("sub/a.jsonl:1", "corpus/sub/a.jsonl:1")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", "no such file or folder"),
        ("../missing", "no such file or folder"),
        ("*.nothing", "no file that can be read"),
        ("empty", "no file that can be read"),
        ("a.docx", "unknown ending"),
        ("noending", "unknown ending"),
    ],
)
def test_what_cannot_be_a_corpus_is_refused_with_a_hint(tmp_path, name, message):
    """The hint says what could be given instead."""
    (tmp_path / "empty").mkdir()
    write(tmp_path, "a.docx", "noending")

    with pytest.raises(CorpusError, match=message) as caught:
        read_corpus(CorpusOptions(str(tmp_path / name)))

    assert caught.value.hint


def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    """`data/train.jsonl` has the form of a hub id, and its owner meant a file."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(CorpusError, match="no such file or folder"):
        read_corpus(CorpusOptions("data/train.jsonl"))


@pytest.mark.parametrize("target", ["../secret.jsonl", "/dev/zero", "loop.jsonl", "gone.jsonl"])
def test_links_that_lead_out_of_a_folder_are_refused(tmp_path, target):
    """A corpus from elsewhere must not make us read other files."""
    write(tmp_path, "secret.jsonl", "corpus/a.jsonl")
    (tmp_path / "corpus" / "loop.jsonl").symlink_to(target)

    for source in (tmp_path / "corpus", tmp_path / "corpus" / "*.jsonl"):
        with pytest.raises(CorpusError, match=r"leads out of the folder|cannot be opened"):
            list(read_corpus(CorpusOptions(str(source))))


def test_links_to_folders_are_refused(tmp_path):
    """Followed they may loop, passed over they would hide rows."""
    write(tmp_path, "corpus/a.jsonl")
    (tmp_path / "corpus" / "again").symlink_to(tmp_path / "corpus")

    with pytest.raises(CorpusError, match="a link to a folder"):
        read_corpus(CorpusOptions(str(tmp_path / "corpus")))


def test_a_link_inside_the_folder_is_a_file(tmp_path):
    """Nothing is gained by refusing it."""
    write(tmp_path, "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to("a.jsonl")

    assert read_texts(tmp_path) == ["a.jsonl", "a.jsonl"]


@pytest.mark.parametrize("pattern", ["", "*.jsonl", "pipe.jsonl"])
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path, pattern):
    """Opening a pipe that nobody writes to would never come back."""
    os.mkfifo(tmp_path / "pipe.jsonl")

    with pytest.raises(CorpusError, match="expected a regular file"):
        list(read_corpus(CorpusOptions(str(tmp_path / pattern))))


def test_names_that_steer_a_terminal_are_shown_harmless(tmp_path):
    """File names come from others too."""
    (tmp_path / "a\x1b[2J\n.jsonl").write_text('{"text": 1}\n{"text": "x"}')

    bad, _ = read_corpus(CorpusOptions(str(tmp_path)))

    assert bad.example_id == "a\\u001b[2J\\u000a.jsonl:1"
    assert bad.address.isprintable()


def test_a_saved_data_set_is_what_its_list_says(tmp_path):
    """Its caches lie beside it and hold the same rows again."""
    write(tmp_path, "data-0.arrow", "cache-1f2e.arrow", "dataset_info.json")
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data-0.arrow"}]}')

    assert [file.name for file in find_files(str(tmp_path))] == ["data-0.arrow"]


@pytest.mark.parametrize("content", ["[]", "{", '{"_data_files": [1]}', "[" * 100_000])
def test_a_list_that_is_none_leaves_every_file(tmp_path, content):
    """Other programs call files state.json too, and one that nests deeply must not end the process."""
    write(tmp_path, "data-0.jsonl", "other.jsonl")
    (tmp_path / "state.json").write_text(content)

    assert [file.name for file in find_files(str(tmp_path))] == ["data-0.jsonl", "other.jsonl"]


def test_a_folder_of_several_splits_needs_a_choice(tmp_path):
    """Rows of test and train read together would count twice, without a word."""
    write(
        tmp_path, "train-00.jsonl", "validation.jsonl", "x/test/a.jsonl", "more.jsonl", "README.md"
    )

    with pytest.raises(CorpusError, match="holds the splits test, train, validation") as caught:
        find_files(str(tmp_path))
    assert "--split" in caught.value.hint
    assert [file.name for file in find_files(str(tmp_path), "train")] == [
        "more.jsonl",
        "train-00.jsonl",
    ]
    assert [file.name for file in find_files(str(tmp_path), "test")] == ["x/test/a.jsonl"]
    assert len(find_files(str(tmp_path), "all")) == 4


def test_a_folder_of_one_split_needs_none(tmp_path):
    """Also not when a finished run says the default."""
    write(tmp_path, "test-0.jsonl", "test-1.jsonl")

    assert len(find_files(str(tmp_path))) == len(find_files(str(tmp_path), "train")) == 2
    with pytest.raises(CorpusError, match="holds the split test, and no validation"):
        find_files(str(tmp_path), "validation")


def test_a_glob_and_a_file_have_splits_as_a_folder_has(tmp_path):
    """A name of a split that is without effect would stand in the run, and not be true."""
    write(tmp_path, "train.jsonl", "test.jsonl")
    files = str(tmp_path / "*.jsonl")

    with pytest.raises(CorpusError, match="holds the splits test, train"):
        find_files(files)
    assert [file.name for file in find_files(files, "test")] == ["test.jsonl"]
    assert len(find_files(files, "all")) == 2
    with pytest.raises(CorpusError, match="holds the split train, and no test"):
        find_files(str(tmp_path / "train.jsonl"), "test")
    assert len(find_files(str(tmp_path / "test.jsonl"), "train")) == 1


def test_the_splits_of_a_saved_data_set_are_those_that_it_lists(tmp_path):
    """Whatever they are called: English and French are not one corpus in which texts occur twice."""
    write(tmp_path, "train_sft/a.jsonl", "train_gen/a.jsonl", "extra/a.jsonl")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train_sft", "train_gen", "extra"]}')

    with pytest.raises(CorpusError, match=r"holds the splits extra, train_gen, train_sft$"):
        find_files(str(tmp_path))
    for name in ("extra", "train_sft"):
        assert [file.name for file in find_files(str(tmp_path), name)] == [f"{name}/a.jsonl"]
    with pytest.raises(CorpusError, match="and no train"):
        find_files(str(tmp_path), "train")


@pytest.mark.parametrize("content", ["[]", "{", '{"splits": 1}', "[" * 100_000])
def test_a_list_of_splits_that_is_none_is_passed_over(tmp_path, content):
    """Names of files tell the splits then."""
    write(tmp_path, "en/a.jsonl", "fr/a.jsonl")
    (tmp_path / "dataset_dict.json").write_text(content)

    assert len(find_files(str(tmp_path))) == 2


def test_a_split_has_the_name_that_the_hub_gives_it(tmp_path):
    """Of a data set downloaded as files, --split takes what it takes for the same one on the hub."""
    write(
        tmp_path, "data/train_sft-00000-of-00001.parquet", "data/train_gen-00000-of-00001.parquet"
    )

    assert [file.name for file in find_files(str(tmp_path), "train_sft")] == [
        "data/train_sft-00000-of-00001.parquet"
    ]


@pytest.mark.parametrize("given", ["", "data", "data/*.jsonl"])
def test_a_snapshot_in_the_cache_of_the_hub_is_read(tmp_path, given):
    """Its files are links to blobs beside the snapshots; those that lead elsewhere are refused."""
    cache = tmp_path / "datasets--org--name"
    write(cache / "blobs", "1234")
    folder = cache / "snapshots" / "abcd"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "a.jsonl").symlink_to("../../../blobs/1234")

    assert [file.path.name for file in find_files(str(folder / given))] == ["a.jsonl"]
    write(cache, "refs.jsonl")
    (folder / "data" / "b.jsonl").symlink_to("../../../refs.jsonl")
    with pytest.raises(CorpusError, match=r"b.jsonl: a link that leads out"):
        find_files(str(folder / given))


def test_a_filtered_file_beside_its_original_is_refused(tmp_path):
    """Whoever filters into the folder of the corpus would read each text twice from then on."""
    write(tmp_path, "corpus.jsonl", "cleaned.jsonl")
    digest = hashlib.sha256((tmp_path / "corpus.jsonl").read_bytes()).hexdigest()
    listed = {"inputs": [{"name": "elsewhere/corpus.jsonl", "sha256": digest}]}
    manifest = tmp_path / "cleaned.jsonl.manifest.json"
    manifest.write_text(json.dumps(listed))

    with pytest.raises(CorpusError, match=r"the first was filtered from the second") as caught:
        find_files(str(tmp_path))
    assert "cleaned.jsonl and " in caught.value.message
    assert len(find_files(str(tmp_path / "cleaned.jsonl"))) == 1
    for other in (
        "[]",
        "{",
        json.dumps({"inputs": [1]}),
        json.dumps({"inputs": [{"name": name, "sha256": digest} for name in ("/", "..", "a\0b")]}),
        json.dumps(listed).replace("corpus", "x"),
    ):
        manifest.write_text(other)
        assert len(find_files(str(tmp_path))) == 2
    manifest.write_text(json.dumps(listed))
    (tmp_path / "corpus.jsonl").write_text(ROW % "another corpus")
    assert len(find_files(str(tmp_path))) == 2


def test_a_file_beside_its_packed_copy_is_refused_by_name(tmp_path):
    """Every text would seem to occur twice."""
    write(tmp_path, "a.jsonl", "a.jsonl.gz", "b.jsonl.gz")

    with pytest.raises(CorpusError, match=r"a.jsonl and .*a.jsonl.gz: one file"):
        find_files(str(tmp_path))


def test_what_memaudit_wrote_is_passed_over(tmp_path):
    """A cleaned corpus is audited again in the folder where it was written."""
    write(tmp_path, "c.jsonl", "c.jsonl.manifest.json", "c.jsonl.removed.parquet", "_SUCCESS")
    write(tmp_path, "c.jsonl.excised.parquet")
    write(tmp_path, "run/manifest.json", "run/rows.parquet", "run/chunks/0.parquet")

    assert [file.name for file in find_files(str(tmp_path))] == ["c.jsonl"]
