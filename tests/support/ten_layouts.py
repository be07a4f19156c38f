"""One corpus in ten layouts: the same answers must be at risk, however a trainer writes them down.

Run as `python -m tests.support.ten_layouts` for the table of the demo corpus. The prompt of a row is
its first 50 tokens, the answer is the rest, and the template adds nothing but what calls need. So
the window of an answer is that of the plain text, token by token.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from memaudit.audit import audit_corpus
from memaudit.corpus import CorpusOptions
from memaudit.engines.tokenizer import load_tokenizer
from memaudit.runs.options import AuditOptions

PREFIX_LEN = 50
_TEMPLATE = (
    "{%- for m in messages -%}{%- if m.tool_calls -%}{{ m.tool_calls | tojson }}{%- endif -%}"
    "{{- m.content or '' -}}{%- endfor -%}"
)
_SYSTEM = "You answer in the manner of the book that the question is taken from.\n" * 12
"""Ends with a new line: a space would become part of the question's first token."""


def save_teacher(source, folder):
    """Copy a model and give it a chat template that writes what is said and nothing else."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("chat_template*"))
    (folder / "chat_template.jinja").write_text(_TEMPLATE)
    return folder


def _chat(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _with_calls(prompt, answer):
    call = {"type": "function", "function": {"name": "find", "arguments": {"line": 1}}}
    return [
        {"role": "user", "content": "Find it."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": prompt},
        {"role": "assistant", "content": answer},
    ]


LAYOUTS = {
    "text": lambda p, a, ids: {"text": p + a},
    "prompt-completion": lambda p, a, ids: {"prompt": p, "completion": a},
    "messages": lambda p, a, ids: {"messages": _chat(p, a)},
    "messages, long system prompt": lambda p, a, ids: {
        "messages": [{"role": "system", "content": _SYSTEM}, *_chat(p, a)]
    },
    "ShareGPT": lambda p, a, ids: {
        "conversations": [{"from": "human", "value": p}, {"from": "gpt", "value": a}]
    },
    "Alpaca": lambda p, a, ids: {"instruction": p, "input": "", "output": a},
    "OpenAI parts": lambda p, a, ids: {
        "messages": [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in (("user", p), ("assistant", a))
        ]
    },
    "tool calls": lambda p, a, ids: {"messages": _with_calls(p, a), "tools": []},
    "input_ids and labels": lambda p, a, ids: {
        "input_ids": ids,
        "labels": [-100] * PREFIX_LEN + ids[PREFIX_LEN:],
    },
    "preference": lambda p, a, ids: {"prompt": p, "chosen": a, "rejected": "I do not know."},
}


@dataclass(frozen=True)
class Found:
    """What an audit of one layout said."""

    windows: int
    in_answers: int | None
    probabilities: tuple[float | None, ...]
    flagged: frozenset[str]


def audit_layouts(teacher, texts, options=AuditOptions(threads=1)):  # noqa: B008  frozen
    """Audit texts by id in each layout; rows too short for a plain window are left out.

    Returns:
        by name of the layout; the rows of all of them have the same order.
    """
    tokenizer = load_tokenizer(Path(teacher), {"local_files_only": True})
    rows = {}
    for name, text in texts.items():
        (ids,), spans = tokenizer.encode([text]), tokenizer.token_spans(text)
        if len(ids) >= options.shape.length:
            cut = spans[PREFIX_LEN][0]
            rows[name] = (text[:cut], text[cut:], ids)
    found = {}
    for layout, row_of in LAYOUTS.items():
        corpus = [{"id": name, **row_of(*row)} for name, row in rows.items()]
        result = audit_corpus(teacher, CorpusOptions(layout, rows=corpus), options=options)
        table = result.table.to_pylist()
        found[layout] = Found(
            result.windows,
            None if result.answers is None else result.answers.windows,
            tuple(row["probability"] for row in table),
            frozenset(row["id"] for row in table if row["flagged"]),
        )
    return found


def table_of(found):
    """Return what was found as a table in Markdown."""
    lines = ["| layout | windows | in answers | at risk | as plain text | largest difference |"]
    lines.append("|---|---|---|---|---|---|")
    plain = found["text"]
    for layout, each in found.items():
        pairs = zip(each.probabilities, plain.probabilities, strict=True)
        difference = max(abs(a - b) for a, b in pairs)
        lines.append(
            f"| {layout} | {each.windows} | {each.in_answers or ''} | {len(each.flagged)} "
            f"| {len(each.flagged & plain.flagged)} | {difference:.1e} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    import tempfile

    root = Path(__file__).parents[2]
    lines = (root / "sample_data/demo.jsonl").read_text(encoding="utf-8").splitlines()
    texts = {row["id"] + f"#{i}": row["text"] for i, row in enumerate(map(json.loads, lines))}
    with tempfile.TemporaryDirectory() as folder:
        teacher = save_teacher(root / "models/demo-teacher", Path(folder) / "teacher")
        sys.stdout.write(table_of(audit_layouts(teacher, texts)) + "\n")
