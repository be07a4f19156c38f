"""Tables as predict and verify write them, of corpora whose risk is known."""

import csv
import json

import numpy as np

from memaudit.features import KNOWN_FEATURES, PAPERS_OBJECTIVE, objective_features

SIGNAL = "teacher_suffix_mean_logprob"
COUNT = "log_occurrences"


def make_rows(seed=0, n=300, level=-2.0, feature_set="teacher", name="corpus.jsonl"):
    """Scores and labels: the chance of being memorized is sigmoid(2 * signal + count + level)."""
    rng, noise = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    scores, labels = [], []
    for row in range(n):
        features = {key: float(noise.normal()) for key in KNOWN_FEATURES[feature_set]}
        features |= {SIGNAL: float(rng.normal())}
        occurrences = int(rng.integers(1, 5))
        features |= objective_features(PAPERS_OBJECTIVE)
        features |= {"occurrences": float(occurrences), COUNT: float(np.log(occurrences))}
        risk = 1 / (1 + np.exp(-(2 * features[SIGNAL] + features[COUNT] + level)))
        extracted = bool(rng.random() < risk)
        place = {
            "id": f"{name}:{row + 1}",
            "row": row,
            "address": f"{name}:{row + 1}",
            "outcome": "scored",
        }
        judged = {"probability": 0.5, "flagged": True, "reason": "made up"}
        scores.append(place | judged | features)
        labels.append(
            place
            | {
                "extracted_by_teacher": extracted,
                "extracted_by_baseline": False,
                "extracted_by_student": extracted,
                "set": "new" if extracted else "",
            }
        )
    return scores, labels


def write_table(path, rows):
    """Write rows by the ending of the path: parquet, jsonl or csv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), quoting=csv.QUOTE_NONNUMERIC)
            writer.writeheader()
            writer.writerows(rows)
    return path


def write_run(folder, name, scores, labels, ending="parquet"):
    """Write the folders of a prediction and a verification; return labels and scores."""
    found, scored = folder / f"{name}-verified", folder / name
    write_table(found / f"verification.{ending}", labels)
    write_table(scored / f"risk.{ending}", scores)
    return found, scored


def write_runs(folder, n_runs, **changes):
    """Write runs of different corpora and return their pairs."""
    return [
        write_run(folder, f"run-{i}", *make_rows(seed=i, name=f"corpus-{i}.jsonl", **changes))
        for i in range(n_runs)
    ]
