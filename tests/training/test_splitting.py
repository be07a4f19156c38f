"""Splits keep a text on one side, and each side large enough, or say why they cannot."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memaudit.errors import ClassifierError
from memaudit.training.fitting import LabelledRun
from memaudit.training.inputs import JoinCounts, VerifiedRun
from memaudit.training.splitting import final_split, held_out_splits, source_name, split_unit


def make_run(name, texts, n_positives):
    """A run of these texts, the first of which were extracted; its feature says which text."""
    n = len(texts)
    counts = JoinCounts(
        rows=n, not_scored=0, unlabelled=0, unscored=0, used=n, distinct=n, conflicting=0
    )
    features = {"zlib_entropy": np.array(texts, dtype=np.float64)}
    ids = tuple(f"id-{text}" for text in texts)
    return VerifiedRun(
        LabelledRun(name, features, np.arange(n) < n_positives),
        counts,
        ids,
        ids,
        (b"",) * n,
        np.array(texts, dtype=np.int64),
    )


def texts_of(runs):
    """The texts of labelled runs."""
    return {text for run in runs for text in run.features["zlib_entropy"].tolist()}


def positives_of(runs):
    """How many examples of runs were extracted."""
    return sum(run.n_extracted for run in runs)


def apart(n_runs, n_positives=25, n=60):
    """Runs without a text in common."""
    return [make_run(f"run-{i}", range(n * i, n * (i + 1)), n_positives) for i in range(n_runs)]


@settings(max_examples=25)
@given(
    n_positives=st.integers(30, 90),
    n_negatives=st.integers(30, 90),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
)
def test_examples_are_on_one_side_and_the_sides_are_large_enough(
    n_positives, n_negatives, share, seed
):
    """Whatever share is wished: 20 to fit and 10 to calibrate are there."""
    texts = range(n_positives + n_negatives)
    runs = [make_run("a", texts, n_positives), make_run("b", texts, n_positives)]

    split = final_split(runs, share=share, seed=seed)

    fit, calibration = texts_of(split.fit), texts_of(split.calibration)
    assert not fit & calibration
    assert fit | calibration == set(texts)
    assert positives_of(split.fit) >= 2 * 20
    assert positives_of(split.calibration) >= 2 * 10
    assert {source_name(run) for run in split.fit} == {"a", "b"}
    assert texts_of(final_split(runs, share=share, seed=seed).fit) == fit


def test_the_share_is_kept_where_there_are_enough():
    """Of each label."""
    split = final_split([make_run("a", range(400), 100)], share=0.3, seed=0)

    assert positives_of(split.calibration) == 30
    assert len(texts_of(split.calibration)) == 120


def test_another_seed_splits_otherwise():
    """Luck can be told from merit only by trying again."""
    runs = [make_run("a", range(100), 50)]
    sides = [frozenset(texts_of(final_split(runs, share=0.3, seed=s).fit)) for s in range(3)]

    assert len(set(sides)) == 3


def test_the_split_does_not_depend_on_the_order_of_the_rows():
    """The side follows from the id: a corpus that was shuffled is split the same."""
    texts = [*range(50), *range(100, 150)]
    runs = make_run("a", texts, 50), make_run("a", [*texts[49::-1], *texts[:49:-1]], 50)

    first, second = (final_split([run], share=0.3, seed=0) for run in runs)

    assert texts_of(first.fit) == texts_of(second.fit)


def test_three_runs_apart_are_split_as_wholes():
    """Near-duplicates stand in one corpus, and so on one side."""
    runs = apart(5)

    split = final_split(runs, share=0.4, seed=0)

    assert split_unit(runs) == "run"
    assert len(split.calibration) == 2
    names = {run.name for run in (*split.fit, *split.calibration)}
    assert names == {f"run-{i}" for i in range(5)}


def test_runs_with_a_text_in_common_count_as_one():
    """Three seeds on one corpus would otherwise be tested on what they were fitted on."""
    same = [make_run(f"seed-{i}", range(60), 30) for i in range(3)]

    assert split_unit(same) == "example"
    assert split_unit([*same, *apart(1)]) == "example"
    chain = [make_run(str(i), range(10 * i, 10 * i + 11), 5) for i in range(5)]
    assert split_unit(chain) == "example"
    others = [make_run(f"other-{i}", range(100 * i, 100 * i + 60), 30) for i in (1, 2)]
    split = final_split([*same, *others], share=0.3, seed=0)
    assert not texts_of(split.fit) & texts_of(split.calibration)
    sides = [{run.name for run in side} for side in (split.fit, split.calibration)]
    assert any({run.run.name for run in same} <= side for side in sides)


def test_a_run_without_positives_does_not_calibrate_alone():
    """The order is rotated until both sides can be used."""
    runs = [*apart(2, n_positives=25), make_run("barren", range(900, 960), 0)]

    for seed in range(6):
        split = final_split(runs, share=0.3, seed=seed)
        assert positives_of(split.calibration) >= 10


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (
            apart(1, n_positives=29, n=200),
            r"fitting needs at least 30 distinct examples that were extracted "
            r"\(20 to fit, 10 to calibrate\), the tables have 29",
        ),
        (apart(2, n_positives=0, n=200), "that were extracted .* have 0"),
        (apart(1, n_positives=45, n=60), "that were not extracted .* have 15"),
        (
            [make_run(f"seed-{i}", range(60), 20) for i in range(3)],
            "distinct examples that were extracted .* the tables have 20",
        ),
        (
            [*apart(2, n_positives=2), make_run("rich", range(900, 960), 40)],
            "no split of whole runs leaves 20 .* run-0 2, run-1 2, rich 40",
        ),
    ],
)
def test_too_few_are_refused_with_what_is_needed_and_what_there_is(runs, message):
    """Copies of one text over three seeds are no three texts."""
    with pytest.raises(ClassifierError, match=message) as caught:
        final_split(runs, share=0.3, seed=0)
    assert caught.value.hint


@pytest.mark.parametrize("n_runs", [3, 4, 7])
def test_every_run_is_held_out_once(n_runs):
    """Figures are about all of them, each judged by fits on others."""
    runs = apart(n_runs, n_positives=30)

    splits = held_out_splits(runs, share=0.3, seed=0)

    tested = [run.name for split in splits for run in split.test]
    assert sorted(tested) == [f"run-{i}" for i in range(n_runs)]
    assert len(splits) == min(5, n_runs)
    for split in splits:
        sides = [texts_of(side) for side in (split.fit, split.calibration, split.test)]
        assert sum(map(len, sides)) == len(set.union(*sides)) == 60 * n_runs


def test_every_example_is_held_out_once():
    """Five fits for one or two runs."""
    runs = apart(2, n_positives=40, n=120)

    splits = held_out_splits(runs, share=0.3, seed=0)

    assert len(splits) == 5
    tested = [texts_of(split.test) for split in splits]
    assert sum(map(len, tested)) == len(set.union(*tested)) == 240
    for split in splits:
        assert not texts_of(split.test) & texts_of([*split.fit, *split.calibration])
        assert positives_of(split.test) == 16


def test_nothing_is_held_out_where_the_rest_would_be_too_few():
    """Thirty positives make a classifier, and no figure at its threshold."""
    assert held_out_splits(apart(1, n_positives=31), share=0.3, seed=0) == []
