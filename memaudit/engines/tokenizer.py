"""A model's tokenizer: texts to token ids and back, and what makes two of them the same."""

import hashlib
import json
import pickle
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from memaudit.corpus import Conversation, Rendered
from memaudit.corpus.base import Span
from memaudit.engines.chat_template import TemplateProcess
from memaudit.errors import ModelError
from memaudit.text import safe_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    " leading and  double   spaces\ttabs\n\nnew lines\r\n",
    "UPPER lower MiXeD 0123456789 3.14159 1,000,000",
    "def f(x):\n    return {'a': [x**2, x != 3]}",
    "naïve café Ångström ﬁ e\u0301 \u00e9",
    "日本語のテキスト 中文文本 한국어 русский العربية हिन्दी",
    "🙂👍🏽👨\u200d👩\u200d👧 \U0001f9ff",
    "<s></s><|endoftext|><bos><eos><pad>[INST]<|im_start|>",
    "don't we'll it's they've I'm",
    "https://example.org/a?b=c&d=%20#e",
)
_KINDS = "aZé7.,'\"-_()/$я文ไ🙂"
"""Characters that rules for cutting words treat differently."""

_MARGIN = 64
"""Characters between what is trusted and a cut, beside the longest added token: none of the known
rules looks further ahead than to the next word."""

_PIECE = 1 << 18
"""Characters of a long text that are encoded at once: a character can take 200 bytes of memory."""

_AT_ONCE = 4 << 20
"""Bytes of a text that are encoded at once where it cannot be cut."""

_PROBE_CHARACTERS = "".join(chr(code) for code in range(0x20, 0x250))


