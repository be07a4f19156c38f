"""The stages of a verification, and the work folder where each leaves its result.

A stage is done once: a verification that was killed finds the results of finished stages and goes
on from there. The folder says what it is for, so that two verifications never mix.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from memaudit.distillation import TrainingExample, TrainingOptions
from memaudit.distillation.methods import distil, fine_tune, generate_hard_labels
from memaudit.engines.generation import near_verbatim_logprobs
from memaudit.errors import UsageError
from memaudit.files import read_small
from memaudit.labels import GenerationCounts
from memaudit.progress import ReportProgress, begin_stage
from memaudit.runs.files import committed_file, locked, output_errors, output_folder
from memaudit.text import safe_text, shown_path
from memaudit.verification.examples import Examples, VerificationOptions
from memaudit.verification.extraction import Extraction, by_context, check_generation, extract
from memaudit.verification.models import VerificationModels, trained_model
from memaudit.windows import NO_TOKEN, context_len, without_padding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MANIFEST = "manifest.json"
_MAX_BYTES = 1 << 20
_LABELS_AT_ONCE = 128  # windows that the teacher continues between two reports of progress


@contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """Make the output folder and a private one for unfinished work in it, and lock that.

    Raises:
        OutputError: they cannot be made, or another process is at work there.
        UsageError: a folder of that name is there that is somebody else's.
    """
    work = out / "work"
    with output_errors(work):
        names = {path.name for path in work.iterdir()} if work.is_dir() else set()
    # A kill may leave the lock, and a manifest under its temporary name.
    others = {name for name in names - {"lock"} if not name.startswith(f".{_MANIFEST}.")}
    if work.is_symlink() or (others and _MANIFEST not in names):
        raise UsageError(
            f"{shown_path(work)}: holds something else, and a verification works in this place",
            hint="choose another folder with --out",
        )
    with output_folder(out):
        with output_errors(work):
            work.mkdir(mode=0o700, exist_ok=True)
        with locked(work / "lock"):
            try:
                yield work
            finally:
                # An error in a path, before any stage began, leaves nothing behind.
                if work.is_dir() and not (work / _MANIFEST).exists():
                    shutil.rmtree(work)


def begin(work: Path, settings: dict[str, Any]) -> None:
    """Write down what this work is for, or check that it is for the same.

    Raises:
        UsageError: it is for other settings, corpus or models; names the first difference.
    """
    manifest = work / _MANIFEST
    if manifest.exists():
        with output_errors(manifest, "read"):
            content = read_small(manifest, _MAX_BYTES)
        before = None
        with suppress(ValueError, RecursionError):
            before = json.loads(content)
        if not isinstance(before, dict):
            raise UsageError(
                f"{shown_path(manifest)}: damaged, or of something else",
                hint="remove the folder that it is in, or choose another with --out",
            )
        check_same(before, settings, work.parent)
        with output_errors(work):  # what a kill left under a temporary name
            for path in work.glob(".*.tmp"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return
    with committed_file(manifest) as stream:
        stream.write(json.dumps(settings, sort_keys=True, indent=2).encode() + b"\n")


def check_same(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    """Refuse to mix two verifications in one folder.

    Raises:
        UsageError: naming the first difference.
    """
    for name in sorted({*before, *now}):
        was, is_now = before.get(name), now.get(name)
        if was != is_now:
            raise UsageError(
                f"{shown_path(out)}: holds another verification: {name} was "
                f"{safe_text(str(was))}, is now {safe_text(str(is_now))}",
                hint="give the same again to go on there, or choose another folder with --out",
            )


def stage_arrays(
    path: Path, compute: Callable[[], dict[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """Return the arrays of a stage, which are computed unless it has finished before.

    Raises:
        UsageError: what it left is damaged.
    """
    if not path.exists():
        arrays: dict[str, Any] = compute()
        with committed_file(path) as stream:
            np.savez(stream, **arrays)
    # Read back also if it was computed just now: one that goes on later has the same bytes. Without
    # pickle, for what is unpickled may run code.
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, TypeError, EOFError, BadZipFile) as error:
        raise UsageError(
            f"{shown_path(path)}: damaged: {safe_text(str(error), 200)}",
            hint="remove it: what it holds is computed again",
        ) from None


def finish(work: Path) -> None:
    """Remove the folder; what says what it is for goes last."""
    with output_errors(work):
        for path in work.iterdir():
            if path.name not in (_MANIFEST, "lock"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(work)


@dataclass(frozen=True, slots=True)
class Run:
    """What every stage needs."""

    work: Path
    models: VerificationModels
    examples: Examples
    options: VerificationOptions
    progress: ReportProgress | None

    @property
    def prefix_len(self) -> int:
        """Tokens before the suffix, as the models read them: a BOS is one."""
        return self.options.shape.prefix_len + len(self.models.bos)

    def stage(self, name: str, unit: str) -> Callable[[int, int], None]:
        """Return what turns done and total into the progress of a stage that begins now."""
        return begin_stage(name, unit, self.progress)

    def as_read(self, windows: NDArray[np.int32]) -> list[TrainingExample]:
        """Return what a model is trained on: windows as often as they occur, answers alone learnt."""
        if not self.examples.has_answers:
            return list(self.examples.training_set(self.models.with_bos(windows)))
        bos, shape = self.models.bos, self.options.shape
        return [
            (np.concatenate([bos, without_padding(window)]), len(bos) + context_len(window, shape))
            for window in self.examples.training_set(windows)
        ]


def baseline_model(run: Run) -> "PreTrainedModel":
    """Return the baseline: given, or fine-tuned from the student's initial weights."""
    if run.models.baseline is not None:
        return run.models.baseline.model
    return _trained(run, "baseline", run.examples.trained, fine_tune)


