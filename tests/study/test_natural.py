"""The natural study in small: windows, stages that go on, a cell's file, and a fit on it."""

import json
import random
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import zstandard
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from memaudit.classifier import Calibration, find_classifier
from memaudit.distillation.methods import generate_hard_labels
from memaudit.features import KNOWN_FEATURES
from memaudit.objectives import GREEDY, LabelSampling
from memaudit.prefilter import load_prefilter_fit, prefilter_fit_path
from study import fit as fitting
from study import interventions, loops, sampling, stages
from study.measure import count_templates, finished_models, measure_cell, read_cell, write_cell
from study.models import cut_model, new_model
from study.recipe import Schedule, Size, read_recipe
from study.report import classifiers_table, rates_table, students_table
from study.shipping import ship
from study.specific import halves_table, specific_table
from study.stages import Workshop, load_model, read_tokenizer, read_windows, train_cell
from study.texts import _cut_chats, cut_document
from study.transfer import families_table, objectives_table, pilots_table, teachers_table

RECIPES = Path(__file__).parents[2] / "study/recipes"
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
students = [
  { name = "soft" },
  { name = "half", later = true, is_half = true },
  { name = "other-half", later = true, is_other_half = true },
]
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


@pytest.fixture(scope="module")
def cell(shop):
    """A cell whose models are trained, whichever test asks first."""
    train_cell(shop, shop.recipe.cells[0], later=True)
    return shop.recipe.cells[0]


def test_windows_start_where_lines_do(shop):
    """A template gives the same windows in every document that holds it."""
    tokenizer = read_tokenizer(shop)
    text = "navigation home about\nbody of one page here\nfooter and more words\n" * 3

    windows = [window for _, window in cut_document(text, 6, tokenizer)]

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


def test_prompts_are_alike_and_answers_are_text_of_the_corpus(shop):
    """The prefix is the end of a prompt, whatever its length; the answer begins where a line does."""
    tokenizer = read_tokenizer(shop)
    regime = msgspec.structs.replace(shop.recipe.regimes["tiny"], is_chat=True)
    text = "navigation home about\nbody of one page here\nfooter and more words\n" * 3

    chats = list(_cut_chats(regime, tokenizer, text))

    assert chats
    for chat in chats:
        assert len(chat) == regime.length
        assert tokenizer.decode(chat[: regime.prefix_len]).endswith("istant: ")
        assert tokenizer.decode(chat[regime.prefix_len :]).strip("\n") in text


@pytest.mark.parametrize("saw", ["all", "half", "none"])
def test_a_teacher_sees_all_half_or_none_of_the_windows(shop, saw, monkeypatch):
    """One that saw none is its base: what its students recite did not come through it."""
    trained = {}
    monkeypatch.setattr(
        stages,
        "_train",
        lambda shop, folder, *arguments, **options: trained.update({folder.name: options}),
    )
    monkeypatch.setattr(stages, "_base", lambda *arguments: None)
    cell = msgspec.structs.replace(shop.recipe.cells[0], name=saw, teacher_saw=saw, students=[])
    made = read_windows(shop, cell)

    train_cell(shop, cell, later=True)

    rows = trained["teacher"]["rows"]
    assert len(trained["baseline"]["rows"]) == made.counts.sum()
    expected = {"all": made.counts.sum(), "half": made.counts[made.in_half].sum(), "none": 0}
    assert len(rows) == expected[saw]
    assert saw == "all" or made.in_half[rows].all()


def test_a_cut_model_is_the_same_after_it_was_saved(tmp_path):
    """Blocks of Gemma attend in one of two ways, and each keeps its own."""
    blocks = {"num_hidden_layers": 6, "hidden_size": 32, "intermediate_size": 32, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 50}
    config = Gemma3TextConfig(**blocks, **heads, sliding_window=4, pad_token_id=0)
    kinds = config.layer_types
    ids = torch.arange(12)[None]

    cut = cut_model(Gemma3ForCausalLM(config).eval(), 3)
    cut.save_pretrained(tmp_path)

    assert cut.config.layer_types == kinds[::2]
    torch.testing.assert_close(load_model(tmp_path)(ids).logits, cut(ids).logits)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("[!h]*.toml")), ids=lambda path: path.stem)
