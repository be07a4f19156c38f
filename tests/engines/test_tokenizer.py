"""The tokenizer: nothing added, nothing dropped, nothing tidied up."""

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_models import save_tokenizer

from memaudit.corpus import Conversation
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


def test_many_sequences_are_decoded_as_one_after_the_other(tokenizer, monkeypatch):
    """All at once is faster, and a class of a model's own is not gone around."""
    token_ids = tokenizer.encode(["one , two .", "", "é 🙂 <s>"])
    together = tokenizer.decode(token_ids)
    monkeypatch.setattr(tokenizer, "_decodes_plainly", False)
    assert tokenizer.decode(token_ids) == together


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


def test_other_roles_and_added_tokens_make_no_difference(tmp_path, tokenizer):
    """Every script that fine-tunes leaves a pad token behind; texts get the same ids."""
    other_role, with_pad = load(tmp_path / "role"), load(tmp_path / "pad")
    other_role._tokenizer.eos_token = "<s>"
    with_pad._tokenizer.add_special_tokens({"pad_token": "[PAD]", "eos_token": "<|im_start|>"})

    assert difference(tokenizer, other_role) is None
    assert difference(tokenizer, with_pad) is None
    assert difference(with_pad, tokenizer) is None


def test_an_id_with_two_meanings_is_a_difference(tmp_path):
    """The divergence would compare two tokens that have nothing to do with each other."""
    one, other = load(tmp_path / "one"), load(tmp_path / "other")
    one._tokenizer.add_tokens(["[A]"])
    other._tokenizer.add_tokens(["[B]"])

    assert difference(one, other) == "token id 258 means two things"


def test_messages_are_rendered_as_transformers_renders_them(tmp_path):
    """The text must be the one that a student is trained on."""
    tokenizer = load(tmp_path)
    tokenizer._tokenizer.chat_template = TEMPLATE

    found = tokenizer.render_messages(Conversation(MESSAGES))

    assert found.text == "<s>[user]Hi <b>\n[assistant]é\n"
    assert found.text == tokenizer._tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert [found.text[start:end] for start, end in found.answers] == ["é"]


def test_messages_without_a_template_are_refused(tokenizer):
    """There is no right way to guess one."""
    with pytest.raises(ModelError, match="no chat template"):
        tokenizer.render_messages(Conversation(MESSAGES))


def test_a_template_that_leaves_its_text_to_chance_is_refused(tmp_path):
    """What is scored today would be another corpus tomorrow."""
    save_tokenizer(tmp_path)
    chance = "{{ messages[0].items }}{{ messages[0].content }}"  # shown with its address
    (tmp_path / "chat_template.jinja").write_text(chance)

    with pytest.raises(ModelError, match="another text of the same messages each time"):
        load_tokenizer(tmp_path, {}).render_messages(
            Conversation(({"role": "user", "content": "a"},))
        )


def test_of_several_templates_the_one_for_tools_or_the_default_is_taken(tmp_path):
    """Without a default only the user knows which one the training took."""
    tokenizer = load(tmp_path)
    tokenizer._tokenizer.chat_template = {"default": "plain", "tool_use": "tools"}

    assert tokenizer.render_messages(Conversation(MESSAGES)).text == "plain"
    assert tokenizer.render_messages(Conversation(MESSAGES, {"tools": [{}]})).text == "tools"
    tokenizer._tokenizer.chat_template = {"rag": "plain", "tool_use": "tools"}
    with pytest.raises(ModelError, match="none is the default: rag, tool_use"):
        tokenizer.render_messages(Conversation(MESSAGES))


def test_there_is_never_a_second_bos_token(tmp_path):
    """Templates of Llama 3 and Gemma write one, and the tokenizer adds one too."""
    adds, does_not = load(tmp_path / "bos", bos=True), load(tmp_path / "plain")

    assert adds.encode(["<s>ab"]) == adds.encode(["ab"]) == [[256]]
    assert does_not.encode(["<s>ab"]) == [[257, 256]]
    assert Tokenizer(adds._tokenizer, "no").encode(["<s>ab"]) == [[257, 256]]
    assert Tokenizer(does_not._tokenizer, "yes").encode(["<s>ab"]) == [[256]]
    assert Tokenizer(adds._tokenizer, "no").bos_token_id is None
    assert Tokenizer(does_not._tokenizer, "yes").bos_token_id == 257


def test_answers_are_found_among_the_tokens(tmp_path):
    """A token in which an answer begins in the midst is one of the question's."""
    tokenizer = load(tmp_path, bos=True)
    text = "<s>xéabyab"
    # tokens behind <s>: x, two bytes of é, ab, y, ab
    found = tokenizer.encode_answers([text], [((3, 4), (5, 8), (6, 8), (8, 10))])

    assert found == [(tokenizer.encode([text])[0], ((0, 1), (3, 5), (4, 5), (5, 6)))]


def test_nothing_to_encode_gives_nothing(tokenizer):
    """An empty batch is not an error."""
    assert tokenizer.encode([]) == []
    assert isinstance(tokenizer, Tokenizer)


@pytest.mark.parametrize(
    "normalizer",
    [
        pytest.param({"type": "Precompiled", "precompiled_charsmap": "AAAA"}, id="panic"),
        pytest.param(
            {"type": "Replace", "pattern": {"Regex": "((("}, "content": ""}, id="exception"
        ),
    ],
)
def test_a_tokenizer_that_the_library_refuses_is_told_in_a_sentence(tmp_path, normalizer):
    """A panic is no `Exception`, and what is raised otherwise is nothing but one."""
    save_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": normalizer}))

    with pytest.raises(ModelError, match=r"the tokenizer fails: .*Exception in the library"):
        load_tokenizer(tmp_path, {})


def test_a_tokenizer_that_fails_at_a_text_does_not_quote_it(tmp_path):
    """Expressions that try every way to match are stopped by the library, with a panic."""
    save_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    split = {
        "type": "Split",
        "pattern": {"Regex": "(x+x+)+$!"},
        "behavior": "Isolated",
        "invert": False,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pre_tokenizer": split}))
    tokenizer = load_tokenizer(tmp_path, {})

    with pytest.raises(ModelError, match="the tokenizer fails: PanicException") as caught:
        tokenizer.encode(["x" * 60])
    assert caught.value.__cause__ is None
    assert "xx" not in str(caught.value)
