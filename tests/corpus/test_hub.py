import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memaudit.corpus import CorpusOptions, Example, read_corpus
from memaudit.errors import CorpusError, UsageError


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Stand in for the hub: one corpus, whose files `datasets` reads from disk."""
    calls = []
    path = tmp_path / "part_000000.parquet"
    table = pa.table({"id": ["a", "b", "c"], "text": ["one", None, "three"], "n": [1, 2, 3]})
    pq.write_table(table, path)
    load_dataset = datasets.load_dataset

    def load(hub_id, **options):
        calls.append({"hub_id": hub_id, **options})
        kept = {key: options[key] for key in ("split", "streaming")}
        return load_dataset(
            "parquet", data_files={"train": str(path)}, cache_dir=str(tmp_path / "cache"), **kept
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda *_, **__: ["one", "two"])
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: ["train"])
    return calls


def failing(monkeypatch, error: Exception) -> None:
    """Make the hub refuse."""

    def load(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_hub_id_is_read_by_datasets(hub, streaming):
    """Rows have the same outcomes as in files."""
    options = CorpusOptions("org/name", config="two", streaming=streaming)

    first, bad, third = read_corpus(options)

    assert first == Example(0, "a", "org/name:1", "one")
    assert (bad.example_id, bad.address) == ("b", "org/name:2")
    assert bad.reason == "row 2: 'text' is null, expected text"
    assert third == Example(2, "c", "org/name:3", "three")


def test_a_part_of_a_split_is_read_or_refused(hub):
    """`datasets` cannot stream a part; to read the whole would be something else."""
    part = {"config": "two", "split": "train[:2]"}

    assert len(list(read_corpus(CorpusOptions("org/name", streaming=False, **part)))) == 2
    with pytest.raises(CorpusError, match=r"a part of a split, train\[:2\], cannot be streamed"):
        list(read_corpus(CorpusOptions("org/name", **part)))


def test_what_is_asked_of_the_hub_is_what_was_given(hub):
    """And nothing that would run code of the corpus."""
    list(read_corpus(CorpusOptions("org/name@v1.0", config="two", split="train", streaming=False)))

    assert hub == [
        {
            "hub_id": "org/name",
            "name": "two",
            "split": "train",
            "revision": "v1.0",
            "streaming": False,
        }
    ]


@pytest.mark.parametrize(
    ("hub_id", "config"),
    [
        ("HuggingFaceFW/fineweb", None),
        ("HuggingFaceFW/fineweb", "sample-10BT"),
        ("Salesforce/wikitext", "wikitext-103-raw-v1"),
        ("nvidia/Nemotron-CC-v2", "High-Quality"),
    ],
)
def test_well_known_corpora_are_named_as_on_the_hub(hub, hub_id, config):
    """Their names are hub ids like any other."""
    assert len(list(read_corpus(CorpusOptions(hub_id, config=config)))) == 3
    assert (hub[0]["hub_id"], hub[0]["name"], hub[0]["split"]) == (hub_id, config, "train")


@pytest.mark.parametrize(
    ("hub_id", "config"),
    [
        ("Salesforce/wikitext", "wikitext-103-raw-v1"),
        ("nvidia/Nemotron-CC-v2", "Medium-High-Quality"),
    ],
)
def test_a_corpus_that_needs_a_configuration_says_which_there_are(hub, hub_id, config):
    """Before the network is touched."""
    with pytest.raises(CorpusError, match="has several configurations") as caught:
        list(read_corpus(CorpusOptions(hub_id)))

    assert config in str(caught.value.hint)
    assert hub == []


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({}, "has several configurations", "--config-name one of: one, two"),
        ({"config": "three"}, "no configuration three", "--config-name one of: one, two"),
        ({"config": "one", "split": "tran[:1%]"}, "no split tran", "--split one of: train"),
        ({"config": "one"}, "cannot be loaded: ValueError", "--revision"),
    ],
)
def test_a_wrong_choice_is_answered_by_the_choices(hub, monkeypatch, options, message, hint):
    """Nobody knows the configurations of a corpus by heart."""
    failing(monkeypatch, ValueError("BuilderConfig not found"))

    with pytest.raises(CorpusError, match=message) as caught:
        list(read_corpus(CorpusOptions("org/name", **options)))

    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (datasets.exceptions.DatasetNotFoundError("x"), "no such corpus on the hub"),
        (ConnectionError("x"), "the hub cannot be reached"),
        (RuntimeError("Dataset scripts are no longer supported"), "cannot be loaded: RuntimeError"),
        (datasets.exceptions.DatasetGenerationError("x"), "cannot be loaded"),
    ],
)
def test_a_hub_that_refuses_is_a_sentence(hub, monkeypatch, error, message):
    """No traceback for a missing network or a name mistyped."""
    failing(monkeypatch, error)

    with pytest.raises(CorpusError, match=message) as caught:
        list(read_corpus(CorpusOptions("org/name", config="one")))

    assert caught.value.hint


def test_offline_is_a_sentence(monkeypatch):
    """`datasets` itself, told to stay offline."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(CorpusError, match=r"cannot be reached|cannot be loaded"):
        list(read_corpus(CorpusOptions("org/name-that-nobody-has-cached")))


def test_a_stream_that_breaks_is_a_sentence(monkeypatch):
    """Rows that came before are not a whole corpus."""

    def rows():
        yield {"text": "CANARY"}
        raise ConnectionError("CANARY")

    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.IterableDataset.from_generator(rows)
    )
    found = read_corpus(CorpusOptions("org/name"))

    assert next(found).row == 0
    with pytest.raises(CorpusError, match="reading stopped after row 1") as caught:
        next(found)
    assert "CANARY" not in caught.value.message


def test_a_stream_without_a_schema_is_settled_by_its_rows(monkeypatch):
    """JSON corpora have no schema before the first row."""
    rows = [{"body": "a", "key": 1}, {"body": "b", "key": 2}]
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *_, **__: datasets.IterableDataset.from_generator(lambda: iter(rows)),
    )

    found = list(read_corpus(CorpusOptions("o/n", text_column="body", id_column="key")))

    assert [(row.example_id, row.text) for row in found] == [("1", "a"), ("2", "b")]


def test_a_column_the_hub_does_not_have_is_an_error(hub):
    """The same hint as for files."""
    with pytest.raises(CorpusError, match="no column 'txt'") as caught:
        list(read_corpus(CorpusOptions("org/name", text_column="txt")))

    assert caught.value.hint == "did you mean 'text'? columns: id, text, n"


def test_a_folder_of_that_name_is_the_folder(hub, tmp_path, monkeypatch):
    """What is here goes before what is elsewhere."""
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "a.jsonl").write_text('{"text": "local"}')
    monkeypatch.chdir(tmp_path)

    (row,) = read_corpus(CorpusOptions("org/name"))

    assert (row.text, hub) == ("local", [])


def test_two_revisions_are_refused():
    """One of them would be ignored."""
    with pytest.raises(UsageError, match="two revisions, v1 and v2"):
        read_corpus(CorpusOptions("org/name@v1", revision="v2"))
