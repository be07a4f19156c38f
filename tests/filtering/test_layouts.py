"""Cutting out of rows in every layout: roles, keys and what is not cut are as before."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.fakes import ByteTokenizer
from support.finished_runs import finish_run, run_in_memory, write_jsonl

from memaudit.corpus import CorpusOptions, Example, read_corpus
from memaudit.corpus.base import RenderError
from memaudit.errors import UsageError
from memaudit.filtering.selection import FilterOptions
from memaudit.filtering.workflow import filter_corpus
from memaudit.reports.gate import filter_page
from memaudit.runs.run import read_run

EXCISE = FilterOptions(max_probability=0.0, strategy="excise")
WORDS = ["to be", "or not", "that", "is the", "question", "été", "日本", "🙂", '"so"', "\\", "\n"]


def words(rng):
    """A few words, some of them hard on whoever counts bytes."""
    return " ".join(rng.choice(WORDS, rng.integers(3, 12)))


def chat(rng, roles, key, value):
    """Turns of two speakers."""
    return [{key: roles[i % 2], value: words(rng)} for i in range(2 * rng.integers(1, 4))]


LAYOUTS = {
    "text": lambda rng: {"text": words(rng)},
    "prompt-completion": lambda rng: {"prompt": words(rng), "completion": " " + words(rng)},
    "messages": lambda rng: {"messages": chat(rng, ["user", "assistant"], "role", "content")},
    "parts": lambda rng: {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": words(rng)}]},
            {"role": "assistant", "content": words(rng)},
        ]
    },
    "sharegpt": lambda rng: {"conversations": chat(rng, ["human", "gpt"], "from", "value")},
    "alpaca": lambda rng: {"instruction": words(rng), "input": words(rng), "output": words(rng)},
    "preference of turns": lambda rng: {
        "conversations": [{"from": "human", "value": words(rng)}],
        "chosen": {"from": "gpt", "value": words(rng)},
        "rejected": {"from": "gpt", "value": words(rng)},
    },
    "preference": lambda rng: {
        "prompt": words(rng),
        "chosen": words(rng),
        "rejected": words(rng),
    },
}


def rows_in(path):
    """What memaudit reads."""
    options = CorpusOptions(str(path))
    return list(read_corpus(options, render_messages=ByteTokenizer().render_messages))


def shape_of(value):
    """A row without what its strings say, but for roles."""
    if isinstance(value, dict):
        return {
            key: part if key in ("role", "from", "type") else shape_of(part)
            for key, part in value.items()
        }
    return [shape_of(part) for part in value] if isinstance(value, list) else type(value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_that_is_cut_keeps_its_layout(layout, tmp_path):
    """Kept, cut and removed rows are the input; a cut row lost the spans that are listed, alone."""
    n_cut = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        rows = [LAYOUTS[layout](rng) for _ in range(6)]
        source, out = tmp_path / f"{seed}.jsonl", tmp_path / f"{seed}-cut.jsonl"
        lines = [json.dumps(row, ensure_ascii=bool(seed % 2)) for row in rows]
        source.write_text("".join(line + "\n" for line in lines))
        finish_run(source, tmp_path / f"run-{seed}")
        run = read_run(tmp_path / f"run-{seed}")

        result = filter_corpus(run, str(source), out, options=EXCISE, tokenizer=ByteTokenizer())

        gone = set(pq.read_table(f"{out}.removed.parquet")["row"].to_pylist())
        parts = pq.read_table(f"{out}.excised.parquet").to_pylist()
        kept = [i for i in range(len(rows)) if i not in gone]
        written = [json.loads(line) for line in out.read_text().splitlines()]
        assert result.removed + len(written) == len(rows)
        for i, new in zip(kept, written, strict=True):
            assert shape_of(new) == shape_of(rows[i])
            for part in sorted(parts, key=lambda part: -part["start"]):
                if part["row"] == i:
                    cut_out(rows[i], part)
            assert new == rows[i]
        assert all(isinstance(row, Example) for row in rows_in(out))
        n_cut += result.excised
        assert result.not_cut <= len(rows) // 3
    assert n_cut > 25


N_EACH = 100
"""Corpora in each of the ten layouts: 1,000 in all."""


def calls(rng):
    """A call whose result is spoken of."""
    call = {"type": "function", "function": {"name": "find", "arguments": {"it": words(rng)}}}
    return [
        {"role": "user", "content": words(rng)},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": words(rng)},
        {"role": "assistant", "content": words(rng)},
    ]


MORE_LAYOUTS = LAYOUTS | {
    "system prompt": lambda rng: {
        "messages": [
            {"role": "system", "content": "You answer in three words or more."},
            *chat(rng, ["user", "assistant"], "role", "content"),
        ]
    },
    "tool calls": lambda rng: {"messages": calls(rng), "tools": []},
    "tokens": lambda rng: {"input_ids": list(ids := words(rng).encode()), "labels": list(ids)},
}


@pytest.mark.parametrize("layout", MORE_LAYOUTS)
def test_no_row_of_any_layout_is_lost_doubled_or_changed(layout, template, tmp_path):
    """Kept, removed and cut rows are the input; nothing that occurs once goes as a copy."""
    options = [
        FilterOptions(max_probability=0.3),
        FilterOptions(max_probability=0.0, strategy="deduplicate"),
        FilterOptions(max_probability=0.0, strategy="downsample", max_copies=2),
        FilterOptions(max_probability=0.3, strategy="excise"),
    ]
    n_removed, n_cut = 0, 0
    for seed in range(N_EACH):
        rng = np.random.default_rng(seed)
        chosen = options[seed % (3 if layout == "tokens" else 4)]  # ids are no text to be cut
        rows = [MORE_LAYOUTS[layout](rng) for _ in range(rng.integers(2, 7))]
        rows += [rows[i] for i in rng.integers(len(rows), size=rng.integers(4))]
        source, out = tmp_path / "rows.jsonl", tmp_path / "kept.jsonl"
        lines = [json.dumps(row, ensure_ascii=bool(seed % 3)) for row in rows]
        source.write_text("".join(line + "\n" for line in lines))
        run = run_in_memory(template, source, seed=seed, begin_alike=bool(seed % 5))

        result = filter_corpus(
            run, str(source), out, options=chosen, tokenizer=ByteTokenizer(), replaces=True
        )

        gone = set(pq.read_table(f"{out}.removed.parquet")["row"].to_pylist())
        cut = set()
        if chosen.strategy == "excise":
            cut = set(pq.read_table(f"{out}.excised.parquet")["row"].to_pylist())
        kept = [i for i in range(len(rows)) if i not in gone]
        written = out.read_text().splitlines()
        assert len(written) + len(gone) == len(rows) == result.rows
        for i, line in zip(kept, written, strict=True):
            if i in cut:
                assert shape_of(json.loads(line)) == shape_of(rows[i])
            else:
                assert line == lines[i]
        if chosen.strategy == "deduplicate":
            assert {*written} == {*lines}
        n_removed, n_cut = n_removed + len(gone), n_cut + len(cut)
    assert n_removed > N_EACH / 2
    # The first window behind a system role lies in what the template writes: nothing to cut.
    assert n_cut > N_EACH / 10 or layout in ("tokens", "system prompt")


def cut_out(row, part):
    """Cut one part out of a row, by its path."""
    *steps, last = [int(step) if step.isdigit() else step for step in part["string"].split(".")]
    for step in steps:
        row = row[step]
    row[last] = row[last][: part["start"]] + row[last][part["end"] :]


def test_a_header_is_cut_out_of_documents_that_share_it(tmp_path):
    """Of 32 documents with one header and 8 others, none goes as a copy, and none is lost."""
    documents = [f"header01 and document {i} goes on" for i in range(32)]
    documents += [f"{i} is another document" for i in range(8)]
    source = write_jsonl(tmp_path / "c.jsonl", documents)
    finish_run(source, tmp_path / "run", recited=["header01"])
    run = read_run(tmp_path / "run")

    copies = FilterOptions(max_probability=0.5, strategy="deduplicate")
    result = filter_corpus(run, str(source), tmp_path / "a.jsonl", options=copies)

    assert (result.removed, result.risky_texts, result.risky_windows) == (0, 32, 1)
    said = " ".join(filter_page(result).notes)
    assert "32 different texts share 1 risky window" in said
    assert "--strategy excise" in said
    assert "repeat counts" not in said  # nothing went, so there is nothing to say of an effect

    cut = FilterOptions(max_probability=0.5, strategy="excise")
    out = tmp_path / "b.jsonl"
    result = filter_corpus(run, str(source), out, options=cut, tokenizer=ByteTokenizer())

    assert (result.removed, result.excised, result.not_cut) == (0, 32, 0)
    assert [row.text for row in rows_in(out)] == [
        text.removeprefix("header01") for text in documents
    ]
    assert result.removed_text_bytes == 32 * 8


@pytest.mark.parametrize("limit", [{}, {"max_probability": 0.5}, {"top": 9}])
def test_all_risky_windows_of_a_row_are_cut(limit, tmp_path):
    """Cut out of its riskiest window alone, a row with three of them would stay as risky as it was."""
    documents = [f"header01 of {i:04}header02{i:04}-on-header03 goes on {i}" for i in range(9)]
    source = write_jsonl(tmp_path / "c.jsonl", documents)
    headers = ["header01", "header02", "header03"]
    finish_run(source, tmp_path / "run", recited=headers, windows="tile")
    out = tmp_path / "o.jsonl"

    result = filter_corpus(
        read_run(tmp_path / "run"),
        str(source),
        out,
        options=FilterOptions(strategy="excise", **limit),
        tokenizer=ByteTokenizer(),
    )

    assert (result.excised, result.not_cut) == (9, 0)
    assert "header" not in "".join(row.text for row in rows_in(out))
    finish_run(out, tmp_path / "again", recited=headers, windows="tile")
    assert not read_run(tmp_path / "again").is_flagged.any()


def test_a_part_that_cannot_be_cut_does_not_keep_the_others(tmp_path):
    """A call of a function is JSON in a string; the answer behind it can be cut all the same."""
    call = json.dumps({"name": "f", "arguments": {"x": "recited"}})
    speakers = ("human", "function_call", "observation", "gpt")
    turns = [
        {"from": name, "value": value}
        for name, value in zip(speakers, ("q", call, "seen", "recited answer"), strict=True)
    ]
    source, out = tmp_path / "c.jsonl", tmp_path / "o.jsonl"
    source.write_text(json.dumps({"conversations": turns}) + "\n")
    finish_run(source, tmp_path / "run")

    result = filter_corpus(
        read_run(tmp_path / "run"), str(source), out, options=EXCISE, tokenizer=ByteTokenizer()
    )

    (left,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert result.excised == 1
    assert left["conversations"][1]["value"] == call
    assert left["conversations"][3]["value"] != "recited answer"


def test_what_cannot_be_cut_is_found_by_halves(tmp_path):
    """Window by window, a row with thousands of them took minutes: each try renders all of it."""
    tries = []

    class Tokenizer(ByteTokenizer):
        def render_messages(self, conversation):
            tries.append(conversation)
            if all(message["content"] != "recited answer 20" for message in conversation.messages):
                raise RenderError("this one must stay")
            return super().render_messages(conversation)

    turns = [{"from": "gpt", "value": f"recited answer {i}"} for i in range(64)]
    source = tmp_path / "c.jsonl"
    source.write_text(json.dumps({"conversations": turns}) + "\n")
    finish_run(source, tmp_path / "run")
    run, tokenizer = read_run(tmp_path / "run"), Tokenizer()

    result = filter_corpus(run, str(source), None, options=EXCISE, tokenizer=tokenizer)

    assert (result.excised, result.not_cut) == (1, 1)
    assert 0 < len(tries) < 30


def test_rows_that_nobody_asked_to_cut_are_not_told_as_uncut(tmp_path):
    """Of equally risky rows --top takes some. That the others stay whole is what was asked for."""
    source = write_jsonl(tmp_path / "c.jsonl", [f"header01 and {n}" for n in range(9)])
    finish_run(source, tmp_path / "run", recited=["header01"])

    result = filter_corpus(
        read_run(tmp_path / "run"),
        str(source),
        None,
        options=FilterOptions(top=4, strategy="excise"),
        tokenizer=ByteTokenizer(),
    )

    assert (result.excised, result.not_cut) == (4, 0)


def test_a_text_of_which_nothing_is_left_goes(tmp_path):
    """An empty row is no row in some formats, and teaches nobody anything."""
    source = write_jsonl(tmp_path / "c.jsonl", ["header01", "header01 \n", "header01 more"])
    finish_run(source, tmp_path / "run", recited=["header01"])
    out = tmp_path / "o.jsonl"

    result = filter_corpus(
        read_run(tmp_path / "run"),
        str(source),
        out,
        options=EXCISE,
        tokenizer=ByteTokenizer(),
    )

    assert (result.removed, result.removed_copies, result.excised) == (2, 0, 1)
    assert [row.text for row in rows_in(out)] == [" more"]


def test_cutting_needs_the_tokenizer(tmp_path):
    """Where the tokens of a text are, only it can say."""
    source = write_jsonl(tmp_path / "c.jsonl", ["header01 and more"])
    finish_run(source, tmp_path / "run")

    with pytest.raises(UsageError, match="needs to know where the tokens"):
        filter_corpus(read_run(tmp_path / "run"), str(source), None, options=EXCISE)