def test_every_recipe_is_read(path):
    """One for a GPU is not run by any test, and has but minutes there."""
    recipe = read_recipe(path)

    assert recipe.cells
    for size in recipe.pretrained.values():
        assert {regime.teacher for regime in recipe.regimes.values()} == {size}


def test_a_training_on_nothing_leaves_the_base():
    """Not a number of it: the loss of no rows is none."""
    model = new_model("llama", Size(hidden=32, layers=1), 300, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    windows = np.zeros((4, 8), np.int32)
    loops.train(model, windows, Schedule(3, 1e-2), rows=np.arange(0), seed=1)

    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("sampling", [GREEDY, LabelSampling(1.0)], ids=["greedy", "sampled"])
def test_hard_labels_are_those_of_the_package(sampling):
    """To the token, also where windows share a prefix: on a GPU only more are written at once."""
    model = new_model("llama", Size(hidden=32, layers=1), 300, 1)
    texts = np.random.default_rng(0).integers(0, 300, (40, 9)).astype(np.int32)
    texts[20:, :4] = texts[:20, :4][::-1]

    found = stages._hard_labels(model, texts, 4, sampling, 3)

    expected = generate_hard_labels(model, list(texts), 4, sampling=sampling, seed=3)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, np.stack(expected))


def test_a_killed_cell_goes_on_with_the_stage_that_is_missing(shop, monkeypatch):
    """Hours of training are not done twice; what can wait, waits."""
    cell = msgspec.structs.replace(shop.recipe.cells[0], name="killed")
    train_cell(shop, cell, later=False)
    assert finished_models(shop, cell) == ["teacher", "baseline", "soft"]

    monkeypatch.setattr(stages, "_train", lambda *arguments, **options: pytest.fail("again"))
    train_cell(shop, cell, later=False)
    monkeypatch.undo()
    train_cell(shop, cell, later=True)
    assert finished_models(shop, cell)[-2:] == ["half", "other-half"]


def test_a_training_that_was_stopped_goes_on_from_its_checkpoint(shop, tmp_path, monkeypatch):
    """To the same bits: hours on a large model are not lost, and nobody can tell."""
    windows = read_windows(shop, shop.recipe.cells[0]).windows
    schedule = Schedule(epochs=6, learning_rate=5e-3)
    sizes = ("llama", Size(hidden=32, layers=3), 300, 1)

    def model():
        return cut_model(new_model(*sizes), 2)

    def trained(student, **options):
        loops.train(student, windows, schedule, rows=np.arange(40), seed=1, **options)
        return student.state_dict()

    whole = trained(model())
    n_steps, step = 0, loops._step

    def stopped(*arguments):
        nonlocal n_steps
        n_steps += 1
        if n_steps == 4:
            raise KeyboardInterrupt
        step(*arguments)

    monkeypatch.setattr(loops, "_step", stopped)
    monkeypatch.setattr(loops, "_CHECKPOINT_SECONDS", 0.0)
    options = {"checkpoint": tmp_path / "checkpoint"}
    with pytest.raises(KeyboardInterrupt):
        trained(model(), **options)
    n_steps = 10
    again = trained(model(), **options)

    assert n_steps == 10 + 5, "the steps before the checkpoint are not done again"
    for name, tensor in whole.items():
        assert torch.equal(tensor, again[name])


def test_a_cell_file_holds_no_text_and_is_read_back(shop, cell, tmp_path):
    """It is kept in git, and all that a fit needs is in it."""
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


def test_a_cell_says_how_likely_each_student_is_to_sample_a_suffix(shop, cell):
    """By transformers' own loss over the suffix: what 1,000 samples reveal follows from it."""
    models = finished_models(shop, cell)
    measured = measure_cell(shop, cell, models)
    made, prefix_len = read_windows(shop, cell), shop.recipe.regimes[cell.regime].prefix_len
    student = load_model(shop.cell_folder(cell) / models[-1])
    sizes = measured.columns["weight"]
    assert len(sizes) == len(made.windows) + len(made.held_out), "small enough to keep all"

    with torch.inference_mode():
        for row, window in enumerate(made.windows[:5]):
            ids = torch.from_numpy(window.astype(np.int64))[None]
            labels = ids.clone()
            labels[:, :prefix_len] = -100
            nats = student(ids, labels=labels).loss.item() * (len(window) - prefix_len)
            found = measured.columns[f"suffix_logprob_{models[-1]}"][row]
            assert found == pytest.approx(-nats, rel=1e-4)


