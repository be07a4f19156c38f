"""Whether the memory of `memaudit predict` stays flat while the corpus grows.

Each size is a corpus of distinct rows, made by putting a number in front of real texts, and a
process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import cycle, islice
from pathlib import Path

_BYTES_PER_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def main() -> None:
    """Run every size, and write a line for each."""
    arguments = _parser().parse_args()
    peaks = [_peak(arguments, n_rows) for n_rows in arguments.rows]
    for n_rows, peak in zip(arguments.rows, peaks, strict=True):
        sys.stdout.write(
            f"{n_rows} rows: peak {peak / 2**20:.0f} MiB, {peak / peaks[0]:.3f} of the first\n"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="models/demo-teacher", help="default: %(default)s")
    parser.add_argument("--texts", required=True, help="corpus whose rows are repeated")
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    return parser


def _peak(arguments: argparse.Namespace, n_rows: int) -> int:
    """Return the peak of resident memory over a run on so many rows, bytes."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        _write_rows(corpus, arguments.texts, n_rows)
        command = [
            sys.executable, "-m", "memaudit", "predict", "--teacher", arguments.teacher,
            "--data", str(corpus), "--out", str(Path(folder) / "run"), "--threads", "1",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit(f"{n_rows} rows: exit code {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss * _BYTES_PER_RSS_UNIT


def _write_rows(path: Path, texts: str, n_rows: int) -> None:
    from memaudit.corpus import CorpusOptions, Example, read_corpus

    rows = [row.text for row in read_corpus(CorpusOptions(texts)) if isinstance(row, Example)]
    with path.open("w") as file:
        for index, text in enumerate(islice(cycle(rows), n_rows)):
            file.write(json.dumps({"text": f"{index}. {text}"}) + "\n")


if __name__ == "__main__":
    main()
