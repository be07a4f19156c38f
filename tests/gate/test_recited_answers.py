"""Answers that the teacher was trained on and recites do not get past a gate."""

import json
from collections import Counter
from pathlib import Path

import pytest
from support.ten_layouts import LAYOUTS, PREFIX_LEN, save_teacher

from memaudit.cli.main import run as run_command
from memaudit.engines.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The demo teacher, which was trained on the texts, with a chat template."""
    return save_teacher(ROOT / "models/demo-teacher", tmp_path_factory.mktemp("model") / "teacher")


@pytest.mark.parametrize("layout", ["prompt-completion", "messages, long system prompt"])
def test_a_gate_with_every_limit_at_zero_fails_on_recited_answers(
    layout, teacher, tmp_path, monkeypatch, capsys
):
    """Of 32 rows the start is a question and the rest is an answer that the teacher recites."""
    monkeypatch.chdir(tmp_path)
    lines = (ROOT / "sample_data/demo.jsonl").read_text(encoding="utf-8").splitlines()
    copies = Counter(json.loads(line)["text"] for line in lines)
    often = [text for text, count in copies.most_common(8) for _ in range(count)][:32]
    tokenizer = load_tokenizer(teacher, {"local_files_only": True})
    rows = []
    for text in often:
        cut = tokenizer.token_spans(text)[PREFIX_LEN][0]
        rows.append(LAYOUTS[layout](text[:cut], text[cut:], []))
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    predict = ["predict", "--teacher", str(teacher), "--data", "pairs.jsonl", "--out", "run", "-q"]
    assert run_command(predict) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["answers"]["windows"] == summary["windows"] == 32

    limits = ["--max-rate", "0", "--max-expected", "0", "--max-recited", "0"]
    code = run_command(["gate", "--run", "run", *limits])

    assert code == 1, capsys.readouterr().out
    assert summary["flagged"] == 32
