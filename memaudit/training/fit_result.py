"""What a fit on one's own verification is asked for, and what comes out of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from memaudit.classifier import RiskClassifier
from memaudit.errors import UsageError
from memaudit.features import FEATURE_SETS
from memaudit.objectives import ObjectiveKind
from memaudit.training.export import ExportFormat
from memaudit.training.held_out import Figure, HeldOutRun
from memaudit.training.inputs import Input
from memaudit.training.labels import VerifiedRun
from memaudit.training.selection import SelectionResult
from memaudit.training.splitting import Split, SplitUnit

HeldOutKind = Literal["run", "example", "calibration"]
"""What was held out from the fits that are judged. `calibration`: only the calibration examples
of the one fit, whose order is honest while the threshold was chosen on them."""


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How a classifier is fitted."""

    feature_set: str | None = None
    """Key of `FEATURE_SETS`. None: the one that most columns of the scores belong to."""

    features: tuple[str, ...] = ()
    """What to fit on. Empty: chosen over two or more runs, else the shipped classifier's."""

    objective: ObjectiveKind | None = None
    """What the students learned from. None: what stands beside the labels says, else soft."""

    calibration_share: float = 0.3
    """Of the runs or examples, for calibration and threshold; in (0, 1)."""

    seed: int = 0
    """Of the split and of the resampling, at least 0."""

    export: ExportFormat | None = None
    """Also write the equal pipeline of scikit-learn."""

    command: str = "memaudit.training.fit_on_verification"
    """What was called, for the card."""

    def __post_init__(self) -> None:
        if not 0 < self.calibration_share < 1:
            raise UsageError(
                f"expected a calibration share between 0 and 1, got {self.calibration_share}",
                hint="the default is 0.3",
            )
        if self.feature_set is not None and self.feature_set not in FEATURE_SETS:
            raise ValueError(f"expected a feature set of {tuple(FEATURE_SETS)}")


DEFAULT_OPTIONS = FitOptions()
"""Features are chosen, three tenths calibrate, nothing is exported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """A classifier, and how well such a fit does on what it has not seen."""

    classifier: RiskClassifier
    """Fitted and calibrated on all examples."""

    selection: SelectionResult | None
    """How features were chosen; None if they were given or are the shipped classifier's."""

    inputs: tuple[Input, ...]
    """The tables."""

    runs: tuple[VerifiedRun, ...]
    """What they hold together."""

    unit: SplitUnit
    """What the split never cuts."""

    split: Split
    """What the classifier was fitted and calibrated on."""

    held_out_kind: HeldOutKind
    """How it was judged."""

    held_out: tuple[HeldOutRun, ...]
    """Predictions by run, of fits that did not see the examples."""

    figures: Mapping[str, Figure]
    """Of the predictions, by name; those of the threshold only if it has not seen the examples."""

    shipped_figures: Mapping[str, Figure]
    """Of the shipped classifier of the set on the same examples; empty if it lacks a feature."""

    options: FitOptions
    """As given."""

    folder: Path
    """Where the classifier is."""

    @property
    def n_calibration_positives(self) -> int:
        """Extracted examples that calibration and threshold rest on."""
        return sum(run.n_extracted for run in self.split.calibration)

    @property
    def n_not_judged(self) -> int:
        """Distinct examples about which no fit without them could be made."""
        n_judged = sum(len(part.run.extracted) for part in self.held_out)
        return sum(run.counts.distinct for run in self.runs) - n_judged
