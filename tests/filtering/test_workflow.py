"""The filter from end to end: what is refused, what is written, and what is not in it."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.finished_runs import run_in_memory, write_jsonl

from memaudit.errors import CorpusError, OutputError, UsageError
from memaudit.filtering import workflow as workflow_module
from memaudit.filtering.outputs import beside, push_to_hub
from memaudit.filtering.selection import FilterOptions
from memaudit.filtering.workflow import filter_corpus

CANARY = "MEMAUDIT-CANARY"
TEXTS = [f"{CANARY}-{i % 7} is here" for i in range(30)]


@pytest.fixture
def corpus(tmp_path):
    """30 rows of seven texts."""
    return write_jsonl(tmp_path / "corpus.jsonl", TEXTS)


@pytest.fixture
def run(template, corpus):
    """Of that corpus."""
    return run_in_memory(template, corpus)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([*TEXTS[:-1], "another"], "a text was changed"),
        (TEXTS[:-1], "it has 29 rows, the run 30"),
        ([*TEXTS, "more"], "row 31 is another one"),
        ([*TEXTS[:4], None, *TEXTS[5:]], "row 5 is another one"),
        ([TEXTS[1], TEXTS[0], *TEXTS[2:]], "a text was changed"),
    ],
)
def test_another_corpus_is_refused(run, corpus, tmp_path, texts, said):
    """Rows are matched by their place: in another corpus the wrong ones would go."""
    write_jsonl(corpus, texts)

    with pytest.raises(UsageError, match=said):
        filter_corpus(run, str(corpus), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_corpus_may_have_moved(run, corpus, tmp_path):
    """The path is not the corpus."""
    moved = tmp_path / "elsewhere" / corpus.name
    moved.parent.mkdir()
    corpus.rename(moved)

    assert filter_corpus(run, str(moved), tmp_path / "out.jsonl").rows == 30


def test_what_a_killed_filter_had_begun_goes(run, corpus, tmp_path):
    """Of the corpus, and of each file that stands beside it."""
    out = tmp_path / "out.jsonl"
    begun = [path.with_name(f".{path.name}.0123abcd.tmp") for path in (out, *beside(out))]
    for path in begun:
        path.write_text("half")

    filter_corpus(run, str(corpus), out)

    assert not [path for path in begun if path.exists()]


def test_nothing_beside_the_corpus_holds_its_text(run, corpus, tmp_path):
    """What is passed around as a record of the cleaning must not leak what was cleaned."""
    out = tmp_path / "out.jsonl"

    result = filter_corpus(run, str(corpus), out, options=FilterOptions(top=12))

    removed = pq.read_table(f"{out}.removed.parquet")
    assert removed.column_names == ["id", "row", "address", "reason", "probability"]
    manifest = (tmp_path / "out.jsonl.manifest.json").read_text()
    assert CANARY not in manifest + str(removed.to_pydict()) + str(result.document())
    for path in tmp_path.glob("out.jsonl*"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_the_manifest_tells_what_was_done(run, corpus, tmp_path):
    """Somebody finds the file a year later."""
    out = tmp_path / "out.jsonl"

    result = filter_corpus(run, str(corpus), out, options=FilterOptions(top=12))

    document = json.loads((tmp_path / "out.jsonl.manifest.json").read_text())
    assert document == json.loads(json.dumps(result.document()))
    assert (document["removed"], document["kept"], document["rows"]) == (12, 18, 30)
    assert document["run"] == run.manifest.inputs.fingerprint
    assert document["options"]["top"] == 12
    assert document["before"]["expected"]["mean"] > document["after"]["expected"]["mean"]
    n_bytes = sum(len(text.encode()) for text in TEXTS)
    assert document["text_bytes"] == n_bytes
    assert document["removed_text_bytes"] == 12 * n_bytes / 30
    assert {entry["name"] for entry in document["inputs"]} == {str(corpus)}


def test_a_dry_run_tells_the_same_and_writes_nothing(run, corpus, tmp_path):
    """The price is known before it is paid."""
    before = sorted(tmp_path.iterdir())

    told = filter_corpus(run, str(corpus), None, options=FilterOptions(top=12))

    assert sorted(tmp_path.iterdir()) == before
    done = filter_corpus(run, str(corpus), tmp_path / "o.jsonl", options=FilterOptions(top=12))
    assert (told.before, told.after, told.removed) == (done.before, done.after, done.removed)


def test_a_folder_gives_a_folder_of_the_same_names(template, tmp_path):
    """Formats may be mixed; rows are counted over all files."""
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    write_jsonl(source / "a.jsonl", TEXTS[:9])
    (source / "deep" / "b.csv").write_text("text\n" + "\n".join(TEXTS[9:16]) + "\n")
    write_jsonl(source / "deep" / "c.ndjson", TEXTS[16:])
    run = run_in_memory(template, source)

    result = filter_corpus(
        run, str(source), tmp_path / "out", options=FilterOptions(top=11, strategy="drop")
    )

    names = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
    assert names == ["a.jsonl", "deep/b.csv", "deep/c.ndjson"]
    assert len(result.outputs) == len(result.inputs) == 3
    n_lines = sum((tmp_path / "out" / name).read_bytes().count(b"\n") for name in names)
    assert n_lines == 30 - 11 + 1
    assert run_in_memory(template, tmp_path / "out").n_rows == 19
    assert (tmp_path / "out.removed.parquet").exists()


@pytest.mark.parametrize("name", ["out.json", "out.jsonl.gz", "out.csv", "out"])
def test_what_stays_keeps_its_format(run, corpus, tmp_path, name):
    """A name that promises another format would be a lie."""
    with pytest.raises(UsageError, match=r"expected a file that ends in \.jsonl"):
        filter_corpus(run, str(corpus), tmp_path / name)


def test_the_corpus_is_never_overwritten(run, corpus, tmp_path):
    """What is removed must still be somewhere."""
    (tmp_path / "link.jsonl").symlink_to(corpus)
    for out in (corpus, tmp_path / "link.jsonl"):
        with pytest.raises(UsageError, match="is the corpus itself"):
            filter_corpus(run, str(corpus), out)
    assert corpus.read_text().count("\n") == 30


def test_a_folder_that_holds_something_is_left_alone(template, tmp_path):
    """Old files among new ones would be a corpus that nobody filtered."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    write_jsonl(source / "a.jsonl", TEXTS)
    write_jsonl(out / "b.jsonl", TEXTS)

    with pytest.raises(UsageError, match="a new or an empty folder"):
        filter_corpus(run_in_memory(template, source), str(source), out)


