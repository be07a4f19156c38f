"""Classifiers are predictions that others trust: exact, strict about what they read, inert."""

import json
import os
import pickle
import random
import sys
import zlib
from hashlib import sha256
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from memaudit.classifier import (
    FILE_NAME,
    MAX_FILE_SIZE,
    Calibration,
    RiskClassifier,
    SampledRisk,
    check_zlib,
    find_classifier,
    load_classifier,
    save_classifier,
    shipped_classifiers_dir,
    sigmoid,
    told_classifier,
)
from memaudit.errors import ClassifierError, OutputError
from memaudit.features import zlib_record
from memaudit.memorization import revealed_nats
from memaudit.objectives import ObjectiveKind

FEATURES = ("zlib_entropy", "log_occurrences", "teacher_suffix_mean_logprob")


def make_classifier(**changes):
    """A classifier of three features with plain numbers."""
    fields = {
        "name": "teacher",
        "feature_set": "teacher",
        "features": FEATURES,
        "means": (100.0, 1.0, -2.0),
        "scales": (10.0, 0.5, 1.0),
        "coefficients": (-0.25, 2.0, 1.0),
        "intercept": -3.0,
        "calibration": Calibration(slope=0.5, intercept=-1.0),
        "threshold": 0.3,
        "count_log_sd": 0.2,
        "feature_ranges": ((50.0, 150.0), (0.0, 3.0), (-9.0, 0.0)),
        "zlib": zlib_record(),
        "provenance": {"recipe": "soft, T = 2"},
    }
    return RiskClassifier(**(fields | changes))


SAMPLED = SampledRisk(
    intercept=-1.0,
    slope=0.5,
    nats_slope=2.0,
    interaction=-0.1,
    count_log_sds=((10, 0.5), (1000, 0.4)),
)


@pytest.fixture
def saved(tmp_path):
    """The JSON of a valid classifier, to be spoilt."""
    save_classifier(make_classifier(), tmp_path)
    return json.loads((tmp_path / FILE_NAME).read_text())


def write(path, document):
    """Write a document with a digest that fits, so that the digest is not what refuses it."""
    canonical = msgspec.json.encode(document["classifier"], order="sorted")
    path.write_bytes(msgspec.json.encode(document | {"digest": sha256(canonical).hexdigest()}))
    return path


matrices = arrays(
    np.float64,
    st.tuples(st.integers(1, 20), st.just(len(FEATURES))),
    elements=st.floats(-1e9, 1e9),
)


def test_what_samples_reveal_follows_from_log_odds_and_length():
    """The formula on paper."""
    found = SAMPLED.predict(np.array([-2.5, 3.0]), np.array([16.0, 50.0]))

    assert found.shape == (2, 2)
    for row, n in enumerate((10, 1000)):
        short, long = (np.log(revealed_nats(n) / tokens) for tokens in (16, 50))
        assert found[row, 0] == pytest.approx(sigmoid(-1 - 1.25 + (2 + 0.25) * short))
        assert found[row, 1] == pytest.approx(sigmoid(-1 + 1.5 + (2 - 0.3) * long))


def test_more_samples_never_reveal_less():
    """Beyond the log-odds of the study the formula alone would turn round."""
    found = SAMPLED.predict(np.array([-30.0, 0.0, 30.0]), np.full(3, 16.0))

    assert (found[1] >= found[0]).all()


def test_a_classifier_without_a_map_for_samples_keeps_its_digest(tmp_path):
    """Runs of before name it, and files of before are still read."""
    save_classifier(make_classifier(), tmp_path / "without")
    save_classifier(make_classifier(sampled=SAMPLED), tmp_path / "with")

    assert b"sampled" not in (tmp_path / "without" / FILE_NAME).read_bytes()
    assert load_classifier(tmp_path / "with").sampled == SAMPLED
    assert make_classifier().digest != make_classifier(sampled=SAMPLED).digest


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        *((name, 1e60, "finite numbers") for name in ("intercept", "slope", "nats_slope")),
        ("interaction", -1e60, "finite numbers"),
        *(
            ("count_log_sds", found, "rising numbers of samples")
            for found in (
                [[0, 0.1]],
                [[9, 0.1], [9, 0.1]],
                [[9, -0.1]],
                [[9, 21]],
                [[9, 1], [1, 1]],
            )
        ),
    ],
)
def test_a_map_for_samples_has_limits(tmp_path, field, value, says):
    """A file from anywhere must not give numbers that are none."""
    save_classifier(make_classifier(sampled=SAMPLED), tmp_path)
    document = json.loads((tmp_path / FILE_NAME).read_text())
    document["classifier"]["sampled"][field] = value

    with pytest.raises(ClassifierError, match=says):
        load_classifier(write(tmp_path / "spoilt.json", document))


