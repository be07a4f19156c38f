"""Text of the worst examples, read again from the corpus of a run, for reports that ask for it."""

import hashlib
from collections.abc import Collection
from typing import TYPE_CHECKING

import msgspec

from memaudit.corpus import Conversation, CorpusOptions, Example, Rendered, read_corpus
from memaudit.errors import UsageError
from memaudit.text import shown_path

if TYPE_CHECKING:
    from memaudit.runs.manifest import Manifest


def read_row_texts(
    manifest: "Manifest", source: str, rows: Collection[int], n_characters: int
) -> dict[int, str]:
    """Return the start of the texts of some rows, once the corpus is found to be the run's.

    Args:
        manifest: of the run: says how its corpus is read.
        source: where the corpus is now.
        rows: ordinals.
        n_characters: of each text.

    Raises:
        UsageError: it is another corpus, or its texts come of a chat template.
        CorpusError: it cannot be read.
    """
    declared = {name: value for name, value in manifest.inputs.corpus.items() if name != "source"}
    options = CorpusOptions(source, **declared)
    wanted, texts, digest = set(rows), {}, hashlib.sha256()
    for row in read_corpus(options, render_messages=_refuse_messages):
        if isinstance(row, Example):
            digest.update(msgspec.json.encode(row.text))
            if row.row in wanted:
                texts[row.row] = row.text[:n_characters]
    if digest.hexdigest() != manifest.inputs.texts_digest:
        raise UsageError(
            f"{shown_path(source)}: its texts are not those that were scored in the run",
            hint="give the very corpus of the run with --data, or leave out --show-text",
        )
    return texts


def _refuse_messages(conversation: Conversation) -> Rendered:
    raise UsageError(
        "the corpus holds messages, and only the teacher's chat template makes text of them",
        hint="leave out --show-text",
    )
