"""Runs without a teacher, on what was captured of it, beside runs with that teacher."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.captures import LAYOUTS, capture, write_capture

from memaudit.cli.main import run
from memaudit.engines.models import load_model
from memaudit.runs.captured import CapturedScores
from memaudit.windows import WindowChoice, WindowShape

SIZES = ("--prefix-tokens", "20", "--suffix-tokens", "20", "--chunk-size", "4")
EXACT = ("prepared", "legacy", "plain", "two-columns", "one-column")


@pytest.fixture(scope="module")
def captured_rows(tiny_teacher):
    """Return what captures rows of random letters, some of them twice."""
    loaded = load_model(str(tiny_teacher))
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 123, 50))) for _ in range(12)]
    rows = [{"id": f"row-{i}", "text": text} for i, text in enumerate([*texts, *texts[:3]])]

    def of(*, k=256, n_prompt=None):
        return capture(loaded.model, loaded.tokenizer, rows, k=k, n_prompt=n_prompt)

    return of


@pytest.fixture
def predict(tmp_path, capsys, tiny_teacher, monkeypatch):
    """Return what predicts: code, document, errors."""
    monkeypatch.chdir(tmp_path)

    def call(data, *arguments, out="out", teacher="captured"):
        tokenizer = ("--tokenizer", str(tiny_teacher)) if teacher == "captured" else ()
        given = ["predict", "--teacher", str(teacher), "--data", str(data), "--out", out]
        code = run([*given, *SIZES, *tokenizer, "--json", "--quiet", *arguments])
        captured = capsys.readouterr()
        return code, json.loads(captured.out), captured.err

    return call


def table(folder):
    """Return the risk table of a run, by column."""
    return pq.read_table(folder / "risk.parquet").to_pydict()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_is_that_of_the_teacher_itself(
    layout, captured_rows, predict, tmp_path, tiny_teacher
):
    """With all tokens captured, the scores are the teacher's, but for what packing costs."""
    rows, config = captured_rows(), {"d": 256, "exact_k": 64}
    data = write_capture(layout, rows, tmp_path / "capture", k=256, config=config)

    code, document, err = predict(data)
    # Without the capture the columns beside tokens and texts are none of memaudit's business.
    expected = predict(data, "--engine", "hf", teacher=tiny_teacher, out="here")[1]

    assert code == 0, err
    assert (document["engine"], document["teacher"]) == ("captured", "captured")
    assert document["scored"] == expected["scored"] == len(rows)
    assert document["distinct_windows"] == expected["distinct_windows"] == 12
    mine, its = table(tmp_path / "out"), table(tmp_path / "here")
    # Scaled to sum to 1 they are the same: nothing is left out. Packed, they are rounded.
    atol = 2e-5 if layout in EXACT else 0.15
    for name in ("teacher_suffix_mean_logprob", "teacher_suffix_min_logprob", "probability"):
        np.testing.assert_allclose(mine[name], its[name], atol=atol)
    assert "teacher_entropy" not in mine
    assert "teacher_perplexity" in mine
    if layout in EXACT:
        assert mine["teacher_suffix_argmax_rate"] == its["teacher_suffix_argmax_rate"]


@pytest.mark.parametrize("layout", ["prepared", "legacy"])
def test_the_temperature_of_a_capture_is_undone(layout, captured_rows, predict, tmp_path):
    """By it axolotl divides what it prepares; a teacher that looks unsure seems to recite little."""
    softened = [row | {"logprobs": row["logprobs"] / 2} for row in captured_rows(k=8)]
    (tmp_path / "axolotl.yaml").write_text("kd_trainer: true\nkd_temperature: 2.0\n")
    plain, soft = (
        write_capture(layout, rows, tmp_path / name)
        for rows, name in ((captured_rows(k=8), "plain"), (softened, "soft"))
    )
    assert predict(plain, out="one")[0] == 0

    for number, told in enumerate(
        (["--captured-temperature", 2], ["--recipe", "axolotl.yaml"], [])
    ):
        assert predict(soft, *map(str, told), out=str(number))[0] == 0

    name = "teacher_suffix_logprob"
    expected = table(tmp_path / "one")[name]
    np.testing.assert_allclose(table(tmp_path / "0")[name], expected, rtol=1e-5)
    assert table(tmp_path / "1")[name] == table(tmp_path / "0")[name]
    assert not np.allclose(table(tmp_path / "2")[name], expected, rtol=1e-4)


def test_a_temperature_that_nobody_told_is_named(captured_rows, tmp_path, tiny_teacher, capsys):
    """At another one nearly nothing would be expected, and the data do not show it."""
    data = write_capture("prepared", captured_rows(k=8), tmp_path / "capture")
    given = ("--teacher", "captured", "--tokenizer", tiny_teacher, "--data", data)

    assert run(["predict", *map(str, given), *SIZES, "--out", str(tmp_path / "out")]) == 0

    assert "captured at temperature 1" in capsys.readouterr().err


def test_the_temperature_of_other_captures_is_a_mistake(captured_rows, predict, tmp_path):
    """They hold what the teacher said, and would be spoilt."""
    data = write_capture("plain", captured_rows(k=8), tmp_path / "capture")

    code, _, err = predict(data, "--captured-temperature", "2")

    assert code == 2
    assert "leave out --captured-temperature" in err


