"""The tokenizer: nothing added, nothing dropped, nothing tidied up."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_models import save_tokenizer

from memaudit.engines.tokenizer import Tokenizer, difference, load_tokenizer
from memaudit.errors import ModelError

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}{{ '\\n' }}{% endfor %}"
)
MESSAGES = [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": "é"}]


def load(folder, **settings):
    """Save a tokenizer and load it."""
    save_tokenizer(folder, **settings)
    return load_tokenizer(folder, {"local_files_only": True})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Byte-level, with one merge and one special token."""
    return load(tmp_path_factory.mktemp("tokenizer"))


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4))
def test_decoding_gives_back_every_text(tokenizer, texts):
    """What is compressed for a feature must be what the model read."""
    assert tokenizer.decode(tokenizer.encode(texts)) == texts


def test_spaces_before_punctuation_survive(tokenizer):
    """Transformers tidies them away unless told not to."""
    text = "one , two . it 's <s> three"

    assert tokenizer.decode(tokenizer.encode([text])) == [text]


def test_long_texts_are_neither_cut_nor_warned_about(tmp_path, caplog):
    """Windows are cut later; the limit of the model is not that of a text."""
    tokenizer = load(tmp_path)
    tokenizer._tokenizer.model_max_length = 4

    with caplog.at_level(logging.WARNING):
        encoded = tokenizer.encode(["x" * 1000])

    assert len(encoded[0]) == 1000
    assert caplog.records == []


def test_a_bos_token_is_found_only_if_it_is_added_by_default(tmp_path):
    """Having one is not using one."""
    assert load(tmp_path / "plain").bos_token_id is None
    with_bos = load(tmp_path / "bos", bos=True)

    assert with_bos.bos_token_id == 257
    assert with_bos.encode(["ab"]) == [[256]]


def test_the_fingerprint_is_stable_and_sees_every_change(tmp_path, tokenizer):
    """It decides whether two runs, or two models, speak of the same tokens."""
    same = load(tmp_path / "same")
    others = [
        load(tmp_path / "swap", swap=(1, 2)),
        load(tmp_path / "merge", merges=[("a", "b"), ("c", "d")]),
        load(tmp_path / "bos", bos=True),
        load(tmp_path / "lower", lowercase=True),
    ]

    assert same.fingerprint == tokenizer.fingerprint
    assert difference(same, tokenizer) is None
    assert len({tokenizer.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_special_tokens_with_other_roles_are_a_difference(tmp_path, tokenizer):
    """The same vocabulary can end its texts differently."""
    other = load(tmp_path)
    other._tokenizer.eos_token = "<s>"

    assert difference(tokenizer, other) == "the eos_token differs"


def test_messages_are_rendered_as_transformers_renders_them(tmp_path):
    """The text must be the one that a student is trained on."""
    tokenizer = load(tmp_path)
    tokenizer._tokenizer.chat_template = TEMPLATE

    text = tokenizer.render_messages(MESSAGES)

    assert text == "<s>[user]Hi <b>\n[assistant]é\n"
    assert text == tokenizer._tokenizer.apply_chat_template(MESSAGES, tokenize=False)


def test_messages_without_a_template_are_refused(tokenizer):
    """There is no right way to guess one."""
    with pytest.raises(ModelError, match="no chat template"):
        tokenizer.render_messages(MESSAGES)


def test_nothing_to_encode_gives_nothing(tokenizer):
    """An empty batch is not an error."""
    assert tokenizer.encode([]) == []
    assert isinstance(tokenizer, Tokenizer)