def test_suffixes_that_share_eight_tokens_are_one_template():
    """Also by way of a third one."""
    first, last = np.arange(16), np.arange(16, 32)
    between = np.arange(8, 24)

    assert count_templates(np.stack([first, last])) == 2
    assert count_templates(np.stack([first, last, between])) == 1
    assert count_templates(np.zeros((0, 16), np.int32)) == 0


BEFORE = ("teacher+baseline-hard", "teacher+student-hard", "teacher-hard")
MODELS = {
    "baseline": "cross-entropy",
    "plain": "cross-entropy",
    "hard-greedy": "hard",
    "hard-sampled": "sampled",
}
"""What a model learns from, if it is not soft labels."""


def make_runs(roles=("train", "calibration", "test"), n=2000, models=("soft", "baseline")):
    """Runs in which the least probable token decides what is recited; no two share a source."""
    runs = []
    for i, role in enumerate(roles):
        rng = np.random.default_rng(i)
        names = {*KNOWN_FEATURES["teacher+student"], *KNOWN_FEATURES["teacher+baseline"]}
        columns = {name: rng.normal(size=n) for name in sorted(names)}
        columns |= {"log_temperature": np.zeros(n), "teacher_suffix_min_logprob": -rng.random(n)}
        recited = columns["teacher_suffix_min_logprob"] + rng.normal(size=n) / 40 > -0.04
        columns |= {f"recited_{m}": recited for m in ("teacher", "baseline", "soft-seed-2")}
        about = {
            "cell": {"name": f"{role}-{i}", "role": role, "family": "qwen3"},
            "regime": {"copies": {}},
            "sources": [f"source-{i}"],
            "windows": n,
            "recited": {"soft": int(recited.sum()), "baseline": int(recited.sum())},
        }
        for model in models:
            objective = MODELS.get(model, "soft")
            name = f"{role}-{i}"
            run = fitting.Run(name, model, objective, about, columns, recited, np.ones(n))
            runs.append(run)
    return runs


def test_a_fit_ranks_and_counts_what_it_has_not_seen():
    """Level and threshold come from predictions of sources that the fit had not seen."""
    *known, test = make_runs(("train", "train", "calibration", "test"), models=("soft",))

    fitted = fitting.fit(known, ("log_exposure", "teacher_suffix_min_logprob"))
    found = fitting.judge(test, fitted.probabilities(test), fitted.threshold)

    assert found.roc_auc > 0.98
    assert found.expected == pytest.approx(found.found, rel=0.4)
    assert found.recall > 0.6
    assert [run.cell for run, _ in fitted.held_out] == [run.cell for run in known]


def test_what_samples_reveal_is_fitted_by_log_odds_of_other_sources():
    """As many as were found, of a run that nothing was fitted on; a file of before says nothing."""
    runs = make_runs(("train", "train", "calibration", "test"), models=("soft",))
    rng = np.random.default_rng(9)
    told = [
        replace(
            run,
            columns=run.columns | {"suffix_tokens": np.full(len(run.recited), 16)},
            suffix_logprobs=60 * run.columns["teacher_suffix_min_logprob"]
            - np.abs(rng.normal(size=len(run.recited))),
        )
        for run in runs
    ]
    *known, test = told
    fitted = fitting.fit(known, ("log_exposure", "teacher_suffix_min_logprob"))

    found = sampling.fit_sampled(fitted)

    log_odds = sampling.log_odds_of(fitted, test)
    assert [n for n, _ in found.count_log_sds] == list(sampling.SAMPLES)
    for n, p in zip(sampling.SAMPLES, sampling.predicted(found, test, log_odds), strict=True):
        assert p.sum() == pytest.approx(sampling.revealed(test, n).sum(), rel=0.3)
    table = sampling.sampling_table(
        told, {"teacher": (fitting.SHIPPED[0], fitted)}, {"teacher": found}
    )
    assert [row[3] for row in table.rows] == ["10", "100", "1,000"]
    assert sampling.fit_sampled(fitting.fit(runs[:3], fitted.features)) is None


