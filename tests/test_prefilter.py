"""The cascade leaves out what cannot be flagged, and of the rest only what it can vouch for."""

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import make_classifier

from memaudit.classifier import find_classifier, shipped_classifiers_dir
from memaudit.errors import ClassifierError, UsageError
from memaudit.features import (
    CORPUS_FEATURES,
    EXPOSURE_FEATURES,
    FEATURE_SETS,
    REFERENCE_FEATURES,
)
from memaudit.metrics import clopper_pearson
from memaudit.prefilter import (
    Prefilter,
    load_prefilter_fit,
    make_prefilter,
    prefilter_fit_bytes,
    prefilter_fit_path,
)

SOFT = tuple(name for name in FEATURE_SETS if "aligned" not in name)  # those that are shipped


def windows(*, occurrences=(1,), zlib_entropy=(120.0,), temperature=2.0, share=0.0):
    """What the corpus tells of windows, one for each pair of occurrences and zlib entropy."""
    pairs = np.array(list(itertools.product(occurrences, zlib_entropy)), dtype=float)
    n = len(pairs)
    return {
        "log_temperature": np.full(n, np.log(temperature)),
        "cross_entropy_share": np.full(n, share),
        "zlib_entropy": pairs[:, 1],
        "suffix_zlib_entropy": pairs[:, 1] / 2,
        "zlib_ratio": np.full(n, 0.7),
        "occurrences": pairs[:, 0],
        "log_occurrences": np.log(pairs[:, 0]),
        "exposure_median": pairs[:, 0],
        "exposure_share": (pairs[:, 0] > 1).astype(float),
        "log_exposure": np.log(pairs[:, 0] * 3),
    }


def read_by_reference(known, logprob=-4.0):
    """What small models say of windows beside what the corpus tells."""
    n = len(known["occurrences"])
    said = {"rate": 0.5, "entropy": 2.0, "perplexity": 50.0}
    values = {name: said.get(name.rsplit("_", 1)[-1], logprob) for name in REFERENCE_FEATURES}
    return {**known, **{name: np.full(n, value) for name, value in values.items()}}


def screen(flagged=(0.1, 0.2, 0.3), **changes):
    """The shipped screen of the teacher, calibrated on other windows."""
    shipped = load_prefilter_fit(prefilter_fit_path(shipped_classifiers_dir(), "teacher"))
    return msgspec.structs.replace(shipped, flagged=tuple(flagged), **changes)


scores = st.floats(-60, 60)


@given(
    occurrences=st.integers(1, 1000),
    logprob=st.floats(-20, 0),
    temperature=st.floats(0.5, 8),
    share=st.floats(0, 1),
)
def test_no_window_gets_more_than_the_highest_probability(occurrences, logprob, temperature, share):
    """This is the promise: what is left out by the bound is lost to nobody."""
    classifier = find_classifier("teacher", "teacher")
    known = windows(occurrences=[occurrences], temperature=temperature, share=share)

    said = dict.fromkeys(classifier.features, np.array([logprob]))
    X = np.column_stack([(said | known)[name] for name in classifier.features])
    bound = Prefilter(classifier=classifier, survival=1.0).highest(known)
    assert classifier.predict_proba(X)[0] <= bound[0]


def test_a_feature_without_a_limit_leaves_everything_possible():
    """By how much a token beats its rivals knows no bound, so nothing may be concluded from it."""
    classifier = make_classifier(features=("occurrences", "teacher_suffix_min_margin"))

    bound = Prefilter(classifier=classifier, survival=1.0).highest(windows(occurrences=[1, 8]))
    assert bound.tolist() == [1.0, 1.0]


def test_the_bound_looks_at_the_corpus_alone():
    """If scores of models slipped in, the savings on paper would be those of an oracle."""
    classifier = find_classifier("teacher", "teacher")
    cascade = Prefilter(classifier=classifier, survival=1.0)
    known = windows(occurrences=[1, 2, 32])

    told = {**known, "teacher_suffix_max_entropy": np.full(3, 9.0)}
    np.testing.assert_array_equal(cascade.highest(told), cascade.highest(known))


def test_what_occurs_once_may_need_no_score():
    """Where even a teacher that is sure of every token cannot make the classifier flag a window."""
    classifier = find_classifier("teacher", "teacher")
    lenient, strict = (
        msgspec.structs.replace(classifier, intercept=classifier.intercept + shift)
        for shift in (6, -2)
    )

    assert make_prefilter(lenient, 1.0).keeps(windows(occurrences=[1, 2, 32])).all()
    kept = make_prefilter(strict, 1.0).keeps(windows(occurrences=[1, 2, 32]))
    assert kept.tolist() == [False, kept[1], True]


@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=400), st.floats(0.5, 0.9999))
def test_a_cutoff_keeps_what_it_can_vouch_for(flagged, survival):
    """Clopper-Pearson, one-sided at 95 %: the calibration windows that are lost are few enough."""
    it = screen(sorted(flagged))
    if it.misses(survival) is None:
        with pytest.raises(UsageError, match=f"calibrated on {len(flagged):,} flagged windows"):
            it.cutoff(survival)
        return

    survived = sum(each >= it.cutoff(survival) for each in flagged)
    assert clopper_pearson(survived, len(flagged), 0.9).low >= survival


