"""Chat templates: programs that come with a model, run where they can do no harm."""

import json
import os
import selectors
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from memaudit.corpus import Conversation, Rendered
from memaudit.corpus.base import RenderError
from memaudit.errors import ModelError

_TIME_LIMIT = 5.0
"""CPU seconds for one conversation. The sandbox of jinja2 bounds neither time nor memory."""

_WAIT = 60
"""How many times as long one waits for it, on a machine that has other things to do."""


class TemplateProcess:
    """Renders conversations in a process of its own, with limits on time and memory."""

    def __init__(
        self, template: str, special_tokens: dict[str, str], *, time_limit: float = _TIME_LIMIT
    ) -> None:
        self._time_limit = time_limit
        # -I: what the environment says about imports is not for this process.
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("chat_template_child.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A traceback could quote the messages.
            stderr=subprocess.DEVNULL,
            # No variable of this process, such as a key, is for a template to see.
            env={},
        )
        self._ask(
            {"template": template, "special_tokens": special_tokens, "cpu_seconds": time_limit}
        )

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        # There is none if it could not be started.
        if process := getattr(self, "_process", None):
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def render(self, conversation: Conversation) -> Rendered:
        """Return the text of a conversation, and where its answers are.

        Raises:
            RenderError: the template refuses these messages, or fails at them.
            ModelError: it is broken, or needs too long or too much memory.
        """
        return self._ask(asdict(conversation))

    def _ask(self, question: object) -> Rendered:
        assert self._process.stdin is not None
        try:
            # One line there, one line back: neither waits for the other with a pipe that is full.
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            reply = json.loads(self._read_line())
        # A child that is out of CPU time or memory ends, and its pipes with it.
        except (BrokenPipeError, TimeoutError, EOFError) as error:
            self.close()
            raise ModelError(
                "the model's chat template runs too long or needs too much memory",
                hint="give the corpus as plain text",
            ) from error
        if "broken" in reply:
            raise ModelError(
                f"the model's chat template is broken: {reply['broken']}",
                hint="give the corpus as plain text",
            )
        if "refused" in reply:
            # Whether the row is at fault, or the template.
            error_name, kind = reply["refused"], reply["kind"]
            if kind == "fails always":
                raise ModelError(
                    f"the model's chat template fails at every conversation: {error_name}",
                    hint="the template belongs to the model: choose another version of it, "
                    "or give the corpus as plain text",
                )
            if kind == "fails":
                raise RenderError(f"the chat template fails at these messages: {error_name}")
            raise RenderError("the chat template refuses the messages")
        return Rendered(reply["text"], tuple((start, end) for start, end in reply["answers"]))

    def _read_line(self) -> bytes:
        """Return the next line; TimeoutError after the time limit, EOFError if the process died."""
        assert self._process.stdout is not None
        # By the clock as well: a process that is stopped uses no CPU time.
        deadline = time.monotonic() + _WAIT * self._time_limit
        parts: list[bytes] = []
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not parts or not parts[-1].endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                # Not through the file's buffer: what lies there the selector does not see.
                part = os.read(self._process.stdout.fileno(), 2**20)
                if not part:
                    raise EOFError
                parts.append(part)
        return b"".join(parts)
