"""Cell files: what a finished cell leaves for fitting, small enough to be kept in git."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from memaudit.exposure import GRAM_TOKENS
from memaudit.features import corpus_features, model_features
from memaudit.memorization import extracted, suffix_logprob
from study.exposure import exposure_of
from study.recipe import Cell
from study.stages import (
    Workshop,
    load_model,
    peak_bytes,
    read_tokenizer,
    read_windows,
    training_seconds,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from memaudit.scores import WindowScores

_N_OTHERS = 2000
"""Trained windows that are neither recited nor near misses, drawn by chance."""
_N_OTHERS_HELD_OUT = 200
_NEAR_MISS = -1.0
"""Nats: the smallest margin of a near miss."""
_MANTISSA_BITS = 11
"""What is kept of a feature: one part in 4,096. The rest of a float32 does not compress."""


@dataclass(frozen=True, slots=True)
class CellFile:
    """What stands in the file of a cell."""

    columns: dict[str, NDArray[Any]]
    """(n,) by name: features, `recited_MODEL` and `suffix_logprob_MODEL` for each model, `weight` (how many windows the row
    stands for), `source`, `is_held_out`, `in_half`, `count`, `suffix_tokens`."""

    about: dict[str, Any]
    """The cell's recipe, its rates, held-out losses and processor seconds."""


def wanted_models(cell: Cell, *, later: bool) -> list[str]:
    """Return the names of the models that a cell trains, those that can wait among them or not."""
    students = [student.name for student in cell.students if later or not student.later]
    return ["teacher", "baseline", *students]


def finished_models(shop: Workshop, cell: Cell) -> list[str]:
    """Return the trained models of a cell, or none if one is missing that cannot wait."""
    names = wanted_models(cell, later=True)
    found = [name for name in names if (shop.cell_folder(cell) / name).exists()]
    return found if set(wanted_models(cell, later=False)) <= set(found) else []


def measure_cell(shop: Workshop, cell: Cell, models: Sequence[str]) -> CellFile:
    """Score all windows of a cell by its models, and keep those that a fit needs.

    Args:
        shop: recipe and folders.
        cell: finished.
        models: as `finished_models` returns them.
    """
    made = read_windows(shop, cell)
    windows = list(np.concatenate([made.windows, made.held_out]))
    n_trained, prefix_len = len(made.windows), shop.recipe.regimes[cell.regime].prefix_len
    columns, scores = features_of(shop, cell)
    for name in models:
        if name not in scores:
            scores[name] = _score(load_model(shop.cell_folder(cell) / name, shop.device), windows)
        columns[f"recited_{name}"] = _recited(scores[name], prefix_len)
        columns[f"suffix_logprob_{name}"] = np.array(
            [suffix_logprob(each.teacher, prefix_len) for each in scores[name]]
        )
    about = {
        "cell": msgspec.to_builtins(cell),
        "regime": msgspec.to_builtins(shop.recipe.regimes[cell.regime]),
        "sources": shop.recipe.sources_of(cell),
        "windows": n_trained,
        "held_out_windows": len(made.held_out),
        "recited": _counts(columns, models, slice(0, n_trained)),
        "templates": count_templates(
            made.windows[columns[f"recited_{cell.students[0].name}"][:n_trained], prefix_len:]
        ),
        "recited_of_held_out": _counts(columns, models, slice(n_trained, None)),
        "held_out_loss": {
            name: round(_mean_loss(found[n_trained:]), 4) for name, found in scores.items()
        },
        "seconds": {m: training_seconds(shop.cell_folder(cell) / m) for m in models},
    }
    if (peaks := {m: peak_bytes(shop.cell_folder(cell) / m) for m in models})["teacher"]:
        about["peak_bytes"] = peaks
    return CellFile(_kept(columns, models), about)


def recited_by(
    folder: Path, windows: list[NDArray[np.int32]], prefix_len: int
) -> NDArray[np.bool_]:
    """Return (n,) which windows the model in a folder recites."""
    return _recited(_score(load_model(folder), windows), prefix_len)


def _recited(scores: "Sequence[WindowScores]", prefix_len: int) -> NDArray[np.bool_]:
    return np.array([extracted(each.teacher, prefix_len) for each in scores])


