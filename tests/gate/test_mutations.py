"""What a gate reads, changed at random: a message or a policy, and never anything else.

MEMAUDIT_TEST_MUTATIONS says how many; a thousand take a few seconds.
"""

import os

import numpy as np
import pytest
from support.gated import make_run, shipped

from memaudit.cli.main import run as run_command
from memaudit.errors import UsageError
from memaudit.gate.policy import GatePolicy, effective_policy, policy_text

N = int(os.environ.get("MEMAUDIT_TEST_MUTATIONS", "300"))
POLICY = policy_text(
    GatePolicy(
        max_rate=0.25, max_expected=10.0, max_recited=3, teacher_digest=("a" * 64, "b" * 64),
        text_column="text", layout="auto", windows="first", prefix_tokens=50, suffix_tokens=50,
        objective="soft", temperature=(1.0, 4.0), alpha=0.0, data="required", max_age=30.0,
        signers=("c" * 64,), min_scored_share=0.9, min_looked_at_share=0.5,
    )
).encode()  # fmt: skip
PIECES = (
    b"[", b"]", b"{", b"}", b"=", b'"', b"'", b"\n", b"\x00", b"\xff", b"nan", b"inf", b"-1", b"1e999",
    b"true", b"[[gate]]", b"[gate.gate]", b"2026-01-01", b"9" * 5000, b"[" * 2000, b"a.b.c=1\n", b"\\u0000",
    "é".encode(), b"max-rate", b"#", b",", b"0x10", b"1_000", b'"""',
)  # fmt: skip


def mutated(content, rng):
    """Return content with some bytes changed, cut, doubled or put in."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(0, len(changed) + 1))
        match int(rng.integers(4)):
            case 0 if place < len(changed):
                changed[place] ^= 1 << int(rng.integers(8))
            case 1:
                del changed[place : place + int(rng.integers(1, 40))]
            case 2:
                changed[place:place] = PIECES[int(rng.integers(len(PIECES)))]
            case _:
                changed[place:place] = changed[place : place + int(rng.integers(1, 40))]
    return bytes(changed)


def test_a_mutated_policy_is_a_policy_or_an_error(tmp_path):
    """It comes from a pull request."""
    rng, path = np.random.default_rng(0), tmp_path / "memaudit.toml"
    messages = []
    for _ in range(N):
        path.write_bytes(mutated(POLICY, rng))
        try:
            effective_policy(path, {})
        except UsageError as error:
            messages.append(error.message + (error.hint or ""))

    assert 0 < len(messages) < N
    assert not [message for message in messages if "\x1b" in message]


@pytest.mark.parametrize("name", ["run/manifest.json", "base.json", "run/summary.json"])
def test_a_mutated_file_never_passes_unless_it_says_the_same(name, tmp_path, monkeypatch, capsys):
    """Exit codes 0 and 1 are verdicts: nothing that was damaged may end with one by accident."""
    shipped(monkeypatch, tmp_path / "shipped")
    make_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    gate = ["gate", "--run", "run", "--max-rate", "1", "--key-file", "key"]
    (tmp_path / "key").write_text("ab" * 32)
    assert run_command([*gate, "--write-baseline", "base.json"]) == 0
    path, rng = tmp_path / name, np.random.default_rng(1)
    content = path.read_bytes()
    for _ in range(max(30, N // 30)):
        path.write_bytes(mutated(content, rng))

        code = run_command([*gate, "--baseline", "base.json"])

        # The summary is read for its date alone; white space in JSON says nothing.
        assert code in ((0, 2) if name != "run/summary.json" else (0,))
        assert "Traceback" not in capsys.readouterr().err
