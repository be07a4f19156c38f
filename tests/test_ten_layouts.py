"""The layout of a corpus does not decide which of its answers are at risk."""

import json
from pathlib import Path

from support.ten_layouts import LAYOUTS, audit_layouts, save_teacher

ROOT = Path(__file__).parents[1]


def test_the_same_answers_are_at_risk_in_each_layout(tmp_path):
    """What the demo teacher recites it recites as a completion, a chat turn and token ids too."""
    lines = (ROOT / "sample_data/demo.jsonl").read_text(encoding="utf-8").splitlines()[::5]
    texts = {f"{i}": json.loads(line)["text"] for i, line in enumerate(lines)}
    teacher = save_teacher(ROOT / "models/demo-teacher", tmp_path / "teacher")

    found = audit_layouts(teacher, texts)

    assert list(found) == list(LAYOUTS)
    plain = found["text"]
    assert 0 < len(plain.flagged) < len(texts)
    for layout, each in found.items():
        assert each.flagged == plain.flagged
        assert each.in_answers in (None, each.windows)
        if layout == "tool calls":  # a row has two answers: the call is judged, too
            continue
        pairs = zip(each.probabilities, plain.probabilities, strict=True)
        assert max(abs(a - b) for a, b in pairs) < 1e-6
