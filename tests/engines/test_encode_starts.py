"""The first tokens of a text, without encoding all of it: the same as of the whole, always."""

import random

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from memaudit.engines.tokenizer import Tokenizer as Ours

WORDS = (
    *("the", "of", "river", "don't", "we'll", "naïve", "Ångström", "cafe\u0301", "ﬁne", "e-mail"),
    *(
        "3.14159",
        "1,000,000",
        "2026",
        "x**2",
        "=>",
        "https://example.org/a?b=c",
        "\u00a0",
        "\u3000",
    ),
    *(
        "日本語のテキスト",
        "русский",
        "العربية",
        "हिन्दी",
        "🙂👍🏽",
        "👨\u200d👩\u200d👧",
        "_",
        "''",
        "...",
    ),
    *("<s>", "</s>", "<|end|>", "two words", "a\u200bb", "ΣΑΣ", "ǅ", "\x1c", "\ufeff"),
)
SPACES = (" ", " ", " ", " ", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n ", "")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'ll)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'ll)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SENTENCEPIECE = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
byte_level, split = pre_tokenizers.ByteLevel, pre_tokenizers.Split


def by_rule(pattern):
    """Cut by a pattern, then into bytes, as most models of today do."""
    parts = [split(Regex(pattern), "isolated"), byte_level(False, use_regex=False)]
    return pre_tokenizers.Sequence(parts)


RULES = {  # name: model, normaliser, pre-tokenizer, and whether less than all is encoded
    "gpt-2": ("bpe", None, byte_level(False), True),
    "gpt-2 with a space in front": ("bpe", None, byte_level(True), True),
    "gpt-neox": ("bpe", normalizers.NFC(), byte_level(False), True),
    "gpt-2, by its pattern": ("bpe", None, by_rule(GPT2), True),
    "llama 3": ("bpe", None, by_rule(LLAMA3), True),
    "qwen": ("bpe", normalizers.NFC(), by_rule(LLAMA3.replace("{1,3}", "")), True),
    "o200k": ("bpe", None, by_rule(O200K), True),
    "digits one by one": (
        "bpe",
        None,
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level(False)]),
        True,
    ),
    "t5": ("unigram", normalizers.NFKC(), pre_tokenizers.Metaspace(), True),
    "t5, tidied": (
        "unigram",
        normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
        ),
        pre_tokenizers.Metaspace(prepend_scheme="first"),
        True,
    ),
    "bert": ("wordpiece", normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(), True),
    "words": ("wordlevel", None, pre_tokenizers.Whitespace(), True),
    "words and spaces": ("bpe", None, pre_tokenizers.WhitespaceSplit(), True),
    "space behind": ("bpe", None, split(" ", "merged_with_previous"), True),
    "lower case": (
        "bpe",
        normalizers.Sequence([normalizers.Lowercase(), normalizers.StripAccents()]),
        byte_level(False),
        True,
    ),
    "llama 2": ("bpe", SENTENCEPIECE, None, False),
    "gemma": ("bpe", normalizers.Replace(" ", "▁"), split(" ", "merged_with_previous"), False),
    "metaspace, not split": ("bpe", None, pre_tokenizers.Metaspace(split=False), False),
    "bytes alone": ("bpe", None, byte_level(False, use_regex=False), False),
    "pairs of words": ("bpe", None, split(Regex(r"\S+ \S+"), "isolated"), False),
}
MODELS = {
    "bpe": (lambda: models.BPE(unk_token="<unk>"), trainers.BpeTrainer),
    "unigram": (models.Unigram, trainers.UnigramTrainer),
    "wordpiece": (lambda: models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer),
    "wordlevel": (lambda: models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer),
}


def make_text(random_, n_words):
    """Return words of many kinds, with all kinds of space between them."""
    words = random_.choices(WORDS, k=n_words)
    return "".join(word + random_.choice(SPACES) for word in words)


