"""A verification on a terminal: the right sentence first, and no corpus speaks through it."""

import dataclasses

import pytest

from memaudit.evaluation import Comparison, MissedExample, Rate
from memaudit.labels import ROLES, GenerationCounts, LabelScan, NearVerbatim, VerificationResult
from memaudit.reports.terminal import print_page
from memaudit.reports.verify import estimate_page, students_page, verification_page
from memaudit.verification.estimate import Estimate

SETTINGS = {
    "objective": "soft",
    "temperature": 2.0,
    "cross_entropy_share": 0.0,
    "epochs": 3.0,
    "learning_rate": 5e-5,
    "batch_size": 32,
    "seed": 0,
}

COMPARISON = Comparison(
    predictions="runs/demo",
    predictions_digest="0",
    classifier="teacher",
    threshold=0.1,
    examples=200,
    roc_auc=0.98765,
    pr_auc=0.5,
    brier=0.01,
    calibration_error=0.02,
    precision=Rate.of_counts(8, 20),
    recall=Rate.of_counts(8, 10),
    lift=8.0,
    expected=12.3,
    expected_low=4,
    expected_high=30,
    interval_covers_level=True,
    found=10,
    expected_rows=40.0,
    found_rows=35,
    missed=(MissedExample("id-\x1b[31m7", 7, "c.jsonl:8", 0.03),),
)


def make_result(n_student=10, **changes):
    """A result with 200 examples."""
    counts = {"teacher": 40, "baseline": 20, "student": n_student}
    result = VerificationResult(
        settings=SETTINGS,
        models={"teacher": "models/demo-teacher", "student": "models/demo-student"},
        outcomes={"held_out": 22, "scored": 300, "too_short": 5},
        examples=200,
        held_out=22,
        extracted={role: Rate.of_counts(counts[role], 200) for role in ROLES},
        extracted_rows={role: 3 * counts[role] for role in ROLES},
        sets={"easy": 15, "inherited": 1, "new": 0, "none": 184},
        student_in_easy=Rate.of_counts(n_student * 9 // 10, n_student),
        inherited=Rate.of_counts(1, 25),
        perplexity={"teacher": 2.5, "baseline": 101.234, "student": None},
        held_out_extracted={"teacher": 3, "baseline": 0, "student": 0},
        label_scan=None,
        generation=None,
        comparison=None,
        labels_digest="0",
        seconds=75.0,
    )
    return dataclasses.replace(result, **changes)


@pytest.fixture
def printed(capsys, monkeypatch, tmp_path):
    """Return what is printed on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")

    def show(result):
        print_page(verification_page(result, tmp_path), color="never")
        return capsys.readouterr().out

    return show


def test_the_verdict_comes_first(printed):
    """Who reads one sentence must have read the right one."""
    assert printed(make_result()).splitlines()[0] == (
        "The student recites 10 of 200 examples (2.4% to 9.0%) after its distillation from "
        "demo-teacher; the baseline recites 20, the teacher 40."
    )


def test_each_model_has_its_line(printed):
    """Count, share, interval, rows, perplexity, and what it recites of the held-out windows."""
    lines = [" ".join(line.split()) for line in printed(make_result()).splitlines()]

    assert "teacher 40 20.0% 14.7% to 26.2% 120 2.50 3 of 22" in lines
    assert "student 10 5.0% 2.4% to 9.0% 30 – 0 of 22" in lines


def test_a_student_that_recites_nothing_has_no_share_of_it(printed):
    """0 of 0 is no percentage."""
    out = printed(make_result(n_student=0))

    assert "(the student recites nothing)" in out
    assert "nan" not in out


def test_what_was_not_asked_for_is_not_shown(printed):
    """No empty tables."""
    out = printed(make_result())

    for title in ("The teacher's text", "One pass against", "Predicted against", "Missed"):
        assert title not in out


def test_all_parts_are_shown_when_there_are_any(printed):
    """Hard labels, real generation, predictions."""
    out = printed(
        make_result(
            settings={**SETTINGS, "objective": "hard", "near_verbatim": 0.1},
            label_scan=LabelScan(200, 40, 1, 41),
            generation={"student": GenerationCounts(50, 10, 10, 0, 0, nearly_generated=12)},
            sampled={"student": {"1": 2, "10": 5, "100": 9, "1000": 11}},
            near_verbatim={
                "student": NearVerbatim({"1": 3, "10": 6, "100": 13, "1000": 17}, 2.25, 4.5)
            },
            comparison=COMPARISON,
        )
    )

    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "own suffix 40 hold the suffix of their own window" in lines
    assert "student 50 10 10 0 0 12" in lines
    assert "greedy 1 sample 10 samples 100 samples 1,000 samples" in lines
    assert "student 10 2 5 9 11" in lines
    assert "student 3 6 13 17 4.50 2.25" in lines
    assert "expected 12.3 4 to 30; found 10. In rows 40 and 35" in lines
    assert "recall 80.0% 8 of 10 recited are at risk from 10.0% (44.4% to 97.5%)" in lines
    assert "ROC-AUC 0.988 1 ranks perfectly, 0.5 is chance" in lines
    assert "objective hard" in lines


def test_an_id_cannot_speak_to_the_terminal(printed):
    """It comes from the corpus."""
    out = printed(make_result(comparison=COMPARISON))

    assert "\x1b" not in out
    assert "id-" in out


def test_an_interval_of_chance_alone_says_so(printed):
    """Without the classifier nobody knows how far its level is off."""
    comparison = dataclasses.replace(COMPARISON, interval_covers_level=False)

    assert "4 to 30, chance alone; found 10" in printed(make_result(comparison=comparison))


def test_a_given_baseline_is_named(printed):
    """It may have been trained on what is held out here."""
    models = {"teacher": "t", "student": "s", "baseline": "b"}

    assert "You gave the baseline" in printed(make_result(models=models))


def test_notes_on_one_of_several_students_are_shown(tmp_path):
    """Another tokenizer of the second student matters as much as one of the first."""
    other = make_result(settings=SETTINGS | {"aligned": ["student"]})
    page = students_page({"first": make_result(), "second": other}, tmp_path)

    assert sum("Other tokenizers" in note for note in page.notes) == 1
    assert len({*page.notes}) == len(page.notes)


def test_an_estimate_says_what_it_rests_on(capsys, monkeypatch):
    """Time, memory and operations, and how they were counted."""
    monkeypatch.setenv("COLUMNS", "200")
    estimate = Estimate(
        parameters={"teacher": 2_000_000, "student": 1_000_000},
        examples=100,
        held_out=10,
        training_examples=150,
        steps=15,
        training_tokens=45_000,
        generated_tokens=5_000,
        scored_tokens=11_000,
        flops={"student": 3e11, "extract": 4e10},
        memory_bytes=2 * 1024**3,
        seconds={"student": 60.0, "extract": 15.0},
    )

    print_page(estimate_page(estimate), color="never")

    out = capsys.readouterr().out
    assert out.splitlines()[0] == (
        "About 01:15 on this machine, 2.0 GiB of memory, 3.4e+11 operations. Nothing was trained."
    )
    assert "6 N per token trained on" in out
    assert "written by the teacher" in out
