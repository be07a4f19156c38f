"""Chat templates in a folder, rendered by memaudit and by transformers: where do the texts differ?

    python -m support.compare_templates FOLDER [--quiet]      (in tests/)

Every *.jinja* file below FOLDER is rendered for eight conversations, by both, with one date. A
template that refuses a conversation must be refused by both. Prints one line per difference, then
the counts; exits 1 if a text differs.
"""

# ruff: noqa: T201

import argparse
import difflib
import sys
from datetime import datetime
from pathlib import Path
from unittest.mock import patch

from jinja2 import TemplateError
from transformers.utils import chat_template_utils

from memaudit.corpus import Conversation
from memaudit.engines.chat_template import TemplateProcess
from memaudit.errors import ModelError

DATE = "2024-07-26"
SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Oslo", "days": 2}},
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Forecast <for> a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "é"}},
                "required": ["city"],
            },
        },
    }
]
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": " What is <b>5 + 3</b>?\n"}
REPLY = {"role": "assistant", "content": "It is 8.\n"}
TOOL_TURNS = [
    {"role": "user", "content": "How is the weather in Oslo?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": '{"rain": true}'},
    {"role": "assistant", "content": "It rains."},
]
CONVERSATIONS: dict[str, tuple[list[dict], dict]] = {
    "one turn": ([USER, REPLY], {}),
    "system": ([SYSTEM, USER, REPLY], {}),
    "three turns": ([SYSTEM, USER, REPLY, USER, REPLY, USER, REPLY], {}),
    "tools, not called": ([USER, REPLY], {"tools": TOOLS}),
    "tools, called": (TOOL_TURNS, {"tools": TOOLS}),
    "called, content null": (
        [TOOL_TURNS[0], TOOL_TURNS[1] | {"content": None}, *TOOL_TURNS[2:]],
        {"tools": TOOLS},
    ),
    "reasoning": ([USER, REPLY | {"reasoning_content": "5 and 3 are 8."}, USER, REPLY], {}),
    "documents": ([USER, REPLY], {"documents": [{"title": "Sums", "text": "5 + 3 = 8"}]}),
}


class _Clock(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromisoformat(DATE)


def by_transformers(template: str, messages: list[dict], variables: dict) -> str | None:
    """Return what transformers renders, None if the template refuses or fails."""
    messages = chat_template_utils._normalize_chat_messages(messages)
    try:
        with patch.object(chat_template_utils, "datetime", _Clock):
            ((text,), _) = chat_template_utils.render_jinja_template(
                [messages], chat_template=template, **SPECIAL_TOKENS, **variables
            )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, TemplateError):
        return None
    return text


def compare(path: Path, *, quiet: bool) -> tuple[int, int, int]:
    """Return how many conversations are equal, refused by both, and different."""
    template = path.read_text()
    equal = refused = different = 0
    try:
        process = TemplateProcess(template, SPECIAL_TOKENS)
    except ModelError as error:
        print(f"{path}: {error.message}")
        return 0, 0, len(CONVERSATIONS)
    for name, (messages, variables) in CONVERSATIONS.items():
        expected = by_transformers(template, messages, variables)
        try:
            found = process.render(Conversation(messages, variables, date=DATE))
        except (ValueError, ModelError):
            found = None
        text = None if found is None else found.text
        equal += text == expected is not None
        refused += text is expected is None
        if text != expected:
            different += 1
            print(f"{path.name}: {name}: differs")
            if not quiet:
                print("".join(difflib.ndiff([str(expected)], [str(text)]))[:2000])
    process.close()
    return equal, refused, different


def main() -> int:
    """Compare every template of a folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quiet", action="store_true")
    arguments = parser.parse_args()
    paths = sorted(path for path in arguments.folder.rglob("*.jinja*") if path.is_file())
    counts = [compare(path, quiet=arguments.quiet) for path in paths]
    equal, refused, different = (sum(column) for column in zip(*counts, strict=True))
    print(f"{len(paths)} templates, {len(CONVERSATIONS)} conversations each:")
    print(f"{equal} texts equal, {refused} refused by both, {different} different")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