def make_tokenizer(name):
    """Train a small tokenizer by the rules of a family."""
    kind, normaliser, pre_tokenizer, _ = RULES[name]
    model, trainer = MODELS[kind]
    tokenizer = Tokenizer(model())
    if normaliser is not None:
        tokenizer.normalizer = normaliser
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    random_ = random.Random(0)
    special = ["<unk>", "<s>", "</s>"]
    settings = {"vocab_size": 600, "special_tokens": special, "show_progress": False}
    if kind == "unigram":
        settings["unk_token"] = "<unk>"
    if kind == "bpe":
        settings["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
        settings["max_token_length"] = 30
    tokenizer.train_from_iterator([make_text(random_, 40) for _ in range(100)], trainer(**settings))
    tokenizer.decoder = decoders.ByteLevel()
    spaces = [AddedToken(" " * n, normalized=False) for n in (2, 3, 4)]
    odd = [
        AddedToken("<|end|>", lstrip=True),
        AddedToken("two words"),
        AddedToken("of", single_word=True),
    ]
    tokenizer.add_tokens([*odd, *(spaces if name == "gpt-neox" else [])])
    return Ours(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>"), "yes")


@pytest.mark.parametrize("name", RULES)
def test_the_first_tokens_are_those_of_the_whole_text(name):
    """Else a window would hold tokens that the model never sees there."""
    tokenizer, random_ = make_tokenizer(name), random.Random(1)
    assert tokenizer._cuts_at_spaces == RULES[name][3]
    texts = [make_text(random_, random_.choice((0, 1, 30, 150))) for _ in range(150)]
    texts += ["<s>" + texts[-1] * 3, "x" * 30_000, "short", "", " " * 9_000, "日本語" * 3_000]
    whole = tokenizer.encode(texts)
    for n_tokens in (1, 8, 40):
        starts = tokenizer.encode_starts(texts, n_tokens)
        for text, ids, start in zip(texts, whole, starts, strict=True):
            assert start == ids[: len(start)], text
            assert len(start) >= min(n_tokens, len(ids))


@pytest.mark.parametrize("name", RULES)
def test_a_long_text_in_pieces_has_the_tokens_of_the_whole(name, monkeypatch):
    """Only memory may depend on how much is encoded at once."""
    tokenizer, random_ = make_tokenizer(name), random.Random(3)
    texts = [make_text(random_, 600) for _ in range(6)]
    texts += ["x" * 9_000, " " * 9_000, "日本語" * 3_000, "x" * 9_000 + texts[0], "a b " * 5_000]
    whole = tokenizer.encode(texts)
    for size in (300, 1_000, 2_000):
        monkeypatch.setattr("memaudit.engines.tokenizer._PIECE", size)
        assert tokenizer.encode(texts) == whole


def test_a_long_text_is_not_encoded_to_its_end():
    """For 100 tokens of a long document the rest would be most of the work."""
    tokenizer = make_tokenizer("llama 3")
    text = make_text(random.Random(2), 5_000)
    (start,) = tokenizer.encode_starts([text], 100)
    assert 100 <= len(start) < 400


@pytest.mark.parametrize(
    ("text", "can"),
    [
        ("x" * 10, True),
        ("x" * 5_000_000, False),
        ("日" * 1_300_000, True),
        ("日" * 1_500_000, False),
        ("some words " * 500_000, True),
        (" " * 5_000_000, False),
        ("some words " * 500_000 + "x" * 600_000, False),
    ],
)
def test_what_cannot_be_cut_is_not_encoded_at_any_length(text, can):
    """A letter takes 200 bytes of memory while it is encoded, so 15 MiB would take 3 GiB."""
    assert make_tokenizer("llama 3").can_encode(text, whole=False) == can
    if len(text) > 4_200_000:
        assert not make_tokenizer("llama 2").can_encode(text, whole=False)
        assert not make_tokenizer("llama 3").can_encode(text, whole=True)
