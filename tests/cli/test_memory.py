"""Memory does not follow the corpus."""

import json
import subprocess
import sys

import pytest

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
def test_fifty_times_the_rows_take_hardly_more_memory(tmp_path, tiny_teacher, classifier):
    """A corpus is streamed: what is kept of a row is small beside any model."""
    few, many = (peak_memory(tmp_path, n, tiny_teacher, classifier) for n in (1_000, 50_000))

    assert many < 1.1 * few