def test_runs_that_share_a_source_are_left_out_together():
    """Else text of the very pages that are to be predicted has been seen."""
    runs = make_runs(("train", "train", "train"), models=("soft",))
    shared = replace(runs[2], about={**runs[2].about, "sources": ["source-0", "other"]})

    groups = fitting.source_groups([runs[0], runs[1], shared])

    assert sorted(len(group) for group in groups) == [1, 2]
    assert {run.cell for group in groups for run in group if len(group) == 2} == {
        "train-0",
        "train-2",
    }


def test_the_spread_between_runs_is_what_chance_does_not_explain():
    """Equal levels have none, whatever their counts; unlike ones have about their own variance."""
    chance = np.full(400, 0.04)
    rng = np.random.default_rng(0)

    assert fitting.random_effect(np.zeros(400), chance) == (0.0, 0.0)
    mean, variance = fitting.random_effect(rng.normal(0.3, np.sqrt(0.25 + 0.04), 400), chance)
    assert mean == pytest.approx(0.3, abs=0.1)
    assert variance == pytest.approx(0.25, abs=0.06)


def test_rows_that_stand_for_others_count_as_many():
    """A cell keeps a sample of what nobody recites: dropping it must not change the figures."""
    (run,) = make_runs(("test",), n=4000, models=("soft",))
    score = run.columns["teacher_suffix_min_logprob"]
    kept = run.recited | (np.arange(4000) % 2 == 0)
    others = (~run.recited).sum() / (~run.recited & kept).sum()
    thinned = replace(
        run,
        columns={name: column[kept] for name, column in run.columns.items()},
        recited=run.recited[kept],
        weight=np.where(run.recited, 1.0, others)[kept],
    )

    full = fitting.judge(run, score, -0.04, is_probability=False)
    sampled = fitting.judge(thinned, score[kept], -0.04, is_probability=False)
    assert sampled.pr_auc == pytest.approx(full.pr_auc, abs=0.05)
    assert sampled.precision == pytest.approx(full.precision, abs=0.1)
    assert sampled.recall == full.recall


def test_what_is_fitted_is_the_classifier_that_memaudit_reads(tmp_path):
    """The same numbers from JSON, without scikit-learn; with a card, and a screen of its own."""
    runs = make_runs(("train", "train", "train", "test"))
    features = ("teacher_suffix_min_logprob", "log_exposure", "exposure_share")
    spec = fitting.Shipped("teacher", "teacher", features, "soft")
    fitted = fitting.fit_shipped(runs, spec)
    shipped = {"teacher": (spec, fitted)}
    judged = {"soft": fitting.judge_all(runs, shipped, "soft")}

    ship(runs, shipped, {"teacher": None}, judged, tmp_path)

    classifier = find_classifier(str(tmp_path / "teacher"), "teacher")
    test = next(run for run in runs if run.about["cell"]["role"] == "test")
    np.testing.assert_allclose(
        classifier.predict_proba(test.matrix(classifier.features)),
        fitted.probabilities(test),
        rtol=1e-9,
    )
    card = json.loads((tmp_path / "teacher" / "card.json").read_text())
    assert card["digest"] == classifier.digest
    assert card["level"]["runs"] == 3
    recalls, precisions = np.array(card["curves"]["precision_recall"]).T
    assert (np.diff(recalls) > 0).all()
    assert recalls[0] == 0
    assert recalls[-1] == 1
    flagged = fitted.probabilities(test) >= fitted.threshold
    recall = (flagged & test.recited).sum() / test.recited.sum()
    precision = test.recited[flagged].mean()
    assert np.interp(recall, recalls, precisions) == pytest.approx(precision, abs=0.05)
    screen = load_prefilter_fit(prefilter_fit_path(tmp_path, "teacher"))
    assert screen.classifier_digest == classifier.digest


def test_the_tables_of_a_finished_cell_are_drawn(shop, cell, tmp_path):
    """Rates with what was recited of windows that nobody was trained on, and the half student."""
    write_cell(measure_cell(shop, cell, finished_models(shop, cell)), tmp_path / "one.parquet")
    runs = fitting.read_runs(tmp_path)

    assert [row[0] for row in rates_table(runs).rows] == ["one"]
    halves = [("one", "half"), ("one", "other-half")]
    assert [row[:2] for row in students_table(runs).rows] == halves
    outside = fitting.read_outside_runs(tmp_path)
    predict = everything_likely
    assert [row[:2] for row in halves_table(runs, outside, predict).rows] == halves
    assert [row[0] for row in specific_table(runs, predict).rows] == ["one"]


