"""Policies: read strictly, and pinned so that a change to a project cannot weaken them."""

import hashlib

import pytest

from memaudit.errors import UsageError
from memaudit.gate.policy import GatePolicy, effective_policy, policy_text


def write_policy(folder, text, name="memaudit.toml"):
    """Write a policy; return its path and digest."""
    path = folder / name
    path.write_text(text)
    return path, hashlib.sha256(text.encode()).hexdigest()


STRICT = "[gate]\nmax-rate = 0.01\nmax-recited = 0\n"


def test_every_key_is_read(tmp_path):
    """A key that is read and not used would be a hole in the fence."""
    text = """[gate]
max-rate = 0.01
max-expected = 3
max-recited = 1
max-verified = 2
expected-bound = "mean"
max-bad-rows = 4
inconclusive = "pass"
allow-custom-classifier = true
classifier-digest = "aa"
baseline-digest = "bb"
"""
    path, digest = write_policy(tmp_path, text)

    found = effective_policy(path, {})

    assert found.policy == GatePolicy(
        max_rate=0.01,
        max_expected=3.0,
        max_recited=1,
        max_verified=2,
        expected_bound="mean",
        max_bad_rows=4,
        inconclusive="pass",
        allow_custom_classifier=True,
        classifier_digest="aa",
        baseline_digest="bb",
    )
    assert found.digest == digest
    assert not found.is_pinned


def test_its_own_file_comes_before_pyproject(tmp_path):
    """One place decides, and the report says which."""
    write_policy(tmp_path, "[tool.memaudit.gate]\nmax-rate = 0.5\n", "pyproject.toml")
    assert effective_policy(None, {}, folder=tmp_path).policy.max_rate == 0.5

    write_policy(tmp_path, STRICT)
    found = effective_policy(None, {}, folder=tmp_path)

    assert (found.policy.max_rate, found.policy.max_recited) == (0.01, 0)
    assert found.source.endswith("memaudit.toml")


def test_a_pyproject_of_others_is_left_alone(tmp_path):
    """Most projects have one, and most of them say nothing of memaudit."""
    write_policy(tmp_path, '[project]\nname = "x"\n[tool.ruff]\nline = 1\n', "pyproject.toml")

    assert effective_policy(None, {"max_rate": 0.1}, folder=tmp_path).source is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gate]\nmax_rate = 0.1\n", "did you mean 'max-rate'"),
        ("[gate]\nexit-zero = true\n", "keys: max-rate"),
        ("[gate]\nmax-rate = 2\n", r"in \[0, 1\]"),
        ("[gate]\nmax-recited = -1\n", "at least 0"),
        ("[gate]\nmax-recited = 0.5\n", "int"),
        ('[gate]\nmax-rate = "0.1"\n', "float"),
        ("[gate]\nmax-expected = inf\n", "at least 0"),
        ('[gate]\ninconclusive = "maybe"\n', "maybe"),
        ("gate = 1\n", "to be a section"),
        ("max-rate = 0.1\n", "unknown key"),
        ("[tool]\nmemaudit = 3\n", "to be a section"),
        ("[tool.memaudit]\nexit_zero = true\n", "unknown key"),
        ("[tool.memaudit.gate]\nmax-rat = 1\n", "did you mean 'max-rate'"),
        ("", "has no section"),
        ("\ufeff[gate", "cannot be read"),
        ("x = " + "[" * 5000, "cannot be read"),
    ],
)
def test_what_is_not_understood_is_an_error(tmp_path, text, said):
    """A typo that turned a limit off would pass every release."""
    path, _ = write_policy(tmp_path, text)

    with pytest.raises(UsageError) as error:
        effective_policy(path, {})

    assert_said(error, said)


def assert_said(error, said):
    """Look at message and hint."""
    import re

    assert re.search(said, f"{error.value.message} {error.value.hint}")


