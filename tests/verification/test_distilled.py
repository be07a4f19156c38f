"""A student that was distilled elsewhere is asked like one that was distilled here."""

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from support.tiny_models import edit_json
from support.verifying import make_miniatures, make_options

from memaudit.cli.main import run
from memaudit.errors import ModelError, UsageError
from memaudit.labels import found_rows, read_verification
from memaudit.verification.distilled import verify_distilled
from memaudit.verification.run import verify_distillation

FAST = ["--prefix-tokens", "8", "--suffix-tokens", "8", "--threads", "1", "-q"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Teacher, corpus, and a baseline and a student that were kept from a verification."""
    folder = tmp_path_factory.mktemp("distilled")
    given = make_miniatures(folder)
    options = make_options(epochs=8, keep_models=True, held_out_share=0.0)
    verify_distillation(**given, out=folder / "here", options=options)
    kept = {role: str(folder / "here" / role) for role in ("baseline", "student")}
    return given | kept | {"here": folder / "here"}


def verified(models, out, *, students=None, **changes):
    """Ask the student that was kept, or others."""
    students = [models["student"]] if students is None else students
    given = {"baseline": models["baseline"], "options": make_options()} | changes
    return verify_distilled(models["teacher"], students, models["data"], out=out, **given)


def test_the_same_student_recites_the_same_wherever_it_was_distilled(models, tmp_path):
    """Numbers of memaudit's own verification, without any training."""
    (result,) = verified(models, tmp_path / "out").values()

    before, table = read_verification(models["here"])
    for field in ("extracted", "extracted_rows", "sets", "inherited", "outcomes", "examples"):
        assert getattr(result, field) == getattr(before, field)
    assert result.extracted["teacher"].count > 0
    after, again = read_verification(tmp_path / "out")
    assert after == result
    assert (found_rows(again).recites == found_rows(table).recites).all()
    assert again.column_names == table.column_names
    assert result.settings["distilled"] == "elsewhere"
    assert "epochs" not in result.settings


def test_several_students_share_the_answers_of_the_others(models, tmp_path):
    """Seeds or checkpoints: a folder each, as if each had been asked alone."""
    told = []
    results = verified(
        models,
        tmp_path / "out",
        students=[models["student"], models["baseline"]],
        progress=lambda moment: told.append(moment.stage),
    )

    assert list(results) == ["student", "baseline"]
    assert told.count("extract teacher") == told.count("extract baseline") == 1
    assert results["baseline"].extracted["student"] == results["student"].extracted["baseline"]
    (alone,) = verified(models, tmp_path / "alone").values()
    assert alone.document() | {"seconds": 0} == results["student"].document() | {"seconds": 0}
    for name, result in results.items():
        assert read_verification(tmp_path / "out" / name)[0] == result
    assert not (tmp_path / "out" / "work").exists()


def test_a_student_with_other_tokens_recites_the_same_texts(models, tmp_path):
    """The same student under other token numbers, beside a baseline with the teacher's."""
    other = renumbered(models["student"], tmp_path / "student")

    (result,) = verified(models, tmp_path / "out", students=[str(other)]).values()

    (same,) = verified(models, tmp_path / "same").values()
    assert result.settings["aligned"] == ["student"]
    for field in ("extracted", "sets", "sampled", "inherited"):
        assert getattr(result, field) == getattr(same, field)
    for asked in ({"check_generate": 4}, {"near_verbatim": 0.1}):
        with pytest.raises(UsageError, match="the student has others"):
            verified(models, tmp_path / "no", students=[str(other)], options=make_options(**asked))


def test_each_of_several_students_gets_its_own_near_verbatim_bound(models, tmp_path):
    """And a baseline with other tokens gets none: it cannot go on from the teacher's."""
    other = renumbered(models["baseline"], tmp_path / "other")
    students = [models["student"], models["baseline"]]
    results = verified(
        models,
        tmp_path,
        students=students,
        baseline=str(other),
        options=make_options(near_verbatim=0.2),
    )

    one, two = (result.near_verbatim for result in results.values())
    assert set(one) == set(two) == {"teacher", "student"}
    assert one["teacher"] == two["teacher"]
    assert one["student"] != two["student"]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, about transformers
def test_checkpoints_of_one_lora_training_read_their_base_once(models, tmp_path, monkeypatch):
    """Ten adapters of a large base would else read it ten times; the answers are those of each alone."""
    peft = pytest.importorskip("peft")
    from memaudit.engines import models as loading

    students = []
    for i in range(2):
        adapted = peft.get_peft_model(
            loading.load_model(models["student"]).model,
            peft.LoraConfig(target_modules="all-linear", init_lora_weights=False),
        )
        adapted.save_pretrained(tmp_path / f"step-{i}")
        edit_json(
            tmp_path / f"step-{i}/adapter_config.json", base_model_name_or_path=models["student"]
        )
        students.append(str(tmp_path / f"step-{i}"))
    read, load_weights = [], loading._load_weights
    monkeypatch.setattr(
        loading, "_load_weights", lambda *given: (read.append(given[0]), load_weights(*given))[1]
    )

    both = verified(models, tmp_path / "both", students=students)

    assert read.count(models["student"]) == 1
    for source, result in zip(students, both.values(), strict=True):
        (alone,) = verified(
            models, tmp_path / f"alone-{result.seconds}", students=[source]
        ).values()
        assert replace(result, seconds=0) == replace(alone, seconds=0)
    assert len({result.settings["student_digest"] for result in both.values()}) == 2


def renumbered(source, folder):
    """Save a model again, with two of its letters' token ids exchanged."""
    from support.tiny_models import save_tokenizer

    from memaudit.engines.models import load_model

    loaded = load_model(source)
    i, j = (loaded.tokenizer.vocabulary[letter] for letter in "ab")
    for name in ("get_input_embeddings", "get_output_embeddings"):
        weight = getattr(loaded.model, name)().weight
        weight[[i, j]] = weight[[j, i]].clone()
    loaded.model.save_pretrained(folder)
    save_tokenizer(folder, merges=(), swap=(i, j))
    return folder


def test_without_a_baseline_nothing_is_called_easy(models, tmp_path):
    """What nobody was asked is empty in the table, not false."""
    (result,) = verified(models, tmp_path / "out", baseline=None).values()

    assert (result.extracted["baseline"].of, result.extracted["baseline"].rate) == (0, None)
    assert result.sets["easy"] == 0
    rows = pq.read_table(tmp_path / "out" / "verification.parquet").to_pylist()
    assert {row["extracted_by_baseline"] for row in rows} == {None}
    assert {row["extracted_by_student"] for row in rows if row["outcome"] == "scored"} <= {
        True,
        False,
    }


def test_a_finished_folder_is_not_asked_again_and_answers_one_question(models, tmp_path):
    """Another student in the same folder is another verification."""
    verified(models, tmp_path)
    told = []
    verified(models, tmp_path, progress=lambda moment: told.append(moment.stage))
    assert set(told) == {"read"}

    with pytest.raises(UsageError, match="student_digest was"):
        verified(models, tmp_path, students=[models["baseline"]])


def test_students_that_cannot_be_told_apart_or_loaded_are_refused(models, tmp_path):
    """By name, before anything is scored."""
    with pytest.raises(UsageError, match="the same name"):
        verified(models, tmp_path / "a", students=[models["student"]] * 2)
    with pytest.raises(ModelError):
        verified(models, tmp_path / "b", students=["nowhere/to/be/found"])
    assert not (tmp_path / "b").exists()


@pytest.fixture
def verify(models, tmp_path, capsys, monkeypatch):
    """Run the command and return the code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run_verify(*arguments):
        given = ["--teacher", models["teacher"], "--data", str(models["data"]), *FAST]
        code = run(["verify", *given, *map(str, arguments)])
        return code, *capsys.readouterr()

    return run_verify


def test_the_command_compares_with_predictions(models, verify, tmp_path, capsys):
    """From a student of one's own to what predict had said of it."""
    shape = FAST[:4]
    predict = ["predict", "--teacher", models["teacher"], "--data", str(models["data"]), *shape]
    assert run([*predict, "-q", "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    code, out, err = verify(
        "--distilled", models["student"], "--predictions", "run", "--out", "one", "--json"
    )

    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document == json.loads((tmp_path / "one/verification.json").read_text())
    assert document["comparison"]["found"] == document["extracted"]["student"]["count"]


def test_the_command_shows_one_student_or_a_table_of_several(models, verify):
    """Whoever compares checkpoints wants one line for each."""
    code, out, _ = verify("--distilled", models["student"], "--out", "one")
    assert code == 0
    assert out.startswith("The student recites ")
    assert "Without a baseline" in " ".join(out.split())

    several = ("--distilled", models["student"], "--distilled", models["baseline"])
    code, out, _ = verify(*several, "--out", "two")
    assert code == 0
    assert out.startswith("2 students recite ")
    code, out, _ = verify(*several, "--out", "two", "--json")
    assert list(json.loads(out)["students"]) == ["baseline", "student"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --student or --distilled, got neither"),
        (["--student", "s", "--distilled", "d"], "expected --student or --distilled, got both"),
        (["--distilled", "d", "--dry-run"], "--dry-run has no meaning with --distilled"),
        (["--distilled", "d", "--keep-models"], "--keep-models has no meaning with --distilled"),
    ],
)
def test_there_is_one_way_to_a_student(verify, arguments, message):
    """Trained here, or elsewhere."""
    code, out, err = verify(*arguments)

    assert (code, out) == (2, "")
    assert message in err
