"""Layouts: how trainers hold a text in columns, and what the columns of a row make together."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from memaudit.corpus.base import Conversation, Rendered, RepeatedKeys, RowError
from memaudit.text import safe_text

Content = Rendered | Conversation
"""What a row holds: a text or token ids, or messages for a chat template."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to hold a text in columns."""

    required: tuple[str, ...]
    """Columns that every row has."""

    build: Callable[[Mapping[str, object]], Content]
    """From the columns of a row to its content; may raise `RowError`."""

    optional: tuple[str, ...] = ()
    """Columns that are used where they are."""

    in_words: str = ""
    """Which part is trained on, for the summary."""


def _text(row: Mapping[str, object]) -> Content:
    (name,) = row
    value = row[name]
    if not isinstance(value, str):
        raise RowError(f"expected a string in {quoted(name)}, got {kind_of(value)}")
    return Rendered(value)


def _preference(row: Mapping[str, object]) -> Content:
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    # One turn each, behind the conversation that they end, as LLaMA-Factory has it.
    if isinstance(chosen, dict) and isinstance(row.get("conversations"), list):
        turns = [*row["conversations"], chosen]  # type: ignore[misc]
        return _sharegpt({**row, "conversations": turns}, len(turns) - 1)
    row = {role: value for role, value in row.items() if role != "system"}
    # A string beside lists of messages, as in UltraFeedback, is their first one over again.
    if isinstance(prompt, list) or (prompt is not None and type(prompt) is type(chosen)):
        return _continued(row, "chosen")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return Rendered(chosen, ((n_shared(chosen, rejected), len(chosen)),))
    if isinstance(chosen, list) and isinstance(rejected, list):
        # What both share is the prompt; of two equal answers the last message is the answer.
        n_context = min(n_shared(chosen, rejected), len(chosen) - 1)
        return _conversation(chosen, row, n_context)
    raise RowError(
        "expected two strings or two lists of messages in 'chosen' and 'rejected', "
        "or one message each beside 'conversations', "
        f"got {kind_of(chosen)} and {kind_of(rejected)}"
    )