@pytest.mark.parametrize("layout", ["prepared", "legacy"])
def test_answers_are_scored_where_they_were_captured(layout, captured_rows, predict, tmp_path):
    """Of a masked prompt nothing is known, so what looks at it is absent."""
    data = write_capture(layout, captured_rows(n_prompt=10), tmp_path / "capture", k=256)

    code, document, err = predict(data)

    assert code == 0, err
    assert document["answers"]["windows"] == document["scored"] == 15
    found = table(tmp_path / "out")
    assert "teacher_suffix_logprob" in found
    assert not {"teacher_perplexity", "teacher_prefix_mean_logprob"} & {*found}


def test_prompts_without_labels_are_known_by_what_was_captured(captured_rows, predict, tmp_path):
    """A column beside a text may hold entries of the answer alone."""
    rows = [
        row | {"ids": row["ids"][25:], "logprobs": row["logprobs"][25:]} for row in captured_rows()
    ]
    data = write_capture("one-column", rows, tmp_path / "capture", k=256)

    code, document, err = predict(data)

    assert code == 0, err
    assert document["answers"]["windows"] == 15
    assert predict(data, "--windows", "first", out="first")[0] == 2


def test_a_few_likely_tokens_make_nothing_look_safer(
    captured_rows, predict, tmp_path, tiny_teacher
):
    """A token that is out of the entry is bounded from above."""
    rows = captured_rows(k=8)
    data = write_capture("plain", rows, tmp_path / "capture", k=8)

    assert predict(data)[0] == 0
    predict(data, "--engine", "hf", teacher=tiny_teacher, out="here")

    mine, its = table(tmp_path / "out"), table(tmp_path / "here")
    for name in ("teacher_suffix_logprob", "teacher_suffix_min_logprob"):
        assert (np.array(mine[name]) >= np.array(its[name]) - 1e-4).all()
    assert mine["teacher_suffix_argmax_rate"] == its["teacher_suffix_argmax_rate"]


def test_a_finished_run_is_read_again_and_another_capture_is_another_run(
    captured_rows, predict, tmp_path
):
    """The corpus is the teacher as well: its texts alone do not say whether the run is the same."""
    rows = captured_rows()
    data = write_capture("plain", rows, tmp_path / "capture")
    assert predict(data)[0] == 0
    before = (tmp_path / "out" / "risk.parquet").read_bytes()

    code, document, _ = predict(data)
    assert (code, document["kept_windows"]) == (0, 12)
    assert (tmp_path / "out" / "risk.parquet").read_bytes() == before

    rows[0]["logprobs"] = rows[0]["logprobs"] - 0.25
    write_capture("plain", rows, tmp_path / "capture")
    code, _, err = predict(data)
    assert code == 2
    assert "teacher digest was" in err


def test_a_row_that_cannot_be_used_is_named_or_counted(captured_rows, predict, tmp_path):
    """Captures are data like others."""
    rows = captured_rows()
    rows[3]["logprobs"] = rows[3]["logprobs"] + 5
    data = write_capture("plain", rows, tmp_path / "capture")

    code, _, err = predict(data)
    assert code == 2
    assert "captured log-probabilities: the probabilities of an entry sum to" in err

    code, document, _ = predict(data, "--on-bad-row", "skip")
    assert (code, document["scored"], document["bad"]) == (0, 14, 1)


def test_a_token_id_that_is_no_whole_number_is_named_with_its_place(predict, tmp_path):
    """Cut down to one, it would be the id of another token."""
    row = {"text": "a" * 50, "top_values": [[-0.5]] * 49, "token_ids": [[7]] * 49}
    wrong = row | {"token_ids": [*row["token_ids"][:48], [7.5]]}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(wrong)}\n")

    code, _, err = predict("rows.jsonl")

    assert code == 2
    assert "rows.jsonl:2: captured log-probabilities: 7.5 at [48][0] of 'token_ids' is no" in err


def test_a_corpus_without_log_probabilities_is_refused(predict, tmp_path):
    """With the columns that there are."""
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')

    code, _, err = predict("rows.jsonl")

    assert code == 2
    assert "found no log-probabilities of a teacher" in err
    assert "--map logprobs=COLUMN" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--student", "x"],
        ["--workers", "2"],
        ["--engine", "hf"],
        ["--compile"],
        ["--cascade"],
        ["--served-model", "x"],
        ["--dry-run"],
    ],
)
def test_what_needs_the_model_is_refused(predict, tmp_path, arguments):
    """By its name."""
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')

    code, document, _ = predict("rows.jsonl", *arguments)

    assert code == 2
    assert arguments[0] == "--dry-run" or arguments[0] in document["error"]["message"]


def test_a_tokenizer_must_be_named(tmp_path, monkeypatch, capsys):
    """Ids are no text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')

    assert run(["predict", "--teacher", "captured", "--data", "rows.jsonl"]) == 2
    assert "--tokenizer" in capsys.readouterr().err


def test_of_equal_windows_the_one_nearest_to_recitation_is_kept():
    """They may stand behind different contexts."""
    choice = WindowChoice(WindowShape(1, 2), "first")
    safe = np.array([[-1, -3, -1], [-2, -1, -2]], dtype=np.float32)
    risky = np.array([[-2, -1.5, -2], [-2, -1, -2]], dtype=np.float32)

    for order in ([safe, risky, safe], [risky, safe], [safe, risky]):
        with CapturedScores(choice) as spool:
            for values in order:
                spool.add(values, 3, None, [0])
            spool.add(safe, 3, None, [1])
            np.testing.assert_array_equal(spool.read(0, 2), [risky, safe])
