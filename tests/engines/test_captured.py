"""A teacher that was captured: what its entries say, layout by layout, and what is refused."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.captures import CONFIG, as_bytes, compress, pack

from memaudit.corpus.base import RowError
from memaudit.engines.captured import CapturedRow, Codec, TopK, find_codec, own_and_rival
from memaudit.errors import CorpusError

LOG = np.log


def top(entries, first=1, **how):
    """Return entries given as dicts from token id to probability."""
    k = max(map(len, entries))
    ids, logprobs = np.full((len(entries), k), -1), np.full((len(entries), k), -np.inf)
    for place, entry in enumerate(entries):
        ids[place, : len(entry)] = [*entry]
        logprobs[place, : len(entry)] = LOG([*entry.values()])
    return TopK(ids, logprobs, first, **how)


def test_own_and_rival_are_read_from_the_entry_about_a_token():
    """The rival is the likeliest other one, wherever it stands."""
    found = own_and_rival([7, 8, 9], top([{8: 0.5, 1: 0.25}, {2: 0.75, 9: 0.125}]))

    np.testing.assert_allclose(found[:, 1:], LOG([[0.5, 0.125], [0.25, 0.75]]), rtol=1e-6)
    assert np.isnan(found[:, 0]).all()


def test_a_token_out_of_the_entry_is_bounded_and_never_the_first_choice():
    """By the least of the entry and by what is left; it may look riskier, never safer."""
    found = own_and_rival(
        [7, 8, 9, 5], top([{1: 0.5, 2: 0.01}, {1: 0.95, 2: 0.04}, {1: 0.25, 2: 0.25}])
    )

    # One in a thousand is left for rounding.
    np.testing.assert_allclose(found[0, 1:3], LOG([0.01, 0.01 + 0.001]), rtol=1e-5)
    assert found[0, 3] < found[1, 3]
    assert np.isclose(found[0, 3], LOG(0.25))
    scaled = own_and_rival([7, 8], top([{1: 0.95, 2: 0.05}], tells_rest=False))
    np.testing.assert_allclose(scaled[0, 1], LOG(0.05), rtol=1e-6)


@given(
    seed=st.integers(0, 1000), k=st.integers(1, 12), n=st.integers(2, 20), sharp=st.floats(0.1, 9)
)
def test_bounds_hold_for_every_distribution(seed, k, n, sharp):
    """Exact where a token is among the k; else no less than the truth, and no first choice."""
    rng = np.random.default_rng(seed)
    logprobs = torch.tensor(rng.normal(0, sharp, (n - 1, 12))).log_softmax(dim=1)
    ids = rng.integers(0, 12, n)
    values, likeliest = logprobs.topk(k)

    own, rival = own_and_rival(ids.tolist(), TopK(likeliest.numpy(), values.numpy(), first=1))

    truth = logprobs.numpy()[np.arange(n - 1), ids[1:]]
    is_in = (likeliest.numpy() == ids[1:, None]).any(axis=1)
    np.testing.assert_allclose(own[1:][is_in], truth[is_in], rtol=1e-5, atol=1e-6)
    assert (own[1:] >= truth - 1e-5).all()
    is_first = (logprobs.argmax(dim=1) == torch.tensor(ids[1:])).numpy()
    np.testing.assert_array_equal(own[1:] >= rival[1:], is_first)


def test_the_rival_of_a_token_that_stands_alone_has_what_is_left():
    """With k = 1 nothing else is known of it."""
    found = own_and_rival([7, 8], top([{8: 0.75}]))

    np.testing.assert_allclose(found[:, 1], LOG([0.75, 0.25]), rtol=1e-6)


def test_positions_without_entries_stay_unknown():
    """Of a prompt, nothing was captured."""
    found = own_and_rival([7, 8, 9], top([{}, {9: 0.5, 1: 0.25}]))

    assert np.isnan(found[:, :2]).all()
    assert np.isfinite(found[:, 2]).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, -1.0], "one is 0.5, expected at most 0"),
        ([np.nan, -1.0], "not a number"),
        ([-0.1, -0.1], "sum to 1.81"),
    ],
)
def test_broken_entries_are_refused(values, message):
    """Each in words."""
    with pytest.raises(RowError, match=message):
        own_and_rival([7, 8], TopK(np.array([[8, 9]]), np.array([values]), first=1))


def test_a_token_that_is_there_twice_is_refused():
    """Which of the two would it be?"""
    with pytest.raises(RowError, match="twice"):
        own_and_rival([7, 8], TopK(np.array([[8, 8]]), np.array([[-1.0, -2.0]]), first=1))


@pytest.mark.parametrize(("shift", "side"), [(0, "before"), (2, "behind")])
def test_entries_about_other_tokens_are_refused(shift, side):
    """One place off, scores would be noise and nothing would look risky."""
    ids = np.arange(100)
    entries = top([{i + shift: 0.5, 999: 0.25} for i in range(99)])

    with pytest.raises(RowError, match=f"of the tokens {side} them"):
        own_and_rival(ids.tolist(), entries)


def told(captured, n_tokens, answers=None, codec=None):
    """Return which token each entry with something in it is about."""
    found = CapturedRow(captured, n_tokens, answers, codec).entries()
    has = np.flatnonzero(np.isfinite(found.logprobs).any(axis=1))
    return (has + found.first).tolist()


def prepared(mask):
    """Return axolotl's columns with that mask."""
    mask = np.array(mask)
    return {
        "target_logprobs": np.where(mask, -0.5, -1e9).tolist(),
        "target_token_ids": np.zeros_like(mask).tolist(),
        "target_mask": mask.tolist(),
    }