def test_standard_input_cannot_be_filtered(run, tmp_path):
    """It is read twice."""
    with pytest.raises(UsageError, match="cannot be read twice"):
        filter_corpus(run, "-", tmp_path / "out.jsonl")


def test_nothing_half_written_is_left(run, corpus, tmp_path, monkeypatch):
    """A disk that fills up must not leave a corpus that looks filtered."""

    def fail(*arguments):
        raise OutputError("no space")

    monkeypatch.setattr(workflow_module, "write_beside", fail)
    before = sorted(tmp_path.iterdir())

    with pytest.raises(OutputError):
        filter_corpus(run, str(corpus), tmp_path / "out.jsonl")
    assert sorted(tmp_path.iterdir()) == before


def test_a_corpus_that_changes_meanwhile_is_noticed(run, corpus, tmp_path, monkeypatch):
    """Between the check and the copy there is time."""
    write = workflow_module.write_corpus

    def shorten_then_write(*arguments):
        write_jsonl(corpus, TEXTS[:-1])
        return write(*arguments)

    monkeypatch.setattr(workflow_module, "write_corpus", shorten_then_write)

    with pytest.raises(CorpusError, match="changed while it was filtered"):
        filter_corpus(run, str(corpus), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_long_and_bad_rows_stay(template, tmp_path):
    """A row beyond the limit is passed through without being held in memory, and counted."""
    from memaudit.corpus.base import MIB

    source, out = tmp_path / "c.jsonl", tmp_path / "o.jsonl"
    long = b'{"text": "' + b"x" * (17 * MIB) + b'"}\n'
    lines = [b'{"text": "a risky text"}\n', long, b"\xff\n", b'{"text": "a risky text"}']
    source.write_bytes(b"".join(lines))
    run = run_in_memory(template, source)
    assert run.outcomes == {"scored": 2, "bad": 2}

    result = filter_corpus(run, str(source), out, options=FilterOptions(max_probability=0.0))

    assert out.read_bytes() == long + b"\xff\n"
    assert result.unscored_kept == 2


def test_tokens_are_counted_with_the_teachers_tokenizer(run, corpus):
    """The price of a cleaning is paid in training tokens."""
    from support.fakes import ByteTokenizer

    found = filter_corpus(
        run, str(corpus), None, options=FilterOptions(top=10), tokenizer=ByteTokenizer()
    )

    assert (found.tokens, found.removed_tokens) == (found.text_bytes, found.removed_text_bytes)


def test_near_duplicates_of_risky_texts_go_too(template, tmp_path):
    """A template with another name in it is the same text to a student."""
    pytest.importorskip("rensa")
    words = "the quick brown fox jumps over the lazy dog and runs far away from here to there"
    near = [words, words + " now", words.replace("fox", "Fox")]
    other = [" ".join(np.random.default_rng(i).permutation(words.split())) for i in range(4)]
    source = write_jsonl(tmp_path / "c.jsonl", [*near, *other, near[0], "short one"])
    run = run_in_memory(template, source)
    options = FilterOptions(max_probability=0.0, strategy="deduplicate", near_duplicates=0.8)

    result = filter_corpus(run, str(source), tmp_path / "o.jsonl", options=options)

    removed = pq.read_table(tmp_path / "o.jsonl.removed.parquet").to_pylist()
    assert [row["row"] for row in removed] == [1, 2, 7]
    reasons = [row["reason"] for row in removed]
    assert all("like row 0" in reason for reason in reasons[:2])
    assert "the same text as row 0" in reasons[2]
    assert (result.removed_copies, result.removed_alike) == (1, 2)


def test_near_duplicates_need_their_package(run, corpus, monkeypatch):
    """The remedy is said, not a traceback."""
    import sys

    from memaudit.errors import MissingDependency

    monkeypatch.setitem(sys.modules, "rensa", None)
    options = FilterOptions(strategy="deduplicate", near_duplicates=0.8)

    with pytest.raises(MissingDependency, match="rensa"):
        filter_corpus(run, str(corpus), None, options=options)


class Hub:
    """What the hub was asked for."""

    def __init__(self, *, private):
        self.private, self.calls = private, []

    def create_repo(self, **arguments):
        self.calls.append(("create_repo", arguments))

    def repo_info(self, **arguments):
        return self

    def upload_file(self, **arguments):
        self.calls.append(("upload_file", arguments))

    def upload_folder(self, **arguments):
        self.calls.append(("upload_folder", arguments))


def test_what_is_uploaded_is_private(corpus):
    """A corpus on the web cannot be called back."""
    hub = Hub(private=True)

    push_to_hub(corpus, "me/corpus", api=hub)

    (created, made), (uploaded, sent) = hub.calls
    assert (created, made["private"], made["repo_type"]) == ("create_repo", True, "dataset")
    assert (uploaded, sent["path_in_repo"]) == ("upload_file", corpus.name)


def test_a_public_repository_gets_nothing_by_default(corpus):
    """It may have been there before, and then asking for a private one changes nothing."""
    hub = Hub(private=False)

    with pytest.raises(UsageError, match="is public"):
        push_to_hub(corpus, "me/corpus", api=hub)
    assert [name for name, _ in hub.calls] == ["create_repo"]

    push_to_hub(corpus.parent, "me/corpus", is_public=True, api=hub)
    assert [name for name, _ in hub.calls][-1] == "upload_folder"
