"""A model's tokenizer: texts to token ids and back, and what makes two of them the same."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memaudit.engines.chat_template import TemplateProcess
from memaudit.errors import ModelError

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
_PROBE_CHARACTERS = "".join(chr(code) for code in range(0x20, 0x250))


class Tokenizer:
    """A tokenizer of transformers, without what it adds, skips or tidies up by default."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer: Any = tokenizer
        self._templates: TemplateProcess | None = None

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text, all of them, with no special token added."""
        if not texts:
            return []
        encoded: list[list[int]] = self._tokenizer(
            texts,
            add_special_tokens=False,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        return encoded

    def decode(self, token_ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each sequence, special tokens included, spaces untouched."""
        return [
            self._tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            for ids in token_ids
        ]

    def render_messages(self, messages: list[dict[str, str]]) -> str:
        """Return the text that the chat template makes of messages with role and content.

        Raises:
            ValueError: the template refuses these messages.
            ModelError: there is no template, it is broken, or it needs too long or too much memory.
        """
        if self._templates is None:
            if not self._tokenizer.chat_template:
                raise ModelError(
                    "the model has no chat template, and the corpus holds messages",
                    hint="choose a chat model, or a corpus of plain text",
                )
            template = self._tokenizer.get_chat_template()
            self._templates = TemplateProcess(template, self.special_tokens)
        return self._templates.render(messages)

    @cached_property
    def bos_token_id(self) -> int | None:
        """Id of the token that the tokenizer puts in front of a text by default, if it does."""
        bos: int | None = self._tokenizer.bos_token_id
        plain = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        default = self._tokenizer("a")["input_ids"]
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
            self.probe_ids,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_tokenizer(folder: Path, where: dict[str, Any]) -> Tokenizer:
    """Load the tokenizer of a model.

    Args:
        folder: checked already.
        where: arguments of `from_pretrained` beyond the folder.
    """
    from transformers import AutoTokenizer

    return Tokenizer(AutoTokenizer.from_pretrained(folder, **where))


def difference(teacher: Tokenizer, reference: Tokenizer) -> str | None:
    """Return the first thing in which two tokenizers differ, in words without any token's text.

    Returns:
        None if every text gets the same ids from both.
    """
    if teacher.fingerprint == reference.fingerprint:
        return None
    if teacher.vocabulary != reference.vocabulary:
        return _vocabulary_difference(teacher.vocabulary, reference.vocabulary)
    if teacher.special_tokens != reference.special_tokens:
        names = sorted(teacher.special_tokens.items() ^ reference.special_tokens.items())
        return f"the {names[0][0]} differs"
    if teacher.bos_token_id != reference.bos_token_id:
        return "only one of them puts a token in front of every text"
    return _cutting_difference(teacher, reference)


def _vocabulary_difference(teacher: dict[str, int], reference: dict[str, int]) -> str:
    changed = min(token_id for _, token_id in teacher.items() ^ reference.items())
    found = f"token id {changed} is the first that differs"
    if len(teacher) == len(reference):
        return found
    return f"{len(teacher)} and {len(reference)} tokens, {found}"


def _cutting_difference(teacher: Tokenizer, reference: Tokenizer) -> str:
    pairs = zip(teacher.probe_ids, reference.probe_ids, strict=True)
    n_different = sum(ids != other_ids for ids, other_ids in pairs)
    probes = f"{n_different} of {len(teacher.probe_ids)} test texts are cut differently"
    for name, rule in teacher.rules.items():
        if rule != reference.rules.get(name):
            return f"the {name} of their tokenizers differs, {probes}"
    return probes
