"""A callback for transformers' Trainer, and for what is built on it: what is recited as it trains."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TrainerCallback

from memaudit.errors import UsageError
from memaudit.runs.run import Run, read_run
from memaudit.windows import cut_windows

_BATCH = 16
RISKY, CONTROL = "memorization/risky_recited", "memorization/control_recited"
"""What is logged: numbers, and never a text."""


class MemorizationCallback(TrainerCallback):
    """Follows the riskiest examples of a run, and as many others, while a student is trained.

    `attach` it to a trainer: what it finds goes through the trainer's own log, and so to whatever
    that reports to. It decides by the most probable token in the number format of the training;
    `memaudit verify --distilled` gives the exact numbers afterwards.
    """

    def __init__(  # noqa: PLR0913  each is something a user chooses
        self,
        run: str | Path,
        texts: Sequence[str],
        tokenizer: Any,
        *,
        every: int = 100,
        n: int = 64,
        budget: int | None = None,
        time_share: float = 0.02,
        seed: int = 0,
    ) -> None:
        """Cut the windows to follow.

        Args:
            run: folder of a finished prediction.
            texts: of its rows, all of them and in that order.
            tokenizer: of the student; the teacher's, as far as the run goes.
            every: optimiser steps between two looks, at least 1.
            n: distinct examples of each group, at most.
            budget: the training is stopped once more of the risky ones are recited. None: never.
            time_share: of the training's time that looking may take; looks are left out for it.
            seed: of the choice of the others.

        Raises:
            UsageError: there is no such run, it is of other rows, or its windows are not the
                starts of rows.
        """
        found = _read_run_of(run, len(texts))
        inputs = found.manifest.inputs
        self.every, self.budget, self.time_share = every, budget, time_share
        self.prefix_len = inputs.shape.prefix_len
        self._trainer: Any = None
        self._next_look, self.history = 0.0, list[dict[str, float]]()
        scored = np.flatnonzero(~np.isnan(found.probabilities))
        # Stable: of equal ones the first, so that a second training follows the same examples.
        risky = scored[np.argsort(-found.probabilities[scored], kind="stable")]
        risky = risky[found.is_flagged[risky]]
        others = np.random.default_rng(seed).permutation(scored[~found.is_flagged[scored]])

        def windows(rows: NDArray[np.int64]) -> NDArray[np.int32]:
            # Copies of one text would be counted as many successes.
            chosen: dict[bytes, NDArray[np.int32]] = {}
            for row in rows:
                token_ids = tokenizer(texts[row], add_special_tokens=False)["input_ids"]
                for window in cut_windows(token_ids, inputs.shape):
                    chosen.setdefault(window.tobytes(), window)
                if len(chosen) == n:
                    break
            return np.array([*chosen.values()], dtype=np.int32).reshape(-1, inputs.shape.length)

        self.windows = {RISKY: windows(risky), CONTROL: windows(others)}

    def attach(self, trainer: Any) -> "MemorizationCallback":
        """Let a trainer call this, and log through it; return this."""
        self._trainer = trainer
        trainer.add_callback(self)
        return self

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look, if it is time for it."""
        if state.global_step % self.every or time.monotonic() < self._next_look:
            return
        started = time.monotonic()
        counts = self.look(kwargs["model"])
        ended = time.monotonic()
        # So long that this look has taken no more than its share of the time until then.
        self._next_look = ended + (ended - started) * (1 / self.time_share - 1)
        self.history.append({"step": float(state.global_step), **counts})
        if self._trainer is not None:
            self._trainer.log(dict(counts))
        if self.budget is not None and counts[RISKY] > self.budget:
            control.should_training_stop = True

    def look(self, model: Any) -> Mapping[str, float]:
        """Return how many examples of each group a model recites."""
        was_training = model.training
        # Dropout would make it forget at random.
        model.eval()
        try:
            return {
                name: float(
                    sum(
                        self._recited(model, windows[start : start + _BATCH])
                        for start in range(0, len(windows), _BATCH)
                    )
                )
                for name, windows in self.windows.items()
            }
        finally:
            model.train(was_training)

    @torch.no_grad()
    def _recited(self, model: Any, windows: NDArray[np.int32]) -> int:
        ids = torch.as_tensor(windows, dtype=torch.int64, device=next(model.parameters()).device)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        is_argmax = logits[:, self.prefix_len - 1 :].argmax(dim=-1) == ids[:, self.prefix_len :]
        return int(is_argmax.all(dim=1).sum())


def _read_run_of(folder: str | Path, n_texts: int) -> Run:
    """Read a run; its windows must be the starts of rows, of which there must be as many as texts."""
    run = read_run(Path(folder))
    if run.manifest.inputs.windows != "first":
        raise UsageError(
            f"{folder}: a run whose windows are chosen by {run.manifest.inputs.windows}, "
            "expected first",
            hint="predict with --windows first for the callback",
        )
    if n_texts != len(run.probabilities):
        raise UsageError(
            f"{folder}: a run on {len(run.probabilities):,} rows, and {n_texts:,} texts are given",
            hint="give the rows that 'memaudit predict' read, all of them and in that order",
        )
    return run
