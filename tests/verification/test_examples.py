"""What is trained on and what is held out: disjoint, repeatable, and all rows accounted for."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import ByteTokenizer, make_rows

from memaudit.corpus import Example
from memaudit.distillation import TrainingOptions
from memaudit.errors import CorpusError
from memaudit.runs.reading import RowLog, RowOutcome
from memaudit.verification.examples import VerificationOptions, read_examples
from memaudit.verification.extraction import label_table
from memaudit.windows import WindowShape

SHAPE = WindowShape(2, 2)


def read(*texts, told=None, seed=0, **settings):
    """Read rows, and return what must hold after the spools are closed."""
    options = VerificationOptions(
        shape=SHAPE, training=TrainingOptions(seed=seed), **{"held_out_share": 0.25, **settings}
    )
    progress = None if told is None else told.append
    with read_examples(
        make_rows(*texts), ByteTokenizer(), options, folder=None, progress=progress
    ) as examples:
        return examples


TEXTS = ["aaaa", "bbbb", "aaaa", "xy", "cccc", "dddd!", "aaaa"]


def test_equal_windows_are_trained_on_as_often_as_they_occur():
    """Exposure is what makes a model memorize."""
    examples = read(*TEXTS, held_out_share=0)

    texts = [bytes(w.astype(np.uint8)).decode() for w in examples.training_set(examples.trained)]
    assert Counter(texts) == {"aaaa": 3, "bbbb": 1, "cccc": 1, "dddd": 1}


def test_a_held_out_window_is_never_trained_on():
    """Not even one of its copies."""
    examples = read(*TEXTS)

    trained = {window.tobytes() for window in examples.training_set(examples.trained)}
    held_out = {window.tobytes() for window in examples.windows[examples.is_held_out]}
    assert len(held_out) == 1
    assert not trained & held_out
    assert len(trained | held_out) == 4


def test_rows_know_their_window():
    """Row after scored row; the fourth is too short."""
    examples = read(*TEXTS)

    assert examples.example_of_row.tolist() == [0, 1, 0, 2, 3, 0]


@given(st.integers(1, 8), st.integers(0, 50))
def test_a_sample_has_as_many_rows_as_asked_for(n, seed):
    """Copies count one by one, rows outside belong to no window."""
    examples = read(*TEXTS, sample=n, seed=seed, held_out_share=0)

    assert (examples.example_of_row >= 0).sum() == min(n, 6)
    assert examples.occurrences.sum() == min(n, 6)
    counts = Counter(i for i in examples.example_of_row.tolist() if i >= 0)
    assert [counts[i] for i in range(len(examples.windows))] == examples.occurrences.tolist()


def test_the_seed_decides_sample_and_held_out_windows():
    """Same seed, same digest; another seed, another choice."""
    texts = [f"{i:04}" for i in range(60)]

    same = [read(*texts, sample=30).digest for _ in range(2)]
    assert same[0] == same[1]
    assert read(*texts, sample=30, seed=1).digest != same[0]


@pytest.mark.parametrize(
    "changed", [["bbbb", "aaaa"], ["aaaa", "bbbb", "xy"], ["aaaa", "bbbc"], ["aaaa"]]
)
def test_the_digest_changes_with_the_corpus(changed):
    """A resumed verification must not mix two corpora."""
    assert read(*changed, held_out_share=0).digest != read("aaaa", "bbbb", held_out_share=0).digest


def test_nothing_to_train_on_is_an_error():
    """Better than a student trained on nothing."""
    with pytest.raises(CorpusError, match="no window is left to train on: all 1 would be held out"):
        read("aaaa", held_out_share=0.9)


def test_a_bad_row_ends_it_unless_it_may_be_skipped():
    """As in an audit."""
    with pytest.raises(CorpusError, match=r"c\.jsonl:2: line 2: invalid JSON"):
        read("aaaa", None, "bbbb")

    examples = read("aaaa", None, "bbbb", on_bad_row="skip", held_out_share=0)
    assert len(examples.windows) == 2


def test_rows_read_are_told():
    """Reading a large corpus takes a while."""
    told = []
    read(*TEXTS, told=told)

    assert [(p.stage, p.unit, p.done, p.total) for p in told] == [("read", "rows", 7, None)]


CHATS = [["aabb", "ccdd"], ["ccdd"], ["aabb", "ccdd"], ["eeff", "gghh"], ["x"]]


def read_chats(**settings):
    """Read rows of several answers each: context and answer have two tokens."""
    rows = [
        Example(i, str(i), f"c.jsonl:{i + 1}", "".join(turns),
                tuple((4 * n + 2, 4 * n + 4) for n in range(len(turns))))
        for i, turns in enumerate(CHATS)
    ]  # fmt: skip
    options = VerificationOptions(shape=SHAPE, **{"held_out_share": 0.0, **settings})
    with read_examples(rows, ByteTokenizer(), options, folder=None, progress=None) as examples:
        return examples


def test_every_answer_of_a_row_is_trained_on():
    """As predict looks at all of them; of rows with the same answers there is one example."""
    examples = read_chats()

    texts = [bytes(w.astype(np.uint8)).decode() for w in examples.training_set(examples.trained)]
    assert Counter(texts) == {"aabb": 2, "ccdd": 3, "eeff": 1, "gghh": 1}
    assert examples.example_of_row.tolist() == [0, 1, 0, 2]
    assert examples.n_windows.tolist() == [2, 1, 2, 2]


def test_the_last_answers_alone_can_be_asked_for():
    """As predict does with the same option."""
    examples = read_chats(turns="last")

    texts = [bytes(w.astype(np.uint8)).decode() for w in examples.training_set(examples.trained)]
    assert Counter(texts) == {"ccdd": 3, "gghh": 1}


@given(st.integers(0, 50))
def test_no_window_that_is_trained_on_is_held_out(seed):
    """A row may share one of its answers with a row that is trained on."""
    examples = read_chats(held_out_share=0.4, training=TrainingOptions(seed=seed))

    trained = {window.tobytes() for window in examples.training_set(examples.trained)}
    held_out = {window.tobytes() for window in examples.windows[examples.is_held_out]}
    assert trained
    assert not trained & held_out
    assert len(trained | held_out) == 4


def test_a_row_is_recited_if_one_of_its_answers_is():
    """A row is as risky as its worst window."""
    examples = read_chats()
    recites = np.array([bytes(w.astype(np.uint8)) == b"gghh" for w in examples.trained])
    found = {role: recites for role in ("teacher", "student")}

    with RowLog(None) as rows:
        for i in range(len(CHATS)):
            outcome = "scored" if i < 4 else "too_short"
            rows.append(RowOutcome(str(i), i, f"c.jsonl:{i + 1}", outcome))
        table = label_table(replace(examples, rows=rows), found).to_pylist()

    assert [row["extracted_by_student"] for row in table] == [False, False, False, True, None]
    assert [row["example"] for row in table] == [0, 1, 0, 2, None]
    assert [row["set"] for row in table] == ["none", "none", "none", "inherited", None]
