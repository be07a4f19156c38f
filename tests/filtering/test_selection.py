"""Which rows go, and what is expected of those that stay."""

from dataclasses import replace

import numpy as np
import pytest
from support.finished_runs import run_in_memory, texts_of, write_jsonl

from memaudit.errors import UsageError
from memaudit.filtering.selection import FilterOptions, outlook, select_rows

TEXTS = ["risky text"] * 5 + ["other text"] * 2 + [f"text {i}" for i in range(20)] + ["x", None]


@pytest.fixture
def run(template, tmp_path):
    """29 rows; seven of them are copies of others; the last two were not scored."""
    return run_in_memory(template, write_jsonl(tmp_path / "c.jsonl", TEXTS), seed=1)


def selected(run, options):
    """Return which rows go, as the texts of the run's corpus are."""
    return select_rows(run, options, texts_of(run.manifest.inputs.corpus["source"]))


def kept(run, **options):
    """Return which rows stay."""
    return np.flatnonzero(~selected(run, FilterOptions(**options)).is_removed).tolist()


def test_by_default_the_flagged_go(run):
    """What a prediction warns of is what a cleaning removes."""
    assert kept(run) == np.flatnonzero(~run.is_flagged).tolist()


@pytest.mark.parametrize("limit", [0.0, 0.1, 0.5, 1.0])
def test_rows_above_a_probability_go(run, limit):
    """At most so much is what stays, the limit itself included."""
    expected = ~run.is_scored | (np.nan_to_num(run.probabilities) <= limit)

    assert kept(run, max_probability=limit) == np.flatnonzero(expected).tolist()


@pytest.mark.parametrize("k", [0, 1, 6, 27, 500])
def test_the_riskiest_go(run, k):
    """So many, and none that was not scored."""
    stays = kept(run, top=k)

    gone = sorted(set(range(run.n_rows)) - set(stays))
    assert len(gone) == min(k, 27)
    assert {27, 28} <= set(stays)
    if 0 < k < 27:
        scored = [row for row in stays if run.is_scored[row]]
        assert run.probabilities[gone].min() >= run.probabilities[scored].max()


@pytest.mark.parametrize("limit", [0, 1, 3, 8, 100])
def test_no_row_more_goes_than_the_limit_asks_for(run, limit):
    """The upper bound holds, and with one row less removed it would not."""
    options = FilterOptions(expected_at_most=limit)
    selection = selected(run, options)
    removed = np.flatnonzero(selection.is_removed)

    assert outlook(run, selection, options).expected.high <= limit
    if len(removed):
        spared = selection.is_removed.copy()
        spared[removed[np.argmin(run.probabilities[removed])]] = False
        assert outlook(run, replace(selection, is_removed=spared), options).expected.high > limit


def test_copies_alone_may_not_be_enough(run):
    """Whoever asks for one thing must not get another."""
    with pytest.raises(UsageError, match=r"still .* are expected"):
        selected(run, FilterOptions(expected_at_most=0, strategy="deduplicate"))


def test_one_copy_of_a_risky_text_is_kept(run):
    """The first, wherever the others are."""
    selection = selected(run, FilterOptions(max_probability=0.0, strategy="deduplicate"))

    assert np.flatnonzero(selection.is_removed).tolist() == [1, 2, 3, 4, 6]
    assert selection.kept[[1, 4, 6]].tolist() == [0, 0, 5]


HEADER = "header01"
"""As long as a window of the template."""


@pytest.fixture
def headed(template, tmp_path):
    """Five different texts that begin with the same window, the first of them twice."""
    texts = [f"{HEADER} goes on with {i}" for i in range(5)]
    path = write_jsonl(tmp_path / "headed.jsonl", [*texts, texts[0]])
    return run_in_memory(template, path, begin_alike=True)


def test_texts_that_only_begin_alike_are_no_copies(headed):
    """A licence header must not cost all files but one: only the text that occurs twice goes."""
    selection = selected(headed, FilterOptions(max_probability=0.0, strategy="deduplicate"))

    assert np.flatnonzero(selection.is_removed).tolist() == [5]
    assert (selection.kept[5], selection.is_copy[5]) == (0, True)


def test_what_goes_for_a_window_is_not_called_a_copy(headed):
    """Thinning out rows that begin alike is a choice, and loses text: it has a name of its own."""
    options = FilterOptions(max_probability=0.0, strategy="downsample", max_copies=2)
    selection = selected(headed, options)

    assert np.flatnonzero(selection.is_removed).tolist() == [2, 3, 4, 5]
    assert np.flatnonzero(selection.is_copy).tolist() == [5]


@pytest.mark.parametrize("copies", [1, 2, 4, 9])
def test_a_few_copies_are_kept(run, copies):
    """As many as asked for, the first ones."""
    stays = kept(run, max_probability=0.0, strategy="downsample", max_copies=copies)

    assert sum(row < 5 for row in stays) == min(copies, 5)
    assert sum(5 <= row < 7 for row in stays) == min(copies, 2)


def test_copies_of_harmless_texts_stay(run):
    """Repetition is removed where it does harm."""
    assert kept(run, max_probability=1.0, strategy="deduplicate") == list(range(run.n_rows))


def test_what_is_kept_once_is_judged_as_occurring_once(run):
    """The classifier is asked again with one occurrence; by hand, from its formula."""
    options = FilterOptions(max_probability=0.0, strategy="deduplicate")
    found = outlook(run, selected(run, options), options)

    classifier, risks = run.manifest.classifier, run.risks
    known = risks.X[:, risks.feature_names.index("teacher_suffix_mean_logprob")]
    logits = classifier.coefficients[1] * (known - classifier.means[1]) / classifier.scales[1]
    assert found.expected.mean == pytest.approx((1 / (1 + np.exp(-logits))).sum())
    assert found.is_estimate


def test_a_classifier_that_does_not_count_changes_nothing(run):
    """No effect may be claimed that the classifier cannot see."""
    from support.fakes import make_classifier

    blind = make_classifier(features=("teacher_suffix_mean_logprob", "teacher_min_k_logprob"))
    risks = replace(run.risks, classifier=blind)
    run = replace(run, risks=risks)
    options = FilterOptions(max_probability=0.0, strategy="deduplicate")
    found = outlook(run, selected(run, options), options)

    windows = np.unique(run.worst_windows[run.is_scored])
    assert found.expected.mean == pytest.approx(risks.window_probabilities[windows].sum())
    assert not found.is_estimate


def test_dropping_leaves_the_other_probabilities_alone(run):
    """The after of a drop is a sum, not a guess."""
    options = FilterOptions(max_probability=0.5)
    found = outlook(run, selected(run, options), options)

    removed = selected(run, options).is_removed
    assert found.expected.mean == pytest.approx(np.nansum(run.probabilities[~removed]))
    assert not found.is_estimate


@pytest.mark.parametrize(
    "options",
    [
        {"top": 1, "max_probability": 0.5},
        {"max_copies": 2},
        {"near_duplicates": 0.8},
        {"strategy": "deduplicate", "near_duplicates": 0.0},
        {"max_probability": float("nan")},
        {"expected_at_most": float("inf")},
        {"max_probability": 1.5},
        {"top": -1},
    ],
)
def test_options_that_contradict_each_other_are_refused(options):
    """A silent choice between two limits would be the wrong one half of the time."""
    with pytest.raises(UsageError):
        FilterOptions(**options)
