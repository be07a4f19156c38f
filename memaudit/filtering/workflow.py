"""The filter: a run and its corpus in, a less risky corpus out. This file shows the whole flow.

1. The corpus is read again, and refused if it is not the one that was scored.
2. Which rows go, or are cut, follows from the run and from which texts are equal. Near-duplicates
   and the places of risky windows are looked for in another pass, if they are asked for.
3. Its files are copied without the rows that go and without what is cut.
4. Which rows went, what was cut, and what that changes, is written beside it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from memaudit.corpus import BadRow, Example
from memaudit.corpus.base import Cuts, text_key
from memaudit.filtering.outputs import (
    FileDigest,
    beside,
    digest_file,
    nothing_half_written,
    plan_files,
    write_beside,
    write_corpus,
)
from memaudit.filtering.selection import (
    FilterOptions,
    NearDuplicates,
    Outlook,
    RiskyWindows,
    Selection,
    TeacherTokenizer,
    outlook,
    select_rows,
)
from memaudit.runs.folder import number_texts
from memaudit.runs.run import Run
from memaudit.runs.unchanged import corpus_options, reread_corpus

DEFAULT_OPTIONS = FilterOptions()
"""Drop what is flagged."""

SCHEMA_VERSION = 1
"""Of the manifest and the JSON document; goes up when a reader of the old one would misread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterResult:
    """What a filter did. No text of the corpus is in it."""

    options: FilterOptions
    run: str
    """Fingerprint of the run whose predictions were used."""

    texts_digest: str
    classifier: str
    classifier_digest: str
    rows: int
    removed: int
    removed_copies: int
    """Of these, whose whole text is that of a row that stays."""

    removed_alike: int
    """Of these, in whose place a row with another text stays: one with the same risky window, or a
    near-duplicate."""

    excised: int
    """Rows that stay without their risky windows."""

    not_cut: int
    """Rows that keep a risky window though it was to be cut: it could not be told apart from what is
    around it."""

    risky_texts: int
    """Distinct texts that hold a window that is too risky."""

    risky_windows: int
    """Distinct windows that are too risky. Fewer than texts: different texts share some."""

    unscored_kept: int
    """Rows that stay though nothing is known of them: too short or bad."""

    before: Outlook
    after: Outlook

    removed_generic: float | None
    """Of the distinct texts that go, how many are expected to be memorized all the same, if each
    went alone: other rows have their wording. None: the classifier cannot tell."""

    text_bytes: int
    """UTF-8 bytes of the texts of the corpus."""

    removed_text_bytes: int
    """UTF-8 bytes of the texts that go, and of what is cut out of texts."""

    tokens: int | None = None
    """Of the teacher, in the corpus, if its tokenizer was given."""

    removed_tokens: int | None = None
    """Tokens that go; of a row that is cut, how many fewer it has."""

    out: Path | None = None
    """The filtered corpus; None if nothing was written."""

    inputs: tuple[FileDigest, ...] = ()
    outputs: tuple[FileDigest, ...] = ()

    @property
    def kept(self) -> int:
        """Rows that stay."""
        return self.rows - self.removed

    @property
    def removed_text_share(self) -> float:
        """Of the bytes of text."""
        return self.removed_text_bytes / max(1, self.text_bytes)

    def document(self) -> dict[str, Any]:
        """Return the result as one JSON document; keys are never renamed within a version."""
        plain: dict[str, Any] = msgspec.to_builtins(self, enc_hook=str)
        return {
            "schema_version": SCHEMA_VERSION,
            **plain,
            "kept": self.kept,
            "removed_text_share": self.removed_text_share,
        }


def filter_corpus(
    run: Run,
    data: str,
    out: Path | None,
    *,
    options: FilterOptions = DEFAULT_OPTIONS,
    tokenizer: TeacherTokenizer | None = None,
    replaces: bool = False,
) -> FilterResult:
    """Write a corpus without what a student would memorize of it.

    Rows that were not scored stay: what is too short cannot be extracted by definition, and of
    bad rows nothing is known. No row is removed as a copy unless its whole text is in another row.

    Args:
        run: predictions for this very corpus.
        data: the corpus: file, folder or glob.
        out: the file to write, or the folder if the corpus has several files; None: only tells
            what would come of it.
        options: which rows go.
        tokenizer: the teacher's: counts tokens, renders messages if the corpus has them, and says
            where tokens stand in a text, which `excise` needs.
        replaces: whether a file that is there is replaced; it may be the only copy of something.

    Raises:
        UsageError: the corpus is not the run's, or the options or the place do not fit.
        CorpusError: the corpus cannot be read.
        MissingDependency: near-duplicates are asked for without rensa.
        OutputError: the place cannot be written.
    """
    # Before the corpus is read, which takes long: a place that does not fit is refused at once.
    split = run.manifest.inputs.corpus.get("split")
    places = None if out is None else plan_files(data, out, replaces=replaces, split=split)
    texts = _Texts(run, tokenizer)
    render = None if tokenizer is None else tokenizer.render_messages
    read = partial(reread_corpus, run, data, render)
    for row in read():
        texts.learn(row)
    selection = _searched(run, read, options, select_rows(run, options, texts.numbers), texts)
    result = _result(run, options, selection, texts)
    if places is None or out is None:
        return result
    corpus = corpus_options(run, data)
    inputs = tuple(digest_file(file.path) for file, _ in places)
    with nothing_half_written([*(place for _, place in places), *beside(out)]):
        outputs = write_corpus(places, corpus, selection, texts.cuts)
        result = replace(result, out=out, inputs=inputs, outputs=outputs)
        write_beside(out, run, options, selection, texts.cuts, result.document())
    return result


