import json

import pytest
from support.fakes import ByteTokenizer

from memaudit.corpus import BadRow, Conversation, CorpusOptions, Example, Rendered
from memaudit.errors import CorpusError, UsageError

HELLO = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def lines(*rows: object) -> bytes:
    """Return JSON Lines."""
    return "\n".join(json.dumps(row) for row in rows).encode()


def render(conversation: Conversation) -> Rendered:
    """Stand in for a chat template that wants the user first."""
    if conversation.messages[0]["role"] == "assistant":
        raise ValueError("roles must alternate")
    return ByteTokenizer().render_messages(conversation)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"text": "a"}, "a"),
        ({"text": "a", "prompt": "b"}, "a"),
        ({"prompt": "a ", "completion": "b"}, "a b"),
        ({"prompt": "", "completion": "b"}, "b"),
        ({"prompt": HELLO[:1], "completion": HELLO[1:]}, "<user>hi<assistant>hello"),
        ({"messages": HELLO}, "<user>hi<assistant>hello"),
        ({"messages": HELLO, "prompt": "unused", "tools": None}, "<user>hi<assistant>hello"),
    ],
)
def test_the_shape_is_found_from_the_columns(texts, row, text):
    """Corpora follow a few conventions; nobody should have to say which."""
    assert texts("a.jsonl", lines(row), render_messages=render) == [text]


@pytest.mark.parametrize(
    ("shape", "text"),
    [("text", "a"), ("prompt-completion", "bc"), ("messages", "<user>hi<assistant>hello")],
)
def test_rows_of_two_shapes_need_a_choice(read, texts, shape, text):
    """What a model was trained on cannot be guessed."""
    content = lines({"text": "a", "prompt": "b", "completion": "c", "messages": HELLO})

    with pytest.raises(CorpusError, match="rows could be read as text or as prompt") as caught:
        read("a.jsonl", content)

    assert "--format text" in str(caught.value.hint)
    assert texts("a.jsonl", content, shape=shape, render_messages=render) == [text]


def test_two_answers_beside_a_question_need_a_choice(read, texts):
    """Orca's pairs hold `question`, `chosen`, `rejected`: answers alone are not what is learned."""
    row = {"question": "a ", "chosen": "b", "rejected": "c", "source": "d"}
    content = lines(row)

    with pytest.raises(CorpusError, match="beside 'question', which may be their") as caught:
        read("a.jsonl", content)

    assert "--map prompt=question" in str(caught.value.hint)
    assert texts("a.jsonl", content, shape="preference", mapping=("prompt=question",)) == ["a b"]
    assert texts("a.jsonl", content, shape="preference") == ["b"]
    del row["question"]  # where a row is from is no prompt
    assert texts("a.jsonl", lines(row)) == ["b"]
    assert texts("a.jsonl", lines(row | {"prompt": "a ", "question": "e"})) == ["a b"]


def test_the_text_column_settles_the_shape(texts):
    """Whoever names the column wants that column."""
    content = lines({"content": "a", "text": "b", "messages": HELLO})

    assert texts("a.jsonl", content, text_column="content") == ["a"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "no messages"),
        ({"messages": "hi"}, "expected a list of messages in 'messages', got a string"),
        ({"messages": None}, "'messages' is null"),
        ({"messages": ["hi"]}, "message 1: expected an object"),
        ({"messages": [*HELLO, {"role": "user"}]}, "message 3: content is null"),
        ({"messages": [{"role": 1, "content": "x"}]}, "message 1: role is a number"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "message 1: content is a list"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "no part of the"),
        ({"messages": HELLO[1:]}, "the chat template refuses the messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "a lone surrogate"),
    ],
)
def test_messages_that_cannot_be_rendered_are_a_bad_row(read, row, reason):
    """One broken conversation must not cost the corpus."""
    bad, good = read("a.jsonl", lines(row, {"messages": HELLO}), render_messages=render)

    assert isinstance(bad, BadRow)
    assert reason in bad.reason
    assert isinstance(good, Example)


def test_a_key_twice_in_a_message_is_a_bad_row(texts):
    """Readers disagree on which of the two counts."""
    content = b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}\n'

    assert texts("a.jsonl", content + lines({"messages": HELLO}), render_messages=render) == [
        None,
        "<user>hi<assistant>hello",
    ]


@pytest.mark.parametrize(
    ("prompt", "completion"), [("a", None), ("a", HELLO), (HELLO, "b"), (1, "b"), ({}, {})]
)
def test_prompt_and_completion_must_be_of_one_kind(texts, prompt, completion):
    """Text and messages cannot be joined."""
    rows = [{"prompt": prompt, "completion": completion}, {"prompt": "a", "completion": "b"}]

    assert texts("a.jsonl", lines(*rows), render_messages=render) == [None, "ab"]


@pytest.mark.parametrize(
    "row", [{"messages": HELLO}, {"prompt": HELLO[:1], "completion": HELLO[1:]}]
)
def test_messages_need_a_chat_template(read, row):
    """Without it nobody knows the text the model was trained on."""
    with pytest.raises(CorpusError, match="no chat template"):
        read("a.jsonl", lines(row))


