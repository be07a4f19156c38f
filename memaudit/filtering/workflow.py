"""The filter: a run and its corpus in, a less risky corpus out. This file shows the whole flow.

1. Which rows go follows from the run alone, near-duplicates aside.
2. The corpus is read again, and refused if it is not the one that was scored.
3. Its files are copied without the rows that go.
4. Which rows went, and what that changes, is written beside it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memaudit.corpus import BadRow, Conversation, Example, Rendered
from memaudit.filtering.near_duplicates import NearDuplicates
from memaudit.filtering.options import FilterOptions
from memaudit.filtering.outputs import (
    beside,
    digest_file,
    nothing_half_written,
    plan_files,
    write_beside,
    write_corpus,
)
from memaudit.filtering.result import FilterResult
from memaudit.filtering.selection import Selection, outlook, select_rows
from memaudit.runs.finished import FinishedRun
from memaudit.runs.same_corpus import corpus_options, reread_corpus

DEFAULT_OPTIONS = FilterOptions()
"""Drop what is flagged."""


class TeacherTokenizer(Protocol):
    """What is needed of the teacher's tokenizer, where it is given."""

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text."""
        ...

    def render_messages(self, conversation: Conversation) -> Rendered:
        """Return what the chat template makes of messages."""
        ...


def filter_corpus(
    run: FinishedRun,
    data: str,
    out: Path | None,
    *,
    options: FilterOptions = DEFAULT_OPTIONS,
    tokenizer: TeacherTokenizer | None = None,
    replaces: bool = False,
) -> FilterResult:
    """Write a corpus without what a student would memorize of it.

    Rows that were not scored stay: what is too short cannot be extracted by definition, and of
    bad rows nothing is known.

    Args:
        run: predictions for this very corpus.
        data: the corpus: file, folder or glob.
        out: the file to write, or the folder if the corpus has several files; None: only tells
            what would come of it.
        options: which rows go.
        tokenizer: the teacher's: counts tokens, and renders messages if the corpus has them.
        replaces: whether a file that is there is replaced; it may be the only copy of something.

    Raises:
        UsageError: the corpus is not the run's, or the options or the place do not fit.
        CorpusError: the corpus cannot be read.
        MissingDependency: near-duplicates are asked for without rensa.
        OutputError: the place cannot be written.
    """
    split = run.manifest.inputs.corpus.get("split")
    places = None if out is None else plan_files(data, out, replaces=replaces, split=split)
    selection = select_rows(run, options)
    sizes = _Sizes(run.n_rows, tokenizer)
    selection = _reread(run, data, options, selection, sizes, tokenizer)
    result = _result(run, options, selection, sizes)
    if places is None or out is None:
        return result
    corpus = corpus_options(run, data)
    inputs = tuple(digest_file(file.path) for file, _ in places)
    with nothing_half_written([*(place for _, place in places), *beside(out)]):
        outputs = write_corpus(places, corpus, selection)
        result = replace(result, out=out, inputs=inputs, outputs=outputs)
        write_beside(out, run, options, selection, result)
    return result


class _Sizes:
    """How long each text is."""

    def __init__(self, n_rows: int, tokenizer: TeacherTokenizer | None) -> None:
        self.n_bytes = np.zeros(n_rows, dtype=np.int64)
        self.n_tokens = None if tokenizer is None else np.zeros(n_rows, dtype=np.int64)
        self._tokenizer = tokenizer

    def look(self, row: Example | BadRow) -> None:
        """Measure a row."""
        if isinstance(row, BadRow):
            return
        self.n_bytes[row.row] = len(row.text.encode())
        if self.n_tokens is not None and self._tokenizer is not None:
            self.n_tokens[row.row] = len(self._tokenizer.encode([row.text])[0])


def _reread(
    run: FinishedRun,
    data: str,
    options: FilterOptions,
    selection: Selection,
    sizes: _Sizes,
    tokenizer: TeacherTokenizer | None,
) -> Selection:
    """Check the corpus, measure its rows, and find near-duplicates if they are asked for."""
    render = None if tokenizer is None else tokenizer.render_messages
    looks: list[Callable[[Example | BadRow], None]] = [sizes.look]
    near = None
    if options.near_duplicates is not None:
        near = NearDuplicates(run, selection, options.near_duplicates)
        looks.append(near.learn)
    for row in reread_corpus(run, data, render):
        for look in looks:
            look(row)
    if near is None:
        return selection
    return _without_near(selection, near.find(reread_corpus(run, data, render)))


def _without_near(selection: Selection, first: NDArray[np.int64]) -> Selection:
    """Return the selection with all but the first of each group of near-duplicates removed."""
    is_near = first != np.arange(len(first))
    copy_of = np.where(is_near, first, selection.copy_of)
    # What is kept in a row's place may itself give way to an earlier near-duplicate.
    copy_of = np.where(copy_of >= 0, first[np.maximum(copy_of, 0)], -1)
    return Selection(selection.is_removed | is_near, copy_of, selection.risky_windows)


def _result(
    run: FinishedRun, options: FilterOptions, selection: Selection, sizes: _Sizes
) -> FilterResult:
    removed, classifier = selection.is_removed, run.manifest.classifier
    n_tokens = sizes.n_tokens
    return FilterResult(
        options=options,
        run=run.manifest.inputs.fingerprint,
        texts_digest=run.manifest.inputs.texts_digest,
        classifier=classifier.name,
        classifier_digest=classifier.digest,
        rows=run.n_rows,
        removed=int(removed.sum()),
        removed_copies=int((selection.copy_of >= 0).sum()),
        unscored_kept=int((~run.is_scored & ~removed).sum()),
        before=outlook(run, np.zeros(run.n_rows, dtype=np.bool_), options),
        after=outlook(run, removed, options),
        text_bytes=int(sizes.n_bytes.sum()),
        removed_text_bytes=int(sizes.n_bytes[removed].sum()),
        tokens=None if n_tokens is None else int(n_tokens.sum()),
        removed_tokens=None if n_tokens is None else int(n_tokens[removed].sum()),
    )
