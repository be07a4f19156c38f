"""Verifying students that were distilled elsewhere: nothing is trained, they are only asked.

Several students, of other seeds or at other checkpoints, share the teacher's and the baseline's
answers. Each leaves a table and a document as if it had been distilled here, so that a gate, a
report and a fit take it.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import torch

from memaudit.engines.models import load_model
from memaudit.errors import UsageError
from memaudit.labels import VerificationResult
from memaudit.progress import ReportProgress
from memaudit.runs.files import output_folder
from memaudit.verification.examples import DEFAULT_OPTIONS, VerificationOptions, make_task
from memaudit.verification.models import VerificationModels, check_readable
from memaudit.verification.predictions import Predictions
from memaudit.verification.run import finished, make_result, settings_of, write_results
from memaudit.verification.stages import Run, begin, extraction, finish, work_folder
from memaudit.windows import without_padding

if TYPE_CHECKING:
    from memaudit.engines.models import LoadedModel
    from memaudit.verification.extraction import Extraction


def verify_distilled(  # noqa: PLR0913  each is something a user names
    teacher: str | PathLike[str],
    students: Sequence[str | PathLike[str]],
    data: object,
    *,
    baseline: str | PathLike[str] | None = None,
    predictions: Path | None = None,
    out: Path | str,
    options: VerificationOptions = DEFAULT_OPTIONS,
    progress: ReportProgress | None = None,
) -> dict[str, VerificationResult]:
    """Find out what students recite that were distilled from the teacher on a corpus.

    Arguments and errors are those of `verify_distillation`. But what is said of training is not
    used, and no window is held out. Without a baseline, what a student shares with the teacher
    cannot be told from what any model of its size would recite.

    Returns:
        by name of the student, in the order given; of several, each has a folder in `out`.
    """
    # Which windows another trainer held out is not known here.
    task = make_task(data, predictions, replace(options, held_out_share=0.0))
    out, options = Path(out), task.options
    names, results = _names(sources := [fspath(student) for student in students]), {}
    with work_folder(out) as work:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        loaded_teacher = load_model(teacher, options.model)
        loaded_baseline = None if baseline is None else load_model(baseline, options.model)
        with task.examples(loaded_teacher.tokenizer, work, progress) as examples:
            answers: dict[str, Extraction] = {}
            # Adapters may have one base: it is kept where another student may need it.
            bases: dict[str, LoadedModel] | None = {} if len(names) > 1 else None
            for name, source in zip(names, sources, strict=True):
                # One at a time: ten checkpoints would not fit into memory together.
                student = load_model(source, options.model, bases=bases)
                models = VerificationModels(loaded_teacher, student, loaded_baseline)
                run = Run(work, models, examples, options, progress)
                folder = out / name if len(names) > 1 else out
                results[name] = _verified(run, folder, task.told, answers)
        finish(work)
    return results


def _names(students: Sequence[str]) -> list[str]:
    names = [PurePath(source).name or source for source in students]
    if len({*names}) < len(names):
        # Checkpoints of several trainings have equal names: their folders tell them apart.
        names = ["-".join(PurePath(source).parts[-2:]).strip("/") for source in students]
    if len({*names}) < len(names):
        raise UsageError(
            "two of the students have the same name",
            hint="name each --distilled once, in folders of different names",
        )
    return names


def _verified(
    run: Run, folder: Path, told: Predictions | None, answers: "dict[str, Extraction]"
) -> VerificationResult:
    """Return what one student recites; `answers` keeps those of the other models."""
    started = time.monotonic()
    # How it was trained only the user's own trainer knows.
    unknown = run.options.training.settings
    settings = {key: value for key, value in settings_of(run).items() if key not in unknown}
    settings["distilled"] = "elsewhere"
    student, aligned = run.models.student, run.models.aligned
    # Only where tokens differ: folders of an earlier version, without this key, stay answers.
    if aligned:
        settings["aligned"] = aligned
    if "student" in aligned:
        run.options.check_for_student_of_other_tokens()
    found = finished(folder, settings)
    if found is None:
        check_readable(run.models, without_padding(run.examples.windows[0]))
        # The students share one folder of work, so it is for none of them in particular.
        begin(run.work, {k: v for k, v in settings.items() if k != "student_digest"})
        models = {role: loaded.model for role, loaded in run.models.given.items()}
        for role in ("teacher", "baseline"):
            if role in models and role not in answers:
                answers[role] = extraction(run, role, models[role])
        # Named by its weights, so that a killed command finds the answers of each student again.
        own = extraction(run, f"student-{student.digest[:16]}", student.model)
        found = make_result(run, settings, models, {**answers, "student": own})
    with output_folder(folder):
        return write_results(folder, *found, told, seconds=time.monotonic() - started)
