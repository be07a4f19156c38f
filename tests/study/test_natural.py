"""The natural study in small: windows, stages that go on, a cell's file, and a fit on it."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import zstandard

from memaudit.features import FEATURE_SETS
from study import fit as fitting
from study import stages
from study.measure import count_templates, finished_models, measure_cell, read_cell, write_cell
from study.recipe import read_recipe
from study.report import classifiers_table, rates_table, students_table
from study.stages import Workshop, read_tokenizer, read_windows, train_cell
from study.texts import cut_document

RECIPE = """
vocabulary_size = 300
n_parts = 1
[sources]
train = ["natural/a", "natural/b"]
calibration = ["natural/c"]
test = ["natural/d"]
[pretraining]
sources = ["natural/e"]
n_tokens = 2000
window = 32
schedule = { epochs = 1, learning_rate = 1e-3 }
[regimes.tiny]
teacher = { hidden = 32, layers = 1 }
student = { hidden = 32, layers = 1 }
prefix_len = 8
suffix_len = 8
n_windows = 40
teacher_schedule = { epochs = 2, learning_rate = 5e-3 }
student_schedule = { epochs = 2, learning_rate = 5e-3 }
copies = { "3" = 5 }
copy_noise = 0.3
[[cells]]
name = "one"
role = "train"
family = "gpt-neox"
regime = "tiny"
part = 0
students = [{ name = "soft" }, { name = "half", later = true, is_half = true }]
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A workshop with made-up documents of five sources."""
    folder = tmp_path_factory.mktemp("study")
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefgh", k=4)) for _ in range(200)]
    rows = [
        {"source": source, "text": "\n".join(" ".join(rng.choices(words, k=6)) for _ in range(30))}
        for source in "abcde"
        for _ in range(12)
    ]
    lines = "\n".join(map(json.dumps, rows)).encode()
    (folder / "natural.jsonl.zst").write_bytes(zstandard.compress(lines))
    (folder / "tiny.toml").write_text(RECIPE)
    return Workshop(read_recipe(folder / "tiny.toml"), folder, folder / "work", lambda line: None)


def test_windows_start_where_lines_do(shop):
    """A template gives the same windows in every document that holds it."""
    tokenizer = read_tokenizer(shop)
    text = "navigation home about\nbody of one page here\nfooter and more words\n" * 3

    windows = list(cut_document(text, 6, tokenizer))

    decoded = [tokenizer.decode(window) for window in windows]
    assert len(set(windows)) < len(windows)
    for piece in decoded:
        assert any(line.startswith(piece.split("\n")[0]) for line in text.split("\n"))


def test_a_cells_windows_are_distinct_and_held_out_ones_are_not_trained_on(shop):
    """Equal shares of the sources; copies belong to the window that they are made from."""
    made = read_windows(shop, shop.recipe.cells[0])

    assert len(np.unique(made.windows, axis=0)) == len(made.windows)
    assert made.counts.sum() == 55
    assert np.bincount(made.sources[:40]).tolist() == [20, 20]
    trained = {window.tobytes() for window in made.windows}
    assert not any(window.tobytes() in trained for window in made.held_out)
    assert np.bincount(made.groups, weights=made.counts).max() == 4
    for group in range(40):
        assert len(set(made.in_half[made.groups == group])) == 1


def test_a_killed_cell_goes_on_with_the_stage_that_is_missing(shop, monkeypatch):
    """Hours of training are not done twice; what can wait, waits."""
    cell = shop.recipe.cells[0]
    train_cell(shop, cell, later=False)
    assert finished_models(shop, cell) == ["teacher", "baseline", "soft"]

    monkeypatch.setattr(stages, "_train", lambda *arguments, **options: pytest.fail("again"))
    train_cell(shop, cell, later=False)
    monkeypatch.undo()
    train_cell(shop, cell, later=True)
    assert finished_models(shop, cell)[-1] == "half"


def test_a_cell_file_holds_no_text_and_is_read_back(shop, tmp_path):
    """It is kept in git, and all that a fit needs is in it."""
    cell = shop.recipe.cells[0]
    models = finished_models(shop, cell)
    measured = measure_cell(shop, cell, models)
    write_cell(measured, tmp_path / "one.parquet")

    found = read_cell(tmp_path / "one.parquet")

    assert found.about == measured.about
    assert found.about["windows"] == len(read_windows(shop, cell).windows)
    assert set(found.about["held_out_loss"]) == {"base", *models}
    of_trained = ~found.columns["is_held_out"]
    assert found.columns["weight"][of_trained].sum() == pytest.approx(found.about["windows"])
    for name, column in measured.columns.items():
        assert column.dtype.kind in "fiub"
        np.testing.assert_allclose(found.columns[name], column, rtol=2.0**-12, atol=1e-6)


def test_suffixes_that_share_eight_tokens_are_one_template():
    """Also by way of a third one."""
    first, last = np.arange(16), np.arange(16, 32)
    between = np.arange(8, 24)

    assert count_templates(np.stack([first, last])) == 2
    assert count_templates(np.stack([first, last, between])) == 1
    assert count_templates(np.zeros((0, 16), np.int32)) == 0


def make_runs(roles=("train", "calibration", "test"), n=2000):
    """Runs in which the smallest margin decides what is recited."""
    runs = []
    for i, role in enumerate(roles):
        rng = np.random.default_rng(i)
        names = {*fitting.CANDIDATES}.union(*fitting.FITTED.values(), *FEATURE_SETS.values())
        columns = {name: rng.normal(size=n) for name in sorted(names)}
        recited = columns["teacher_suffix_min_margin"] + rng.normal(size=n) / 4 > 2
        columns |= {f"recited_{model}": recited for model in ("teacher", "baseline", "soft-seed-2")}
        about = {"cell": {"name": f"{role}-{i}", "role": role, "regime": "natural"}}
        weight = np.ones(n)
        runs.append(fitting.Run(f"{role}-{i}", "soft", about, columns, recited, weight))
    return runs


def test_a_fit_ranks_and_counts_what_it_has_not_seen():
    """The level comes from calibration cells, whatever the training cells hold."""
    train, calibration, test = make_runs()

    fitted = fitting.fit([train], [calibration], fitting.SUFFIX_FEATURES)
    found = fitting.judge(test, fitted.probabilities(test), fitted.threshold)

    assert found.roc_auc > 0.98
    assert found.expected == pytest.approx(found.found, rel=0.4)
    assert found.recall > 0.6


def test_rows_that_stand_for_others_count_as_many():
    """A cell keeps a sample of what nobody recites: dropping it must not change the figures."""
    (run,) = make_runs(("test",), n=4000)
    score = run.columns["teacher_suffix_min_margin"]
    kept = run.recited | (np.arange(4000) % 2 == 0)
    others = (~run.recited).sum() / (~run.recited & kept).sum()
    thinned = replace(
        run,
        columns={name: column[kept] for name, column in run.columns.items()},
        recited=run.recited[kept],
        weight=np.where(run.recited, 1.0, others)[kept],
    )

    full = fitting.judge(run, score, 1.5, is_probability=False)
    sampled = fitting.judge(thinned, score[kept], 1.5, is_probability=False)
    assert sampled.pr_auc == pytest.approx(full.pr_auc, abs=0.05)
    assert sampled.precision == pytest.approx(full.precision, abs=0.1)
    assert sampled.recall == full.recall


def test_what_is_fitted_is_the_classifier_that_memaudit_reads():
    """The same numbers from JSON, without scikit-learn."""
    train, calibration, test = make_runs()
    features = tuple(f for f in fitting.SUFFIX_FEATURES if f != "log_exposure")
    fitted = fitting.fit([train], [calibration], features)

    classifier = fitting.classifier_of(fitted, [train], "teacher")

    np.testing.assert_allclose(
        classifier.predict_proba(test.matrix(classifier.features)),
        fitted.probabilities(test),
        rtol=1e-9,
    )


def test_the_tables_of_a_finished_cell_are_drawn(shop, tmp_path):
    """Rates with what was recited of windows that nobody was trained on, and the half student."""
    cell = shop.recipe.cells[0]
    write_cell(measure_cell(shop, cell, finished_models(shop, cell)), tmp_path / "one.parquet")
    runs = fitting.read_runs(tmp_path)

    assert [row[0] for row in rates_table(runs).rows] == ["one"]
    assert [row[:2] for row in students_table(runs).rows] == [("one", "half")]


def test_the_feature_that_decides_is_chosen_first():
    """Forward selection looks at cells that the fit has not seen."""
    runs = make_runs(("train", "train", "train"))

    assert fitting.choose_features(runs)[0] == "teacher_suffix_min_margin"
    assert fitting.choose_features(runs[:1]) == fitting.SUFFIX_FEATURES


def test_every_method_is_judged_on_every_test_cell():
    """A classifier looks good alone: what is simpler, and what was shipped before, stand beside."""
    judged = fitting.judge_all(make_runs(("train", "train", "calibration", "test", "test")))

    table = classifiers_table(judged)
    assert {row[1] for row in table.rows} == {"test-3", "test-4"}
    assert len(table.rows) == 2 * len(judged)
    best = judged["teacher, suffix and margin"]["test-3"]
    assert best.pr_auc > judged["zlib entropy alone"]["test-3"].pr_auc
    assert judged["students of other seeds"]["test-3"].expected is None