def test_prepared_entries_are_about_the_next_token():
    """As axolotl's README says: masked where labels[j + 1] is -100, the last one always."""
    assert told(prepared([[0], [1], [1], [0]]), 4, [(2, 4)]) == [2, 3]
    assert told(prepared([[1], [1], [1], [0]]), 4) == [1, 2, 3]


def test_entries_that_an_old_axolotl_prepared_are_about_their_own():
    """The mask tells: it hides what has no label."""
    assert told(prepared([[0], [0], [1], [1]]), 4, [(2, 4)]) == [2, 3]
    assert told(prepared([[0], [0], [1], [0]]), 4, [(2, 3)]) == [2]
    assert told(prepared([[0], [1], [1], [1]]), 4) == [1, 2, 3]


def test_a_mask_that_goes_with_no_labels_is_refused():
    """Neither way."""
    with pytest.raises(RowError, match="mask does not go with the labels"):
        told(prepared([[1], [1], [1], [1]]), 4, [(2, 4)])


@pytest.mark.parametrize("n_tokens", [3, 4])
def test_plain_entries_are_about_the_next_token(n_tokens):
    """DistillKit leaves out the first token, of which nothing is known; packed rows are cut to that."""
    captured = {"token_ids": [[1], [2], [3]], "top_values": [[-1.0], [-1.0], [-1.0]]}

    assert told(captured, n_tokens) == [1, 2, 3]


@pytest.mark.parametrize("n_tokens", [2, 5])
def test_another_number_of_entries_is_refused(n_tokens):
    """Then nobody knows what is about what."""
    captured = {"token_ids": [[1], [2], [3]], "top_values": [[-1.0], [-1.0], [-1.0]]}

    with pytest.raises(RowError, match=f"3 entries for {n_tokens} tokens"):
        told(captured, n_tokens)


def test_the_last_entry_of_a_column_of_its_own_is_about_the_last_token():
    """What vLLM told of an answer, or of all: without a prompt there are fewer entries than tokens."""
    entry = [{"token": "token_id:7", "logprob": -0.5}]

    assert told({"logprobs": [None, entry, entry]}, 3) == [1, 2]
    assert told({"logprobs": [entry, entry]}, 5) == [3, 4]
    assert told({"logprobs": [entry] * 4}, 3) == [0, 1, 2, 3]  # cut at the end
    assert told({"logprobs": [[], [-0.5]], "target_token_ids": [[], [7]]}, 4) == [3]


@pytest.mark.parametrize(
    ("captured", "message"),
    [
        ({"logprobs": "text"}, "expected a list of entries"),
        ({"logprobs": [[{"token": "the", "logprob": -1.0}]]}, "'token': 'token_id:7'"),
        ({"logprobs": [[{"token": "token_id:7"}]]}, "'token': 'token_id:7'"),
        ({"logprobs": [[-0.5]], "target_token_ids": [[7, 8]]}, "not of the same lengths"),
        ({"logprobs": [["x"]], "target_token_ids": [[7]]}, "else than lists of numbers"),
        ({"logprobs": [[-0.5]], "target_token_ids": [[None]]}, "not a number"),
        ({"logprobs": None, "target_token_ids": [[7]]}, "is null, expected a list of entries"),
        (
            {"logprobs": [[-0.5], [-1, -2]], "target_token_ids": [[7], [8, 7.5]]},
            r"7\.5 at \[1\]\[1\] of 'target_token_ids' is no whole number",
        ),
    ],
)
def test_other_content_is_refused(captured, message):
    """Without a word of it."""
    with pytest.raises(RowError, match=message):
        CapturedRow(captured, 3, None).entries()