class _Texts:
    """What is known of the texts once the corpus has been read again."""

    def __init__(self, run: Run, tokenizer: TeacherTokenizer | None) -> None:
        self.tokenizer = tokenizer
        self.n_bytes, self.n_tokens = np.zeros((2, run.n_rows), dtype=np.int64)
        self.lost_bytes = self.lost_tokens = 0  # of rows of which a part is left
        self.cuts: dict[int, Cuts] = {}
        self.n_not_cut = 0
        self._keys = bytearray()

    @property
    def numbers(self) -> NDArray[np.int64]:
        """(n_rows,) equal for equal texts."""
        return number_texts(bytes(self._keys))

    def learn(self, row: Example | BadRow) -> None:
        """Look at a row; rows come in order."""
        self._keys += text_key(row)
        if isinstance(row, BadRow):
            return
        self.n_bytes[row.row], self.n_tokens[row.row] = self._size(row.text)

    def lose(self, row: int, left: str) -> None:
        """Take down what a row loses of which a part is left."""
        n_bytes, n_tokens = self._size(left)
        self.lost_bytes += int(self.n_bytes[row]) - n_bytes
        self.lost_tokens += int(self.n_tokens[row]) - n_tokens

    def _size(self, text: str) -> tuple[int, int]:
        """Return the bytes and tokens of a text; 0 tokens where nobody can count them."""
        n_tokens = 0 if self.tokenizer is None else len(self.tokenizer.encode([text])[0])
        return len(text.encode()), n_tokens


def _searched(
    run: Run,
    read: Callable[[], Iterable[Example | BadRow]],
    options: FilterOptions,
    selection: Selection,
    texts: _Texts,
) -> Selection:
    """Return the selection with what is found in the texts: near-duplicates, and parts to cut."""
    if options.strategy == "excise":
        risky = RiskyWindows(run, options, selection, texts.tokenizer)
        for row in read():
            if isinstance(row, Example) and (left := risky.learn(row)) is not None:
                texts.lose(row.row, left)
        texts.cuts, texts.n_not_cut = risky.cuts, risky.n_not_cut
        return risky.selection
    if options.near_duplicates is not None:
        near = NearDuplicates(run, selection, options.near_duplicates)
        for row in read():
            near.learn(row)
        # Of each group of near-duplicates all but the first are removed.
        first = near.find(read())
        is_near = first != np.arange(len(first))
        kept = np.where(is_near, first, selection.kept)
        # What is kept in a row's place may itself give way to an earlier near-duplicate.
        kept = np.where(kept >= 0, first[np.maximum(kept, 0)], -1)
        return replace(selection, is_removed=selection.is_removed | is_near, kept=kept)
    return selection


def _result(run: Run, options: FilterOptions, selection: Selection, texts: _Texts) -> FilterResult:
    removed, classifier = selection.is_removed, run.manifest.classifier
    is_risky = np.isin(run.worst_windows, selection.risky_windows) & run.is_scored
    generic, removed_generic = run.risks.generic_probabilities, None
    if generic is not None:
        is_gone = np.bincount(run.risks.text_of_row, ~removed[run.is_scored]) == 0
        removed_generic = float(generic[is_gone].sum())
    return FilterResult(
        options=options,
        run=run.manifest.inputs.fingerprint,
        texts_digest=run.manifest.inputs.texts_digest,
        classifier=classifier.name,
        classifier_digest=classifier.digest,
        rows=run.n_rows,
        removed=int(removed.sum()),
        removed_copies=int(selection.is_copy.sum()),
        removed_alike=int((removed & (selection.kept >= 0) & ~selection.is_copy).sum()),
        excised=int(selection.is_cut.sum()),
        not_cut=texts.n_not_cut,
        risky_texts=len(np.unique(texts.numbers[is_risky])),
        risky_windows=len(np.unique(run.worst_windows[is_risky])),
        unscored_kept=int((~run.is_scored & ~removed).sum()),
        before=outlook(run, None, options),
        after=outlook(run, selection, options),
        removed_generic=removed_generic,
        text_bytes=int(texts.n_bytes.sum()),
        removed_text_bytes=int(texts.n_bytes[removed].sum()) + texts.lost_bytes,
        tokens=None if texts.tokenizer is None else int(texts.n_tokens.sum()),
        removed_tokens=None
        if texts.tokenizer is None
        else int(texts.n_tokens[removed].sum()) + texts.lost_tokens,
    )
