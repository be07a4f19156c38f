"""Trackers get numbers, and nothing else."""

import json
import sys
from types import SimpleNamespace

import pytest

from memaudit.cli.main import run
from memaudit.errors import MissingDependency
from memaudit.integrations import trackers
from memaudit.integrations.trackers import log_scalars

DOCUMENT = {
    "rows": 12,
    "expected_memorized": 3.5,
    "expected_memorized_interval": [1.0, 7.25],
    "flagged": True,
    "teacher": "SECRET",
    "speed": float("nan"),
    "worst": [{"example_id": "SECRET", "probability": 0.9}],
    "found": {"recited": 2, "reason": "SECRET"},
}
SCALARS = {
    "rows": 12.0,
    "expected_memorized": 3.5,
    "expected_memorized_interval/low": 1.0,
    "expected_memorized_interval/high": 7.25,
    "found/recited": 2.0,
}


class FakeTracker(SimpleNamespace):
    """Wandb, trackio and MLflow in one: it keeps what it is handed."""

    def __init__(self):
        super().__init__(calls=[])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.calls.append(("end",))

    def __getattr__(self, name):
        def called(*values, **named):
            sys.stdout.write("view the run at ...")
            self.calls.append((name, *values, *named.values()))
            return self

        return called


@pytest.mark.parametrize(
    ("tracker", "calls"),
    [
        ("wandb", [("init", "memaudit", "run-1"), ("log", SCALARS), ("finish",)]),
        ("trackio", [("init", "memaudit", "run-1"), ("log", SCALARS), ("finish",)]),
        ("mlflow", [("start_run", "run-1"), ("log_metrics", SCALARS), ("end",)]),
    ],
)
def test_a_tracker_gets_scalars_alone(tracker, calls, tmp_path, monkeypatch, capsys):
    """No id and no name of a file; and what it prints is not the result."""
    fake = FakeTracker()
    monkeypatch.setitem(sys.modules, tracker, fake)

    log_scalars(tracker, DOCUMENT, tmp_path / "run-1")

    assert fake.calls == calls
    assert capsys.readouterr().out == ""


def test_tensorboard_shows_the_numbers(tmp_path):
    """The real one, read back by its own reader."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_scalars("tensorboard", DOCUMENT, tmp_path)

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    names = events.Tags()["scalars"]
    assert {name: events.Scalars(name)[0].value for name in names} == SCALARS
    assert b"SECRET" not in b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_a_tracker_that_is_missing_is_told_before_any_work(tmp_path, monkeypatch, capsys):
    """Not after hours of scoring."""
    monkeypatch.setattr(trackers, "is_installed", lambda name: False)
    with pytest.raises(MissingDependency, match="--log-to wandb needs the package wandb"):
        trackers.require_tracker("wandb")

    given = ["--teacher", "none", "--data", "none.jsonl", "--out", str(tmp_path / "out")]
    assert run(["predict", *given, "--log-to", "wandb", "--json"]) == 2
    assert "memaudit-distill[wandb]" in json.dumps(json.loads(capsys.readouterr().out))
    assert not (tmp_path / "out").exists()