def test_a_logit_is_the_weighted_sum_of_standardised_features():
    """The formula on paper: -0.25 * 2 + 2 * 2 + 1 * 1 - 3 = 1.5."""
    X = np.array([[120.0, 2.0, -1.0]])

    assert make_classifier().predict_logit(X) == pytest.approx([1.5], abs=1e-15)


def test_a_probability_is_the_sigmoid_of_the_calibrated_logit():
    """Calibration on paper: sigmoid(0.5 * 1.5 - 1)."""
    X = np.array([[120.0, 2.0, -1.0]])

    assert make_classifier().predict_proba(X) == pytest.approx([1 / (1 + np.exp(0.25))], abs=1e-15)


@settings(max_examples=50, deadline=None)
@given(X=matrices)
def test_a_row_has_the_same_bits_whatever_stands_beside_it(X):
    """A resumed or sharded run cuts other batches, and must write the same file."""
    classifier = make_classifier()

    together = classifier.predict_proba(X)

    alone = [classifier.predict_proba(X[i : i + 1])[0] for i in range(len(X))]
    assert together.tolist() == alone
    assert classifier.predict_proba(np.asfortranarray(X)).tolist() == alone


@settings(max_examples=50, deadline=None)
@given(X=matrices)
def test_calibration_keeps_the_order(X):
    """Rankings are reported from probabilities; calibration must not change them."""
    classifier = make_classifier()

    order = np.argsort(classifier.predict_logit(X), kind="stable")

    assert (np.diff(classifier.predict_proba(X)[order]) >= 0).all()


def test_the_sigmoid_neither_overflows_nor_leaves_its_range():
    """Extreme features give 0 or 1, not a warning or NaN."""
    logits = np.array([-1e300, -745.0, 0.0, 745.0, 1e300])

    assert sigmoid(logits) == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0])


def test_no_rows_give_no_probabilities():
    """An empty chunk is a chunk."""
    assert make_classifier().predict_proba(np.empty((0, 3))).shape == (0,)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_not_finite_is_refused_by_name(broken):
    """A model with NaN weights must not end in a table of plausible probabilities."""
    X = np.array([[120.0, 2.0, -1.0], [120.0, broken, -1.0]])

    with pytest.raises(ClassifierError, match=r"log_occurrences .* in 1 of 2 windows"):
        make_classifier().predict_proba(X)


@pytest.mark.parametrize("shape", [(3,), (2, 2), (2, 4), (1, 2, 3)])
def test_a_matrix_of_another_shape_is_a_mistake_of_the_caller(shape):
    """Broadcasting would otherwise accept some of them."""
    with pytest.raises(ValueError, match="expected X of shape"):
        make_classifier().predict_proba(np.zeros(shape))


def test_out_of_range_rates_count_rows_beyond_training():
    """Probabilities far from the training features deserve a warning."""
    X = np.array([[49.0, 0.0, -9.0], [150.0, 3.5, 0.0], [151.0, 1.0, -1.0], [100.0, 1.0, -1.0]])

    rates = make_classifier().out_of_range_rate(X)

    assert rates == dict(zip(FEATURES, (0.5, 0.25, 0.0), strict=True))
    assert make_classifier().out_of_range_rate(X[:0]) == dict.fromkeys(FEATURES, 0.0)


def test_the_expected_count_widens_with_the_recorded_spread():
    """A classifier whose calibration runs disagreed promises less."""
    probabilities = np.full(1000, 0.1)

    sure = make_classifier(count_log_sd=0.0).expected_count(probabilities)
    unsure = make_classifier(count_log_sd=1.0).expected_count(probabilities)

    assert sure.mean == unsure.mean == pytest.approx(100)
    assert 0 <= unsure.low < sure.low < 100 < sure.high < unsure.high <= 1000


