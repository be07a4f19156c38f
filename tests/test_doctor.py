"""The doctor: what it says of this machine, and that it notices what is wrong."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from memaudit import doctor
from memaudit.cli.main import run as run_command


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    """As if nobody had set any."""
    for name in ("MEMAUDIT_GATE_MAX_RATE", "MEMAUDIT_FOO"):
        monkeypatch.delenv(name, raising=False)


def test_a_machine_that_computes_right_is_well(capsys, monkeypatch):
    """Variables are named, and their values may be secrets."""
    monkeypatch.setenv("MEMAUDIT_GATE_MAX_RATE", "0.123")
    monkeypatch.setenv("MEMAUDIT_FOO", "s3cret")
    monkeypatch.setenv("MEMAUDIT_API_KEY", "s3cret")

    assert run_command(["doctor", "--json"]) == 0

    told = capsys.readouterr().out
    document = json.loads(told)
    assert {check["status"] for check in document["checks"]} == {"good"}
    assert "MEMAUDIT_GATE_MAX_RATE" in document["variables"]
    assert "MEMAUDIT_API_KEY" in document["variables"]
    assert document["ignored"] == ["MEMAUDIT_FOO"]
    assert "s3cret" not in told
    assert "0.123" not in told


def test_an_engine_that_computes_something_else_is_bad(capsys, monkeypatch):
    """One weight of the model is another one: as if a library had changed a formula."""
    real = doctor.tiny_model

    def other(seed):
        model = real(seed)
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 0.01
        return model

    monkeypatch.setattr(doctor, "tiny_model", other)

    assert run_command(["doctor"]) == 2
    assert "Something is wrong" in capsys.readouterr().out


def test_the_known_scores_follow_from_the_definitions():
    """They were computed once; here they are again, without an engine."""
    import torch

    window = doctor._WINDOW
    logs = []
    for seed in (0, 1):
        logits = doctor.tiny_model(seed).double()(input_ids=torch.tensor([window.tolist()])).logits
        logs.append(logits[0, :-1].log_softmax(-1).numpy())
    teacher, reference = logs
    found = (
        teacher[np.arange(len(window) - 1), window[1:]],
        -(np.exp(teacher) * teacher).sum(axis=1),
        (np.exp(teacher) * (teacher - reference)).sum(axis=1),
    )

    for values, known in zip(found, doctor._KNOWN.values(), strict=True):
        np.testing.assert_allclose(values, known, atol=1e-6)


def test_a_full_disk_is_bad(capsys, monkeypatch):
    """A run needs room."""
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=1e6))

    assert run_command(["doctor", "--json"]) == 2
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [check["name"] for check in checks if check["status"] == "bad"] == ["disk"]
