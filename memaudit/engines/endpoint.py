"""A teacher behind an HTTP endpoint, as `vllm serve` and SGLang offer one.

The windows are sent as token ids to the completions API, which is asked for the log-probabilities
of the prompt: in vLLM's own field `prompt_logprobs`, or by `echo`. The tokenizer is loaded here.

The endpoint is trusted with the corpus and with nothing else: its answers are bounded and checked,
it cannot send us elsewhere, and what it says about a request is shown only where the request held
no text of the corpus.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import msgspec
import numpy as np
import requests
from numpy.typing import NDArray

from memaudit.engines import API_KEY, ENDPOINT, EndpointOptions
from memaudit.engines.canaries import TOLERANCES, Canaries, WatchedEngine, canary_windows
from memaudit.engines.models import ModelOptions, open_tokenizer
from memaudit.engines.tokenizer import Tokenizer
from memaudit.engines.window_io import LogprobEngine, ModelLimits
from memaudit.errors import ModelError, UsageError
from memaudit.progress import tell
from memaudit.text import safe_text

_PROMPTS_A_REQUEST = 32
_CONNECT_SECONDS, _ANSWER_SECONDS = 10, 600
_WAITS = (1, 2, 4, 8, 15, *(30,) * 19)
"""Seconds before a request is tried again: ten minutes, in which a server can be started anew."""

_MAX_BYTES_A_TOKEN = 4096
"""Of an answer; 200 to 300 are usual."""

_TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504)
_SHOWN_ERROR = 300
_LEAST = -9999.0
"""What vLLM says instead of -inf, nats."""


_Kind = TypeVar("_Kind")


# These are what is read of an answer: types are checked, other fields are passed over.
class _Entry(msgspec.Struct):
    logprob: float
    decoded_token: str | None = None


class _Echo(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct):
    index: int
    prompt_logprobs: list[dict[int, _Entry] | None] | None = None
    """At each token of the prompt but the first: its own and the two most probable ones, by id."""

    logprobs: _Echo | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


@dataclass(frozen=True, slots=True)
class EndpointModel:
    """A model that an endpoint serves, and the tokenizer that belongs to it."""

    name: str
    """As the endpoint calls it."""

    limits: ModelLimits
    tokenizer: Tokenizer
    digest: str
    """Of the model's name and the tokenizer's files: nothing is known of its weights."""


class Endpoint:
    """A client of the completions API. Several threads may use it at once."""

    def __init__(self, url: str, *, offline: bool = False) -> None:
        """Take an address such as `http://127.0.0.1:8000`, with or without `/v1`.

        Raises:
            UsageError: it is no address, holds a password, is elsewhere, or a key would go over the
                network in the clear.
        """
        key = os.environ.get(API_KEY)
        parts = urlsplit("")
        with suppress(ValueError):  # of a bracket without the other one
            parts = urlsplit(url)
        if not parts.hostname or parts.username or parts.password or parts.query or parts.fragment:
            raise UsageError(
                "an endpoint is http://host:port or https://host, without password, ? and #",
                hint=f"put the key into {API_KEY}",
            )
        is_here = parts.hostname == "localhost"
        with suppress(ValueError):  # of a name: 127.0.0.1.example.org is no address, and not here
            is_here = is_here or ip_address(parts.hostname).is_loopback
        if offline and not is_here:
            raise UsageError(
                f"--offline, and the teacher is at {safe_text(parts.hostname)}",
                hint="leave out --offline, or serve the teacher on this machine",
            )
        if key and parts.scheme == "http" and not is_here:
            raise UsageError(
                f"{API_KEY} is set, and {safe_text(parts.hostname)} would get it over http in the clear",
                hint=f"use https, or unset {API_KEY}",
            )
        path = parts.path.rstrip("/")
        self._base = (
            f"{parts.scheme}://{parts.netloc}{path if path.endswith('/v1') else path + '/v1'}"
        )
        self._session = requests.Session()

        def authorise(request: requests.PreparedRequest) -> requests.PreparedRequest:
            if key:
                request.headers["Authorization"] = f"Bearer {key}"
            return request

        self._session.auth = authorise  # without any, requests would look into ~/.netrc
        self._echoes: bool | None = None

    def models(self) -> list[_Model]:
        """Return what it serves."""
        return self._decoded(self._ask("models", None, 1 << 22, shows_error=True), _Models).data

    def logprobs(
        self, model: str, prompts: list[list[int]], *, are_ours: bool = False
    ) -> tuple[list[NDArray[np.float32]], list[list[str | None]]]:
        """Return what a model says about the tokens of some prompts.

        Args:
            model: by its name there.
            prompts: token ids, each (T,).
            are_ours: whether the prompts hold no text of a corpus: an error may quote the answer,
                and an echo tells tokens as texts, of which two may be the same.

        Returns:
            of each prompt, (2, T - 1): the log-probability of its own next token and of the most
            probable other one, nats; and the text of each of those tokens, if it is told.

        Raises:
            ModelError: it gives none, or fails.
        """
        body: dict[str, Any] = {"model": model, "prompt": prompts, "max_tokens": 1}
        body |= _ECHO | {"return_tokens_as_token_ids": not are_ours} if self._echoes else _PROMPT
        n_bytes = 65_536 + _MAX_BYTES_A_TOKEN * sum(map(len, prompts))
        content = self._ask("completions", body, n_bytes, shows_error=are_ours)
        answer = self._decoded(content, _Completion)
        choices = sorted(answer.choices, key=lambda choice: choice.index)
        if [choice.index for choice in choices] != [*range(len(prompts))]:
            self._refuse(f"{len(choices)} answers to {len(prompts)} prompts")
        if self._echoes is None:
            # Who does not know the field of vLLM passes over it, and is asked once more.
            self._echoes = choices[0].prompt_logprobs is None
            if self._echoes:
                return self.logprobs(model, prompts, are_ours=are_ours)
        found, texts = [], []
        for choice, prompt in zip(choices, prompts, strict=True):
            pairs, words = (
                self._echoed(choice, prompt) if self._echoes else self._told(choice, prompt)
            )
            found.append(np.array(pairs, dtype=np.float32).reshape(-1, 2).T)
            texts.append(words)
        return found, texts

    def _told(
        self, choice: _Choice, prompt: list[int]
    ) -> tuple[list[tuple[float, float]], list[str | None]]:
        pairs, texts = list[tuple[float, float]](), list[str | None]()
        told = choice.prompt_logprobs or []
        if len(told) != len(prompt):
            self._refuse(f"log-probabilities of {len(told)} tokens for a prompt of {len(prompt)}")
        for own_id, entries in zip(prompt[1:], told[1:], strict=True):
            own = None if entries is None else entries.pop(own_id, None)
            if own is None or not entries:
                self._refuse("no log-probability of a token of the prompt, or of no other one")
            pairs.append((own.logprob, max(entry.logprob for entry in entries.values())))
            texts.append(own.decoded_token)
        return pairs, texts

    def _echoed(
        self, choice: _Choice, prompt: list[int]
    ) -> tuple[list[tuple[float, float]], list[str | None]]:
        """Return the same out of what `echo` gives: values must do, for tokens may be told as texts.

        Of two likely tokens with the same text one is lost then, and the rival may be less likely
        than the true one: more is taken for recited, never less.
        """
        told = choice.logprobs
        if told is None or told.top_logprobs is None:
            self._refuse(
                "no log-probabilities of the prompt's tokens, by prompt_logprobs or by echo"
            )
        pairs, end = list[tuple[float, float]](), len(prompt)
        owns, tops = told.token_logprobs[1:end], told.top_logprobs[1:end]
        if len(owns) != end - 1 or len(tops) != end - 1:
            self._refuse(f"log-probabilities of {len(owns) + 1} tokens for a prompt of {end}")
        for own, top in zip(owns, tops, strict=True):
            if own is None or not top:
                self._refuse("no log-probability of a token of the prompt, or of no other one")
            others = sorted(top.values())
            # What is left of the likeliest are the rivals of the own token.
            if own in others:
                others.remove(own)
            # No other token can have more than what its own leaves. Near 0, 1 - exp(own) would be 0.
            rest = math.log(-math.expm1(own)) if own < 0 else -math.inf
            pairs.append((own, others[-1] if others else max(rest, _LEAST)))
        return pairs, list[str | None](told.tokens[1:end])

    def _refuse(self, what: str) -> NoReturn:
        raise ModelError(
            f"{self._base} gives {what}",
            hint="a server is needed that tells log-probabilities of a prompt: vllm serve or SGLang",
        )

    def _ask(
        self, path: str, body: dict[str, Any] | None, max_bytes: int, *, shows_error: bool
    ) -> bytes:
        """Send a request, again after a while if the fault may pass, and return the answer."""
        # A typing error in the address must not cost minutes: the first request has less patience.
        waits = _WAITS[:3] if body is None else _WAITS
        for wait in (*waits, None):
            status, content, retry_after = self._send(path, body, max_bytes)
            if status == requests.codes.ok:
                return content
            if wait is None or not (status is None or status in _TRANSIENT):
                self._fail(status, content if shows_error else b"", sum(waits))
            tell(f"wait for {self._base}")
            # A server must not make a run wait for days.
            time.sleep(max(wait, min(retry_after, 60)))
        raise AssertionError("the last try returns or fails")

    def _decoded(self, content: bytes, kind: type[_Kind]) -> _Kind:
        try:
            return msgspec.json.decode(content, type=kind)
        except (ValueError, RecursionError):
            self._refuse("an answer that is not of the OpenAI API")

    def _send(
        self, path: str, body: dict[str, Any] | None, max_bytes: int
    ) -> tuple[int | None, bytes, float]:
        """Return the status, the content and how long to wait; None as status: no answer came."""
        try:
            with self._session.request(
                "GET" if body is None else "POST",
                f"{self._base}/{path}",
                json=body,
                timeout=(_CONNECT_SECONDS, _ANSWER_SECONDS),
                # It must not send us, and texts of a corpus with us, elsewhere.
                allow_redirects=False,
                stream=True,
            ) as answer:
                # Read in parts: an answer without an end is given up, not kept.
                content = bytearray()
                for part in answer.iter_content(1 << 16):
                    content += part
                    if len(content) > max_bytes:
                        self._refuse(f"an answer of more than {max_bytes:,} bytes")
                after = answer.headers.get("Retry-After", "")
                # It may be a date, and then the usual wait holds. isdigit would take a ² for one.
                seconds = float(after) if after.isdecimal() else 0.0
                return answer.status_code, bytes(content), seconds
        except requests.exceptions.SSLError as error:
            raise ModelError(
                f"{self._base}: its certificate cannot be verified",
                hint="name the file of your own authority in REQUESTS_CA_BUNDLE",
            ) from error
        # Not there, torn off or too slow: all of that may pass.
        except (requests.exceptions.RequestException, OSError):
            return None, b"", 0.0

    def _fail(self, status: int | None, content: bytes, waited_seconds: int) -> NoReturn:
        said = safe_text(" ".join(content.decode(errors="replace").split()), _SHOWN_ERROR)
        waited = f"after {waited_seconds} seconds of trying"
        reasons = {
            None: (f"does not answer {waited}", "is the server running, and the address right?"),
            401: ("refuses the key", f"set {API_KEY} to the key of the endpoint"),
            403: ("refuses the key", f"set {API_KEY} to the key of the endpoint"),
            404: (
                "does not know the address or the model",
                "see --served-model, and its /v1/models",
            ),
            429: (f"is still too busy {waited}", "try fewer --requests, or later"),
        }
        what, hint = reasons.get(
            status, (f"answers with status {status}", "see the log of the server")
        )
        raise ModelError(f"{self._base} {what}{f': {said}' if said else ''}", hint=hint)


_PROMPT = {"temperature": 0, "prompt_logprobs": 2}
_ECHO = {"temperature": 0, "echo": True, "logprobs": 2}


def find_model(endpoint: Endpoint, options: EndpointOptions, load: ModelOptions) -> EndpointModel:
    """Ask which model is served, and load its tokenizer.

    Raises:
        ModelError: it is not there, there are several, or the tokenizer cannot be loaded.
    """
    served = endpoint.models()
    names = [model.id for model in served]
    name = options.served_model or (names[0] if len(names) == 1 else None)
    if name not in names:
        raise ModelError(
            f"the endpoint serves {', '.join(safe_text(each) for each in names[:10]) or 'no model'}",
            hint="choose one with --served-model",
        )
    assert name is not None
    try:
        tokenizer, files_digest = open_tokenizer(options.tokenizer or name, load)
    except ModelError as error:
        if options.tokenizer:
            raise
        raise ModelError(
            f"the tokenizer of {safe_text(name)} is not found: {error.message}",
            hint="name it with --tokenizer: a folder or a hub id",
        ) from error
    n_positions = served[names.index(name)].max_model_len
    # One token is generated, whatever is asked for.
    limits = ModelLimits(name, None if n_positions is None else n_positions - 1, tokenizer.n_ids)
    digest = hashlib.sha256(json.dumps([ENDPOINT, name, files_digest]).encode()).hexdigest()
    return EndpointModel(name, limits, tokenizer, digest)


def load_endpoint_engine(
    endpoint: Endpoint, model: EndpointModel, window_len: int
) -> tuple[WatchedEngine, float]:
    """Return an engine on an endpoint, and what the model says about the canaries on average.

    It is held against its own first answers. Whether these are right, nobody here can tell.

    Returns:
        the engine, and the mean log-probability of a canary's token, nats.

    Raises:
        ModelError: it fails, or cuts texts differently from the tokenizer.
    """
    tokenizer = model.tokenizer
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    windows = canary_windows(tokenizer.encode, tokenizer.n_ids, window_len)
    prose = [*bos, *windows[0].tolist()]
    _, texts = endpoint.logprobs(model.name, [prose], are_ours=True)
    _check_texts(model, prose[1:], texts[0])

    def run(prompts: list[list[int]]) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = []
        for start in range(0, len(prompts), _PROMPTS_A_REQUEST):
            part = prompts[start : start + _PROMPTS_A_REQUEST]
            found += endpoint.logprobs(model.name, part)[0]
            tell("score", len(part))
        return found

    engine = LogprobEngine(
        [(run, model.limits)], name=ENDPOINT, bos_token_id=tokenizer.bos_token_id
    )
    scores = tuple(engine.score(windows))
    # In which number format it computes is not known: the wide tolerance holds for all.
    canaries = Canaries(windows, scores, TOLERANCES["bfloat16"], trusted="its own first answers")
    mean = float(np.mean([each.teacher.logprobs.mean() for each in scores]))
    return WatchedEngine(engine, canaries), round(mean, 4)


def _check_texts(model: EndpointModel, ids: Sequence[int], texts: Sequence[str | None]) -> None:
    """Refuse a tokenizer whose tokens have other texts than the endpoint says."""
    own = model.tokenizer.decode([[each] for each in ids])
    pairs = [
        (text.strip(), told.strip())
        for text, told in zip(own, texts, strict=True)
        # A token may be a part of a character, or written in the tokenizer's own way.
        if told and text.isascii() and told.isascii() and not told.startswith("token_id:")
    ]
    n_different = sum(text != told for text, told in pairs)
    if n_different * 2 > len(pairs):
        raise ModelError(
            f"{n_different} of {len(pairs)} tokens have other texts at the endpoint than in the "
            "tokenizer that was loaded here",
            hint="name the tokenizer of the served model with --tokenizer",
        )
