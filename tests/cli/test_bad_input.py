"""What can be wrong with the input: each kind has its message, code 2, and leaves nothing."""

import gzip
import json
import pickle
import shutil

import pytest
from support.fakes import make_classifier

from memaudit.classifier import FILE_NAME, save_classifier
from memaudit.cli.main import run

SHAPE = ("--prefix-tokens", "16", "--suffix-tokens", "16")


class World:
    """Good input, to be spoilt, and the arguments that name it."""

    def __init__(self, folder, corpus, classifier, teacher, student):
        self.folder = folder
        self.corpus = corpus
        self.classifier = classifier
        self.teacher = teacher
        self.student = student
        self.out = folder / "out"
        self.extra = []

    @property
    def arguments(self):
        """The command line."""
        given = {
            "--teacher": self.teacher,
            "--data": self.corpus,
            "--classifier": self.classifier,
            "--out": self.out,
        }
        named = [str(part) for pair in given.items() for part in pair]
        return ["predict", *named, *SHAPE, *map(str, self.extra)]

    def copy_of_teacher(self):
        """Make the teacher one's own, to break it."""
        self.teacher = shutil.copytree(self.teacher, self.folder / "broken-teacher")
        return self.teacher


@pytest.fixture
def world(tmp_path, corpus, classifier, tiny_teacher, tiny_student):
    """Everything as it should be."""
    return World(tmp_path, corpus, classifier, tiny_teacher, tiny_student)


def missing_file(world):
    """A typo in the path."""
    world.corpus = world.folder / "gone.jsonl"


def empty_file(world):
    """A download that failed."""
    world.corpus.write_bytes(b"")


def unknown_ending(world):
    """A format that is not read."""
    world.corpus = world.corpus.rename(world.folder / "corpus.docx")


def empty_folder(world):
    """A folder without a corpus."""
    world.corpus = world.folder / "nothing-here"
    world.corpus.mkdir()


def wrong_column(world):
    """A typo in the column."""
    world.extra = ["--text-column", "txet"]


def invalid_utf8(world):
    """A line in another encoding."""
    world.corpus.write_bytes(b'{"text": "CANARY \xff"}\n' + world.corpus.read_bytes())


def invalid_json(world):
    """A file that was cut off."""
    world.corpus.write_bytes(world.corpus.read_bytes() + b'{"text": "CANARY\n')


def truncated_gzip(world):
    """A compressed file that was cut off."""
    packed = gzip.compress(world.corpus.read_bytes())
    world.corpus = world.folder / "corpus.jsonl.gz"
    world.corpus.write_bytes(packed[:-20])


def gigantic_line(world):
    """A line of 20 MB, beyond the limit."""
    world.corpus.write_bytes(b'{"text": "' + b"CANARY " * 3_000_000 + b'"}\n')


def only_short_rows(world):
    """No row is as long as a window."""
    world.corpus.write_text('{"text": "CANARY"}\n')


def damaged_parquet(world):
    """A file that only looks like parquet."""
    world.corpus = world.folder / "corpus.parquet"
    world.corpus.write_bytes(b"PAR1 CANARY PAR1")


def missing_teacher(world):
    """A typo in the teacher's path."""
    world.teacher = world.folder / "gone"


def teacher_without_config(world):
    """Half a model."""
    (world.copy_of_teacher() / "config.json").unlink()


def pickled_weights(world):
    """Weights that would run code."""
    folder = world.copy_of_teacher()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": 1}))


def broken_weights(world):
    """Weights that were cut off."""
    path = world.copy_of_teacher() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def weights_that_are_not_numbers(world):
    """A training that diverged."""
    import torch
    from safetensors.torch import load_file, save_file

    path = world.copy_of_teacher() / "model.safetensors"
    weights = load_file(path)
    weights["gpt_neox.layers.0.mlp.dense_4h_to_h.bias"].fill_(torch.nan)
    save_file(weights, path, metadata={"format": "pt"})


def student_and_baseline(world):
    """Two references."""
    world.extra = ["--student", world.student, "--baseline", world.student]


def window_longer_than_the_model(world):
    """More tokens than the model has positions."""
    rows = [{"text": "CANARY " * 100}]
    world.corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    world.extra = ["--prefix-tokens", "250"]


def missing_classifier(world):
    """A typo in the classifier's name."""
    world.classifier = "by-haert"


def classifier_of_another_set(world):
    """A classifier that needs a baseline."""
    features = ("teacher_perplexity", "baseline_perplexity")
    save_classifier(
        make_classifier(feature_set="teacher+baseline", features=features), world.classifier
    )


def pickled_classifier(world):
    """A classifier that would run code."""
    world.classifier = world.folder / "classifier.joblib"
    world.classifier.write_bytes(pickle.dumps("CANARY"))


def damaged_classifier(world):
    """A classifier that was edited."""
    path = world.classifier / FILE_NAME
    path.write_text(path.read_text().replace('"intercept": 0.0', '"intercept": 1.0'))


def file_in_the_way(world):
    """A place that cannot be written."""
    world.out.write_text("mine")
    world.out = world.out / "below"


def unknown_engine(world):
    """An engine that this version lacks."""
    world.extra = ["--engine", "vllm"]


