"""Interventions: distil again without some examples, and count what is memorized then.

The teacher stays as it is, as in Borkar et al. 2026 (arXiv:2601.15394), section 5.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memaudit.classifier import RiskClassifier
from memaudit.runs.files import committed_file
from study.heavy.cells import (
    CellExamples,
    CellResult,
    choose_examples,
    extracted_by,
    held_out_perplexity,
    remembered_logits,
    train_student,
)
from study.heavy.evaluation import judge
from study.heavy.recipe import MAIN_STUDENT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BUDGET = 1.5


def training_counts(result: CellResult, classifier: RiskClassifier) -> dict[str, NDArray[np.int64]]:
    """Return, for each intervention, (n,) how often each example is then trained on.

    `flagged` drops what the classifier flags. `budget` drops its riskiest, 1.5 times as many as
    the student memorized: a number known only afterwards. `random` drops as many as `flagged`,
    `random budget` as many as `budget`. `deduplicated` keeps one of each, `both` drops the
    flagged from that.
    """
    judged = judge(classifier, result.run())
    before = result.features["occurrences"].astype(np.int64)
    n = len(before)
    n_flagged = int((judged.probabilities >= judged.threshold).sum())
    n_budget = min(n, int(_BUDGET * judged.extracted.sum()))
    by_risk = np.argsort(-judged.probabilities, kind="stable")
    shuffled = np.random.default_rng(result.cell.seed).permutation(n)

    def without(counts: NDArray[np.int64], dropped: NDArray[np.int64]) -> NDArray[np.int64]:
        kept = counts.copy()
        kept[dropped] = 0
        return kept

    once = np.ones_like(before)
    return {
        "flagged": without(before, by_risk[:n_flagged]),
        "budget": without(before, by_risk[:n_budget]),
        "random": without(before, shuffled[:n_flagged]),
        "random budget": without(before, shuffled[:n_budget]),
        "deduplicated": once,
        "both": without(once, by_risk[:n_flagged]),
    }


def run_interventions(
    result: CellResult,
    classifier: RiskClassifier,
    sample_data: Path,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    weights: Path,
    settings: bytes,
    out: Path,
) -> None:
    """Distil a cell's student again under each intervention and write what came of it.

    Args:
        result: of a cell whose models were kept.
        classifier: says what is dropped; it has not seen the cell.
        sample_data: the folder of the sample corpora.
        tokenizer: of the study.
        weights: the folder of the cell's models.
        settings: that the cell was made with.
        out: a JSON file; an intervention that stands in it already is not run again, if the cell
            and the classifier are still the same.
    """
    from transformers import AutoModelForCausalLM

    examples = choose_examples(result.cell, sample_data, tokenizer)
    teacher = AutoModelForCausalLM.from_pretrained(weights / "teacher", dtype="float32").eval()
    remembered = remembered_logits(teacher, examples.windows)
    student = next(each for each in result.cell.students if each.name == MAIN_STUDENT)
    made_with = {"classifier": classifier.digest, "cell": hashlib.sha256(settings).hexdigest()}
    done = read_interventions(out, made_with) or {"none": _before(result)}
    for name, counts in training_counts(result, classifier).items():
        if name in done:
            continue
        model = AutoModelForCausalLM.from_pretrained(weights / "base", dtype="float32")
        changed = CellExamples(
            examples.windows, examples.texts, counts, examples.others, examples.held_out
        )
        with tempfile.TemporaryDirectory() as folder:
            train_student(
                model, teacher, changed.training_set(), result.cell, student,
                remembered=remembered, work_dir=Path(folder),
            )  # fmt: skip
        recited = extracted_by(model, examples.windows, result.cell.window_half)
        done[name] = _after(result, counts, recited) | {
            "held_out_perplexity": held_out_perplexity(model, examples.held_out)
        }
        with committed_file(out) as stream:
            document = {"made_with": made_with, "interventions": done}
            stream.write(json.dumps(document, indent=2, sort_keys=True).encode() + b"\n")


def read_interventions(
    path: Path, made_with: Mapping[str, str] | None = None
) -> dict[str, dict[str, float]]:
    """Return what `run_interventions` wrote, by intervention.

    Args:
        path: where it did; empty if there is nothing yet.
        made_with: what was made with anything else counts as nothing. None takes all.
    """
    document = json.loads(path.read_text()) if path.exists() else {}
    if made_with is not None and document.get("made_with") != made_with:
        return {}
    found: dict[str, dict[str, float]] = document["interventions"]
    return found


def _before(result: CellResult) -> dict[str, float]:
    memorized = result.extracted[MAIN_STUDENT]
    return {
        "examples": len(memorized),
        "dropped": 0,
        "memorized": int(memorized.sum()),
        "newly_memorized": 0,
        "memorized_though_dropped": 0,
        "trained_on": int(result.features["occurrences"].sum()),
        "held_out_perplexity": result.perplexity[MAIN_STUDENT],
    }


def _after(
    result: CellResult, counts: NDArray[np.int64], recited: NDArray[np.bool_]
) -> dict[str, float]:
    before = result.extracted[MAIN_STUDENT]
    return {
        "examples": len(before),
        "dropped": int((counts == 0).sum()),
        "memorized": int(recited.sum()),
        "newly_memorized": int((recited & ~before).sum()),
        "memorized_though_dropped": int((recited & (counts == 0)).sum()),
        "trained_on": int(counts.sum()),
    }
