"""`memaudit predict`, from its arguments to its files, on a tiny real model."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from conftest import save_tiny_model
from support.fakes import unless_given

from memaudit.audit import audit_corpus
from memaudit.cli.main import run
from memaudit.features import FEATURE_SETS
from memaudit.runs.options import AuditOptions
from memaudit.windows import WindowShape

SHAPE = ["--prefix-tokens", "16", "--suffix-tokens", "16"]


@pytest.fixture
def predict(tiny_teacher, corpus, classifier, tmp_path, capsys, monkeypatch):
    """Run the command on the corpus and return the code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run_predict(*arguments):
        given = unless_given(arguments, teacher=tiny_teacher, data=corpus, classifier=classifier)
        code = run(["predict", *given, *SHAPE, *map(str, arguments)])
        return code, *capsys.readouterr()

    return run_predict


def test_a_run_leaves_a_table_and_a_summary(predict, tmp_path):
    """Without --out they are found under the corpus's name."""
    code, out, _ = predict()

    assert code == 0
    assert out.splitlines()[0].split(" at risk")[0].endswith("of 12 examples are")
    folder = tmp_path / "runs" / "corpus"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"risk.parquet", "summary.json", "manifest.json"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    rows = pq.read_table(folder / "risk.parquet").to_pylist()
    assert [row["outcome"] for row in rows] == ["scored"] * 11 + ["too_short"]
    assert [row["row"] for row in rows] == list(range(12))
    assert rows[3]["occurrences"] == rows[10]["occurrences"] == 2
    assert [name for name in rows[0] if name in FEATURE_SETS["teacher"]] == [
        *FEATURE_SETS["teacher"]
    ]


def test_the_document_is_all_of_standard_output(predict, tmp_path):
    """Programs read it; people's text goes elsewhere."""
    code, out, err = predict("--json", "--out", tmp_path / "out")

    document = json.loads(out)
    assert code == 0
    assert out.count("\n") == 1
    assert {
        *("schema_version", "rows", "scored", "too_short", "bad", "flagged", "expected_memorized"),
        *("classifier", "teacher", "engine", "seconds", "tokens_per_second"),
    } <= set(document)
    assert (document["rows"], document["scored"], document["too_short"]) == (12, 11, 1)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary == document | {"date": summary["date"]}
    assert re.search(r"score 10/10 100\.0% [\d.k]+ windows/s eta 00:00", err)


def test_quiet_leaves_standard_error_empty(predict):
    """A script that asked for quiet gets it, libraries included."""
    assert predict("--quiet", "--json")[2] == ""


def test_the_same_run_gives_the_same_table(predict, tmp_path):
    """Byte for byte, so that tables can be compared by digest."""
    tables = []
    for name in ("one", "two"):
        assert predict("--out", tmp_path / name)[0] == 0
        tables.append((tmp_path / name / "risk.parquet").read_bytes())

    assert tables[0] == tables[1]


@pytest.mark.parametrize("table_format", ["parquet", "jsonl", "csv"])
def test_each_table_format_can_be_asked_for(predict, tmp_path, table_format):
    """Beside the shape of the rows, which is another option."""
    code, _, err = predict(
        "--table-format", table_format, "--format", "text", "--out", tmp_path / "out"
    )

    assert "note:" not in err
    assert code == 0
    content = (tmp_path / "out" / f"risk.{table_format}").read_bytes()
    read = {
        "parquet": lambda: pq.read_table(io.BytesIO(content)).to_pylist(),
        "jsonl": lambda: [json.loads(line) for line in content.splitlines()],
        "csv": lambda: list(csv.DictReader(io.StringIO(content.decode()))),
    }[table_format]()
    assert [row["id"] for row in read][:2] == ["row-0", "row-1"]


def test_the_table_format_still_goes_by_its_old_name(predict, tmp_path):
    """Scripts of the last version go on, and are told the new name."""
    code, _, err = predict("--format", "csv", "--out", tmp_path / "out")

    assert code == 0
    assert (tmp_path / "out" / "risk.csv").exists()
    assert "note: --format csv is now called --table-format csv\n" in err


def test_the_command_and_the_function_agree(predict, tiny_teacher, corpus, classifier):
    """The Python API is the command without its printing."""
    document = json.loads(predict("--json")[1])
    options = AuditOptions(classifier=str(classifier), shape=WindowShape(16, 16))

    result = audit_corpus(str(tiny_teacher), corpus, options=options).document()

    vary = {"seconds", "tokens_per_second", "table"}
    assert {k: v for k, v in result.items() if k not in vary} == {
        k: v for k, v in document.items() if k not in vary
    }


