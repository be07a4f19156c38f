"""How fast chats of 1, 10 and 100 turns are read, rendered and cut, and what a million rows take.

    python -m benchmarks.chats --model DIR [--rows 1000000]

Rows per second are of CPU time, that of the process which runs the chat template included.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from memaudit.corpus import CorpusOptions, Rendered, read_corpus
from memaudit.corpus.base import Conversation
from memaudit.engines.tokenizer import Tokenizer, load_tokenizer
from memaudit.runs.reading import DistinctWindows, RowLog, cut_rows
from memaudit.windows import WindowChoice, WindowShape

_WORDS_A_MESSAGE = 60
_CHATS = ((1, 2000), (10, 200), (100, 20))
"""Turns, and how many rows of them."""


def _chats(words: list[str], turns: int, n: int) -> Iterator[str]:
    for i in range(n):
        starts = ((i * 997 + j * 61) % (len(words) - _WORDS_A_MESSAGE) for j in range(2 * turns))
        said = [" ".join(words[start : start + _WORDS_A_MESSAGE]) for start in starts]
        roles = ("user", "assistant") * turns
        messages = [{"role": r, "content": c} for r, c in zip(roles, said, strict=True)]
        yield json.dumps({"messages": messages}) + "\n"


def _short_chats(n: int) -> Iterator[str]:
    for i in range(n):
        answer = f"{i * 7919 % 1_000_003:07} is a number that nobody asked for"
        messages = [
            {"role": "user", "content": f"What is {i}?"},
            {"role": "assistant", "content": answer},
        ]
        yield json.dumps({"messages": messages}) + "\n"


class _Plain(Tokenizer):
    """Without the process that runs templates: it would take hours for a million rows."""

    def render_messages(self, conversation: Conversation) -> Rendered:
        said = [str(message["content"]) for message in conversation.messages]
        text = "".join(said)
        return Rendered(text, ((len(text) - len(said[-1]), len(text)),))


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def _measure(tokenizer: Tokenizer, place: Path, name: str, shape: WindowShape) -> None:
    with RowLog(place.parent) as log, DistinctWindows(shape.length, place.parent) as windows:
        rows = read_corpus(CorpusOptions(str(place)), render_messages=tokenizer.render_messages)
        started, clock = _cpu_seconds(), time.monotonic()
        cuts = cut_rows(rows, tokenizer, (log, windows), choice=WindowChoice(shape))
        clock = time.monotonic() - clock
        for process in tokenizer._templates.values():
            process.close()
        tokenizer._templates.clear()
        n, seconds = cuts.outcomes.total(), _cpu_seconds() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sys.stdout.write(
            f"| {name} | {n:,} | {place.stat().st_size / n / 1000:.1f} | {len(cuts.windows):,} "
            f"| {n / seconds:,.0f} | {n / clock:,.0f} | {peak:,.0f} |\n"
        )
        sys.stdout.flush()


def main() -> None:
    """Print one row of a table for each kind of chat."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True, help="folder with a chat template")
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.model, {"local_files_only": True})
    demo = Path(__file__).parents[1] / "sample_data/demo.jsonl"
    words = [word for line in demo.open() for word in json.loads(line)["text"].split()]
    sys.stdout.write("| chats | rows | kB a row | windows | rows/s of CPU | rows/s | peak MiB |\n")
    sys.stdout.write("|---|---|---|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "chats.jsonl"
        for turns, n in _CHATS:
            place.write_text("".join(_chats(words, turns, n)))
            _measure(tokenizer, place, f"{turns} turns", WindowShape())
        with place.open("w") as file:
            file.writelines(_short_chats(options.rows))
        plain = _Plain(tokenizer._tokenizer)
        _measure(plain, place, "short, no template", WindowShape(8, 16))


if __name__ == "__main__":
    main()