def features_of(
    shop: Workshop, cell: Cell
) -> "tuple[dict[str, NDArray[Any]], dict[str, list[WindowScores]]]":
    """Return every candidate feature, and the scores of the models that were asked for them.

    Of the windows of a cell: those that are trained on, then those that are held out.
    """
    made = read_windows(shop, cell)
    windows = list(np.concatenate([made.windows, made.held_out]))
    folder, regime = shop.cell_folder(cell), shop.recipe.regimes[cell.regime]
    teacher = load_model(folder / "teacher", shop.device)
    references = {
        "student": load_model(shop.base_folder(cell.family, regime.student), shop.device),
        "baseline": load_model(folder / "baseline", shop.device),
    }
    rows: list[dict[str, float]] = [{} for _ in windows]
    scores: dict[str, list[WindowScores]] = {}
    for role, model in references.items():
        found = _score(teacher, windows, model)
        for row, each in zip(rows, found, strict=True):
            row |= model_features(each, prefix_len=regime.prefix_len, role=role)  # type: ignore[arg-type]
        scores["teacher"] = found
        scores["base" if role == "student" else role] = [_of_reference(each) for each in found]
    n_new, row_counts = len(made.held_out), made.counts.astype(np.int64)
    counts = np.concatenate([made.counts, np.ones(n_new, np.int32)])
    tokenizer = read_tokenizer(shop)
    for row, window, count in zip(rows, windows, counts, strict=True):
        text = tokenizer.decode(window, skip_special_tokens=True)  # a BOS is no text
        suffix_text = tokenizer.decode(window[regime.prefix_len :])
        row |= corpus_features(str(text), str(suffix_text), int(count))
    columns: dict[str, NDArray[Any]] = {
        name: np.array([row[name] for row in rows]) for name in rows[0]
    }
    exposure, in_half, in_other_half = (
        exposure_of(list(made.windows[part]), windows, regime.prefix_len, row_counts[part], least)
        for part, least in ((slice(None), 1), (made.in_half, 0), (~made.in_half, 0))
    )
    return columns | {
        "count": counts,
        "exposure_median": exposure.median,
        "exposure_share": exposure.share,
        "exposure_in_half": in_half.median,
        "exposure_in_other_half": in_other_half.median,
        "source": np.concatenate([made.sources, made.held_out_sources]),
        "in_half": np.concatenate([made.in_half, np.zeros(n_new, np.bool_)]),
        "is_held_out": np.arange(len(windows)) >= len(made.windows),
        "suffix_tokens": np.full(len(windows), regime.suffix_len, np.int16),
    }, scores


def _score(
    model: Any, windows: list[NDArray[np.int32]], reference: Any = None
) -> "list[WindowScores]":
    from memaudit.engines.hf import HfEngine

    return HfEngine(model, reference).score(windows)


def _of_reference(scores: "WindowScores") -> "WindowScores":
    from memaudit.scores import WindowScores

    assert scores.reference is not None
    return WindowScores(scores.reference)


def count_templates(suffixes: NDArray[np.int32]) -> int:
    """Return how many groups of suffixes there are that share no run of 8 tokens.

    One navigation bar can be all that a student recites: a cell then says little of other text.

    Args:
        suffixes: (n, suffix_len)
    """
    groups: list[set[bytes]] = []
    for suffix in suffixes:
        own = {suffix[i : i + GRAM_TOKENS].tobytes() for i in range(len(suffix) - GRAM_TOKENS + 1)}
        touched = [group for group in groups if group & own]
        groups = [group for group in groups if not group & own] + [own.union(*touched)]
    return len(groups)


def _counts(
    columns: "Mapping[str, NDArray[Any]]", models: Sequence[str], part: slice
) -> dict[str, int]:
    found = {name: columns[f"recited_{name}"][part] for name in models}
    easy = found["teacher"] & found["baseline"]
    counts = {name: int(recited.sum()) for name, recited in found.items()}
    return counts | {f"{name} in T∩B": int((found[name] & easy).sum()) for name in models[2:]}


def _mean_loss(scores: "Sequence[WindowScores]") -> float:
    return -float(np.mean([each.teacher.logprobs.mean(dtype=np.float64) for each in scores]))


def _kept(columns: dict[str, NDArray[Any]], models: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the rows that a fit needs, each with how many windows it stands for."""
    rng = np.random.default_rng(0)
    held_out = columns["is_held_out"]
    wanted = columns["teacher_suffix_min_margin"] >= _NEAR_MISS
    for name in models:
        wanted |= columns[f"recited_{name}"]
    weight = np.where(wanted, 1.0, 0.0)
    for part, n in ((~held_out & ~wanted, _N_OTHERS), (held_out & ~wanted, _N_OTHERS_HELD_OUT)):
        pool = np.flatnonzero(part)
        chosen = rng.permutation(pool)[:n]
        weight[chosen] = len(pool) / max(1, len(chosen))
    columns = {**columns, "weight": weight}
    rows = np.flatnonzero(weight > 0)
    return {name: column[rows] for name, column in columns.items()}


def write_cell(cell: CellFile, path: Path) -> None:
    """Write a cell file: no text, and no token ids."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {
        name: pa.array(_rounded(column) if column.dtype.kind == "f" else column)
        for name, column in cell.columns.items()
    }
    table = pa.table(arrays)
    table = table.replace_schema_metadata({"about": json.dumps(cell.about, sort_keys=True)})
    floats = [name for name, column in cell.columns.items() if column.dtype.kind == "f"]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    pq.write_table(
        table,
        unfinished,
        compression="zstd",
        compression_level=19,
        use_dictionary=[name for name in arrays if name not in floats],
        column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
    )
    unfinished.rename(path)


def read_cell(path: Path) -> CellFile:
    """Return what a cell file holds."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    return CellFile(columns, json.loads(table.schema.metadata[b"about"]))


def _rounded(column: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return float32 with the last bits of the mantissa cleared, rounded to the nearest."""
    cleared = 23 - _MANTISSA_BITS
    bits = column.astype(np.float32).view(np.uint32)
    rounded: NDArray[np.float32] = (
        (bits + np.uint32(1 << (cleared - 1))) & np.uint32(0xFFFFFFFF << cleared & 0xFFFFFFFF)
    ).view(np.float32)
    return rounded