def test_a_saved_classifier_is_read_back_equal_from_folder_and_file(tmp_path):
    """Shipped classifiers are folders, users pass files."""
    classifier = make_classifier(intercept=0.1 + 0.2, means=(1 / 3, -0.0, 5e-324))

    save_classifier(classifier, tmp_path / "models" / "mine")
    save_classifier(classifier, tmp_path / "mine.json")

    assert load_classifier(tmp_path / "models" / "mine") == classifier
    assert load_classifier(tmp_path / "mine.json") == classifier
    assert load_classifier(tmp_path / "mine.json").digest == classifier.digest


def test_the_same_classifier_gives_the_same_bytes(tmp_path):
    """The file is committed and hashed."""
    save_classifier(make_classifier(provenance={"a": "1", "b": "2"}), tmp_path / "a.json")
    save_classifier(make_classifier(provenance={"b": "2", "a": "1"}), tmp_path / "b.json")

    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    """A full disk must not cost the classifier that was there."""
    save_classifier(make_classifier(), tmp_path)
    before = (tmp_path / FILE_NAME).read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        save_classifier(make_classifier(intercept=0.0), tmp_path)

    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_a_place_below_a_file_cannot_be_written(tmp_path):
    """The remedy is the user's, so it is an error with a hint."""
    (tmp_path / "file").write_text("")

    with pytest.raises(OutputError) as caught:
        save_classifier(make_classifier(), tmp_path / "file" / "folder")
    assert caught.value.hint


def test_a_file_edited_by_hand_is_refused(tmp_path, saved):
    """A changed threshold would change every verdict unseen."""
    saved["classifier"]["threshold"] = 0.4
    (tmp_path / FILE_NAME).write_text(json.dumps(saved))

    with pytest.raises(ClassifierError, match="digest"):
        load_classifier(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("means", [0.0, 0.0]),
        ("means", [0.0, 0.0, 1e308]),
        ("means", [0.0, 0.0, None]),
        ("means", [0.0, 0.0, True]),
        ("means", [0.0, 0.0, "0"]),
        ("means", [0.0, 0.0, [0.0]]),
        ("means", [0.0, 0.0, 10**400]),
        ("scales", [1.0, 1.0, 0.0]),
        ("scales", [1.0, 1.0, -1.0]),
        ("scales", [1.0, 1.0, 1e-60]),
        ("coefficients", []),
        ("coefficients", [0.1] * 100_000),
        ("coefficients", [0.1] * 1_000_000),
        ("features", ["log_occurrences", "zlib_entropy", "teacher_suffix_mean_logprob"]),
        ("features", ["zlib_entropy", "zlib_entropy", "log_occurrences"]),
        ("features", ["zlib_entropy", "log_occurrences", "kl_divergence"]),
        ("features", ["zlib_entropy", "log_occurrences", "__class__"]),
        ("features", []),
        ("feature_set", "everything"),
        ("feature_ranges", [[0, 1], [0, 1], [1, 0]]),
        ("feature_ranges", [[0, 1], [0, 1], [0, 1, 2]]),
        ("calibration", {"slope": 0.0, "intercept": 0.0}),
        ("calibration", {"slope": -1.0, "intercept": 0.0}),
        ("calibration", {"slope": 1.0, "intercept": 1e308}),
        ("calibration", {"slope": 1.0, "intercept": 0.0, "more": 0.0}),
        ("threshold", 0.0),
        ("threshold", 1.0),
        ("threshold", -0.5),
        ("count_log_sd", -0.1),
        ("count_log_sd", 21),
        ("intercept", -1e308),
        ("name", "../../etc/passwd"),
        ("name", "\x1b[31mred"),
        ("name", ""),
        ("zlib", {"version": "1.3"}),
        ("provenance", {"seed": 1}),
        ("surprise", 1),
    ],
)
def test_a_wrong_value_is_refused(tmp_path, saved, field, value):
    """With a digest that fits: the digest proves nothing against who can compute it."""
    saved["classifier"][field] = value
    refused(write(tmp_path / "spoilt.json", saved))


@pytest.mark.parametrize("field", ["threshold", "zlib", "features", "provenance"])
def test_a_missing_field_is_refused(tmp_path, saved, field):
    """No default may stand in for what was fitted."""
    del saved["classifier"][field]
    refused(write(tmp_path / "spoilt.json", saved))