def two_table_formats(world):
    """One choice made twice."""
    world.extra = ["--format", "csv", "--format", "jsonl"]


def two_ways_to_say_the_table_format(world):
    """The old option and the new one."""
    world.extra = ["--format", "csv", "--table-format", "jsonl"]


def unknown_device(world):
    """A typo in the device."""
    world.extra = ["--device", "gpu"]


def missing_device(world):
    """A GPU of another machine, or one more than there are."""
    world.extra = ["--device", "cuda:99"]


def split_among_workers(world):
    """All devices for one model, and several processes."""
    world.extra = ["--device", "split", "--workers", "2"]


def temperature_that_is_no_number(world):
    """What Python takes for a number."""
    world.extra = ["--temperature", "nan"]


def infinite_temperature(world):
    """The same."""
    world.extra = ["--temperature", "inf"]


def name_that_is_not_utf8(world):
    """A file from a disk of long ago; a manifest could not name it."""
    world.extra = ["--student", "caf\udce9"]


def no_window(world):
    """A window without a prefix."""
    world.extra = ["--prefix-tokens", "0"]


def unknown_option(world):
    """A typo in an option."""
    world.extra = ["--techer", "x"]


CASES = {
    missing_file: "gone.jsonl: no such file or folder",
    empty_file: "corpus.jsonl: empty, there are no rows",
    unknown_ending: "corpus.docx: unknown ending",
    empty_folder: "nothing-here: no file that can be read",
    wrong_column: "txet",
    invalid_utf8: "corpus.jsonl:1: line 1: invalid UTF-8",
    invalid_json: "corpus.jsonl:13: line 13: ",
    truncated_gzip: "corpus.jsonl.gz: ",
    gigantic_line: "corpus.jsonl:1: line 1: ",
    only_short_rows: "no row can be scored: 1 is shorter than a window of 32 tokens, 0 are bad",
    damaged_parquet: "corpus.parquet: ",
    missing_teacher: "gone",
    teacher_without_config: "broken-teacher",
    pickled_weights: "broken-teacher",
    broken_weights: "broken-teacher",
    weights_that_are_not_numbers: "dense_4h_to_h.bias holds values that are not finite numbers",
    student_and_baseline: "both a student and a baseline are given",
    window_longer_than_the_model: "a window has 266 tokens, GPTNeoXForCausalLM reads at most 256",
    missing_classifier: "no classifier by-haert",
    classifier_of_another_set: "this run has 1: no baseline perplexity",
    pickled_classifier: "expected a JSON classifier, got a pickle or an archive",
    damaged_classifier: "the digest does not match",
    file_in_the_way: "out/below: cannot be written: Not a directory",
    unknown_engine: "the vllm engine needs the package vllm",
    two_table_formats: "--format is given as csv and as jsonl",
    two_ways_to_say_the_table_format: "--table-format says jsonl and --format says csv",
    unknown_device: "invalid value for '--device': 'gpu' is not one of auto, cpu, cuda, cuda:1, split",
    split_among_workers: "--device split takes all devices, and several workers would share them",
    missing_device: "there is no device cuda:99 here",
    temperature_that_is_no_number: "'--temperature': nan is not a finite number",
    infinite_temperature: "'--temperature': inf is not a finite number",
    name_that_is_not_utf8: "invalid value for '--student': it is not UTF-8",
    no_window: "invalid value for '--prefix-tokens': 0 is not in the range x>=1",
    unknown_option: "no such option '--techer'",
}


@pytest.mark.parametrize(("spoil", "message"), CASES.items(), ids=[case.__name__ for case in CASES])
def test_bad_input_is_an_error_that_leaves_nothing(world, capsys, spoil, message):
    """One line that says what is wrong; code 2; no traceback, no text, no half-written file."""
    spoil(world)

    code = run(world.arguments)

    out, err = capsys.readouterr()
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert message in error
    assert out == ""
    assert "Traceback" not in err
    assert "CANARY" not in err
    assert not world.out.exists()


@pytest.mark.parametrize("spoil", [invalid_utf8, weights_that_are_not_numbers])
def test_bad_input_leaves_the_last_results_alone(world, capsys, spoil):
    """A failed run must not take the place of the one that succeeded."""
    assert run(world.arguments) == 0
    before = _results(world.out)
    spoil(world)

    assert run(world.arguments) == 2

    assert _results(world.out) == before
    capsys.readouterr()


def _results(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_failure_with_json_is_one_document(world, capsys):
    """The message and the hint, as on standard error."""
    invalid_utf8(world)
    world.extra = ["--json"]

    assert run(world.arguments) == 2

    document = json.loads(capsys.readouterr().out)
    assert "invalid UTF-8" in document["error"]["message"]
    assert "--on-bad-row skip" in document["error"]["hint"]
    assert document["schema_version"] == 1


def test_a_standard_input_that_is_closed_holds_no_row(world, capsys, monkeypatch):
    """Services start programs without one."""
    monkeypatch.setattr("sys.stdin", None)

    world.corpus = "-"
    assert run(world.arguments) == 2
    assert "error: -: empty, there are no rows" in capsys.readouterr().err
