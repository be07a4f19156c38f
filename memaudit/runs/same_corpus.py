"""The corpus of a run, read again, and refused if it is not the one that was scored."""

import hashlib
from collections.abc import Iterator

import msgspec

from memaudit.corpus import BadRow, CorpusOptions, Example, RenderMessages, read_corpus
from memaudit.corpus.base import TOO_LARGE, Rendered, too_large
from memaudit.errors import UsageError
from memaudit.runs.run import Run
from memaudit.runs.text_keys import RawDigest
from memaudit.text import shown_path


def corpus_options(run: Run, source: str) -> CorpusOptions:
    """Return how the corpus of a run is read, from where it is now."""
    declared = run.manifest.inputs.corpus
    try:
        return CorpusOptions(**(declared | {"source": source}))
    except (TypeError, ValueError) as error:
        raise UsageError(
            "the run was made by another version of memaudit, how its corpus is read is not known",
            hint="run 'memaudit predict' anew",
        ) from error


def reread_corpus(
    run: Run, source: str | CorpusOptions, render_messages: RenderMessages | None = None
) -> Iterator[Example | BadRow]:
    """Yield the rows of a run's corpus again, in their order.

    Where the corpus lies may have changed; ids, places in their files and texts may not. Whether
    all texts are the same is known at the end, and said then.

    Raises:
        UsageError: it is another corpus, or has changed since it was scored.
        CorpusError: it cannot be read.
    """
    texts = hashlib.sha256()
    for row in _same_rows(run, source, render_messages):
        if isinstance(row, Example):
            texts.update(msgspec.json.encode(row.text))
        yield row
    if texts.hexdigest() != run.manifest.inputs.texts_digest:
        _refuse(source, "a text was changed")


def require_same_corpus(run: Run, source: str | CorpusOptions) -> None:
    """Read a corpus through and refuse it if it is not the one that was scored; needs no model.

    It is at another place now, or read by the same options.

    Rows with messages are compared as they are before a chat template makes texts of them.

    Raises:
        UsageError, CorpusError: as for `reread_corpus`.
    """
    if run.manifest.raw_digest is None:
        for _ in reread_corpus(run, source):
            pass
        return
    raw = RawDigest()
    for row in _same_rows(run, source, lambda _: Rendered(""), is_rendered=False):
        raw.add(row)
    if raw.value != run.manifest.raw_digest:
        _refuse(source, "a message was changed")


def _same_rows(
    run: Run,
    source: str | CorpusOptions,
    render_messages: RenderMessages | None,
    *,
    is_rendered: bool = True,
) -> Iterator[Example | BadRow]:
    """Yield the rows of a corpus, refused if their ids, places or number are not the run's."""
    options = corpus_options(run, source) if isinstance(source, str) else source
    scored, n_rows = run.each_row(), 0
    for row in read_corpus(options, render_messages=render_messages):
        was = next(scored, None)
        if was is not None and was.reason == TOO_LARGE and isinstance(row, Example):
            row = too_large(row)  # what the tokenizer found, which is not asked again
        # A template may have refused messages that can be read: without it nobody knows.
        is_known = is_rendered or row.raw_digest is None
        if (
            was is None
            or row.example_id != was.example_id
            or _place(row.address) != _place(was.address)
            or (is_known and isinstance(row, BadRow) != (was.outcome == "bad"))
        ):
            _refuse(source, f"row {n_rows + 1:,} is another one")
        n_rows += 1
        yield row
    if n_rows != run.n_rows:
        _refuse(source, f"it has {n_rows:,} rows, the run {run.n_rows:,}")


def _place(address: str) -> str:
    return address.rpartition(":")[2]


def _refuse(source: str | CorpusOptions, difference: str) -> None:
    shown = shown_path(source if isinstance(source, str) else source.source)
    raise UsageError(
        f"{shown}: not the corpus that the run scored: {difference}",
        hint="run 'memaudit predict' on the corpus as it is now",
    )
