"""Runs for reports, made of arrays: any size at once, and names as hostile as one likes."""

from dataclasses import dataclass, fields, replace

import numpy as np
from support.fakes import make_classifier

from memaudit.features import FEATURE_SETS
from memaudit.runs.risks import Risks
from memaudit.runs.run import Run

SHAPE = {"prefix_tokens": 50, "suffix_tokens": 50}


@dataclass(frozen=True)
class MadeUpRun(Run):
    """A run without a folder: where its rows are is in memory."""

    places: object = None

    def _places(self):
        return iter(self.places.combine_chunks().to_batches())


def with_rows(run, rows, **changes):
    """The run with other rows, whatever its files were written for."""
    values = {field.name: getattr(run, field.name) for field in fields(Run)} | changes
    values["fates"] = rows.select(["outcome", "reason"])
    return MadeUpRun(**values, places=rows.select(["id", "row", "address"]))


def made_up_run(manifest, n_rows=300, *, ids=None, addresses=None, teacher=None, seed=0):
    """A run of rows of which every third is a copy; a few are at risk, some unscored.

    Args:
        manifest: of a real run; the names in it may be replaced.
        n_rows: in the corpus.
        ids: of the first rows, instead of tame ones.
        addresses: of the first rows, likewise.
        teacher: its name.
        seed: of features.
    """
    import pyarrow as pa

    rng = np.random.default_rng(seed)
    names, classifier = FEATURE_SETS["teacher"], make_classifier()
    n_windows = max(1, 2 * n_rows // 3)
    X = rng.normal(size=(n_windows, len(names)))
    X[:, names.index("occurrences")] = 1 + (np.arange(n_windows) % 3 == 0)
    X[:, names.index("log_occurrences")] = np.log(X[:, names.index("occurrences")])
    X[:, names.index("teacher_suffix_mean_logprob")] = -9 * rng.random(n_windows) ** 0.4
    columns = [names.index(name) for name in classifier.features]
    window_probabilities = classifier.predict_proba(X[:, columns])
    is_scored = np.arange(n_rows) % 50 != 7
    worst_windows = np.where(is_scored, np.arange(n_rows) % n_windows, -1)
    probabilities = np.where(is_scored, window_probabilities[worst_windows], np.nan)
    rows = pa.table(
        {
            "id": _named(ids, n_rows, "row-"),
            "row": pa.array(np.arange(n_rows)),
            "address": _named(addresses, n_rows, "corpus.jsonl:"),
            "outcome": pa.array(np.where(is_scored, "scored", "too_short").tolist()),
            "reason": pa.array([""] * n_rows),
        }
    )
    if teacher is not None:
        manifest = replace_names(manifest, teacher=teacher)
    risks = Risks(
        classifier, names, X, window_probabilities, worst_windows[is_scored].astype(np.int64)
    )
    fates, places = rows.select(["outcome", "reason"]), rows.select(["id", "row", "address"])
    return MadeUpRun(None, manifest, fates, risks, worst_windows, probabilities, places=places)


def replace_names(manifest, **names):
    """The manifest with other names of models."""
    import msgspec

    return msgspec.structs.replace(manifest, names=replace(manifest.names, **names))


def _named(given, n_rows, start):
    import pyarrow as pa

    given = list(given or [])[:n_rows]
    return pa.array(given + [f"{start}{i}" for i in range(len(given), n_rows)], type=pa.string())


def with_results(result, **changes):
    """The result of an audit with other numbers than its run has."""
    names = {each.name for each in fields(result)}
    counted = {name: value for name, value in changes.items() if name not in names}
    given = {name: changes.get(name, getattr(result, name)) for name in names}
    return type("Changed", (type(result),), {"__slots__": (), **counted})(**given)
