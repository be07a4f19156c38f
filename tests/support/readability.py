"""How readable README.md and docs/ are: python -m tests.support.readability [--commit REV] [--long 30].

Per file: sentences, words per sentence, the share of passive sentences, and how many sentences are
too long; then these themselves. Code, tables, headings and comments are left out.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

_LEFT_OUT = re.compile(r"```.*?```|<!--.*?-->|^\s*(?:\||#|!!!).*?$", re.DOTALL | re.MULTILINE)
_BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_END = re.compile(r"(?<=[.!?:])[\"'*)]*\s+(?=[\"'*(`]*(?:[A-Z0-9`]|memaudit))")
_ABBREVIATED = re.compile(r"\b(e\.g|i\.e|al|vs|cf|Fig)\.\s")
_PASSIVE = re.compile(
    r"\b(?:is|are|was|were|be|been|being)\s+(?:\w+ly\s+|not\s+|also\s+)?"
    r"(?:\w{2,}ed|written|made|given|taken|known|seen|shown|said|told|held|kept|found|read|left|"
    r"set|put|cut|drawn|chosen|built|run|sent|meant|learnt|understood|lost)\b"
)


def sentences(markdown: str) -> list[str]:
    """Return the sentences of a page, in order."""
    prose = _LEFT_OUT.sub("\n", markdown)
    found = []
    for block in _BLOCK.split(prose):
        text = _LINK.sub(r"\1", re.sub(r"^\s*(?:[-*>]|\d+\.)\s+", "", block.strip()))
        text = _ABBREVIATED.sub(r"\1 ", " ".join(text.split()))
        found += [each for each in _END.split(text) if len(words(each)) > 1]
    return found


def words(sentence: str) -> list[str]:
    """Return the words; what stands in backticks is one."""
    return re.findall(r"\w[\w'’.,/-]*", re.sub(r"`[^`]*`", "code", sentence))


def pages(commit: str | None) -> dict[str, str]:
    """Return the texts by path, as they are or as they were at a commit."""
    if commit is None:
        paths = [Path("README.md"), *sorted(Path("docs").glob("*.md"))]
        return {str(path): path.read_text(encoding="utf-8") for path in paths}
    listed = _git("ls-tree", "-r", "--name-only", commit, "README.md", "docs").splitlines()
    return {path: _git("show", f"{commit}:{path}") for path in listed if path.endswith(".md")}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Print the table, then the long sentences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commit")
    parser.add_argument("--long", type=int, default=30)
    given = parser.parse_args()
    total, long, lines = [], [], []
    for path, text in pages(given.commit).items():
        found = sentences(text)
        total += found
        too_long = [each for each in found if len(words(each)) > given.long]
        long += [(len(words(each)), path, each) for each in too_long]
        lines.append(_row(path, found, len(too_long)))
    head = f"{'file':28} sentences  words/sentence  passive  over {given.long}"
    ends = (f"{n:4} {path}: {sentence}" for n, path, sentence in sorted(long, reverse=True))
    sys.stdout.write("\n".join([head, *lines, _row("all", total, len(long)), *ends, ""]))


def _row(name: str, found: list[str], n_long: int) -> str:
    n = max(1, len(found))
    n_words = sum(len(words(each)) for each in found)
    passive = sum(bool(_PASSIVE.search(each)) for each in found)
    return f"{name:28} {len(found):9}  {n_words / n:14.1f}  {passive / n:7.0%}  {n_long:7}"


if __name__ == "__main__":
    main()
