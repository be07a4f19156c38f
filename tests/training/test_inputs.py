"""What stands beside the tables is read too: labels for another model must not be fitted."""

import json

import pytest
from support.fakes import ZLIB
from support.verified_tables import SIGNAL, make_rows, write_run

from memaudit.errors import ClassifierError, CorpusError, UsageError
from memaudit.training.inputs import objective_of, read_inputs
from memaudit.training.selection import plan_features

SETTINGS = {"objective": "soft", "temperature": 2.0, "cross_entropy_share": 0.0, "seed": 3}


@pytest.fixture
def pair(tmp_path):
    """The folders of labels and scores."""
    return write_run(tmp_path, "run", *make_rows(n=4))


def describe(pair, settings=SETTINGS, **summary):
    """Write the documents beside the tables."""
    verification = {"settings": settings, "models": {"teacher": "t", "student": "s"}}
    (pair[0] / "verification.json").write_text(json.dumps(verification))
    (pair[1] / "summary.json").write_text(json.dumps(summary))


def test_a_card_learns_how_the_tables_came_about(pair):
    """Digests of the files, models and options; nothing else of the documents."""
    describe(pair, teacher="models/t", teacher_digest="abc", worst=[{"id": "secret"}])

    (one,) = read_inputs([pair])

    document = one.document()
    assert one.name == "run"
    assert document["scores"]["teacher_digest"] == "abc"
    assert document["labels"]["student"] == "s"
    assert document["labels"]["seed"] == 3
    assert len(document["labels"]["sha256"]) == 64
    assert "secret" not in json.dumps(document)


def test_tables_alone_are_enough(pair):
    """Labels need not come from memaudit."""
    (one,) = read_inputs([(pair[0] / "verification.parquet", pair[1] / "risk.parquet")])

    assert one.name == "risk"
    assert one.about_labels == one.about_scores == {}


def test_runs_of_the_same_name_are_told_apart(pair):
    """The same folder twice is two runs of one name."""
    assert [one.name for one in read_inputs([pair, pair, pair])] == ["run", "run-2", "run-3"]


@pytest.mark.parametrize(
    ("settings", "summary", "message"),
    [
        (
            {"teacher_digest": "abc"},
            {"teacher_digest": "xyz"},
            "teacher digest is abc for .* and xyz",
        ),
        ({"suffix_tokens": 50}, {"suffix_tokens": 16}, "suffix tokens is 50 for .* and 16"),
        (SETTINGS | {"temperature": 4.0}, {}, "log_temperature is"),
        (SETTINGS | {"objective": "hard"}, {}, "log_temperature is"),
        (SETTINGS, {"objective": "hard"}, "objective is soft for .* and hard for"),
    ],
)
def test_labels_of_another_model_or_objective_are_refused(pair, settings, summary, message):
    """They would be joined without a murmur: the rows are the same."""
    describe(pair, settings, **summary)

    with pytest.raises(ClassifierError, match=message):
        read_inputs([pair])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "summary.json: not valid JSON"),
        ("[]", "expected a JSON object, got a list"),
        (
            '{"settings": {"objective": "x", "temperature": 1, "cross_entropy_share": 0}}',
            "kind must",
        ),
        (
            '{"objective": "soft", "temperature": "x", "cross_entropy_share": 0}',
            "could not convert",
        ),
    ],
)
def test_a_broken_document_is_refused(pair, content, message):
    """Half a copy says nothing about the tables."""
    name = "verification.json" if "objective" in content else "summary.json"
    (pair[name == "summary.json"] / name).write_text(content)

    with pytest.raises(CorpusError, match=message):
        read_inputs([pair])


def test_one_classifier_is_for_one_objective(pair):
    """Students of hard labels memorize otherwise: the two are not mixed."""
    assert objective_of(read_inputs([pair]), None) == "soft"
    assert objective_of(read_inputs([pair]), "hard") == "hard"
    describe(pair)
    assert objective_of(read_inputs([pair]), "soft") == "soft"
    with pytest.raises(UsageError, match="one objective, got hard and soft"):
        objective_of(read_inputs([pair]), "hard")


def test_there_has_to_be_a_pair():
    """Of whom else?"""
    with pytest.raises(UsageError, match="no tables"):
        read_inputs([])


@pytest.mark.parametrize("feature_set", ["teacher", "teacher+student", "teacher+baseline"])
def test_the_feature_set_follows_from_the_columns(tmp_path, feature_set):
    """A risk table has the columns of the models that it was made with."""
    pair = write_run(tmp_path, "run", *make_rows(n=4, feature_set=feature_set))
    inputs = read_inputs([pair])

    assert plan_features(inputs, None, ()).feature_set == feature_set
    assert plan_features(inputs, "teacher", ()).feature_set == "teacher"
    assert plan_features(inputs, None, (SIGNAL,)).given == (SIGNAL,)


def test_features_that_cannot_be_fitted_are_named(pair):
    """A typo gets its correction, a missing column its table."""
    inputs = read_inputs([pair])

    with pytest.raises(UsageError, match="no feature teacher_sufix") as caught:
        plan_features(inputs, None, ("teacher_sufix_entropy",))
    assert caught.value.hint == "did you mean teacher_suffix_entropy?"
    with pytest.raises(UsageError, match="no feature x in the set teacher"):
        plan_features(inputs, None, ("x",))
    with pytest.raises(ClassifierError, match=r"risk.parquet: expected the column kl_divergence"):
        plan_features(inputs, "teacher+baseline", ("kl_divergence",))


def test_labels_given_as_scores_are_refused(pair):
    """The two folders are easily swapped."""
    with pytest.raises(UsageError, match="expected one of"):
        read_inputs([(pair[1], pair[0])])
    inputs = read_inputs([(pair[0], pair[0] / "verification.parquet")])
    with pytest.raises(ClassifierError, match="it has 0 columns of that set"):
        plan_features(inputs, None, ())


def test_scores_of_another_zlib_are_refused(pair):
    """Its lengths are other numbers under the same name."""
    manifest = pair[1] / "manifest.json"
    manifest.write_text(json.dumps({"inputs": {"zlib": {"golden_sha256": ZLIB.golden_sha256}}}))
    read_inputs([pair])

    manifest.write_text(json.dumps({"inputs": {"zlib": {"golden_sha256": "0" * 64}}}))
    with pytest.raises(ClassifierError, match="measured with another zlib"):
        read_inputs([pair])


def test_scores_for_other_epochs_are_refused(pair):
    """Exposure grows with the epochs: labels of a longer training would teach a wrong slope."""
    describe(pair, {"epochs": 5.0})
    manifest = pair[1] / "manifest.json"
    manifest.write_text(json.dumps({"inputs": {"exposure": {"gram_tokens": 8, "epochs": 5.0}}}))
    read_inputs([pair])

    manifest.write_text(json.dumps({"inputs": {"exposure": {"gram_tokens": 8, "epochs": 3.0}}}))
    with pytest.raises(ClassifierError, match=r"epochs are 5\.0 for .* and 3\.0 for"):
        read_inputs([pair])