def test_another_format_is_named(tmp_path, saved):
    """An old memaudit must not misread a new file: it says so before it looks at the keys."""
    path = write(tmp_path / "new.json", saved | {"format": 2, "new_key": []})

    assert "expected format 1, got 2" in refused(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"format": 1}',
        b'{"format": NaN}',
        b'{"format": 1, "classifier": {"intercept": NaN}, "digest": ""}',
        b'{"format": 1, "classifier": {"intercept": Infinity}, "digest": ""}',
        b'{"format": 1, "classifier": {"intercept": 1e999}, "digest": ""}',
        b'{"format": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"format": 1, "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"format": 1, "\x1b]0;title\x07": 1}',
        b'{"format": 1, "\\u001b[2J": 1}',
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b'{"format": 1, "digest": "\xff", "classifier": {}}',
        b'{"format": 1, "digest": "\\ud800", "classifier": {}}',
        b"PK\x03\x04" + b"\0" * 30,
        pickle.dumps({"coefficients": [1.0]}),
        pickle.dumps({"coefficients": [1.0]}, protocol=0),
        b" " * (MAX_FILE_SIZE + 1),
    ],
    ids=range(23),
)
def test_what_is_not_a_classifier_is_refused(tmp_path, content):
    """Archives, pickles, bombs and plain damage all end in one line."""
    path = tmp_path / "hostile.json"
    path.write_bytes(content)
    refused(path)


def refused(path):
    """Load, expect the error a user can act on, and return its message."""
    with pytest.raises(ClassifierError) as caught:
        load_classifier(path)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 600
    assert caught.value.hint
    return caught.value.message


def test_missing_files_pipes_and_impossible_names_are_refused(tmp_path):
    """A pipe would block for ever, a device never end."""
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "empty").mkdir()

    for name in ("absent", "pipe.json", "empty", "x" * 5000, "a\0b", "\x1b[31m"):
        refused(tmp_path / name)
    refused(Path("/dev/zero"))


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return Path.touch, (self.sentinel,)


def test_a_planted_pickle_never_runs(tmp_path):
    """A classifier file from elsewhere must not run code, whatever it is called."""
    sentinel = tmp_path / "ran"
    for name in (FILE_NAME, "classifier.pkl", "classifier.joblib", "model.skops"):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            (tmp_path / name).write_bytes(pickle.dumps(Bomb(sentinel), protocol))
            refused(tmp_path / name)
    refused(tmp_path)
    assert not sentinel.exists()

    pickle.loads((tmp_path / FILE_NAME).read_bytes())
    assert sentinel.exists()  # the trap was a live one


SPLICES = (
    *(b"NaN", b"1e308", b"-1e999", b"null", b"true", b"[", b"]", b"{", b"}", b'"', b",", b":"),
    *(b"\\ud800", b"\xff", b"\x00", b"\x1b", b"0" * 5000, b"9" * 400, b"[" * 3000, b"-", b"."),
)


def mutated_bytes(content, rng):
    """Flip, drop, repeat or insert bytes in one to three places."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.choice((0, 1, 1, 2, 40)))
        inserted = rng.choice(
            (b"", bytes([rng.randrange(256)]), rng.choice(SPLICES), content[start:end] * 2)
        )
        content = content[:start] + inserted + content[end:]
    return content


VALUES = (
    None,
    True,
    0,
    -1,
    1e308,
    1e-308,
    10**30,
    "",
    "teacher",
    "\x00",
    [],
    [0.5],
    {},
    {"a": "b"},
)


def mutated_document(document, rng):
    """Replace, drop, repeat or move one value somewhere in the tree; the digest then fits."""
    document = json.loads(json.dumps(document))
    node = document["classifier"]
    key = rng.choice(list(node))
    while isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.7:
        node = node[key]
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
    action = rng.randrange(4)
    if action == 0:
        del node[key]
    elif action == 1 and isinstance(node, list):
        node.insert(key, node[key])
    elif action == 2 and isinstance(node, list):
        node.reverse()
    else:
        node[key] = rng.choice(VALUES)
    canonical = msgspec.json.encode(document["classifier"], order="sorted")
    return msgspec.json.encode(document | {"digest": sha256(canonical).hexdigest()})


@pytest.mark.parametrize("seed", range(10))
def test_mutated_files_are_refused_or_work(tmp_path, saved, seed):
    """1,000 a seed: nothing but ClassifierError, and what is accepted gives probabilities."""
    rng = random.Random(seed)
    original = json.dumps(saved).encode()
    path = tmp_path / "mutated.json"
    n_accepted = 0
    for _ in range(500):
        for content in (mutated_bytes(original, rng), mutated_document(saved, rng)):
            path.write_bytes(content)
            try:
                classifier = load_classifier(path)
            except ClassifierError:
                continue
            n_accepted += 1
            probability = classifier.predict_proba(np.ones((1, len(classifier.features))))
            assert 0 <= probability[0] <= 1
    assert 0 < n_accepted < 500


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of shipped classifiers: one of the teacher alone, one with the baseline."""
    folder = tmp_path / "models"
    monkeypatch.setattr("memaudit.classifier.shipped_classifiers_dir", lambda: folder)
    save_classifier(make_classifier(), folder / "teacher")
    features = ("zlib_entropy", "teacher_perplexity", "baseline_perplexity")
    with_baseline = make_classifier(
        name="teacher+baseline", feature_set="teacher+baseline", features=features
    )
    save_classifier(with_baseline, folder / "teacher+baseline")
    return folder