CONFIGS = {
    "recommended": {},
    "exact": {"exact_k": 24, "exact_dtype": "float32", "polynomial_terms": None},
    "deltas": {"exact_dtype": "float32", "delta_encoding": True, "polynomial_terms": [0, 1, 2]},
    "bins": {
        "residual_bins": [
            {"scale_dtype": "float16", "element_bits": 8, "num_elements": 3},
            {"scale_dtype": "float32", "element_bits": 1, "num_elements": 4},
        ]
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_compressed_entries_come_back(name, tmp_path):
    """Exact values to their format; the others as near as the curve is."""
    rng = np.random.default_rng(0)
    logprobs = torch.tensor(rng.normal(0, 3, (40, 1000))).log_softmax(dim=1)
    values, ids = logprobs.topk(24)
    config = CONFIG | {"d": 1000, "k": 24, "exact_k": 8} | CONFIGS[name]
    (tmp_path / "compression_config.yaml").write_text(json.dumps(config))

    codec = find_codec(str(tmp_path / "data_0.parquet"))
    found = codec.logprobs(compress(values.numpy(), config))

    np.testing.assert_array_equal(codec.ids(pack(ids.numpy(), 10)), ids.numpy())
    n = config["exact_k"]
    atol = 1e-5 if config["exact_dtype"] == "float32" else 0.05
    np.testing.assert_allclose(found[:, :n], values[:, :n], atol=atol)
    np.testing.assert_allclose(found, values, atol=0.4)


def test_numbers_are_packed_as_documented():
    """The highest bit first, and bytes as this machine writes them."""
    codec = Codec(
        d=8,
        k=3,
        exact_k=1,
        residual_bins=(),
        exact_dtype="bfloat16",
        polynomial_terms=(0, 1),
        delta_encoding=False,
    )
    packed = np.concatenate(
        [as_bytes(torch.tensor([[-1.5]]), "bfloat16"), as_bytes(torch.tensor([[-2.0, -0.5]]), "float32")],
        axis=1,
    )  # fmt: skip

    np.testing.assert_array_equal(codec.logprobs(packed), [[-1.5, -2.0, -2.5]])
    np.testing.assert_array_equal(
        codec.ids(np.array([[0b10100111, 0b10000000]], np.uint8)), [[5, 1, 7]]
    )


def test_bytes_of_another_configuration_are_refused():
    """Decoded by the wrong one they would be numbers as well."""
    codec = Codec(d=8, k=3, exact_k=3, residual_bins=())
    captured = {"compressed_logprobs": [[1] * 13] * 3, "bytepacked_indices": [[1, 2]] * 3}

    with pytest.raises(RowError, match="there must be 12"):
        CapturedRow(captured, 4, None, codec).entries()


@pytest.mark.parametrize("terms", [None, (0, 1)])
def test_a_row_of_one_token_has_no_packed_entries(terms):
    """Nobody predicts its token; of what width entries would have been, nothing is there to say."""
    codec = Codec(d=8, k=3, exact_k=1, residual_bins=(), polynomial_terms=terms)
    captured = {"compressed_logprobs": [], "bytepacked_indices": []}

    found = CapturedRow(captured, 1, None, codec).entries()

    assert found.ids.shape == found.logprobs.shape == (0, 3)
    assert np.isnan(own_and_rival([7], found)).all()


@pytest.mark.parametrize("number", [7.5, 256, -1, None])
@pytest.mark.parametrize("column", ["compressed_logprobs", "bytepacked_indices"])
def test_numbers_that_are_no_bytes_are_refused(column, number):
    """A cast would make a byte of each, and other probabilities of that."""
    codec = Codec(d=8, k=3, exact_k=3, residual_bins=())
    captured = {"compressed_logprobs": [[1] * 12] * 3, "bytepacked_indices": [[1, 2]] * 3}
    captured[column] = [*captured[column][:2], [*captured[column][2][:-1], number]]

    with pytest.raises(RowError, match=rf"at \[2\]\[\d+\] of '{column}' is no byte"):
        CapturedRow(captured, 4, None, codec).entries()


@pytest.mark.parametrize(
    "content", [None, "[", "k: 3", "d: 9\nk: 3\nexact_k: 4\nresidual_bins: []"]
)
def test_without_its_configuration_nothing_is_unpacked(tmp_path, content):
    """It must be there, and be one."""
    if content is not None:
        (tmp_path / "compression_config.yaml").write_text(content)

    with pytest.raises(CorpusError, match=r"compression_config\.yaml"):
        find_codec(str(tmp_path))