@pytest.mark.parametrize("role", ["student", "baseline"])
def test_a_second_model_adds_columns(predict, tiny_student, tmp_path, role):
    """The reference is what sharpens a prediction."""
    code, out, _ = predict(f"--{role}", tiny_student, "--json", "--out", tmp_path / "out")

    assert code == 0
    assert json.loads(out)["feature_set"] == f"teacher+{role}"
    schema = pq.read_schema(tmp_path / "out" / "risk.parquet")
    assert set(FEATURE_SETS[f"teacher+{role}"]) <= set(schema.names)


def test_a_second_model_may_have_a_tokenizer_of_its_own(predict, tmp_path, tiny_student):
    """Its columns have their own names; what is finished is told again, and not mixed up."""
    other, out = save_tiny_model(tmp_path / "other", first_token="Z"), tmp_path / "out"

    code, told, _ = predict("--student", other, "--out", out)

    assert code == 0
    assert "has a tokenizer of its own" in " ".join(told.split())
    names = {*pq.read_schema(out / "risk.parquet").names}
    assert {*FEATURE_SETS["teacher+aligned_student"]} <= names
    assert not any(name.startswith("student_") or "kl_divergence" in name for name in names)
    assert json.loads(predict("--student", other, "--out", out, "--json")[1])["feature_set"] == (
        "teacher+aligned_student"
    )
    code, _, err = predict("--student", tiny_student, "--out", out)
    assert code == 2
    assert "holds another run" in err
    code, _, err = predict("--baseline", other, "--classifier", "teacher+baseline")
    assert code == 2
    assert "with the teacher's tokenizer" in " ".join(err.split())


def test_bad_rows_can_be_skipped(predict, corpus):
    """They are counted, and the rest is audited."""
    corpus.write_text("{broken\n" + corpus.read_text())

    document = json.loads(predict("--json", "--on-bad-row", "skip")[1])
    assert (document["rows"], document["bad"]) == (13, 1)


def test_messages_need_a_chat_template(predict, corpus):
    """The tiny model has none: joining messages somehow would audit another text."""
    messages = [{"role": "user", "content": "what is written here can be found"}]
    corpus.write_text(json.dumps({"messages": messages}) + "\n")

    code, _, err = predict("--format", "messages")

    assert code == 2
    assert "the model has no chat template" in err


def test_a_corpus_comes_through_a_pipe_too(predict, corpus, monkeypatch, tmp_path):
    """`zcat … | memaudit predict --data -` needs no file."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(corpus.read_bytes())))

    assert predict("--data", "-")[0] == 0
    assert (tmp_path / "runs" / "stdin" / "risk.parquet").exists()


@pytest.mark.parametrize("flag", ["--teacher", "--data"])
def test_what_is_named_twice_is_refused(predict, corpus, tmp_path, flag):
    """Click takes the last and drops the first: half of what should be audited would be missing."""
    code, _, err = predict(flag, corpus, flag, corpus)

    assert code == 2
    assert f"{flag} is given 2 times" in err
    assert "folder or a glob" in err
    assert not (tmp_path / "runs").exists()


def test_tiling_scores_more_windows(predict):
    """Every window of a row counts under this policy."""
    documents = [
        json.loads(predict("--json", "--windows", windows, "--restart")[1])
        for windows in ("first", "tile")
    ]

    assert [document["windows"] for document in documents] == [11, 22]


def test_no_output_holds_text_of_the_corpus(predict, tmp_path):
    """Every row carries a canary: none may sing, in no format, on no stream."""
    for table_format in ("parquet", "jsonl", "csv"):
        _, out, err = predict("--table-format", table_format)
        assert "CANARY" not in out + err
    folder = tmp_path / "runs" / "corpus"
    for path in folder.rglob("*"):
        assert path.is_dir() or b"CANARY" not in path.read_bytes()
    assert "CANARY" not in str(pq.read_table(folder / "risk.parquet").to_pylist())


def test_text_is_shown_when_asked_for(predict):
    """The worst examples' first characters, no more."""
    _, out, _ = predict("--show-text", "8", "--color", "never")

    assert "MEMAUDIT" in out
    assert "CANARY" not in out
    assert "contain text of the corpus" in out


