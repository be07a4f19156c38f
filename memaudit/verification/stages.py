"""The stages of a verification: each leaves its result in the work folder and is done once."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memaudit.distillation import TrainingOptions, distil, fine_tune, generate_hard_labels
from memaudit.verification.examples import Examples
from memaudit.verification.extraction import Extraction, check_generation, extract
from memaudit.verification.models import VerificationModels, trained_model
from memaudit.verification.options import ReportStage, StageProgress, VerificationOptions
from memaudit.verification.result import GenerationCounts
from memaudit.verification.work import stage_arrays

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LABELS_AT_ONCE = 128


@dataclass(frozen=True, slots=True)
class Run:
    """What every stage needs."""

    work: Path
    """Where finished stages are."""

    models: VerificationModels
    """As given."""

    examples: Examples
    """What is trained on, and what is not."""

    options: VerificationOptions
    """See there."""

    progress: ReportStage | None
    """Told how far a stage has come."""

    @property
    def prefix_len(self) -> int:
        """Tokens before the suffix, as the models read them: a BOS is one."""
        return self.options.shape.prefix_len + len(self.models.bos)

    def stage(self, name: str, unit: str) -> Callable[[int, int], None]:
        """Return what turns done and total into the progress of a stage that begins now."""
        started, first = time.monotonic(), list[int]()

        def report(done: int, total: int) -> None:
            # Steps come one by one, so the first one told says where a training went on.
            first.append(done - 1 if unit == "steps" else 0)
            if self.progress is not None:
                seconds = time.monotonic() - started
                self.progress(StageProgress(name, unit, done, total, seconds, first[0]))

        return report


def baseline_model(run: Run) -> "PreTrainedModel":
    """Return the baseline: given, or fine-tuned from the student's initial weights."""
    if run.models.baseline is not None:
        return run.models.baseline.model
    examples = run.examples.training_set(run.models.with_bos(run.examples.trained))

    def train(model: "PreTrainedModel", options: TrainingOptions, work_dir: Path) -> None:
        fine_tune(model, examples, options, work_dir=work_dir)

    return _trained(run, "baseline", train, len(examples))


def student_model(run: Run, labels: NDArray[np.int32] | None) -> "PreTrainedModel":
    """Return the student, distilled; hard labels have been written before."""
    texts = run.examples.trained if labels is None else labels
    examples = run.examples.training_set(run.models.with_bos(texts))

    def train(model: "PreTrainedModel", options: TrainingOptions, work_dir: Path) -> None:
        if labels is not None:
            fine_tune(model, examples, options, work_dir=work_dir)
            return
        distil(
            model,
            run.models.teacher.model,
            examples,
            options,
            objective=run.options.objective,
            prefix_len=run.prefix_len,
            work_dir=work_dir,
        )

    return _trained(run, "student", train, len(examples))


def _trained(
    run: Run,
    role: str,
    train: "Callable[[PreTrainedModel, TrainingOptions, Path], None]",
    n_examples: int,
) -> "PreTrainedModel":
    training = replace(
        run.options.training,
        on_step=run.stage(role, "steps"),
        on_cpu=run.models.student.model.device.type == "cpu",
    )
    initial = run.models.student.model
    return trained_model(run.work / role, initial, train, training, n_examples=n_examples)


def hard_labels(run: Run) -> NDArray[np.int32]:
    """Return (examples, T) the teacher's continuations of the real prefixes."""
    windows = run.models.with_bos(run.examples.trained)

    def write() -> dict[str, NDArray[np.int32]]:
        report = run.stage("hard labels", "windows")
        parts = []
        for start in range(0, len(windows), _LABELS_AT_ONCE):
            part = list(windows[start : start + _LABELS_AT_ONCE])
            parts += generate_hard_labels(run.models.teacher.model, part, run.prefix_len)
            report(len(parts), len(windows))
        return {"labels": np.stack(parts)[:, len(run.models.bos) :]}

    labels: NDArray[np.int32] = stage_arrays(run.work / "hard_labels.npz", write)["labels"]
    return labels


def extraction(run: Run, role: str, model: "PreTrainedModel") -> Extraction:
    """Return what a role's model recites, and how well it predicts."""
    windows = run.examples.windows
    report = run.stage(f"extract {role}", "windows")
    arrays = stage_arrays(
        run.work / f"extraction-{role}.npz",
        lambda: extract(
            model,
            windows,
            prefix_len=run.options.shape.prefix_len,
            bos_token_id=run.models.teacher.tokenizer.bos_token_id,
            on_chunk=lambda done: report(done, len(windows)),
        ),
    )
    return Extraction(arrays["extracted"], arrays["nats"], windows.shape[1] - 1)


def generation_counts(
    run: Run, models: "dict[str, PreTrainedModel]", found: dict[str, NDArray[np.bool_]]
) -> dict[str, GenerationCounts] | None:
    """Return by role how often real generation agrees with the one pass, if that was asked for."""
    if run.options.check_generate == 0:
        return None
    return {
        role: check_generation(
            models[role],
            run.examples.trained,
            found[role],
            n=run.options.check_generate,
            prefix_len=run.options.shape.prefix_len,
            bos_token_id=run.models.teacher.tokenizer.bos_token_id,
            seed=run.options.training.seed,
        )
        for role in ("teacher", "student")
    }