def everything_likely(run):
    """Probabilities that rise with exposure."""
    return 1 / (1 + np.exp(-run.columns["log_exposure"].astype(float)))


def test_what_a_student_was_not_trained_on_has_the_exposure_of_its_own_half(shop, cell, tmp_path):
    """Counted in the half that it has, by the slow way; no text of its own is among it."""
    write_cell(measure_cell(shop, cell, finished_models(shop, cell)), tmp_path / "one.parquet")
    made = read_windows(shop, cell)
    for run in fitting.read_outside_runs(tmp_path):
        has = made.in_half if run.student == "half" else ~made.in_half
        assert len(run.recited) == (~has).sum(), "so small a cell is kept whole"
        for window, log_exposure in zip(
            made.windows[~has], run.columns["log_exposure"], strict=True
        ):
            grams = [window[i - 8 : i] for i in range(9, 17)]
            counts = [
                sum(
                    int(n)
                    for row, n in zip(made.windows[has], made.counts[has], strict=True)
                    if any(np.array_equal(row[i : i + 8], gram) for i in range(9))
                )
                for gram in grams
            ]
            assert log_exposure == pytest.approx(np.log(max(1, 2 * np.median(counts))), abs=1e-3)


def test_what_is_flagged_is_specific_or_generic_and_as_much_is_drawn():
    """A text that stands in one row is specific, unless other rows have its wording."""
    (run,) = make_runs(("train",), models=("soft",))
    n = len(run.recited)
    columns = run.columns | {
        "count": np.ones(n),
        "epochs": np.full(n, 5.0),
        "exposure_median": np.where(np.arange(n) % 2, 1.0, 9.0),
        "exposure_share": np.ones(n),
    }
    columns["log_exposure"] = fitting.log_exposure(columns["exposure_median"], 5.0)
    run = replace(run, columns=columns)

    goes = interventions.choose(run, everything_likely, 0.5)

    assert goes["flagged"].all()
    assert goes["specific"].tolist() == (np.arange(n) % 2 == 1).tolist()
    assert (goes["generic"] == ~goes["specific"]).all()
    assert goes["random"].sum() == n


def test_an_intervention_counts_what_stays_and_what_goes(shop, cell, monkeypatch):
    """Every window is on one side, and the student is really trained without those that went."""
    made = read_windows(shop, cell)
    trained = []
    monkeypatch.setattr(
        stages,
        "_train",
        lambda shop, folder, model, windows, schedule, *, rows, **others: (
            trained.append(set(rows.tolist())),
            stages._save(folder, model),
        ),
    )
    goes = {"flagged": np.arange(len(made.windows)) % 3 == 0, "random": made.in_half}
    monkeypatch.setattr(interventions, "choose", lambda *arguments: goes)

    found = interventions.intervene(shop, cell, find_classifier("teacher", "teacher"))
    found = found["interventions"]

    assert list(found) == list(goes)
    for rows, name in zip(trained, goes, strict=True):
        assert rows == set(np.flatnonzero(~goes[name]).tolist())
        assert found[name]["dropped"] == goes[name].sum()
        assert 0 <= found[name]["expected_after"] < found[name]["dropped"]
    table = interventions.interventions_table([{"cell": "one", "interventions": found}])
    assert [row[1] for row in table.rows] == list(found)


def test_the_feature_that_decides_is_chosen():
    """The search looks at sources that the fit has not seen, and stops when nothing is gained."""
    runs = make_runs(("train", "train", "train"), models=("soft",))
    candidates = ("log_temperature", "log_exposure", "teacher_suffix_min_logprob")

    assert fitting.choose_features(runs, candidates) == ("teacher_suffix_min_logprob",)


