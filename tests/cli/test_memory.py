"""Memory does not follow the corpus."""

import json
import subprocess
import sys

import pytest

from memaudit.cli.main import run

SCRIPT = (
    "import resource, sys; from memaudit.cli.main import run;"
    "assert run(sys.argv[1:]) == 0;"
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)


def peak_memory(folder, n_rows, teacher, classifier):
    """KiB at the height of an audit of distinct rows."""
    corpus = folder / f"{n_rows}.jsonl"
    rows = (f"row {i} of a long corpus, and then {i * 7919 % n_rows}" for i in range(n_rows))
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    options = {
        "--teacher": teacher,
        "--data": corpus,
        "--classifier": classifier,
        "--out": folder / f"out-{n_rows}",
        "--prefix-tokens": 16,
        "--suffix-tokens": 16,
    }
    arguments = [str(part) for pair in options.items() for part in pair]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "predict", "-q", "--top", "0", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


@pytest.mark.slow
def test_ten_times_the_rows_take_hardly_more_memory(tmp_path, tiny_teacher, classifier):
    """A corpus is streamed: what is kept of a row is small beside any model."""
    few, many = (peak_memory(tmp_path, n, tiny_teacher, classifier) for n in (10_000, 100_000))

    assert many < 1.1 * few


def test_a_row_that_no_tokenizer_can_be_given_in_parts_is_a_bad_row(
    tmp_path, tiny_teacher, classifier, capsys
):
    """Its tokens would take gigabytes; later commands, which have no tokenizer, agree."""
    corpus = tmp_path / "corpus.jsonl"
    texts = [
        "x" * 5_000_000,
        *(f"row {i} of a short corpus, and some more of it" for i in range(9)),
    ]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command = [
        "predict", "--teacher", str(tiny_teacher), "--data", str(corpus), "--out", str(tmp_path / "out"),
        "--classifier", str(classifier), "--prefix-tokens", "8", "--suffix-tokens", "8",
    ]  # fmt: skip

    assert run(command) == 2
    assert "corpus.jsonl:1: the text has more than 4 MiB" in capsys.readouterr().err
    assert run([*command, "--on-bad-row", "skip"]) == 0
    gate = ["gate", "--run", str(tmp_path / "out"), "--data", str(corpus), "--max-rate", "1"]
    gate += ["--allow-custom-classifier", "--inconclusive", "pass"]
    assert run(gate) == 0
    assert "MEM005" in capsys.readouterr().out