def test_top_limits_the_worst_examples(predict):
    """The table holds all of them anyway."""
    assert len(json.loads(predict("--json", "--top", "3")[1])["worst"]) == 3
    assert "Worst examples" not in predict("--top", "0")[1]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("-", "stdin"),
        ("org/name", "org--name"),
        ("org/name@v1.0", "org--name-v1.0"),
        ("some/where/c.jsonl.zst", "c"),
        ("*.jsonl", "corpus"),
        ("a b\n.csv", "a-b"),
        ("..x/.csv", "x"),
        ("..", "corpus"),
    ],
)
def test_a_run_is_named_after_its_corpus(source, name):
    """A name that is safe as a folder, whatever the corpus is called."""
    from memaudit.cli.options import Corpus
    from memaudit.corpus import CorpusOptions

    assert Corpus(CorpusOptions(source), "error").stem == name


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_compiled_models_are_named_and_their_code_lies_where_nobody_else_can_write(
    tiny_teacher, corpus, classifier, tmp_path
):
    """In the folder for temporary files that all share, anybody could put code in its place."""
    command = ["-m", "memaudit", "predict", "--teacher", tiny_teacher, "--data", corpus, *SHAPE]
    command += ["--classifier", classifier, "--out", tmp_path / "out", "--compile", "--json", "-q"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)

    # In a process of its own: torch reads where when it is first imported.
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["engine"].endswith("-float32-compiled")
    assert any((tmp_path / "memaudit" / "kernels").rglob("*.so"))
    assert (tmp_path / "memaudit").stat().st_mode & 0o777 == 0o700
    assert not list((tmp_path / "tmp").rglob("*.so"))


@pytest.mark.parametrize(
    ("arguments", "variable", "compiled"),
    [
        ([], "", False),
        (["--compile"], "", True),
        (["--compile", "on"], "0", True),
        (["--compile=off"], "1", False),
        (["--compile", "auto"], "", None),
        ([], "1", True),
        ([], "False", False),
        ([], "auto", None),
    ],
)
def test_compile_is_a_switch_and_a_choice(predict, monkeypatch, arguments, variable, compiled):
    """It was a switch alone: commands and variables of before go on to work."""
    seen = []
    monkeypatch.setenv("MEMAUDIT_PREDICT_COMPILE", variable)
    monkeypatch.setattr(
        "memaudit.cli.predict.predict_all",
        lambda audit, *_: seen.append(audit["options"].model.compiled),
    )

    code, _, err = predict(*arguments, "--out", "x", "--quiet")

    assert (code, err, seen) == (0, "", [compiled])


def test_a_recipe_says_what_was_understood_and_what_was_not(predict, tmp_path):
    """A trainer's file decides the objective; a field that is not reflected must be seen."""
    recipe = tmp_path / "nemo.yaml"
    recipe.write_text("kd_ratio: 0.5\nkd_loss_fn: {temperature: 4}\nkd_new_loss: 1\n")
    code, out, err = predict("--recipe", recipe, "--json")

    document = json.loads(out)
    assert code == 0
    assert (document["temperature"], document["cross_entropy_share"]) == (4, 0.5)
    assert "recipe: NeMo AutoModel: forward KL, T = 4, 50% cross-entropy, answers only" in err
    assert "warning: kd_new_loss may change what the student learns" in err
    code, out, err = predict("--recipe", "trl", "--temperature", "2", "--json", "-q", "--restart")
    assert json.loads(out)["temperature"] == 2
    assert err.count("warning: no classifier was fitted on") == 2
    assert "recipe:" not in err


def test_without_an_objective_the_usual_ways_to_train_are_told(predict):
    """Nobody's trainer uses temperature 2 by default: the choice must be seen to matter."""
    _, out, _ = predict()
    told = " ".join(out.split())
    assert "Different texts expected, by how you train" in told
    assert "soft labels at T = 1 --temperature 1 no classifier" in told
    _, out, _ = predict("--objective", "soft", "--restart")
    assert "by how you train" not in " ".join(out.split())


def test_prompts_without_answers_get_an_answer(predict, tmp_path):
    """On-policy distillation reads prompts alone; "found no text" would send its user away."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "Write a poem about the sea."}) + "\n")
    code, _, err = predict("--data", prompts)
    assert code == 2
    assert "so there is no text to learn" in " ".join(err.split())
