"""A filter block for datatrove pipelines, from a finished run on the same documents."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from memaudit.errors import MissingDependency, UsageError
from memaudit.integrations import read_row_risks, refuse_other_corpus
from memaudit.text import safe_text

try:
    from datatrove.pipeline.filters.base_filter import BaseFilter
except ImportError as error:
    raise MissingDependency(
        "datatrove", needed_for="the datatrove filter", extra="datatrove"
    ) from error

if TYPE_CHECKING:
    from datatrove.data import Document
    from datatrove.pipeline.writers.disk_base import DiskWriter


class MemorizationFilter(BaseFilter):  # type: ignore[misc]  # datatrove is optional
    """Drops documents that a student would memorize, as a finished run predicts.

    Documents are known by their id; of rows with one id the riskiest counts. A document that the
    run does not know is an error: nothing is known of it. One that the run knows and did not score
    is kept, as 'memaudit filter' keeps it: mostly it was too short to be extracted by definition.
    """

    name = "Memorization"

    def __init__(
        self,
        run: str | Path,
        max_probability: float | None = None,
        exclusion_writer: "DiskWriter | None" = None,
    ) -> None:
        """Read a finished run.

        Args:
            run: its folder.
            max_probability: what is above it is dropped, in [0, 1]. None drops what is flagged.
            exclusion_writer: gets what is dropped.

        Raises:
            UsageError: there is no run, it has not been scored to the end, or the probability is
                none.
            OutputError: a file was changed or damaged.
        """
        if max_probability is not None and not 0 <= max_probability <= 1:
            raise UsageError(
                f"max_probability must be from 0 to 1, got {max_probability}",
                hint="leave it out to drop what is flagged",
            )
        super().__init__(exclusion_writer)
        self.max_probability = max_probability
        self._risks = read_row_risks(run)
        self._worst = self._risks.worst_by_id()

    def filter(self, doc: "Document") -> bool | tuple[bool, str]:
        """Return whether a document is kept.

        Raises:
            UsageError: the run does not know it.
        """
        probability = self._worst.get(str(doc.id))
        if probability is None:
            raise refuse_other_corpus(
                self._risks, f"it has no example with the id {safe_text(str(doc.id))}"
            )
        if math.isnan(probability):
            return True
        # A threshold is reached, a maximum is passed: as `memaudit filter` has it.
        if self.max_probability is None:
            is_dropped = probability >= self._risks.threshold
        else:
            is_dropped = probability > self.max_probability
        return (False, "memorization") if is_dropped else True