def test_598_windows_vouch_for_995_in_a_thousand_if_none_is_lost():
    """The textbook number: ln 0.05 / ln 0.995."""
    flagged = np.linspace(0.1, 0.9, 598)

    assert screen(flagged).misses(0.995) == 0
    assert screen(flagged[:-1]).misses(0.995) is None


def test_a_lower_survival_never_costs_more_reading():
    """The dial turns one way only."""
    it = screen(np.linspace(0.001, 0.9, 2000))

    cutoffs = [it.cutoff(survival) for survival in (0.998, 0.995, 0.99, 0.95, 0.9, 0.5)]
    assert cutoffs == sorted(cutoffs)


def test_windows_unlike_those_of_the_calibration_are_read():
    """The calibration says nothing of them."""
    classifier = find_classifier("teacher", "teacher")
    lenient = msgspec.structs.replace(classifier, intercept=classifier.intercept + 6)
    estimator = screen().estimator
    cascade = Prefilter(classifier=lenient, survival=0.9, estimator=estimator, cutoff=1.0)

    (familiar,) = cascade.keeps(windows(zlib_entropy=[60.0]))
    (beyond,) = cascade.keeps(windows(zlib_entropy=[6000.0]))
    assert not familiar
    assert beyond


def test_where_the_reference_was_not_asked_the_bound_is_what_is_known():
    """Of a window that the corpus rules out nobody has read a token."""
    cascade = make_prefilter(find_classifier("teacher+baseline", "teacher+baseline"), 0.995)
    known = read_by_reference(windows(occurrences=[1, 8]))
    unread = {**known}
    for name in REFERENCE_FEATURES:
        unread[name] = np.where([True, False], np.nan, known[name])

    highest = cascade.highest(windows(occurrences=[1]))
    assert cascade.probabilities(unread)[0] == highest[0]
    assert cascade.probabilities(unread)[1] == cascade.probabilities(known)[1]


@pytest.mark.parametrize("name", SOFT)
def test_first_stage_probabilities_stay_below_what_could_be_flagged(name):
    """A screened row that looked riskier than the threshold would contradict its outcome."""
    cascade = make_prefilter(find_classifier(name, name), 0.995)
    corpus = windows(occurrences=[1, 2, 8, 32], zlib_entropy=[60.0, 120.0, 200.0])
    known = read_by_reference(corpus)

    left_out = ~cascade.keeps(known)
    assert left_out.any()
    assert (cascade.probabilities(known)[left_out] < cascade.classifier.threshold).all()


@pytest.mark.parametrize("name", SOFT)
def test_a_screen_is_shipped_that_fits_its_classifier(name):
    """One that was calibrated on another classifier's flags would vouch for nothing."""
    found = load_prefilter_fit(prefilter_fit_path(shipped_classifiers_dir(), name))

    assert found.classifier_digest == find_classifier(name, name).digest
    assert {*found.estimator.features} <= {
        *CORPUS_FEATURES,
        *EXPOSURE_FEATURES,
        *REFERENCE_FEATURES,
    }
    assert found.misses(0.995) is not None


def test_a_classifier_without_a_screen_has_the_bound_alone():
    """One of the user's own is protected just as well, if not as cheaply."""
    classifier = msgspec.structs.replace(find_classifier("teacher", "teacher"), intercept=-4.0)

    cascade = make_prefilter(classifier, 0.995)
    assert cascade.estimator is None
    assert cascade.survival == 1.0
    known = windows(occurrences=[1, 2])
    np.testing.assert_array_equal(cascade.probabilities(known), cascade.highest(known))


@pytest.mark.parametrize("survival", [0.0, -1.0, 1.5, float("nan")])
def test_a_survival_that_is_no_share_is_refused(survival):
    """It would silently screen all or nothing."""
    with pytest.raises(UsageError, match="expected a share above 0 and up to 1"):
        make_prefilter(find_classifier("teacher", "teacher"), survival)


def test_a_survival_beyond_the_calibration_is_refused():
    """A promise that nothing backs is worse than none."""
    with pytest.raises(UsageError, match=r"can vouch for a survival of 0\.99"):
        make_prefilter(find_classifier("teacher", "teacher"), 0.9999)


def test_a_screen_survives_its_file(tmp_path):
    """The same screen gives the same bytes, so that shipping twice changes nothing."""
    path = tmp_path / "screen.json"
    path.write_bytes(prefilter_fit_bytes(screen()))

    assert load_prefilter_fit(path) == screen()
    assert prefilter_fit_bytes(load_prefilter_fit(path)) == path.read_bytes()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\x80\x04", prefilter_fit_bytes(screen()).replace(b"0.1", b"0.9")]
)
def test_a_damaged_screen_is_refused(tmp_path, content):
    """It decides what nobody looks at."""
    path = tmp_path / "screen.json"
    path.write_bytes(content)

    with pytest.raises(ClassifierError, match="not a valid screen"):
        load_prefilter_fit(path)


def test_a_first_stage_that_needs_a_model_is_no_first_stage():
    """It would have to run what it is there to spare."""
    with pytest.raises(ValueError, match="does without the teacher"):
        screen(estimator=find_classifier("teacher", "teacher"))