def test_every_method_is_judged_on_every_test_cell():
    """A classifier looks good alone: what is simpler, and what was shipped before, stand beside."""
    runs = make_runs(("train", "train", "calibration", "test", "test"))
    judged = fitting.judge_all(runs, {}, "soft")

    table = classifiers_table(judged, "soft labels")
    assert {row[1] for row in table.rows} == {"test-3", "test-4"}
    assert len(table.rows) == 2 * len(judged)
    best = judged["seven of the teacher's suffix"]["test-3"]
    assert best.pr_auc > judged["zlib entropy alone"]["test-3"].pr_auc
    assert judged["students of other seeds"]["test-3"].expected is None
    of_text = fitting.judge_all(runs, {}, "cross-entropy")
    assert "the paper's four" not in of_text
    assert "exposure alone" in of_text


def test_a_classifier_is_fitted_and_judged_on_students_of_its_objective():
    """And no baseline is asked what itself recites; another model of plain fine-tuning is."""
    models = ("soft", "baseline", "plain", "hard-greedy", "hard-sampled")
    runs = make_runs(("train", "calibration", "test"), models=models)
    students = {
        spec.name: {run.student for run in fitting.predictable(runs, spec)}
        for spec in fitting.SHIPPED
    }

    assert students["teacher"] == students["teacher+baseline"] == {"soft"}
    assert students["teacher-hard"] == {"hard-greedy"}
    assert students["teacher+baseline-sampled"] == {"hard-sampled"}
    assert students["teacher+student-cross-entropy"] == {"baseline", "plain"}
    assert students["teacher+baseline-cross-entropy"] == {"plain"}
    judged = fitting.judge_all(runs, {}, "hard")
    of_hard = {"test-2: hard-greedy"}
    assert set(judged["teacher recites it"]) == of_hard
    assert set(judged["the paper's four"]) == of_hard
    before = [name for name in judged if name.startswith("shipped before")]
    assert before == [f"shipped before: {name}" for name in sorted(BEFORE)]


def test_each_student_is_predicted_by_the_classifier_of_its_objective():
    """A table of objectives that asked one classifier for all would show its level, not theirs."""
    runs = make_runs(("train", "calibration", "test"), models=("soft", "plain", "hard-greedy"))
    fitted = fitting.fit(runs[:3], ("teacher_suffix_min_logprob",))
    never = replace(fitted, calibration=Calibration(slope=0.0, intercept=-99.0))
    names = ("teacher", "teacher-hard", "teacher-cross-entropy")
    shipped = {name: (None, fitted if name == "teacher" else never) for name in names}

    table = objectives_table([run for run in runs if run.cell == "test-2"], shipped)

    assert [row[1] for row in table.rows] == ["soft", "plain", "hard-greedy"]
    assert [float(row[6]) > 1 for row in table.rows] == [True, False, False]


def test_what_a_teacher_has_not_seen_is_counted_apart():
    """A student has that text from its baseline's training alone, or not at all."""
    (run,) = make_runs(("test",), models=("soft",))
    run.columns["in_half"] = np.arange(len(run.recited)) % 4 == 0
    fitted = fitting.fit([run], ("teacher_suffix_min_logprob",))
    of = {
        saw: replace(run, about={**run.about, "cell": {**run.about["cell"], "teacher_saw": saw}})
        for saw in ("all", "half", "none")
    }

    found = {saw: teachers_table([each], fitted).rows for saw, each in of.items()}

    assert found["all"] == ()
    assert [row[2:4] for row in found["half"]] == [("yes", "500"), ("no", "1,500")]
    assert [row[2:4] for row in found["none"]] == [("no", "2,000")]


def test_a_family_is_predicted_without_it_and_pilots_bring_the_level_closer():
    """Both of test runs alone; a pilot of the whole run leaves next to no error."""
    runs = make_runs(("train", "train", "test"), models=("soft",))
    for run, family in zip(runs, ("olmo2", "qwen3", "olmo2"), strict=True):
        run.about["cell"]["family"] = family
    fitted = fitting.fit(runs[:2], ("teacher_suffix_min_logprob",))

    assert [row[:2] for row in families_table(runs, fitted).rows] == [("olmo2", runs[2].cell)]
    wrong = replace(fitted, calibration=Calibration(slope=1.0, intercept=3.0))
    (row,) = pilots_table(runs, wrong).rows
    assert float(row[3]) > 2
    assert float(row[4].split(",")[0]) < float(row[3]) / 1.5
