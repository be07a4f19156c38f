"""The scoring pass: from distinct windows to their matrix of features."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memaudit.engines.base import Engine
from memaudit.errors import ModelError
from memaudit.features import FEATURE_SETS, ReferenceRole, window_features
from memaudit.runs.spool import WindowSpool
from memaudit.windows import WindowShape


class Tokenizer(Protocol):
    """Turns texts into token ids and back, many at a time."""

    def encode(self, texts: list[str], /) -> list[list[int]]:
        """Return the token ids of each text."""
        ...

    def decode(self, token_ids: list[list[int]], /) -> list[str]:
        """Return the text of each sequence of token ids."""
        ...

    def render_messages(self, messages: list[dict[str, str]], /) -> str:
        """Return the text that the chat template makes of messages with role and content."""
        ...


def feature_set_name(role: ReferenceRole | None) -> str:
    """Return the key of `FEATURE_SETS` for a teacher and, if it has a role, a reference."""
    return "teacher" if role is None else f"teacher+{role}"


def feature_matrix(
    spool: WindowSpool,
    engine: Engine,
    tokenizer: Tokenizer,
    *,
    shape: WindowShape,
    role: ReferenceRole | None,
    chunk_size: int,
    on_chunk: Callable[[int], None],
) -> NDArray[np.float64]:
    """Score every distinct window once and return its features.

    Args:
        spool: the windows.
        engine: runs the teacher, and a reference if there is a role for it.
        tokenizer: the teacher's, for the text of a window.
        shape: of the windows.
        role: what the reference is.
        chunk_size: windows that are scored together; no batch crosses a chunk.
        on_chunk: told how many windows are done, after each chunk.

    Returns:
        (n_windows, n_features), the columns in the order of the feature set.

    Raises:
        ModelError: a feature is not a finite number.
    """
    names = FEATURE_SETS[feature_set_name(role)]
    X = np.empty((len(spool), len(names)))
    occurrences = spool.occurrences
    done = 0
    for windows in spool.chunks(chunk_size):
        scores = engine.score(list(windows))
        texts = tokenizer.decode(windows.tolist())
        suffix_texts = tokenizer.decode(windows[:, shape.prefix_len :].tolist())
        for i in range(len(windows)):
            features = window_features(
                scores[i],
                prefix_len=shape.prefix_len,
                text=texts[i],
                suffix_text=suffix_texts[i],
                occurrences=int(occurrences[done + i]),
                role=role,
            )
            X[done + i] = [features[name] for name in names]
        _check_finite(X[done : done + len(windows)], names)
        done += len(windows)
        on_chunk(done)
    return X


def _check_finite(X: NDArray[np.float64], names: tuple[str, ...]) -> None:
    n_broken = (~np.isfinite(X)).sum(axis=0)
    if n_broken.any():
        column = int(n_broken.argmax())
        raise ModelError(
            f"feature {names[column]} is not a finite number in {n_broken[column]} windows",
            hint="the model's weights are broken: get its files again, or use float32",
        )