@contextmanager
def rust_errors_told() -> Iterator[None]:
    """Tell what the library in Rust raises: a plain Exception, or a panic, which is none.

    Its words are left out, for they may hold the text that it failed at.

    Raises:
        ModelError: it raised something.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"the tokenizer fails: {type(error).__name__} in the library that runs it",
            hint="get tokenizer.json again from where the model comes from",
        ) from None  # a traceback would show its words


class Tokenizer:
    """A tokenizer of transformers, without what it adds, skips or tidies up by default."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        add_special_tokens: Literal["auto", "yes", "no"] = "auto",
    ) -> None:
        """Take a tokenizer, and whether a BOS token stands in front; `auto` is as it does it."""
        self._tokenizer: Any = tokenizer
        self._add_special_tokens = add_special_tokens
        self._templates: dict[str, TemplateProcess] = {}
        self._steady: set[str] = set()
        self._characters_per_token = 4.0

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as bytes, of which another process makes a tokenizer once: it takes seconds.

        Raises:
            PicklingError: it comes with code of its own, which other processes do not find.
        """
        try:
            content = pickle.dumps((self._tokenizer, self._add_special_tokens), protocol=5)
        except Exception as error:  # of any kind, from the library in Rust
            raise pickle.PicklingError(type(error).__name__) from None
        if type(self._tokenizer).__module__.startswith("transformers_modules"):
            raise pickle.PicklingError("code of its own")
        key = hashlib.sha256(content).hexdigest()
        # Out of band where the pickler can: the bytes are not copied then.
        return _unpacked, (pickle.PickleBuffer(content), key)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text, with no special token added.

        A BOS token that a text begins with is left out where engines put one in front.
        """
        short = iter(self._encoded([text for text in texts if len(text) <= _PIECE])["input_ids"])
        found = [next(short) if len(text) <= _PIECE else self._in_pieces(text) for text in texts]
        return [self.without_bos(ids) for ids in found]

    def can_encode(self, text: str, *, whole: bool) -> bool:
        """Whether the tokens of a text take a bounded amount of memory: it is short, or can be cut.

        Args:
            text: of any length.
            whole: whether it must be encoded as a whole, to know where its tokens stand.
        """
        # A character has at most four bytes, and most texts need not be encoded to know that.
        if len(text) <= _AT_ONCE // 4 or len(text.encode()) <= _AT_ONCE:
            return True
        if whole or not self._cuts_at_spaces:
            return False
        # A piece is doubled until it ends behind a space: it may have twice the characters of the
        # longest word, of up to four bytes each.
        spaces = (place.start() for place in re.finditer(r"(?<=\S) (?=\S)", text))
        return all(b - a <= _AT_ONCE // 8 for a, b in pairwise(chain([0], spaces, [len(text)])))

    def _in_pieces(self, text: str) -> list[int]:
        """Return the token ids of a long text, encoded piece by piece.

        A piece begins before the space at which the one before it was cut: the words in between
        are left out again, so that nothing depends on what stands at the beginning of a piece.
        """
        ids, start, cut, size = list[int](), 0, 0, _PIECE
        while self._cuts_at_spaces and start + size < len(text):
            piece = text[start : start + size]
            space = self._last_space(piece)
            if start + space <= cut:
                size *= 2  # a long word
                continue
            (encoding,) = self._encodings([piece])
            begin = self._token_behind(encoding, cut - start) if start else 0
            end = self._token_behind(encoding, space)
            if begin is None or end is None:
                size *= 2  # nobody knows where to cut it
                continue
            ids += encoding.ids[begin:end]
            cut, size = start + space, _PIECE
            start = max(0, cut - 2 * self._margin)
        (encoding,) = self._encodings([text[start:]])
        begin = self._token_behind(encoding, cut - start) if start else 0
        if begin is None:
            whole: list[int] = self._encoded([text])["input_ids"][0]
            return whole
        ids += encoding.ids[begin:]
        return ids

    def encode_starts(self, texts: list[str], n_tokens: int) -> list[list[int]]:
        """Return what `encode` does, of a long text at least the first tokens.

        A text is cut well behind them, and what is trusted ends with a word and a space before
        the cut: tokenizers that cut texts into words first give it the ids that they have in the
        whole text. Of all others, and of a text without such a place, the whole is encoded.
        """
        if not self._cuts_at_spaces:
            return self.encode(texts)
        n_tokens += 1  # a BOS token may be left out
        found: list[list[int]] = [[] for _ in texts]
        left = list(range(len(texts)))
        # A guess: what turns out too short is tried again at twice the length.
        length = int(n_tokens * self._characters_per_token) + self._margin
        while left:
            # Not much more than what would be cut off is no reason to look for a place.
            pieces = [texts[i] if len(texts[i]) < 1.5 * length else texts[i][:length] for i in left]
            for i, piece, encoding in zip(left, pieces, self._encodings(pieces), strict=True):
                is_whole = len(piece) == len(texts[i])
                found[i] = encoding.ids if is_whole else self._trusted(piece, encoding)
            left = [
                i
                for i, piece in zip(left, pieces, strict=True)
                if len(found[i]) < n_tokens and len(piece) < len(texts[i])
            ]
            length *= 2
        return [self.without_bos(ids) for ids in found]

    def _trusted(self, piece: str, encoding: Any) -> list[int]:
        """Return the ids that a piece of a text shares with the text; none where that is unsure."""
        space = self._last_space(piece)
        ids: list[int] = encoding.ids[: self._token_behind(encoding, space) or 0]
        if ids:  # for the next texts: it changes what is tried, never what is found
            # Half as much again as this text took: a second try costs more than some characters.
            self._characters_per_token = 0.9 * self._characters_per_token + 0.15 * space / len(ids)
        return ids

    def _last_space(self, piece: str) -> int:
        """Return where the last single space stands that is well before the end; below 1: nowhere."""
        space = len(piece) - self._margin
        while (space := piece.rfind(" ", 1, space)) > 0:
            if not (piece[space - 1].isspace() or piece[space + 1].isspace()):
                break
        return space

    @staticmethod
    def _token_behind(encoding: Any, space: int) -> int | None:
        """Return the number of the first token behind a space; None: both sides are one word."""
        if space <= 0 or encoding.char_to_word(space - 1) == encoding.char_to_word(space + 1):
            return None
        token: int | None = encoding.char_to_token(space + 1)
        return token

    @cached_property
    def _cuts_at_spaces(self) -> bool:
        """Whether words are encoded each by itself, wherever they stand."""
        if not self._tokenizer.is_fast:
            return False
        texts = [f"{a}{a} {b}{b}" for a in _KINDS for b in _KINDS]
        return all(
            encoding.char_to_word(1) != encoding.char_to_word(3)
            for encoding in self._encodings(texts)
        )

    @cached_property
    def _margin(self) -> int:
        added = self._tokenizer.get_added_vocab()
        return _MARGIN + max(map(len, added), default=0)

    def _encodings(self, texts: list[str]) -> Any:
        return self._encoded(texts).encodings if texts else []

    def encode_answers(
        self, texts: list[str], answers: list[tuple[Span, ...]]
    ) -> list[tuple[list[int], tuple[Span, ...]]]:
        """Return the token ids of each text, as `encode` does, and which of them are its answers.

        Args:
            texts: with at least one character each.
            answers: parts of each text, in characters. A token that an answer begins in the midst
                of is none of the answer's.
        """
        encoded = self._encoded(texts, return_offsets_mapping=self._tokenizer.is_fast)
        found = []
        for i, (ids, spans) in enumerate(zip(encoded["input_ids"], answers, strict=True)):
            if "offset_mapping" in encoded:
                starts = [start for start, _ in encoded["offset_mapping"][i]]
                places = [tuple(bisect_left(starts, edge) for edge in span) for span in spans]
            else:
                # Without offsets: an edge is behind as many tokens as the text before it has alone.
                places = [
                    tuple(len(self._encoded([texts[i][:edge]])["input_ids"][0]) for edge in span)
                    for span in spans
                ]
            kept = self.without_bos(ids)
            cut = len(ids) - len(kept)
            found.append((kept, tuple((max(0, a - cut), max(0, b - cut)) for a, b in places)))
        return found

    def token_spans(self, text: str) -> list[Span]:
        """Return where each token that `encode` gives stands in the text, in characters.

        Raises:
            ModelError: the tokenizer does not say.
        """
        if not self._tokenizer.is_fast:
            raise ModelError(
                "the tokenizer does not say where its tokens stand in the text",
                hint="use a model with a tokenizer.json",
            )
        (encoded,) = self._encoded([text], return_offsets_mapping=True).encodings
        n_skipped = len(encoded.ids) - len(self.without_bos(encoded.ids))
        spans: list[Span] = encoded.offsets[n_skipped:]
        return spans

    def without_bos(self, ids: list[int]) -> list[int]:
        """Return token ids without a BOS token at their start, where engines put one in front."""
        return ids[1:] if ids and ids[0] == self.bos_token_id else ids

    def _encoded(self, texts: list[str], **settings: Any) -> Any:
        if not texts:
            return {"input_ids": []}
        with rust_errors_told():
            return self._tokenizer(
                texts,
                add_special_tokens=False,
                # A tokenizer.json may bring truncation of its own, and would cut a text in silence.
                truncation=False,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
                **settings,
            )

    def decode(self, token_ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each sequence, special tokens included, spaces untouched."""
        sequences = [list(ids) for ids in token_ids]
        if self._decodes_plainly:
            backend = self._tokenizer.backend_tokenizer
            texts: list[str] = backend.decode_batch(sequences, skip_special_tokens=False)
            return texts
        return [
            self._tokenizer.decode(
                ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            for ids in sequences
        ]

    @cached_property
    def _decodes_plainly(self) -> bool:
        """Whether no class of a model's own stands between us and the backend."""
        from transformers import PreTrainedTokenizerFast

        kind: Any = type(self._tokenizer)
        plain: Any = PreTrainedTokenizerFast
        return bool(
            self._tokenizer.is_fast
            and kind.decode is plain.decode
            and kind._decode is plain._decode
        )

    def render_messages(self, conversation: Conversation) -> Rendered:
        """Return the text that the chat template makes of messages, and where its answers are.

        Raises:
            RenderError: the template refuses these messages, or fails at them.
            ModelError: there is no template, it is broken, or it needs too long or too much memory.
        """
        template = self._template(has_tools="tools" in conversation.variables)
        if template not in self._templates:
            self._templates[template] = TemplateProcess(template, self.special_tokens)
        rendered = self._templates[template].render(conversation)
        # The sandbox leaves one thing to chance: where objects lie in the memory of a process.
        if template not in self._steady:
            other = TemplateProcess(template, self.special_tokens)
            if other.render(conversation) != rendered:
                raise ModelError(
                    "the model's chat template makes another text of the same messages each time",
                    hint="choose another version of it, or give the corpus as plain text",
                )
            other.close()
            self._steady.add(template)
        return rendered

    def _template(self, *, has_tools: bool) -> str:
        """Return the template for a conversation, of several by the rule of transformers."""
        templates: str | dict[str, str] | None = self._tokenizer.chat_template
        if not templates:
            raise ModelError(
                "the model has no chat template, and the corpus holds messages",
                hint="choose a chat model, or a corpus of plain text",
            )
        if isinstance(templates, str):
            return templates
        name = "tool_use" if has_tools and "tool_use" in templates else "default"
        if name not in templates:
            names = ", ".join(safe_text(name) for name in sorted(templates))
            raise ModelError(
                f"the model has several chat templates and none is the default: {names}",
                hint="save the tokenizer with the template of the training as its only one",
            )
        return templates[name]

    @cached_property
    def bos_token_id(self) -> int | None:
        """Id of the token that the tokenizer puts in front of a text by default, if it does."""
        bos: int | None = self._tokenizer.bos_token_id
        if self._add_special_tokens != "auto":
            return bos if self._add_special_tokens == "yes" else None
        plain = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        default = self._tokenizer("a")["input_ids"]
        # One that stands there without special tokens, too, would be put in front twice.
        return bos if default[:1] == [bos] and plain[:1] != [bos] else None

    @cached_property
    def n_ids(self) -> int:
        """One more than the largest token id."""
        return max(self.vocabulary.values(), default=-1) + 1

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Every token, added ones included, with its id."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return vocabulary

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """Which token is the beginning, the end, and so on."""
        return {name: str(token) for name, token in self._tokenizer.special_tokens_map.items()}

    @cached_property
    def rules(self) -> dict[str, Any]:
        """How a text is cut: normaliser, pre-tokenizer and merges. Empty if not known."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return {}
        content = json.loads(backend.to_str())
        return {
            "normaliser": content["normalizer"],
            "pre-tokenizer": content["pre_tokenizer"],
            "list of merges": content["model"].get("merges"),
        }

    @cached_property
    def probe_ids(self) -> list[list[int]]:
        """The token ids of some odd texts: two tokenizers that agree here cut alike."""
        return self.encode([*_PROBES, *_PROBE_CHARACTERS])

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 over all that decides which ids a text gets, hexadecimal."""
        parts = [
            sorted(self.vocabulary.items()),
            sorted(self.special_tokens.items()),
            self.bos_token_id,
            self.rules,
            # What code does to a text is in no file, and a tokenizer that is not fast tells no
            # rules.
            self.probe_ids,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# Of a process: every piece of work that it gets brings the same bytes.
_UNPACKED: dict[str, Tokenizer] = {}


def _unpacked(content: Any, key: str) -> Tokenizer:
    if key not in _UNPACKED:
        _UNPACKED[key] = Tokenizer(*pickle.loads(content))
    return _UNPACKED[key]


def load_tokenizer(
    folder: Path, where: dict[str, Any], add_special_tokens: Literal["auto", "yes", "no"] = "auto"
) -> Tokenizer:
    """Load the tokenizer of a model."""
    from transformers import AutoTokenizer

    with rust_errors_told():
        return Tokenizer(AutoTokenizer.from_pretrained(folder, **where), add_special_tokens)


def difference(teacher: Tokenizer, reference: Tokenizer) -> str | None:
    """Return the first thing in which two tokenizers differ, in words without any token's text.

    Which tokens end a text or fill it up does not matter, nor does a token that only one of them
    has: it is in no text that both read.

    Returns:
        None if every text without such a token gets the same ids from both.
    """
    if teacher.fingerprint == reference.fingerprint:
        return None
    shared = teacher.vocabulary.keys() & reference.vocabulary.keys()
    moved = {
        i for token in shared if (i := teacher.vocabulary[token]) != reference.vocabulary[token]
    }
    own = {teacher.vocabulary[token] for token in teacher.vocabulary.keys() - shared}
    reused = own & {reference.vocabulary[token] for token in reference.vocabulary.keys() - shared}
    conflict = min(moved | reused, default=None)
    if conflict is not None:
        return f"token id {conflict} means two things"
    if teacher.bos_token_id != reference.bos_token_id:
        return "only one of them puts a token in front of every text"
    of_one = teacher.vocabulary.keys() ^ reference.vocabulary.keys()
    texts = [*_PROBES, *_PROBE_CHARACTERS]
    n_different = sum(
        ids != other_ids and not any(token in text for token in of_one)
        for text, ids, other_ids in zip(texts, teacher.probe_ids, reference.probe_ids, strict=True)
    )
    probes = f"{n_different} of {len(texts)} test texts are cut differently"
    for name, rule in teacher.rules.items():
        if rule != reference.rules.get(name):
            return f"the {name} of their tokenizers differs, {probes}"
    return probes if n_different else None