def test_shipped_classifiers_lie_in_the_package_or_beside_it():
    """Inside an installed wheel, or in a checkout."""
    package = Path(sys.modules["memaudit.classifier"].__file__).parent

    assert shipped_classifiers_dir() in (package / "models", package.parent / "models")


def test_the_shipped_classifier_of_the_feature_set_is_the_default(shipped):
    """Who gives two models should not have to know a name."""
    assert find_classifier(None, "teacher").name == "teacher"
    assert find_classifier(None, "teacher+baseline").name == "teacher+baseline"


def test_a_classifier_is_found_by_name_and_by_path(shipped, tmp_path):
    """One option for both; a shipped name wins."""
    save_classifier(make_classifier(name="mine"), tmp_path / "mine")

    assert find_classifier("teacher", "teacher+student").name == "teacher"
    assert find_classifier(str(tmp_path / "mine"), "teacher").name == "mine"
    assert find_classifier(str(tmp_path / "mine" / FILE_NAME), "teacher").name == "mine"


@pytest.mark.parametrize("objective", get_args(ObjectiveKind))
def test_the_classifier_that_a_summary_names_is_found(objective):
    """Its own uncertainty is part of the interval that a verification is compared with."""
    classifier = find_classifier(None, "teacher+baseline", objective)
    summary = {"feature_set": "teacher+baseline", "objective": objective}
    summary |= {"classifier": classifier.name, "classifier_digest": classifier.digest}

    assert told_classifier(summary) == classifier
    assert told_classifier(summary | {"classifier_digest": "0" * 64}) is None
    assert told_classifier(summary | {"classifier": "absent"}) is None
    assert told_classifier({}) is None


@pytest.mark.parametrize("name", [None, "absent", "../models/absent", "a\0b", "x" * 5000])
def test_a_missing_classifier_is_an_error_with_the_choices(shipped, name):
    """The user picks from what there is."""
    with pytest.raises(ClassifierError, match=r"one of: teacher, teacher\+baseline") as caught:
        find_classifier(name, "teacher+student")
    assert "--classifier" in (caught.value.hint or "")


def test_a_classifier_that_needs_another_model_says_which(shipped):
    """Otherwise it would fail deep inside, or run on zeros."""
    with pytest.raises(ClassifierError) as caught:
        find_classifier("teacher+baseline", "teacher+student")

    assert caught.value.message == (
        "classifier teacher+baseline expects 3 features, this run has 2: no baseline perplexity"
    )
    assert caught.value.hint == "give --baseline, or choose a classifier without it"


def test_this_interpreter_fits_what_it_recorded():
    """Nobody is refused on the machine that fitted the classifier."""
    check_zlib(make_classifier())


def test_another_zlib_is_refused_where_its_lengths_matter(monkeypatch):
    """Other implementations shift a feature by up to a third, silently."""
    classifier = make_classifier()
    without_zlib = make_classifier(
        features=("log_occurrences", "teacher_perplexity", "teacher_suffix_perplexity")
    )
    original = zlib.compress
    monkeypatch.setattr(zlib, "compress", lambda text, level: original(text, level=9))

    with pytest.raises(ClassifierError, match="zlib"):
        check_zlib(classifier)
    check_zlib(without_zlib)