@pytest.mark.parametrize(
    ("row", "options", "expected"),
    [
        ({"id": "x", "text": "a"}, {}, "x"),
        ({"id": 7, "text": "a"}, {}, "7"),
        ({"id": 7.5, "text": "a"}, {}, "7.5"),
        ({"id": True, "text": "a"}, {}, "True"),
        ({"id": None, "text": "a"}, {}, "a.jsonl:1"),
        ({"id": "", "text": "a"}, {}, "a.jsonl:1"),
        ({"id": "\ud800", "text": "a"}, {}, "a.jsonl:1"),
        ({"text": "a"}, {}, "a.jsonl:1"),
        ({"id": 1, "key": "k", "text": "a"}, {"id_column": "key"}, "k"),
    ],
)
def test_the_id_is_the_id_columns_or_the_place(read, row, options, expected):
    """Every row can be named, also in a corpus without ids."""
    (found,) = read("a.jsonl", lines(row), **options)

    assert isinstance(found, Example)
    assert found.example_id == expected


def test_a_bad_row_keeps_its_id(read):
    """Its owner finds it by that."""
    bad, _ = read("a.jsonl", lines({"id": "x", "text": None}, {"text": "a"}))

    assert bad.example_id == "x"


@pytest.mark.parametrize("key", [None, {}, "", [], "\ud800"])
def test_an_id_column_that_was_asked_for_must_hold_an_id(read, key):
    """An id made up in its place would be taken for one of the corpus."""
    rows = [{"key": "k", "text": "a"}, {"key": key, "text": "b"}, {"text": "c"}]

    good, bad, missing = read("a.jsonl", lines(*rows), id_column="key")

    assert isinstance(good, Example)
    assert isinstance(bad, BadRow)
    assert isinstance(missing, BadRow)
    assert bad.reason.startswith("line 2: no id in 'key', expected a string or a number")


def test_ids_may_repeat(read):
    """Rows are told apart by their number."""
    rows = read("a.jsonl", lines({"id": 1, "text": "a"}, {"id": 1, "text": "a"}))

    assert [(row.row, row.example_id) for row in rows] == [(0, "1"), (1, "1")]


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({}, "found no text, expected a column 'text'", "--text-column body; columns: body, key"),
        ({"text_column": "bdy"}, "no column 'bdy'", "did you mean 'body'? columns: body, key"),
        ({"text_column": "zzz"}, "no column 'zzz'", "columns: body, key"),
        ({"shape": "messages"}, "no column 'messages'", "columns: body, key"),
        ({"shape": "prompt-completion"}, "no column 'prompt'", "columns: body, key"),
        ({"text_column": "body", "id_column": "kee"}, "no column 'kee'", "did you mean 'key'?"),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_column_that_no_row_has_is_an_error(read, ending, options, message, hint):
    """It is a wrong option, not a corpus of bad rows; the hint shows the columns, not the text."""
    content = {"jsonl": lines(*[{"body": "CANARY", "key": 1}] * 9), "csv": b"body,key\nCANARY,1\n"}

    with pytest.raises(CorpusError, match=message) as caught:
        read(f"a.{ending}", content[ending], **options)

    assert hint in str(caught.value.hint)
    assert "CANARY" not in caught.value.message + str(caught.value.hint)


def test_the_wait_for_a_column_has_an_end(read):
    """A large corpus with a wrong option is refused at its start."""
    content = lines(*[{"body": "a"}] * 1000, {"text": "too late"})

    with pytest.raises(CorpusError, match="found no text"):
        read("a.jsonl", content)


def test_rows_before_the_first_good_one_are_bad_rows(texts):
    """A broken start must not cost the corpus."""
    content = b"nonsense\n{}\n" + lines({"body": "a"}, {"text": "b"})

    assert texts("a.jsonl", content) == [None, None, None, "b"]


def test_a_corpus_of_nothing_but_broken_rows_is_counted(texts):
    """No row could say which columns there are, so every row is its own failure."""
    assert texts("a.jsonl", b"nonsense\n" * 1500) == [None] * 1500


def test_a_text_longer_than_a_row_may_be_is_a_bad_row(texts):
    """Escapes and columnar formats make long texts that no line limit sees."""
    assert texts("a.jsonl", lines({"text": "é" * 60}, {"text": "a"}), max_row_bytes=400) == [
        "é" * 60,
        "a",
    ]
    assert texts("a.json", lines([{"text": "é" * 60}, {"text": "a"}]), max_row_bytes=100) == [
        None,
        "a",
    ]


def test_options_that_contradict_each_other_are_refused():
    """A text column means nothing for messages."""
    with pytest.raises(UsageError, match="got --format messages"):
        CorpusOptions("a", shape="messages", text_column="body")


@pytest.mark.parametrize(
    "options", [{"shape": "poem"}, {"max_row_bytes": 0}, {"max_compression_ratio": 0}]
)
def test_options_out_of_range_are_refused(options):
    """They are mistakes in code, the command line cannot give them."""
    with pytest.raises(ValueError, match="must be"):
        CorpusOptions("a", **options)