WEAKER = [
    {"max_rate": 0.02},
    {"max_recited": 1},
    {"max_bad_rows": 1},
    {"inconclusive": "pass"},
    {"allow_custom_classifier": True},
    {"expected_bound": "mean"},
    {"classifier_digest": "aa"},
    {"baseline_digest": "bb"},
]


@pytest.mark.parametrize("flags", WEAKER)
def test_no_flag_weakens_a_pinned_policy(tmp_path, flags):
    """Whoever can edit the command must not be able to let a corpus through."""
    path, digest = write_policy(tmp_path, STRICT)
    assert effective_policy(path, flags).policy != effective_policy(path, {}).policy

    with pytest.raises(UsageError, match="would be weakened by"):
        effective_policy(path, flags, pinned_digest=digest)


@pytest.mark.parametrize(
    "flags", [{"max_rate": 0.0}, {"max_verified": 5}, {"max_rate": 0.01}, {"max_expected": 9.0}]
)
def test_a_flag_may_tighten_a_pinned_policy(tmp_path, flags):
    """Asking for more is no attack."""
    path, digest = write_policy(tmp_path, STRICT)

    assert effective_policy(path, flags, pinned_digest=f"sha256:{digest.upper()}").is_pinned


@pytest.mark.parametrize(
    "text",
    [
        STRICT.replace("0.01", "0.99"),
        STRICT + 'inconclusive = "pass"\n',
        STRICT + "allow-custom-classifier = true\n",
        STRICT.replace("max-recited = 0\n", ""),
        STRICT + " ",
    ],
)
def test_a_changed_policy_is_not_the_pinned_one(tmp_path, text):
    """A pull request that edits the limits must not pass by them."""
    path, digest = write_policy(tmp_path, STRICT)
    path.write_text(text)

    with pytest.raises(UsageError, match="not the pinned policy"):
        effective_policy(path, {}, pinned_digest=digest)


def test_another_file_does_not_take_the_place_of_the_pinned_one(tmp_path):
    """A pull request may add a memaudit.toml, which comes first where none is named."""
    _, digest = write_policy(tmp_path, "[tool.memaudit.gate]\nmax-rate = 0.01\n", "pyproject.toml")
    write_policy(tmp_path, "[gate]\nmax-rate = 1.0\n")

    with pytest.raises(UsageError, match="not the pinned policy"):
        effective_policy(None, {}, pinned_digest=digest, folder=tmp_path)


def test_a_pinned_policy_that_was_removed_is_missed(tmp_path):
    """Deleting the file must not leave the flags in charge."""
    with pytest.raises(UsageError, match="no policy file"):
        effective_policy(None, {"max_rate": 1.0}, pinned_digest="ab" * 32, folder=tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("min-scored-share = 1.5", "in \\[0, 1\\]"),
        ("max-out-of-range-share = -0.1", "at least 0"),
        ("min-looked-at-share = nan", "at least 0"),
        ("max-age = inf", "at least 0"),
        ("temperature = [1.0]", "length"),
        ("temperature = 'warm'", "expected"),
        ("windows = 'last'", "invalid"),
        ("data = 'optional'", "invalid"),
        ("signers = ['ab']", "64 hexadecimal"),
    ],
)
def test_what_must_have_been_scored_is_read_strictly(tmp_path, line, said):
    """A key that is misread asks for nothing."""
    path, _ = write_policy(tmp_path, f"[gate]\nmax-rate = 0.1\n{line}\n")

    with pytest.raises(UsageError, match=said):
        effective_policy(path, {})


def test_a_policy_that_was_written_is_read_back_the_same(tmp_path):
    """Whoever pins it pins what was meant."""
    policy = GatePolicy(
        max_rate=0.25, teacher_digest="a" * 64, text_column='a "b" \\ é', objective="soft",
        temperature=2.5, alpha=0.0, data="required", signers=("c" * 64,), min_scored_share=0.9,
    )  # fmt: skip
    path, _ = write_policy(tmp_path, policy_text(policy))

    assert effective_policy(path, {}).policy == policy
