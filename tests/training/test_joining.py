"""Labels and scores are joined row by row; nothing is dropped without being counted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.verified_tables import COUNT, SIGNAL, make_rows

from memaudit.errors import ClassifierError, UsageError
from memaudit.features import FEATURE_SETS
from memaudit.tables import Table
from memaudit.training.inputs import join_tables, number_texts

NUMBERS = ("row", "extracted_by_student", "extracted_by_teacher", *FEATURE_SETS["teacher"])


def make_table(rows, name="table.jsonl"):
    """The table of rows, without a file."""
    numbers = {
        key: np.array([np.nan if row[key] is None else float(row[key]) for row in rows])
        for key in NUMBERS
        if key in rows[0]
    }
    texts = {
        key: [row[key] for row in rows] for key in ("id", "address", "outcome") if key in rows[0]
    }
    return Table(name, "0" * 64, texts, numbers, len(rows))


def join(scores, labels, name="run"):
    """Join rows on two features."""
    tables = make_table(labels, "labels.jsonl"), make_table(scores, "scores.jsonl")
    return join_tables(*tables, name=name, features=(COUNT, SIGNAL))


def without(rows, *keys):
    """Rows that lack some columns."""
    return [{key: value for key, value in row.items() if key not in keys} for row in rows]


SCORES, LABELS = make_rows(n=40)
EXTRACTED = [row["extracted_by_student"] for row in LABELS]


def test_rows_are_joined_by_their_ordinal_whatever_their_order():
    """A label in the wrong place would be a label of another text."""
    joined = join(SCORES, LABELS[::-1])

    assert joined.run.extracted.tolist() == EXTRACTED
    assert joined.run.features[SIGNAL].tolist() == [row[SIGNAL] for row in SCORES]
    assert joined.run.features["extracted_by_teacher"].tolist() == EXTRACTED
    assert joined.counts.used == joined.counts.distinct == 40


def test_rows_are_joined_by_id_where_there_is_no_ordinal():
    """Labels made elsewhere have ids alone."""
    labels = without(LABELS[::-1], "row", "address", "outcome", "extracted_by_teacher")

    assert join(SCORES, labels).run.extracted.tolist() == EXTRACTED


def test_what_is_left_out_is_counted():
    """Rows vanish for three reasons, and a reader wants to know which."""
    scores = [
        row | ({"outcome": "too_short", SIGNAL: None} if i < 3 else {})
        for i, row in enumerate(SCORES)
    ]
    labels = [
        row | ({"extracted_by_student": None} if i >= 35 else {}) for i, row in enumerate(LABELS)
    ]
    extra = LABELS[0] | {"row": 99, "id": "elsewhere"}

    counts = join(scores, [*labels[1:], extra]).counts

    assert (counts.rows, counts.not_scored, counts.unlabelled) == (40, 3, 5)
    assert counts.unscored == 3  # rows 1 and 2 are too short, row 99 is not in the corpus
    assert counts.used == counts.distinct == 32


@settings(max_examples=30)
@given(copies=st.lists(st.integers(1, 4), min_size=40, max_size=40))
def test_equal_rows_count_once(copies):
    """A licence header in a thousand files is one example, however often it occurs."""
    scores = [row for row, n in zip(SCORES, copies, strict=True) for _ in range(n)]
    labels = [row for row, n in zip(LABELS, copies, strict=True) for _ in range(n)]
    scores, labels = (
        [row | {"row": i, "id": str(i), "address": str(i)} for i, row in enumerate(rows)]
        for rows in (scores, labels)
    )

    joined = join(scores, labels)

    assert joined.run.extracted.tolist() == EXTRACTED
    assert joined.counts.used == sum(copies)
    assert joined.counts.conflicting == 0


def test_equal_rows_with_both_labels_count_as_extracted():
    """A text that comes out once comes out."""
    scores = [SCORES[0], SCORES[0] | {"row": 1, "id": "b", "address": "b"}]
    labels = [
        row | {key: scores[i][key] for key in ("id", "address")} | {"extracted_by_student": bool(i)}
        for i, row in enumerate(LABELS[:2])
    ]

    joined = join(scores, labels)

    assert joined.run.extracted.tolist() == [True]
    assert joined.counts.conflicting == 1


def test_a_corpus_named_by_another_path_is_the_same():
    """Addresses begin with the path as given, which two commands may spell differently."""
    labels = [row | {"address": f"/data/{row['address']}"} for row in LABELS]

    assert join(SCORES, labels).counts.used == 40


def test_the_quote_of_csv_tables_is_no_part_of_an_id():
    """It keeps spreadsheets from running cells; parquet has none."""
    scores = [row | {"id": f"={row['id']}"} for row in SCORES]
    labels = [row | {"id": f"'={row['id']}"} for row in LABELS]

    assert join(scores, labels).counts.used == 40


def spoil(rows, change):
    """Change the third row."""
    return [row | change if i == 2 else row for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (
            SCORES,
            spoil(LABELS, {"id": "x"}),
            r"^id differs .* in 1 of 40 rows, first at id corpus.jsonl:3$",
        ),
        (SCORES, spoil(LABELS, {"address": "x"}), "address differs .* in 1 of 40 rows"),
        (
            SCORES,
            without(LABELS, "extracted_by_student"),
            "expected the column extracted_by_student",
        ),
        (without(SCORES, SIGNAL), LABELS, f"expected the column {SIGNAL}, got"),
        (without(SCORES, "id", "row"), LABELS, "expected the column id or row"),
        (without(SCORES, "id"), without(LABELS, "row"), "expected the column id, for the other"),
        (spoil(SCORES, {"row": 1}), LABELS, "scores.jsonl: row repeats in 1 of 40 rows"),
        (spoil(SCORES, {"row": None}), LABELS, "row is empty in 1 of 40 rows"),
        (
            spoil(SCORES, {SIGNAL: None}),
            LABELS,
            f"feature {SIGNAL} is not a finite number in 1 of 40",
        ),
        (SCORES, spoil(LABELS, {"extracted_by_student": 0.5}), "neither true nor false in 1 row$"),
        (
            SCORES,
            spoil(LABELS, {"extracted_by_student": np.inf}),
            "neither true nor false in 1 row$",
        ),
        (SCORES[:20], LABELS[20:], "no row of scores.jsonl has both"),
    ],
)
def test_tables_that_do_not_fit_are_refused_with_numbers(scores, labels, message):
    """Labels of another corpus would be fitted without a murmur."""
    with pytest.raises((ClassifierError, UsageError), match=message) as caught:
        join(scores, labels)
    assert caught.value.hint


def test_messages_show_ids_without_their_control_characters():
    """An id is text of a stranger."""
    with pytest.raises(UsageError) as caught:
        join(spoil(SCORES, {"id": "\x1b]0;owned\x07"}), LABELS)
    assert "\x1b" not in caught.value.message


def test_the_same_window_of_another_run_is_the_same_text():
    """Three students of one corpus are no three corpora: temperature apart, features are equal."""
    elsewhere = [row | {"id": f"b{row['row']}", "address": f"b:{row['row']}"} for row in SCORES]
    labels = [
        row | {key: other[key] for key in ("id", "address")}
        for row, other in zip(LABELS, elsewhere, strict=True)
    ]

    first, second = number_texts([join(SCORES, LABELS, "a"), join(elsewhere, labels, "b")])

    assert (first.texts == second.texts).all()
    assert len(set(first.texts.tolist())) == 40


def test_the_same_row_scored_by_another_teacher_is_the_same_text():
    """Its features differ, its id and address do not."""
    other = [row | {SIGNAL: row[SIGNAL] + 1} for row in SCORES]

    first, second = number_texts([join(SCORES, LABELS, "a"), join(other, LABELS, "b")])

    assert (first.texts == second.texts).all()


def test_other_corpora_share_no_text():
    """Ids that are mere numbers do not join what addresses keep apart."""
    scores, labels = make_rows(seed=1, n=40, name="other.jsonl")
    numbered = [
        [row | {"id": str(row["row"])} for row in rows] for rows in (SCORES, LABELS, scores, labels)
    ]

    first, second = number_texts([join(*numbered[:2], "a"), join(*numbered[2:], "b")])

    assert not set(first.texts.tolist()) & set(second.texts.tolist())


def test_runs_without_addresses_are_told_apart_by_their_features():
    """Ids of different corpora may be equal."""
    scores, labels = make_rows(seed=1, n=40)
    bare = [without(rows, "address") for rows in (SCORES, LABELS, scores, labels)]

    first, second = number_texts([join(*bare[:2], "a"), join(*bare[2:], "b")])

    assert not set(first.texts.tolist()) & set(second.texts.tolist())
