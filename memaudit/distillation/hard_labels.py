"""Hard labels: the text with which a teacher goes on from real prefixes."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memaudit.windows import window_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def generate_hard_labels(
    teacher: "PreTrainedModel", examples: Sequence[NDArray[np.int32]], prefix_len: int
) -> list[NDArray[np.int32]]:
    """Return each example with all after its prefix replaced by the teacher's greedy continuation.

    Equal prefixes are continued once. An example that is not longer than the prefix stays as it is.

    Args:
        teacher: used as it is, in evaluation mode, on its device.
        examples: token ids, each (T,); a BOS token, where the model wants one, is part of them.
        prefix_len: tokens of each example that the teacher is given, at least 1.

    Returns:
        in the order given, each (T,) as its example.
    """
    from memaudit.engines.generation import continue_greedily

    if prefix_len < 1:
        raise ValueError(f"prefix_len must be at least 1, got {prefix_len}")
    prefixes: dict[int, dict[bytes, NDArray[np.int32]]] = defaultdict(dict)
    for example in examples:
        if len(example) > prefix_len:
            prefix = example[:prefix_len]
            prefixes[len(example)][window_key(prefix)] = prefix
    written: dict[tuple[int, bytes], NDArray[np.int32]] = {}
    for length, by_key in prefixes.items():
        found = continue_greedily(teacher, list(by_key.values()), length - prefix_len)
        written |= {
            (length, key): np.concatenate([by_key[key], suffix]).astype(np.int32)
            for key, suffix in zip(by_key, found, strict=True)
        }
    return [
        written[len(example), window_key(example[:prefix_len])]
        if len(example) > prefix_len
        else example
        for example in examples
    ]
