"""The process that renders chat templates: JSON lines in, JSON lines out, and little else.

Not to be imported by the package: it runs as a script, and imports only jinja2.
"""

import json
import re
import resource
import secrets
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MEMORY_LIMIT = 512 * 2**20
_NONCE = secrets.token_hex(8)
_MARKS = (f"\ue000{_NONCE}(", f"\ue000{_NONCE})")
"""Around what the assistant said, in what a template with generation blocks renders. The digits
are new in every process: no text of a corpus holds them."""

_MARK = re.compile("|".join(map(re.escape, _MARKS)))
_PLAIN = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]
"""What every template can render."""

# Not MemoryError: a process that has met its limit ends.
_FAULTS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    TemplateError,
)


class _Generation(Extension):
    """`{% generation %}` marks what the assistant said."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return _MARKS[0] + caller() + _MARKS[1]


class _Template:
    """A compiled template, with what transformers offers to one."""

    def __init__(self, setup: dict[str, Any]) -> None:
        # With the settings of transformers: others leave other white space in the text.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        # The same corpus must give the same text in every run: what draws lots is not offered.
        del environment.filters["random"], environment.globals["lipsum"]
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        self._special_tokens = setup["special_tokens"]
        self._template = environment.from_string(setup["template"])

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return the text of a conversation and where its answers are."""
        messages = []
        for message in question["messages"]:
            # As transformers hands them over: without null, and reasoning under its names.
            there = {key: value for key, value in message.items() if value is not None}
            names = ("reasoning_content", "thinking", "reasoning")
            reasoning = next((there[name] for name in names if name in there), None)
            if reasoning is not None:
                there = {"thinking": reasoning, **there, "reasoning_content": reasoning}
            messages.append(there)
        # transformers hands over these in any case.
        now = datetime.fromisoformat(question["date"]).strftime
        variables = {"tools": None, "documents": None, "strftime_now": now} | question["variables"]

        def render(first: int, prompt: bool = False) -> str:
            return self._template.render(
                **self._special_tokens
                | variables
                | {"messages": messages[:first], "add_generation_prompt": prompt}
            )

        marked = render(len(messages))
        text = _MARK.sub("", marked)
        n_context = question["n_context"]
        # All that follows a prompt is trained on, whatever generation blocks in the template say.
        if n_context is not None:
            start = _start(text, n_context, render)
            if start is None and (found := _place(text, messages[n_context], 0)):
                start = found[0]
            answers = [] if start is None or start >= len(text) else [(start, len(text))]
        elif marked != text:
            answers = _marked_spans(marked)
        else:
            answers = _assistant_spans(text, messages, render)
        return {"text": text, "answers": answers}


_Render = Callable[..., str]
"""Renders the first so many messages, with or without the prompt for an answer."""


def _marked_spans(marked: str) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    end, length, start = 0, 0, 0
    for match in _MARK.finditer(marked):
        length += match.start() - end
        end = match.end()
        if match[0] == _MARKS[0]:
            start = length
        elif length > start:
            spans.append((start, length))
    return spans


def _assistant_spans(
    text: str, messages: list[dict[str, Any]], render: _Render
) -> list[tuple[int, int]]:
    """Return where each of the assistant's turns is, from what it is rendered to without the rest.

    A template may render a turn otherwise when others follow it; then its content is looked for.
    """
    spans, end = [], 0
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start = _start(text, i, render)
        found = _place(text, message, end)
        if start is None or start < end:
            start = found[0] if found else None
        stop = len(text) if i == len(messages) - 1 else _stop(text, i + 1, render)
        if stop is None:
            stop = found[1] if found else None
        if start is not None and stop is not None and stop > start:
            spans.append((start, stop))
            end = stop
    return spans


def _start(text: str, first: int, render: _Render) -> int | None:
    """Return where the answer to the first messages begins: behind the prompt for an answer."""
    before = _stop(text, first, render)
    try:
        prompted = _MARK.sub("", render(first, prompt=True)) if first else ""
    except _FAULTS:
        prompted = ""
    # A template may prompt for a thought that the text does not have: what both share counts.
    shared = min(len(text), len(prompted))
    if not text.startswith(prompted):
        pairs = enumerate(zip(text, prompted, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), shared)
    if before is None:
        return shared if shared and shared == len(prompted) else None
    return max(before, shared)


def _stop(text: str, first: int, render: _Render) -> int | None:
    """Return how much of the text the first messages are; None if they are rendered otherwise."""
    try:
        part = _MARK.sub("", render(first)) if first else ""
    except _FAULTS:
        return None
    return len(part) if first and text.startswith(part) else None


def _place(text: str, message: dict[str, Any], start: int) -> tuple[int, int] | None:
    """Return where the content of a message is."""
    content = message.get("content")
    for words in (content, content.strip()) if isinstance(content, str) else ():
        if words and (found := text.find(words, start)) >= 0:
            return found, found + len(words)
    return None


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON without escaping it for HTML, as chat templates expect."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def main() -> None:
    """Compile the template of the first line, then render the conversation of each other line."""
    # The hard limits, too: without privileges nothing in here can raise them again.
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT, _MEMORY_LIMIT))
    # An image of the memory would hold texts of the corpus.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    start = json.loads(sys.stdin.readline())
    # A timer that runs out ends the process. It counts what the template computes, not the clock:
    # on a machine with much to do a second of work may take a minute.
    signal.setitimer(signal.ITIMER_PROF, start["cpu_seconds"])
    try:
        template = _Template(start)
    except (TemplateError, RecursionError) as error:
        _reply({"broken": type(error).__name__})
        return
    _reply({"text": "", "answers": []})
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, start["cpu_seconds"])
        question = json.loads(line)
        try:
            reply = template.answer(question)
        except _FAULTS as error:
            # Not what the error says: it could hold the text of the corpus.
            reply = {"refused": type(error).__name__, "kind": _kind(template, error, question)}
        _reply(reply)


def _kind(template: _Template, error: Exception, question: dict[str, Any]) -> str:
    """Return whether a template refuses a row, fails at it, or fails at any."""
    if type(error) is TemplateError:  # of raise_exception
        return "refuses"
    try:
        template.answer(question | {"messages": _PLAIN, "variables": {}, "n_context": None})
    except _FAULTS as plain:
        return "fails always" if type(plain) is type(error) else "fails"
    return "fails"


def _reply(reply: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
