"""What hard labels leak: suffixes of the corpus in the text that the teacher wrote."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from memaudit.verification.result import LabelScan
from memaudit.windows import window_key


def scan_labels(
    labels: NDArray[np.int32],
    windows: NDArray[np.int32],
    corpus_chunks: Iterable[NDArray[np.int32]],
    prefix_len: int,
) -> LabelScan:
    """Look for suffixes of the corpus, token by token, in what a teacher wrote.

    It needs no student: what stands here is what the student is taught.

    Args:
        labels: (n, T) each a real prefix and the teacher's continuation of it.
        windows: (n, T) the windows those prefixes come from.
        corpus_chunks: (_, T) all distinct windows of the corpus, a chunk at a time.
        prefix_len: tokens of a window before its suffix.
    """
    suffix_len = labels.shape[1] - prefix_len
    corpus = {
        window_key(np.ascontiguousarray(window[prefix_len:]))
        for chunk in corpus_chunks
        for window in chunk
    }
    # Only runs that reach into the continuation: what lies in the prefix is no text of the teacher's.
    starts = range(max(0, prefix_len - suffix_len + 1), prefix_len + 1)
    own = other = 0
    leaked: set[bytes] = set()
    for label, window in zip(labels, windows, strict=True):
        own_key = window_key(np.ascontiguousarray(window[prefix_len:]))
        keys = {window_key(np.ascontiguousarray(label[s : s + suffix_len])) for s in starts}
        found = keys & corpus
        own += own_key in found
        other += bool(found - {own_key})
        leaked |= found
    return LabelScan(len(labels), own, other, len(leaked))