def student_model(run: Run, labels: NDArray[np.int32] | None) -> "PreTrainedModel":
    """Return the student, distilled; hard labels have been written before."""
    if labels is not None:
        return _trained(run, "student", labels, fine_tune)
    learn = partial(
        distil,
        teacher=run.models.teacher.model,
        objective=run.options.objective,
        divergence=run.options.divergence,
        prefix_len=run.prefix_len,
    )
    return _trained(run, "student", run.examples.trained, learn)


def _trained(
    run: Run, role: str, windows: NDArray[np.int32], learn: Callable[..., None]
) -> "PreTrainedModel":
    """Return a copy of the student after it has learned windows, as the user asked."""
    initial, examples = run.models.student.model, run.as_read(windows)
    training = replace(
        run.options.training,
        on_step=run.stage(role, "steps"),
        # The trainer of transformers would take a GPU that the user did not choose.
        on_cpu=initial.device.type == "cpu",
    )

    def train(model: "PreTrainedModel", options: TrainingOptions, work_dir: Path) -> None:
        learn(model, examples=examples, options=options, work_dir=work_dir)

    return trained_model(run.work / role, initial, train, training, n_examples=len(examples))


def hard_labels(run: Run) -> NDArray[np.int32]:
    """Return (examples, T) the teacher's continuations of the real prefixes."""
    windows = run.examples.trained

    def write() -> dict[str, NDArray[np.int32]]:
        report, done = run.stage("hard labels", "windows"), 0
        labels = windows.copy()  # what a window lacks, its label lacks too
        for n_context, group in by_context(windows, run.options.shape):
            for start in range(0, len(group), _LABELS_AT_ONCE):
                places = group[start : start + _LABELS_AT_ONCE]
                part = [
                    np.concatenate([run.models.bos, without_padding(windows[i])]) for i in places
                ]
                prefix_len = n_context + len(run.models.bos)
                found = generate_hard_labels(
                    run.models.teacher.model,
                    part,
                    prefix_len,
                    sampling=run.options.labels,
                    seed=run.options.training.seed + int(places[0]),  # not the same chance in each
                )
                for i, label in zip(places, found, strict=True):
                    labels[i, labels[i] != NO_TOKEN] = label[len(run.models.bos) :]
                done += len(places)
                report(done, len(windows))
        return {"labels": labels}

    labels: NDArray[np.int32] = stage_arrays(run.work / "hard_labels.npz", write)["labels"]
    return labels


def extraction(run: Run, role: str, model: "PreTrainedModel") -> Extraction:
    """Return what a role's model recites, and how well it predicts."""
    windows, shape = run.examples.windows, run.options.shape
    report = run.stage(f"extract {role}", "windows")
    found = stage_arrays(
        run.work / f"extraction-{role}.npz",
        lambda: extract(
            run.models.engine(model),
            windows,
            shape=shape,
            on_chunk=lambda done: report(done, len(windows)),
        ),
    )
    # The first token has no score, though a BOS may stand in front of it.
    found["n_predictions"] = (windows != NO_TOKEN).sum(axis=1) - 1
    max_distance, given = run.options.near_verbatim, run.models.given
    # A model with other tokens cannot continue the teacher's.
    has_own_tokens = any(given[other].model is model for other in run.models.aligned)
    if max_distance is not None and not has_own_tokens:
        report = run.stage(f"near-verbatim {role}", "windows")
        found["near_logprobs"] = stage_arrays(
            run.work / f"near-verbatim-{role}.npz",
            lambda: {
                "logprobs": near_verbatim_logprobs(
                    model,
                    [without_padding(window) for window in windows],
                    [context_len(window, shape) for window in windows],
                    max_distance=max_distance,
                    bos_token_id=run.models.teacher.tokenizer.bos_token_id,
                    on_windows=lambda done: report(done, len(windows)),
                )
            },
        )["logprobs"]
    return Extraction(**found)


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
            shape=run.options.shape,
            bos_token_id=run.models.teacher.tokenizer.bos_token_id,
            seed=run.options.training.seed,
        )
        for role in ("teacher", "student")
    }
