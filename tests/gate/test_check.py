"""The gate as a function: what it counts, what it knows again, what it promises."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from support.fake_run import ByteWiseEngine
from support.fakes import make_classifier
from support.gated import RECITED, TEXTS, make_run, shipped

from memaudit.errors import OutputError, UsageError
from memaudit.gate.check import GateInputs, check_gate
from memaudit.gate.identity import read_baseline, read_key, window_hashes, write_baseline
from memaudit.gate.policy import EffectivePolicy, GatePolicy
from memaudit.runs.run import read_run


@pytest.fixture(autouse=True)
def ships_the_fake_classifier(monkeypatch, tmp_path):
    """Probabilities may be those of the fakes."""
    shipped(monkeypatch, tmp_path / "shipped")


@pytest.fixture
def run(tmp_path):
    """A finished run."""
    return read_run(make_run(tmp_path)[1])


def check(run, policy=None, **inputs):
    """Hold a run to a policy, by default one that asks everything and allows all."""
    policy = policy or GatePolicy(max_rate=1.0, max_expected=1e6, max_recited=100)
    return check_gate(run, EffectivePolicy(policy, None, None), GateInputs(**inputs))


def test_each_distinct_example_is_one_finding(run):
    """A text that occurs a thousand times must not fill the list."""
    found = check(run)

    (finding,) = found.findings
    assert (finding.row, finding.rows, finding.level) == (18, 2, "recited")
    assert found.n_findings == 1
    assert found.counts["flagged"] == found.counts["recited"] == 2


def test_one_example_is_told_as_one(tmp_path):
    """A rule that fails for a single row is read closely."""
    found = check(read_run(make_run(tmp_path, [*TEXTS[:-3], *TEXTS[-2:]])[1]))

    told = [rule.message for rule in found.rules]
    assert "1 example of 19 scored is flagged" in told[0]
    assert "the teacher recites 1 example, at most 100 allowed" in told[2]
    assert told[3].startswith("0 rows could not be used")


def test_numbers_are_those_of_the_prediction(run):
    """The gate must not disagree with the summary about the same run."""
    summary = json.loads((run.folder / "summary.json").read_text())

    found = check(run, GatePolicy(max_expected=0.0, expected_bound="mean"))

    (expected, _) = found.rules
    assert expected.observed == pytest.approx(summary["expected_memorized"], abs=1e-12)
    assert found.guarantee.upper == summary["expected_memorized_interval"][1]
    assert found.counts["flagged"] == summary["flagged"]


@pytest.mark.parametrize(
    ("rule", "kept", "broken"),
    [
        ("MEM003", GatePolicy(max_recited=100), GatePolicy(max_recited=0)),
        (
            "MEM002",
            GatePolicy(max_expected=1e6, expected_bound="mean"),
            GatePolicy(max_expected=0.0, expected_bound="mean"),
        ),
    ],
)
def test_what_the_teacher_was_not_asked_passes_no_rule_about_it(run, rule, kept, broken):
    """A cascade spares it windows that it may well recite, and leaves them out of the count."""
    screened = replace(run, n_screened_windows=3)
    asked = [
        {found.id: found for found in check(each, policy).rules}[rule]
        for each, policy in ((run, kept), (screened, kept), (screened, broken))
    ]

    assert [found.status for found in asked] == ["pass", "inconclusive", "fail"]
    assert "3 distinct windows were screened out" in asked[1].message


def test_the_document_is_json_with_every_rule(run):
    """A pipeline reads it, so it must not hold what JSON has no word for."""
    document = json.loads(json.dumps(check(run).document(), allow_nan=False))

    assert [rule["id"] for rule in document["rules"]] == ["MEM001", "MEM002", "MEM003", "MEM005"]
    assert (document["verdict"], document["exit_code"]) == ("pass", 0)
    assert document["findings"][0]["id"] == "row-18"
    assert RECITED not in json.dumps(document)


def test_a_statement_names_what_it_is_about(run):
    """A release job compares digests, not words."""
    found = check(run)

    statement = found.statement()

    assert statement["subject"][0]["digest"]["sha256"] == run.manifest.inputs.texts_digest
    assert statement["predicate"]["digests"]["classifier"] == make_classifier().digest
    assert statement["predicate"]["verdict"] == "pass"


def test_a_baseline_file_knows_what_its_run_knew(run, tmp_path):
    """A project that starts with findings can stop new ones today."""
    key = read_key(tmp_path / "key", create=True)
    write_baseline(tmp_path / "base.json", run, key)

    found = check(run, baseline=tmp_path / "base.json", key=key)

    assert found.counts["counted"] == 0
    assert found.n_findings == 0
    text = (tmp_path / "base.json").read_text()
    assert "row-" not in text
    assert RECITED not in text


def test_a_baseline_needs_its_key(run, tmp_path):
    """Hashes of short texts that anybody could make are as good as the texts."""
    write_baseline(tmp_path / "base.json", run, b"a" * 32)

    with pytest.raises(UsageError, match="another key"):
        read_baseline(tmp_path / "base.json", b"b" * 32)


def test_a_baseline_that_was_changed_is_refused(run, tmp_path):
    """A hash from a published SARIF file, put into it, would make a finding known."""
    key, path = b"a" * 32, tmp_path / "base.json"
    write_baseline(path, run, key)
    document = json.loads(path.read_text())
    read_baseline(path, key)
    for change in (
        {"known": [{**document["known"][0], "ab" * 16: 1}, document["known"][1]]},
        {"known": [dict.fromkeys(document["known"][0], 99), document["known"][1]]},
        {"run": "0" * 64}, {"mac": ""}, {"mac": "0" * 64}, {"format": 1}, {"format": 3},
    ):  # fmt: skip
        path.write_text(json.dumps(document | change))

        with pytest.raises(UsageError):
            read_baseline(path, key)


def test_a_baseline_of_before_is_read_if_its_digest_is_pinned(run, tmp_path):
    """It has no keyed digest, and the policy vouches for it instead."""
    key, path = b"a" * 32, tmp_path / "base.json"
    write_baseline(path, run, key)
    document = json.loads(path.read_text()) | {"format": 1}
    del document["mac"]
    path.write_text(json.dumps(document))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    with pytest.raises(UsageError, match=r"memaudit 0\.1"):
        check(run, baseline=path, key=key)
    policy = GatePolicy(max_rate=1.0, baseline_digest=digest)

    assert check(run, policy, baseline=path, key=key).counts["counted"] == 0


def test_a_key_is_private_and_stays(tmp_path):
    """Fingerprints that changed from run to run would be new alerts each time."""
    first = read_key(tmp_path / "key", create=True)

    assert read_key(tmp_path / "key", create=True) == first
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert len(set(first)) > 1


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64, b"0" * 63, b"0" * 66])
def test_a_broken_key_is_refused(tmp_path, content):
    """An empty key would make hashes that anybody can make."""
    (tmp_path / "key").write_bytes(content)

    with pytest.raises(UsageError, match="a key of 32 bytes"):
        read_key(tmp_path / "key", create=True)


def test_a_missing_baseline_file_is_an_error(tmp_path):
    """What is not there knows nothing, and a typo must not say otherwise."""
    with pytest.raises(OutputError):
        read_baseline(tmp_path / "gone.json", b"a" * 32)


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1}', "{" * 10_000, '{"format":1,"key":"","run":"","known":[{"a":0},{}]}'])  # fmt: skip
def test_a_broken_baseline_is_refused(tmp_path, content):
    """It is a file from another machine."""
    (tmp_path / "base.json").write_text(content)

    with pytest.raises(UsageError):
        read_baseline(tmp_path / "base.json", b"a" * 32)


def test_rounding_does_not_make_an_example_new(run):
    """Another batch gives other last bits, and the example is still the same one."""
    risks = run.risks
    before = window_hashes(risks, range(len(risks.X)), b"k" * 32)
    rng, n_lost = np.random.default_rng(0), 0
    for _ in range(200):
        noisy = risks.X.copy()
        for name in ("teacher_suffix_logprob", "teacher_entropy", "teacher_prefix_mean_logprob"):
            column = risks.feature_names.index(name)
            noisy[:, column] += rng.normal(0, 1e-4, len(noisy))
        jittered = risks.__class__(
            risks.classifier,
            risks.feature_names,
            noisy,
            risks.window_probabilities,
            risks.worst_windows,
        )
        after = window_hashes(jittered, range(len(noisy)), b"k" * 32)
        n_lost += sum(
            before[0][i] != after[0][i] and before[1][i] != after[1][i] for i in range(len(noisy))
        )

    assert n_lost == 0


def test_another_text_in_the_same_place_is_new(tmp_path):
    """Overwriting a known row with a secret must not hide it."""
    changed = [*TEXTS[:3], "my own secret: 1234", *TEXTS[4:]]
    _, before = make_run(tmp_path, name="before", engine=ByteWiseEngine())
    _, after = make_run(tmp_path, changed, name="after", engine=ByteWiseEngine())

    found = check(read_run(after), baseline=before)

    assert found.counts["counted"] == 1


def test_windows_of_a_run_have_hashes_of_their_own(run):
    """Two examples under one hash would hide one behind the other."""
    first, second = window_hashes(run.risks, range(len(run.risks.X)), b"k" * 32)

    assert not set(first) & set(second)
    distinct = len({tuple(row) for row in run.risks.X.tolist()})
    assert len(set(first)) == distinct


@pytest.mark.parametrize(
    ("card", "reason"),
    [({"positives": 28}, "28 memorized examples"), ({"runs": 9}, "9 calibration runs")],
)
def test_a_promise_needs_data_behind_it(run, monkeypatch, tmp_path, card, reason):
    """A bound from a handful of examples would be a number without a meaning."""
    assert check(run).guarantee.status == "holds"
    shipped(monkeypatch, tmp_path / "few", **card)

    guarantee = check(run).guarantee

    assert guarantee.status == "underpowered"
    assert reason in guarantee.reasons[0]


def test_a_promise_is_for_rows_like_those_of_the_training(run, monkeypatch, tmp_path):
    """A classifier says nothing about what it has never seen."""
    assert run.risks.out_of_range == dict.fromkeys(run.manifest.classifier.features, 0.0)
    monkeypatch.setitem(vars(run.risks), "out_of_range", {"log_occurrences": 0.06})

    (reason,) = check(run).guarantee.reasons

    assert reason.startswith("6% of the scored rows are unlike")
