"""Verifying: corpus and models in, what the student recites out. This file shows the whole flow.

1. The corpus is read and cut as in an audit; some windows are held out.
2. A baseline is fine-tuned from the student's initial weights, unless one is given.
3. For hard labels the teacher continues every prefix, and its text is scanned.
4. The student is distilled.
5. Teacher, baseline and student are asked which windows they recite.
6. Table and document are written, with what was predicted beside what was found.

Every stage leaves its result in the work folder: a verification that was killed goes on there,
and ends with the same numbers.
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from numpy.typing import NDArray

from memaudit import __version__
from memaudit.errors import UsageError
from memaudit.evaluation import Rate, compare
from memaudit.labels import (
    DOCUMENT_NAME,
    ROLES,
    ROW_COLUMNS,
    TABLE_NAME,
    ExtractionSet,
    VerificationResult,
    found_rows,
    labels_digest,
    read_verification,
)
from memaudit.progress import ReportProgress
from memaudit.runs.files import committed_file
from memaudit.text import shown_path
from memaudit.verification.examples import DEFAULT_OPTIONS, VerificationOptions, make_task
from memaudit.verification.extraction import (
    Extraction,
    extraction_sets,
    label_table,
    nearly_sampled,
    sampled_counts,
    scan_labels,
    with_predictions,
)
from memaudit.verification.models import check_readable, load_models, save_tokenizer
from memaudit.verification.predictions import Predictions, match_predictions
from memaudit.verification.stages import (
    Run,
    baseline_model,
    begin,
    check_same,
    extraction,
    finish,
    generation_counts,
    hard_labels,
    student_model,
    work_folder,
)
from memaudit.windows import without_padding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")
V = TypeVar("V")


def verify_distillation(  # noqa: PLR0913  each is something a user names
    teacher: str | PathLike[str],
    student: str | PathLike[str],
    data: object,
    *,
    baseline: str | PathLike[str] | None = None,
    predictions: Path | None = None,
    out: Path | str,
    options: VerificationOptions = DEFAULT_OPTIONS,
    progress: ReportProgress | None = None,
) -> VerificationResult:
    """Really distil a student on a corpus, and find out what it recites.

    A verification of the same in the same folder goes on where it was stopped, or returns what
    it found. One that is finished can be given (other) predictions at no cost.

    Args:
        teacher: trained on the corpus: folder, GGUF file or hub id.
        student: before its training; its weights are where baseline and student start.
        data: the corpus, as `audit_corpus` takes it.
        baseline: trained on the corpus without a teacher. None: fine-tuned here.
        predictions: a folder that `memaudit predict` wrote for the same corpus.
        out: folder for `verification.parquet` and `verification.json`, made if missing.
        options: everything else.
        progress: called now and then.

    Raises:
        CorpusError: the corpus cannot be read, or leaves nothing to train on.
        ModelError: a model cannot be loaded or trained, or vocabularies differ.
        UsageError: the folder is for another verification, or predictions do not fit.
        OutputError: the folder cannot be written.
    """
    started = time.monotonic()
    out = Path(out)
    task = make_task(data, predictions, options)
    with work_folder(out) as work:
        models = load_models(teacher, student, baseline, task.options)
        with task.examples(models.teacher.tokenizer, work, progress) as examples:
            run = Run(work, models, examples, task.options, progress)
            settings = settings_of(run)
            found = finished(out, settings) or _distilled(run, settings)
        result = write_results(out, *found, task.told, seconds=time.monotonic() - started)
        # Before the folder of work goes: the models lie in it.
        if options.keep_models:
            _keep_models(run, out)
        finish(work)
    return result


def settings_of(run: Run) -> dict[str, Any]:
    """Return all that decides the numbers."""
    given = run.models.given
    return {
        "memaudit": __version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "corpus_digest": run.examples.digest,
        **{f"{role}_digest": given[role].digest if role in given else None for role in ROLES},
        **run.examples.windows_told(run.options),
        **run.options.settings,
        # Sums in another order round otherwise, and may turn an argmax that is close.
        "device": run.models.teacher.model.device.type,
        "threads": torch.get_num_threads(),
    }


def _distilled(run: Run, settings: dict[str, Any]) -> tuple[VerificationResult, pa.Table]:
    """Run the stages that have not finished before."""
    check_readable(run.models, without_padding(run.examples.windows[0]))
    begin(run.work, settings)
    baseline = baseline_model(run)
    labels = hard_labels(run) if run.options.objective.learns_written_text else None
    models = {
        "teacher": run.models.teacher.model,
        "baseline": baseline,
        "student": student_model(run, labels),
    }
    extractions = {role: extraction(run, role, models[role]) for role in ROLES}
    return make_result(run, settings, models, extractions, labels)


def make_result(
    run: Run,
    settings: dict[str, Any],
    models: "dict[str, PreTrainedModel]",
    extractions: dict[str, Extraction],
    labels: NDArray[np.int32] | None = None,
) -> tuple[VerificationResult, pa.Table]:
    """Return what was found, and the table that says it by row; labels, (examples, T), if hard ones."""
    trained = ~run.examples.is_held_out
    found = {role: each.extracted[trained] for role, each in extractions.items()}
    table = label_table(run.examples, found)
    scan = None
    if labels is not None:
        # The windows of the whole corpus wait on the disk: they may not fit into memory.
        chunks = run.examples.corpus_windows.chunks(4096)
        scan = scan_labels(labels, run.examples.trained, chunks, run.options.shape.prefix_len)
    result = VerificationResult(
        settings=settings,
        models={role: model.source for role, model in run.models.given.items()},
        outcomes=dict(sorted(Counter(table["outcome"].to_pylist()).items())),
        examples=int(trained.sum()),
        held_out=int((~trained).sum()),
        **_rates(found, run.examples.occurrences[trained]),
        perplexity=_by_role(extractions, lambda each: each.perplexity(~trained), None),
        held_out_extracted=_by_role(
            extractions, lambda each: int(each.extracted[~trained].sum()), 0
        ),
        label_scan=scan,
        generation=generation_counts(run, models, found),
        sampled=sampled_counts(extractions, trained),
        near_verbatim=nearly_sampled(extractions, trained),
        comparison=None,
        labels_digest=labels_digest(table),
        seconds=0.0,
    )
    return result, table


def _rates(found: dict[str, NDArray[np.bool_]], copies: NDArray[np.int64]) -> dict[str, Any]:
    """Return the fields of the result that speak of the examples."""
    teacher, student = found["teacher"], found["student"]
    baseline = found.get("baseline", np.zeros_like(student))
    n_easy = int((student & teacher & baseline).sum())
    sets = Counter(extraction_sets(found))
    return {
        "extracted": _by_role(
            found,
            lambda recites: Rate.of_counts(int(recites.sum()), len(recites)),
            Rate.of_counts(0, 0),
        ),
        "extracted_rows": _by_role(found, lambda recites: int(copies[recites].sum()), 0),
        "sets": {name: sets[name] for name in get_args(ExtractionSet)},
        "student_in_easy": Rate.of_counts(n_easy, int(student.sum())),
        "inherited": Rate.of_counts(sets["inherited"], sets["inherited"] + sets["teacher_only"]),
    }


def _by_role(found: dict[str, T], of: Callable[[T], V], absent: V) -> dict[str, V]:
    """Return something of what was found by each role; a model that was not there has its key, too."""
    return {role: of(found[role]) if role in found else absent for role in ROLES}


def finished(out: Path, settings: dict[str, Any]) -> tuple[VerificationResult, pa.Table] | None:
    """Return what stands in the folder already, if it is an answer to the same question.

    Raises:
        UsageError: it is the answer to another one.
        OutputError: it is damaged.
    """
    if not (out / DOCUMENT_NAME).exists():
        return None
    result, table = read_verification(out)
    check_same(result.settings, settings, out)
    return result, table


def write_results(
    out: Path,
    result: VerificationResult,
    table: pa.Table,
    told: Predictions | None,
    *,
    seconds: float,
) -> VerificationResult:
    """Compare with predictions and write table and document; return the result as written.

    Neither file takes its name before both are whole.
    """
    if told is not None:
        columns = (table[name].to_pylist() for name in ROW_COLUMNS)
        predicted = match_predictions(told, zip(*columns, strict=True))
        table = with_predictions(table, predicted)
        comparison = compare(found_rows(table), predicted)
        differences = tuple(told.differences(result.settings))
        result = replace(result, comparison=replace(comparison, differences=differences))
    # Of the process that finished it, not of one that only compares predictions.
    if not (out / DOCUMENT_NAME).exists():
        result = replace(result, seconds=seconds)
    # The inner one takes its name first: where there is a document, there is its table.
    with committed_file(out / DOCUMENT_NAME) as file, committed_file(out / TABLE_NAME) as stream:
        document = json.dumps(result.document(), sort_keys=True, indent=2, allow_nan=False)
        file.write(document.encode() + b"\n")
        # The same table gives the same bytes.
        pq.write_table(table, stream, compression="zstd", write_page_checksum=True)
    return result


def _keep_models(run: Run, out: Path) -> None:
    """Move the trained models into the folder, each with its tokenizer.

    Raises:
        UsageError: they are gone, because an earlier run was not asked to keep them.
    """
    for role in ("student",) if run.models.baseline is not None else ("baseline", "student"):
        if (run.work / role).exists():
            save_tokenizer(run.models.student, run.work / role)
            (run.work / role).replace(out / role)
        elif not (out / role).exists():
            raise UsageError(
                f"{shown_path(out)}: the {role} of this verification was not kept",
                hint="verify into another folder with --keep-models",
            )
