"""The callback: what it counts is what the model recites, and it changes nothing of the training."""

import json

import numpy as np
import pytest
import torch
from support.tiny_models import make_model, save_model

from memaudit.audit import audit_corpus
from memaudit.engines.models import load_model
from memaudit.errors import UsageError
from memaudit.integrations.trainer import CONTROL, RISKY, MemorizationCallback
from memaudit.memorization import extracted
from memaudit.runs.options import AuditOptions
from memaudit.windows import WindowShape

SHAPE = WindowShape(8, 8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on twenty texts, the first of them at risk, and a student."""
    from support.fakes import make_classifier

    from memaudit.classifier import save_classifier

    place = tmp_path_factory.mktemp("callback")
    rng = np.random.default_rng(0)
    texts = ["".join(chr(97 + c) for c in rng.integers(0, 26, 40)) for _ in range(20)]
    (place / "c.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    save_classifier(make_classifier(), place / "classifier")
    teacher = save_model(place / "teacher")
    options = AuditOptions(str(place / "classifier"), shape=SHAPE, engine="hf")
    audit_corpus(str(teacher), place / "c.jsonl", out=place / "run", options=options)
    return place, texts


def callback(run, **settings):
    """One on the run."""
    from transformers import AutoTokenizer

    place, texts = run
    return MemorizationCallback(
        place / "run", texts, AutoTokenizer.from_pretrained(place / "teacher"), **settings
    )


def test_what_it_counts_is_what_the_engine_says_is_recited(run):
    """A second way to decide must not be a second answer."""
    from memaudit.engines.hf import HfEngine

    watch = callback(run)
    assert 0 < len(watch.windows[CONTROL]) + len(watch.windows[RISKY]) <= 20
    model = make_model("llama")
    for name, windows in watch.windows.items():
        if len(windows):
            scores = HfEngine(model).score([*windows])
            expected = sum(extracted(score.teacher, SHAPE.prefix_len) for score in scores)
            assert watch.look(model)[name] == expected


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_trainer_logs_scalars_and_stops_at_the_budget(run, tmp_path):
    """Loggers such as wandb get what the trainer logs: numbers, and no text of the corpus."""
    from transformers import Trainer, TrainingArguments

    model = load_model(str(run[0] / "teacher")).model.train().requires_grad_(True)
    watch = callback(run, every=2, time_share=1.0, budget=10**6)
    rows = [*watch.windows[CONTROL], *watch.windows[RISKY]]
    data = [{"input_ids": w.tolist(), "labels": w.tolist()} for w in rows]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=30,
        per_device_train_batch_size=20,
        learning_rate=1e-2,
        report_to="none",
        logging_steps=1000,
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    watch.attach(trainer)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if RISKY in entry]
    assert [entry["step"] for entry in logged] == [*range(2, 31, 2)]
    assert logged[-1][CONTROL] + logged[-1][RISKY] > logged[0][CONTROL] + logged[0][RISKY]
    assert all(isinstance(value, int | float) for entry in logged for value in entry.values())
    watch.budget = -1
    again = Trainer(model=model, args=arguments, train_dataset=data)
    watch._next_look = 0.0
    watch.attach(again)
    again.train()
    assert again.state.global_step == 2
    assert torch.isfinite(next(model.parameters())).all()


def test_looking_keeps_to_its_share_of_the_time(run, monkeypatch):
    """A look that took a second is followed by none for 49 seconds, at 2 %."""
    from types import SimpleNamespace

    watch, now = callback(run, every=1), [0.0]
    monkeypatch.setattr("memaudit.integrations.trainer.time.monotonic", lambda: now[0])

    def slow_look(model):
        now[0] += 1.0
        return {RISKY: 0.0, CONTROL: 0.0}

    monkeypatch.setattr(watch, "look", slow_look)
    for step in range(1, 201):
        watch.on_step_end(None, SimpleNamespace(global_step=step), None, model=None)
        now[0] += 1.0
    assert [look["step"] for look in watch.history] == [1, 50, 99, 148, 197]


def test_other_rows_are_refused(run):
    """The wrong corpus would be followed, and nothing found."""
    place, texts = run
    with pytest.raises(UsageError, match="a run on 20 rows, and 19 texts"):
        MemorizationCallback(place / "run", texts[1:], None)