def n_shared(one: str | list[object], other: str | list[object]) -> int:
    """Return how many characters, or messages, two texts or lists have in common at their start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _continued(row: Mapping[str, object], second: str = "completion") -> Content:
    """Join a prompt with what follows it: two strings, or two lists of messages."""
    prompt, answer = row["prompt"], row[second]
    if isinstance(prompt, str) and isinstance(answer, str):
        text = prompt + answer
        return Rendered(text, ((len(prompt), len(text)),))
    if isinstance(prompt, list) and isinstance(answer, list):
        return _conversation([*prompt, *answer], row, len(prompt))
    raise RowError(
        f"expected two strings or two lists of messages in 'prompt' and {quoted(second)}, "
        f"got {kind_of(prompt)} and {kind_of(answer)}"
    )


def _chat(row: Mapping[str, object]) -> Content:
    messages = row["messages"]
    if not isinstance(messages, list):
        raise RowError(f"expected a list of messages in 'messages', got {kind_of(messages)}")
    return _conversation(messages, row)


_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}


def _sharegpt(row: Mapping[str, object], n_context: int | None = None) -> Content:
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowError(f"expected a list of turns in 'conversations', got {kind_of(turns)}")
    turns = [_turn(turn, number) for number, turn in enumerate(turns, start=1)]
    return _conversation(turns, row, n_context)


def _turn(turn: object, number: int) -> object:
    """Return a turn of ShareGPT as a message, wherever it stands, and all else as it is."""
    if not isinstance(turn, dict) or "from" not in turn or "role" in turn:
        return turn
    speaker, value = turn["from"], turn.get("value")
    if isinstance(turn, RepeatedKeys):
        raise RowError(f"turn {number}: a key is there twice")
    if speaker == "function_call":
        calls = _parsed(value, f"turn {number}: the function call")
        calls = calls if isinstance(calls, list) else [calls]
        if not all(isinstance(call, dict) and "name" in call for call in calls):
            raise RowError(f"turn {number}: the function call has no name")
        tool_calls = [{"type": "function", "function": call} for call in calls]
        return {"role": "assistant", "content": "", "tool_calls": tool_calls}
    if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
        known = ", ".join([*_SHAREGPT_ROLES, "function_call"])
        raise RowError(f"turn {number}: an unknown speaker, expected one of {known}")
    others = {key: item for key, item in turn.items() if key not in ("from", "value")}
    return {"role": _SHAREGPT_ROLES[speaker], "content": value} | others


def _alpaca(row: Mapping[str, object]) -> Content:
    history = row.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in history
    ):
        raise RowError("expected a list of pairs in 'history'")
    question = row["instruction"]
    if isinstance(question, str) and isinstance(row.get("input"), str) and row["input"]:
        question = f"{question}\n{row['input']}"
    pairs = [*history, [question, row["output"]]]
    messages: list[object] = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return _conversation(messages, row)


def _tokens(row: Mapping[str, object]) -> Content:
    ids, labels = row["input_ids"], row.get("labels")
    # By `type`: to isinstance True is an int, and it is no token.
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 2**31 for i in ids):
        raise RowError(f"expected a list of token ids in 'input_ids', got {kind_of(ids)}")
    # Stands in for a text where rows are compared: equal ids are equal texts.
    text = " ".join(map(str, ids))
    if labels is None:
        return Rendered(text, token_ids=tuple(ids))
    if not isinstance(labels, list) or len(labels) != len(ids):
        raise RowError("'labels' and 'input_ids' are not of one length")
    # -100 is what torch's cross-entropy leaves out of the loss.
    edges = [i for i in range(len(ids)) if (labels[i] == -100) != (i == 0 or labels[i - 1] == -100)]
    edges += [len(ids)] if len(edges) % 2 else []
    # Nobody predicts the first token: all are trained on, as of a text.
    if edges in ([0, len(ids)], [1, len(ids)]):
        return Rendered(text, token_ids=tuple(ids))
    return Rendered(text, tuple(zip(edges[::2], edges[1::2], strict=True)), tuple(ids))


_FOR_TEMPLATES = ("tools", "documents", "chat_template_kwargs")

LAYOUTS: dict[str, Layout] = {
    "text": Layout(("text",), _text, in_words="which is trained on as a whole"),
    "prompt-completion": Layout(
        ("prompt", "completion"), _continued, _FOR_TEMPLATES, "of which completions are trained on"
    ),
    "messages": Layout(
        ("messages",), _chat, _FOR_TEMPLATES, "of which assistant turns are trained on"
    ),
    "sharegpt": Layout(
        ("conversations",),
        _sharegpt,
        ("system", *_FOR_TEMPLATES),
        "of which assistant turns are trained on",
    ),
    "alpaca": Layout(
        ("instruction", "output"),
        _alpaca,
        ("input", "history", "system"),
        "of which outputs are trained on",
    ),
    "preference": Layout(
        ("chosen", "rejected"),
        _preference,
        ("prompt", "conversations", "system", *_FOR_TEMPLATES),
        "of which chosen answers are trained on",
    ),
    "tokens": Layout(
        ("input_ids",), _tokens, ("labels",), "of which tokens with a label are trained on"
    ),
}
"""By the name that --format takes. The first three win over the others where both fit."""

CAPTURES: tuple[tuple[str, ...], ...] = (
    ("target_logprobs", "target_token_ids", "target_mask"),
    ("top_values", "token_ids"),
    ("compressed_logprobs", "bytepacked_indices"),
    ("logprobs", "target_token_ids"),
    ("logprobs",),
)
"""Columns that hold a teacher's log-probabilities beside a text: axolotl's prepared ones,
DistillKit's plain and compressed ones, axolotl's in two columns and in one. The first that is there
counts; `memaudit.engines.captured` says what they mean."""

CAPTURED_NAMES = {"logprobs": ("llm_text_generation_vllm_logprobs",)}
"""What columns of `CAPTURES` are often called."""

ROLES = tuple(
    dict.fromkeys(
        name
        for columns in (*((*each.required, *each.optional) for each in LAYOUTS.values()), *CAPTURES)
        for name in columns
    )
)
"""What --map can give another column to, beside `id`."""


def _parsed(value: object, what: str) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{what} is not valid JSON") from error


def _conversation(
    messages: Sequence[object], row: Mapping[str, object], n_context: int | None = None
) -> Conversation:
    if row.get("system"):
        n_context = None if n_context is None else n_context + 1
        messages = [{"role": "system", "content": row["system"]}, *messages]
    if not messages:
        raise RowError("no messages")
    messages = [_turn(message, number) for number, message in enumerate(messages, start=1)]
    checked = [_message(message, number) for number, message in enumerate(messages, start=1)]
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    skipped = sum(part["type"] not in _TEXT_PARTS for part in parts)
    variables: dict[str, object] = {}
    for name in ("tools", "documents"):
        value = row.get(name)
        if isinstance(value, str) and value.strip():  # some corpora hold JSON in a string
            value = _parsed(value, quoted(name))
        if isinstance(value, list) and value:
            variables[name] = value
    extra = row.get("chat_template_kwargs")
    variables |= extra if isinstance(extra, dict) else {}
    return Conversation(checked, variables, n_context, skipped_parts=skipped)


def _message(message: object, number: int) -> dict[str, object]:
    """Return a message as it is, but for parts of its content, of which the texts are joined."""
    if not isinstance(message, dict) or isinstance(message, RepeatedKeys):
        raise RowError(f"message {number}: expected an object with a role and content, each once")
    if not isinstance(message.get("role"), str):
        raise RowError(f"message {number}: role is {kind_of(message.get('role'))}")
    content = message.get("content")
    if isinstance(content, list):
        return message | {"content": _joined_parts(content, number)}
    # OpenAI writes null, or nothing, beside calls.
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return message
    raise RowError(f"message {number}: content is {kind_of(content)}")


_TEXT_PARTS = ("text", "input_text", "output_text")


def _joined_parts(parts: list[object], number: int) -> str:
    """Return the texts of content in parts; images and sounds say nothing to a text model."""
    texts = []
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise RowError(f"message {number}: content is a list, not of parts with a type")
        if part["type"] in _TEXT_PARTS:
            if not isinstance(part.get("text"), str):
                raise RowError(f"message {number}: a part of type text has none")
            texts.append(part["text"])
    if not texts:
        raise RowError(f"message {number}: no part of the content is text")
    return "".join(texts)


def kind_of(value: object) -> str:
    """Return what a value is, in words without its content."""
    return {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string" if value else "an empty string",
        list: "a list",
        dict: "an object",
        RepeatedKeys: "an object",
    }.get(type(value), "neither a string nor a list")


def quoted(name: str) -> str:
    """Return a column's name, safe to show."""
    return f"'{safe_text(name, 60)}'"
