"""The tokens of one window: how probable teacher and reference find each, scored again on request."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memaudit.engines.models import ModelOptions, open_tokenizer
from memaudit.gate import Rescoring
from memaudit.gate.rescore import cut_again, read_again
from memaudit.reports import words
from memaudit.reports.charts import Bar
from memaudit.reports.page import (
    BARS,
    LABEL,
    Cell,
    Column,
    Paragraph,
    Section,
    Table,
    Words,
    numbers,
)
from memaudit.runs.run import Run
from memaudit.runs.unchanged import corpus_options
from memaudit.scores import TokenScores
from memaudit.windows import context_len, without_padding

_LEVELS = "▁▂▃▄▅▆▇█"
_LINE = 50
"""Tokens on one line of the strip: with the labels it fits 80 columns."""


@dataclass(frozen=True, slots=True)
class WindowToken:
    """One token of a window, and what the models think of it after those before it."""

    position: int
    """In the window, from 1: its first token, 0, is not predicted."""
    is_suffix: bool
    """Whether the student must write it."""
    teacher: float
    """Probability, from 0 to 1."""
    is_first: bool
    """Whether the teacher finds no token more probable."""
    reference: float | None = None
    """Probability under the student or the baseline. None: the run has neither."""
    is_reference_first: bool | None = None
    text: str | None = None
    """Text of the corpus, only if it was asked for."""


def score_tokens(
    run: Run, row: int, source: str, asked: Rescoring, *, with_text: bool
) -> tuple[WindowToken, ...]:
    """Score the riskiest window of a row again, and return its tokens but the first.

    Raises:
        UsageError, ModelError, CorpusError: as for `read_again`.
    """
    with read_again(run, source, asked) as read:
        padded = read.windows.read(int(run.worst_windows[row]), 1)[0]
        window = without_padding(padded)
        (scores,) = read.engine.score([window])
        # One by one: a text that is decoded whole does not say where a token ends.
        texts = read.tokenizer.decode([[int(each)] for each in window[1:]]) if with_text else None
    first_of_suffix = context_len(padded, run.manifest.inputs.shape)
    teacher, reference = scores.teacher, scores.reference
    tokens = []
    for i in range(len(teacher.logprobs)):
        of_reference: tuple[float | None, bool | None] = (None, None)
        if reference is not None:
            of_reference = _probability(reference, i)
        text = None if texts is None else texts[i]
        # Score i is of token i + 1: nothing stands before the first to predict it from.
        is_suffix = i + 1 >= first_of_suffix
        tokens.append(WindowToken(i + 1, is_suffix, *_probability(teacher, i), *of_reference, text))
    return tuple(tokens)


def suffix_texts(
    run: Run, rows: Sequence[int], source: str, tokenizer: str, n_characters: int
) -> dict[int, str]:
    """Return the start of what a student would recite of some rows: the suffix of their riskiest window.

    Raises:
        UsageError: it is another corpus, or another tokenizer.
        ModelError: there is no tokenizer.
        CorpusError: the corpus cannot be read.
    """
    loading = ModelOptions().for_corpus(corpus_options(run, source))
    # The tokenizer alone: windows are cut and decoded without the teacher's weights.
    opened, _ = open_tokenizer(tokenizer, loading)
    suffixes = []
    with cut_again(run, source, opened) as windows:
        for row in rows:
            padded = windows.read(int(run.worst_windows[row]), 1)[0]
            first = context_len(padded, run.manifest.inputs.shape)
            suffixes.append(without_padding(padded)[first:].tolist())
    texts = opened.decode(suffixes)
    return {row: text[:n_characters] for row, text in zip(rows, texts, strict=True)}


def _probability(scores: TokenScores, i: int) -> tuple[float, bool]:
    # Rounding may leave a log-probability a little above 0.
    return min(1.0, float(np.exp(scores.logprobs[i]))), bool(scores.is_argmax[i])


def tokens_section(tokens: tuple[WindowToken, ...]) -> Section:
    """Return the strip, a character per token, and the numbers behind it."""
    lines: list[tuple[Words, Words]] = []
    for is_suffix, part in ((False, "prefix"), (True, "suffix")):
        of_part = [token for token in tokens if token.is_suffix == is_suffix]
        for start in range(0, len(of_part), _LINE):
            line = of_part[start : start + _LINE]
            teacher = _levels([token.teacher for token in line])
            marks = "".join("*" if token.is_first else "·" for token in line)
            places = f"{line[0].position}-{line[-1].position}"
            found = {f"{part} {places}, teacher": teacher, "teacher's first choice": marks}
            if known := [token.reference for token in line if token.reference is not None]:
                found["reference"] = _levels(known)
            lines += [(Words(label, "quiet"), Words(text)) for label, text in found.items()]
    strip = Table(
        columns=(LABEL, Column(breaks="nowhere")),
        rows=tuple(lines),
        style="strip",
    )
    n_first = sum(token.is_first for token in tokens if token.is_suffix)
    n_suffix = sum(token.is_suffix for token in tokens)
    legend = Paragraph(
        "One character is one token, from ▁ (probability near 0) to █ (near 1). A * marks a token "
        f"that the teacher would write itself: {n_first} of the {n_suffix} tokens of the suffix.",
        "quiet",
    )
    return Section("Token by token", "tokens", "Tokens", (strip, legend, _numbers(tokens)))


def _levels(probabilities: list[float]) -> str:
    # 1 itself belongs to the last of the eight.
    return "".join(_LEVELS[min(7, int(p * 8))] for p in probabilities)


def _numbers(tokens: tuple[WindowToken, ...]) -> Table:
    """Return the numbers as a table; a terminal shows it only with the text of the tokens."""
    has_text = tokens[0].text is not None
    has_reference = tokens[0].reference is not None
    columns = (
        *numbers("token", "teacher"),
        Column("first choice"),
        BARS,
        *(numbers("reference") if has_reference else ()),
        *([Column("text", "anywhere")] if has_text else ()),
    )
    rows = tuple(
        (
            str(token.position),
            words.percent(token.teacher),
            "yes" if token.is_first else "",
            Cell(bar=Bar(token.teacher, is_risk=token.is_first)),
            *([words.percent(token.reference)] if has_reference else []),
            *([Cell(quote=token.text)] if has_text else []),
        )
        for token in tokens
        if token.is_suffix
    )
    title = "Probability of each token of the suffix"
    return Table(title=title, columns=columns, rows=rows, is_folded=not has_text)
