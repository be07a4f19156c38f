"""Layouts: what trainers read from the columns of a row is what is audited."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.fakes import ByteTokenizer

from memaudit.corpus import BadRow, CorpusOptions, Example, read_corpus
from memaudit.corpus.base import CorpusSeen
from memaudit.errors import CorpusError

ASK, SAY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
CHAT = "<user>hi<assistant>hello"


@pytest.fixture
def first(read):
    """Return a function that reads one row, and its answers as text."""

    def read_first(row, **options):
        (found,) = read("a.jsonl", json.dumps(row).encode(), render_messages=render, **options)
        if isinstance(found, BadRow):
            return found.reason
        return found.text, [found.text[a:b] for a, b in found.answers or ()]

    return read_first


def render(conversation):
    """Return what the fake template makes of messages, tools and calls behind it."""
    rendered = ByteTokenizer().render_messages(conversation)
    others = [m.get("tool_calls") for m in conversation.messages if m.get("tool_calls")]
    for extra in (others, conversation.variables.get("tools")):
        rendered = type(rendered)(
            rendered.text + (json.dumps(extra) if extra else ""), rendered.answers
        )
    return rendered


@pytest.mark.parametrize(
    ("row", "text", "answers"),
    [
        ({"prompt": "a ", "completion": "b"}, "a b", ["b"]),
        ({"prompt": [ASK], "completion": [SAY]}, CHAT, ["hello"]),
        ({"messages": [ASK, SAY]}, CHAT, ["hello"]),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}, CHAT, ["hello"]),
        ({"conversations": [ASK, SAY]}, CHAT, ["hello"]),
        ({"messages": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}, CHAT, ["hello"]),
        ({"system": "s", "conversations": [{"from": "human", "value": "hi"}]}, "<system>s<user>hi", []),
        ({"instruction": "hi", "input": "", "output": "hello"}, CHAT, ["hello"]),
        ({"instruction": "a", "input": "b", "output": "c"}, "<user>a\nb<assistant>c", ["c"]),
        (
            {"instruction": "a", "output": "b", "history": [["hi", "hello"]]},
            CHAT + "<user>a<assistant>b",
            ["hello", "b"],
        ),
        ({"prompt": "a ", "chosen": "b", "rejected": "c"}, "a b", ["b"]),
        ({"chosen": "a b", "rejected": "a c"}, "a b", ["b"]),
        ({"chosen": [ASK, SAY], "rejected": [ASK, ASK]}, CHAT, ["hello"]),
        ({"prompt": [ASK], "chosen": [SAY], "rejected": [ASK]}, CHAT, ["hello"]),
        ({"conversations": [{"from": "human", "value": "hi"}], "system": "s", "chosen": {"from": "model", "value": "hello"}, "rejected": {"from": "gpt", "value": "x"}}, "<system>s" + CHAT, ["hello"]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "image"}, {"type": "text", "text": "i"}]}]}, "<user>hi", []),
    ],
)  # fmt: skip
def test_a_layout_is_found_from_its_columns_and_read_as_trainers_do(first, row, text, answers):
    """Nobody should have to convert a corpus, and what is trained on is what can be memorized."""
    assert first(row) == (text, answers)


def test_calls_and_tools_reach_the_template(first):
    """Eight conversations whose calls differ are eight texts."""
    call = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    row = {
        "messages": [ASK, {"role": "assistant", "content": None, "tool_calls": call}],
        "tools": "[1]",
    }

    assert first(row)[0] == f"<user>hi<assistant>{json.dumps([call])}[1]"


def test_calls_of_sharegpt_become_tool_calls(first):
    """They are JSON in a string there."""
    turns = [
        {"from": "human", "value": "hi"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
        {"from": "observation", "value": "42"},
    ]
    call = [{"type": "function", "function": {"name": "f", "arguments": {}}}]

    assert first({"conversations": turns})[0] == f"<user>hi<assistant><tool>42{json.dumps([call])}"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"conversations": [{"from": "parrot", "value": "x"}]}, "turn 1: an unknown speaker"),
        ({"conversations": [{"from": "function_call", "value": "x"}]}, "is not valid JSON"),
        ({"conversations": [{"from": "function_call", "value": "{}"}]}, "has no name"),
        ({"conversations": ["x"]}, "expected a list of turns"),
        ({"instruction": "a", "output": "b", "history": ["x"]}, "expected a list of pairs"),
        ({"chosen": "a", "rejected": [SAY]}, "got a string and a list"),
        ({"prompt": [ASK], "chosen": "a", "rejected": "b"}, "in 'prompt' and 'chosen', got a list"),
        ({"chosen": SAY, "rejected": SAY}, "got an object and an object"),
        ({"messages": [ASK], "tools": "x"}, "'tools' is not valid JSON"),
        ({"input_ids": [1, 2], "labels": [1]}, "are not of one length"),
        ({"input_ids": [-1]}, "expected a list of token ids"),
    ],
)
def test_what_a_layout_does_not_allow_is_a_bad_row(first, row, reason):
    """It says what is wrong, and nothing of the text."""
    assert reason in first(row)


def test_token_ids_are_taken_as_they_are(read):
    """A corpus that is tokenised already says which tokens are trained on."""
    row = {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, 7, -100, 9]}

    (found,) = read("a.jsonl", json.dumps(row).encode())

    assert isinstance(found, Example)
    assert (found.token_ids, found.answers) == ((5, 6, 7, 8, 9), ((1, 3), (4, 5)))


@pytest.mark.parametrize("first_label", [5, -100])
def test_token_ids_that_are_all_trained_on_are_like_a_text(read, first_label):
    """As answers they would be looked for behind their first token, where hardly any is recited."""
    row = {"input_ids": [5, 6, 7, 8, 9], "labels": [first_label, 6, 7, 8, 9]}

    (found,) = read("a.jsonl", json.dumps(row).encode())

    assert (found.token_ids, found.answers) == ((5, 6, 7, 8, 9), None)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.jsonl": {"text": "a"}}, None),
        (
            {"a.jsonl": {"text": "a"}, "b.jsonl": {"text": "b"}},
            "2 files of text, which is trained on as a whole",
        ),
        (
            {"a.jsonl": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]}},
            "1 file of messages, of which assistant turns are trained on; "
            "1 image or other part of messages was skipped",
        ),
    ],
)  # fmt: skip
def test_what_was_read_is_told(tmp_path, files, expected):
    """Nobody should have to guess which columns, or how many files, a run looked at."""
    for name, row in files.items():
        (tmp_path / name).write_text(json.dumps(row))
    seen = CorpusSeen()

    list(read_corpus(CorpusOptions(str(tmp_path)), render_messages=render, seen=seen))

    assert seen.in_words == expected


def test_columns_of_other_names_can_be_given(first):
    """A corpus need not be rewritten for a name."""
    row = {"question": "a", "answer": "b", "key": "k"}

    assert first(row, mapping=("prompt=question", "completion=answer")) == ("ab", ["b"])


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"question": "a", "answer": "b"}, "--map prompt=question --map completion=answer"),
        ({"dialog": []}, "--map messages=dialog"),
        ({"content": "a"}, "--text-column content"),
        ({"xyz": "a"}, "--text-column; columns: xyz"),
    ],
)
def test_where_nothing_fits_the_nearest_layout_is_named(first, row, hint):
    """The next command can be copied from the error."""
    with pytest.raises(CorpusError, match="found no text") as caught:
        first(row)
    assert hint in caught.value.hint


def test_columns_of_parquet_hold_only_what_a_row_has(read, tmp_path):
    """Arrow gives every message the keys of all others, as null; no template expects them."""
    rows = [{"messages": [ASK, {"role": "assistant", "content": "x", "name": "n"}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    seen = []

    def look(conversation):
        seen.append(conversation.messages)
        return render(conversation)

    read("b.parquet", (tmp_path / "b.parquet").read_bytes(), render_messages=look)

    assert seen == [rows[0]["messages"]]
