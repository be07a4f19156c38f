"""What a gate looks at: runs, a verification that fits them, and a classifier that is shipped."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
from support.fakes import make_classifier
from support.finished_runs import finish_run, write_jsonl

from memaudit.classifier import save_classifier
from memaudit.evaluation import Rate
from memaudit.labels import VerificationResult, labels_digest
from memaudit.runs.run import read_run

RECITED = "recited by the teacher"
"""Twice in the corpus."""

TEXTS = [*(f"{i:04} is nothing special" for i in range(18)), RECITED, RECITED, "short"]
"""20 rows that are scored, of which two are flagged and recited, and one that is too short."""


def ship(folder, classifier, *, positives=40, runs=12):
    """Put a classifier where the shipped ones are, with what its card says of calibration."""
    place = folder / classifier.name
    save_classifier(classifier, place)
    card = {"digest": classifier.digest, "level": {"runs": runs, "memorized": positives}}
    (place / "card.json").write_text(json.dumps(card))


def shipped(monkeypatch, folder, **card):
    """Let the classifier of the fakes be the one that comes with memaudit."""
    ship(folder, make_classifier(), **card)
    monkeypatch.setattr("memaudit.gate.check.shipped_classifiers_dir", lambda: folder)


def make_run(folder, texts=TEXTS, *, name="run", recited=(RECITED,), **options):
    """Write a corpus and its finished run; return both."""
    corpus = write_jsonl(folder / f"{name}.jsonl", texts)
    out = folder / name
    finish_run(corpus, out, recited=recited, **options)
    return corpus, out


def verify_run(run_folder, folder, recites, *, held_out=(), sample=None, **settings):
    """Write what verify would have found for the corpus of a run.

    Args:
        run_folder: of the run.
        folder: of the verification.
        recites: ids that the student recites.
        held_out: ids that it was not trained on.
        sample: as in the settings.
        settings: others than those that fit the run.
    """
    run = read_run(run_folder)
    inputs = run.manifest.inputs
    numbers = {}
    records = []
    for index in range(run.n_rows):
        row = run.row(index)
        record = {
            "id": row.example_id, "row": row.row, "address": row.address, "outcome": row.outcome,
            "extracted_by_teacher": None, "extracted_by_baseline": None,
            "extracted_by_student": None, "set": None, "example": None,
        }  # fmt: skip
        if row.example_id in held_out:
            record["outcome"] = "held_out"
        elif row.outcome == "scored":
            window = int(run.worst_windows[index])
            record["example"] = numbers.setdefault(window, len(numbers))
            found = row.example_id in recites
            record |= {f"extracted_by_{role}": found for role in ("teacher", "baseline", "student")}
            record["set"] = "easy" if found else "none"
        records.append(record)
    text, flag = pa.string(), pa.bool_()
    types = (text, pa.int64(), text, text, flag, flag, flag, text, pa.int64())
    schema = pa.schema(list(zip(records[0], types, strict=True)))
    table = pa.Table.from_pylist(records, schema=schema)
    nothing = Rate(0, 1, 0.0, 0.0, 1.0)
    roles = ("teacher", "baseline", "student")
    result = VerificationResult(
        settings={
            "teacher_digest": inputs.teacher_digest,
            "prefix_tokens": inputs.prefix_tokens,
            "suffix_tokens": inputs.suffix_tokens,
            "objective": inputs.objective.kind,
            "temperature": inputs.objective.temperature,
            "cross_entropy_share": inputs.objective.cross_entropy_share,
            "sample": sample,
        }
        | settings,
        models={},
        outcomes={},
        examples=len(numbers),
        held_out=0,
        extracted=dict.fromkeys(roles, nothing),
        extracted_rows=dict.fromkeys(roles, 0),
        sets={},
        student_in_easy=nothing,
        inherited=nothing,
        perplexity={},
        held_out_extracted={},
        label_scan=None,
        generation=None,
        comparison=None,
        labels_digest=labels_digest(table),
        seconds=0.0,
    )
    folder.mkdir(parents=True)
    (folder / "verification.json").write_text(json.dumps(result.document()))
    pq.write_table(table, folder / "verification.parquet", write_page_checksum=True)
    return folder
