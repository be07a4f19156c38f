"""What an engine is: something that runs one model, or two, over windows."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memaudit.scores import WindowScores


class Engine(Protocol):
    """Runs the teacher, and a reference if it has one, over windows.

    The scores of a window do not depend on the windows beside it, on their order or on the
    batch size, but for the rounding of float32: at most 1e-5 nats on miniature models, and
    3.3e-5 measured on one of 135 million parameters. The same windows in the same order have the
    same scores to the bit.
    """

    @property
    def name(self) -> str:
        """What ran, for reports: `hf-float32`."""
        ...

    @property
    def reference_alone(self) -> "Engine":
        """An engine whose teacher is the reference of this one; there must be one."""
        ...

    def score(self, windows: Sequence[NDArray[np.int32]]) -> list[WindowScores]:
        """Return the scores of each window, in the order given.

        Args:
            windows: token ids, each (T,) with T >= 2; lengths may differ.
        """
        ...
