"""`memaudit verify`, from its arguments to its files."""

import json
import signal

import pytest
from support.fakes import unless_given
from support.verifying import make_miniatures

from memaudit.cli.main import run
from memaudit.cli.signals import Stopped

FAST = ["--prefix-tokens", "8", "--suffix-tokens", "8", "--epochs", "1", "--learning-rate", "8e-3"]


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory):
    """Teacher, student and corpus."""
    return make_miniatures(tmp_path_factory.mktemp("miniatures"))


@pytest.fixture
def verify(miniatures, tmp_path, capsys, monkeypatch):
    """Run the command and return the code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run_verify(*arguments):
        given = unless_given(arguments, **miniatures)
        code = run(["verify", *given, *FAST, *map(str, arguments)])
        return code, *capsys.readouterr()

    return run_verify


def test_a_run_leaves_a_table_and_a_document(verify, tmp_path):
    """Without --out they are found under the corpus's name."""
    code, out, err = verify()

    assert code == 0
    assert out.startswith("The student recites ")
    assert "student 2/2 100.0%" in err
    folder = tmp_path / "runs/corpus-verified"
    assert sorted(path.name for path in folder.iterdir()) == [
        "verification.json",
        "verification.parquet",
    ]


def test_the_document_is_all_of_standard_output(verify, tmp_path):
    """Programs read it; people's text goes elsewhere."""
    code, out, err = verify("--json", "-q", "--out", tmp_path / "out", "--objective", "hard")

    document = json.loads(out)
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    assert document["schema_version"] == 1
    assert document["label_scan"]["texts"] == document["examples"]
    assert document == json.loads((tmp_path / "out/verification.json").read_text())


def test_flags_reach_the_settings(verify, tmp_path):
    """What was asked for is what is written down."""
    flags = "--temperature 3 --alpha .25 --sample 40 --seed 5 --gradient-accumulation 2"
    flags += " --held-out-share .2 --dtype bf16 --check-generate 3 --threads 1 --device cpu"
    flags += " --near-verbatim .125"
    code, out, _ = verify("--json", "--out", tmp_path / "out", *flags.split())

    assert code == 0
    settings = json.loads(out)["settings"]
    expected = {
        "objective": "soft",
        "temperature": 3.0,
        "cross_entropy_share": 0.25,
        "sample": 40,
        "seed": 5,
        "gradient_accumulation": 2,
        "held_out_share": 0.2,
        "bf16": True,
        "check_generate": 3,
        "near_verbatim": 0.125,
        "threads": 1,
        "device": "cpu",
        "epochs": 1.0,
        "learning_rate": 8e-3,
        "batch_size": 32,
        "prefix_tokens": 8,
    }
    assert {name: settings[name] for name in expected} == expected


def test_a_dry_run_trains_and_writes_nothing(verify, tmp_path):
    """It is asked before a day of training."""
    code, out, _ = verify("--dry-run")
    assert (code, out.split(" ")[0]) == (0, "About")

    code, out, _ = verify("--dry-run", "--json", "--objective", "hard", "--near-verbatim", ".25")
    document = json.loads(out)
    assert code == 0
    assert document["dry_run"]
    stages = {"baseline", "hard labels", "student", "extract", "near-verbatim"}
    assert document["flops"].keys() == document["seconds"].keys() == stages
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_says_how_much_is_learned_from_own_text(verify, tmp_path):
    """What TRL calls lmbda; an option beside it wins, and the cost of writing is told."""
    recipe = ["--recipe", "trl-gkd", "--json", "-q"]
    _, out, _ = verify(*recipe, "--out", tmp_path / "out")
    settings = json.loads(out)["settings"]
    assert (settings["on_policy"], settings["divergence"], settings["beta"]) == (0.5, "jsd", 0.5)

    flops = []
    for share in ("0", "1"):
        _, out, _ = verify(*recipe, "--on-policy", share, "--dry-run")
        flops.append(json.loads(out)["flops"]["student"])
    assert flops[0] < flops[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "0"], "'--temperature': 0.0 is not in the range x>0"),
        (["--alpha", "2"], "'--alpha': 2.0 is not in the range 0<=x<=1"),
        (
            ["--objective", "softly"],
            "'softly' is not one of 'soft', 'hard', 'sampled', 'cross-entropy'",
        ),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--student", "nowhere/to/be/found", "--offline"], "nowhere/to/be/found"),
        (["--predictions", "nowhere"], "nowhere: expected a folder that predict wrote"),
        (["--learning-rate", "1e30"], "the training diverged"),
        (["--device", "split"], "a model that is split over devices cannot be trained"),
    ],
)
def test_bad_input_is_an_error_with_a_message(verify, arguments, message):
    """Exit code 2, no traceback, and for --json a document."""
    code, out, err = verify(*arguments, "--json")

    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert json.loads(out)["error"]["message"] in err


def test_errors_hold_no_text_of_the_corpus(verify, tmp_path):
    """Logs are kept by others."""
    corpus = tmp_path / "canary.jsonl"
    corpus.write_text('{"text": "MEMAUDIT-CANARY is written here"}\n{"text": "MEMAUDIT-CANARY\n')

    code, out, err = verify("--data", corpus)

    assert code == 2
    assert "CANARY" not in out + err
    assert "canary.jsonl:2" in err


def test_stopped_by_a_signal_it_says_how_to_go_on(verify, tmp_path, monkeypatch):
    """Whoever presses Ctrl-C after a day wants to keep that day."""
    from memaudit.cli import command as module

    def stop():
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(module, "raise_if_stopped", stop)
    code, _, err = verify("--out", tmp_path / "out")

    assert code == 143
    assert f"hint: give the same command again to go on in {tmp_path}/out" in err


def test_two_verifications_do_not_share_a_folder(verify, tmp_path):
    """The difference is named, and the way on."""
    verify("--out", tmp_path / "out")
    code, _, err = verify("--out", tmp_path / "out", "--epochs", "2")

    assert code == 2
    assert "holds another verification: epochs was 1.0, is now 2.0" in err
    assert "hint: give the same again to go on there, or choose another folder with --out" in err
