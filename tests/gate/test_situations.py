"""The gate in many situations, through the command: policy by state of the run."""

import os
import shutil
import time

import pytest
from support.fake_run import fake_audit
from support.fakes import make_classifier
from support.finished_runs import write_jsonl
from support.gated import RECITED, TEXTS, verify_run
from support.situations import edit_scores, flip, key

from memaudit.cli.main import run as run_command
from memaudit.objectives import Objective
from memaudit.runs.manifest import Shard
from memaudit.windows import WindowShape


def loosen_run(situation):
    """Edit what a run says of itself, and leave its digests as they were."""
    situation.damage("manifest.json", lambda text: text.replace(b'"rows": 21', b'"rows": 20'))


def move_chunk_from_another_run(situation):
    """Whole and sealed, and of something else."""
    situation.again([f"{i:04} of another corpus" for i in range(21)])
    shutil.copy(situation.folder / "other/chunks/00000.parquet", situation.run / "chunks")


def custom(situation):
    """Make a run with a classifier of one's own."""
    classifier = make_classifier().__class__(**{**_fields(make_classifier()), "threshold": 0.4})
    situation.again(name="custom", classifier=classifier)
    return classifier


def _fields(struct):
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def foreign_name(situation):
    """A classifier that calls itself like a shipped one."""
    custom(situation)


def allow_by_digest(situation):
    """Pin that classifier."""
    digest = custom(situation).digest
    situation.write("memaudit.toml", f'[gate]\nmax-rate = 1.0\nclassifier-digest = "{digest}"\n')


def sampled(situation):
    """Verify a part of the corpus."""
    situation.verified(["row-1"], sample=5)


OK = ["--max-rate", "0.2"]
V = ["--verification", "verified"]
D = ["--data", "run.jsonl"]

CASES = {
    # name: (preparation, arguments, exit code, what is said)
    "rate below": (None, ["--max-rate", "0.1"], 0, "2 examples of 20 scored are flagged"),
    "rate above": (None, ["--max-rate", "0.09"], 1, "The gate fails: 1 of 2 rules"),
    "rate zero": (None, ["--max-rate", "0"], 1, "at most 0.000% allowed"),
    "expected below": (None, ["--max-expected", "20"], 0, "the upper end of the 95%"),
    "expected above by the bound": (None, ["--max-expected", "2.5"], 1, "compared: the upper"),
    "expected above by the mean": (None, ["--max-expected", "1"], 1, "compared: the mean"),
    "expected by the mean": (
        lambda s: s.write("memaudit.toml", '[gate]\nexpected-bound = "mean"\n'),
        ["--max-expected", "2.5"], 0, "2.1 examples",
    ),
    "too few positives in calibration": (
        lambda s: s.card(positives=28), ["--max-expected", "20"], 2, "at least 29 are needed"),
    "too few calibration runs": (
        lambda s: s.card(runs=9), ["--max-expected", "20"], 2, "at least 10 are needed"),
    "underpowered, and the mean is above": (
        lambda s: s.card(runs=9), ["--max-expected", "1"], 1, "The gate fails"),
    "underpowered, and that may pass": (
        lambda s: s.card(runs=9), ["--max-expected", "20", "--inconclusive", "pass"], 0,
        "inconclusive"),
    "recited below": (None, ["--max-recited", "2"], 0, "the teacher recites 2 examples"),
    "recited above": (None, ["--max-recited", "1"], 1, "at most 1 allowed"),
    "verified without evidence": (None, ["--max-verified", "0"], 2, "no verification was given"),
    "verified without evidence may pass": (
        None, ["--max-verified", "0", "--inconclusive", "pass"], 0, "no verification was given"),
    "a finding and a rule without evidence": (
        None, ["--max-rate", "0", "--max-verified", "0"], 2, "cannot be decided"),
    "a finding, and what has no evidence may pass": (
        None, ["--max-rate", "0", "--max-verified", "0", "--inconclusive", "pass"], 1, "fails"),
    "verified below": (
        lambda s: s.verified(["row-3"]), [*V, "--max-verified", "1"], 0,
        "recites 1 of 20 examples"),
    "verified above": (
        lambda s: s.verified(["row-3", "row-18"]), [*V, "--max-verified", "1"], 1, "verified"),
    "only a sample was verified": (
        sampled, [*V, "--max-verified", "5"], 2, "only a sample was trained on"),
    "a sample is enough to fail": (sampled, [*V, "--max-verified", "0"], 1, "MEM004"),
    "verification of another teacher": (
        lambda s: s.verified([], teacher_digest="f" * 64), [*V, "--max-verified", "0"], 2,
        "they differ in teacher digest"),
    "verification of another objective": (
        lambda s: s.verified([], temperature=1.0), [*V, "--max-verified", "0"], 2,
        "they differ in temperature"),
    "verification of another corpus": (
        lambda s: (s.again(TEXTS[:-1]), verify_run(s.folder / "other", s.folder / "verified", [])),
        [*V, "--max-verified", "0"], 2, "of another corpus"),
    "verification of other texts in the same places": (
        lambda s: (
            s.again([*TEXTS[:1], *TEXTS[:1], *TEXTS[2:]]),
            verify_run(s.folder / "other", s.folder / "verified", []),
        ),
        [*V, "--max-verified", "0"], 2, "of another corpus"),
    "verification that was edited": (
        lambda s: (
            s.verified(["row-3"]),
            s.write("verified/verification.json",
                    (s.folder / "verified/verification.json").read_text().replace(
                        '"labels_digest": "', '"labels_digest": "0')),
        ),
        [*V, "--max-verified", "0"], 2, "do not belong together"),
    "no verification in the folder": (
        None, ["--verification", "run", "--max-verified", "0"], 2, "missing or damaged"),
    "a bad row": (
        lambda s: s.again([*TEXTS, None]), ["--run", "other", *OK], 2,
        "1 row could not be used, at most 0 allowed"),
    "a bad row that is allowed": (
        lambda s: s.again([*TEXTS, None]), ["--run", "other", *OK, "--max-bad-rows", "1"], 0,
        "MEM005"),
    "no run": (None, ["--run", "nowhere", *OK], 2, "not the folder of a run"),
    "an empty folder": (
        lambda s: (s.folder / "empty").mkdir(), ["--run", "empty", *OK], 2, "no manifest.json"),
    "a chunk is missing": (
        lambda s: (s.run / "chunks/00001.parquet").unlink(), OK, 2, "chunks are not there"),
    "a shard": (
        lambda s: fake_audit(s.folder / "shard", shard=Shard(0, 3)), ["--run", "shard", *OK], 2,
        "only shard 0/3"),
    "a bit of a chunk has changed": (
        lambda s: s.damage("chunks/00000.parquet", flip), OK, 2, "damaged: 0"),
    "a bit of the rows has changed": (
        lambda s: s.damage("rows.parquet", flip), OK, 2, "missing or damaged"),
    "a chunk of another run": (move_chunk_from_another_run, OK, 2, "damaged: 0"),
    "an edited manifest": (loosen_run, OK, 2, "changed, damaged"),
    "an edited risk table": (
        lambda s: s.damage("risk.parquet", flip), ["--max-rate", "0"], 1, "2 examples of 20"),
    "a foreign classifier": (
        foreign_name, ["--run", "custom", "--max-rate", "1"], 2, "does not come with memaudit"),
    "a foreign classifier that is allowed": (
        foreign_name, ["--run", "custom", "--max-rate", "1", "--allow-custom-classifier"], 0,
        "calibrated is not known here"),
    "a foreign classifier that is pinned": (
        allow_by_digest, ["--run", "custom"], 0, "The gate passes"),
    "another classifier than the pinned one": (allow_by_digest, [], 2, "the policy pins"),
    "scores that are no numbers": (
        lambda s: break_scores(s), OK, 2, "not a finite number"),
    "the corpus as it was": (None, ["--data", "run.jsonl", *OK], 0, "The gate passes"),
    "a corpus with another text": (
        lambda s: write_jsonl(s.corpus, [*TEXTS[:-1], "shore"]), ["--data", "run.jsonl", *OK], 2,
        "a text was changed"),
    "a corpus with one more row": (
        lambda s: write_jsonl(s.corpus, [*TEXTS, "more"]), ["--data", "run.jsonl", *OK], 2,
        "row 22 is another one"),
    "a corpus with rows in another order": (
        lambda s: write_jsonl(s.corpus, [*TEXTS[::-1]]), ["--data", "run.jsonl", *OK], 2,
        "a text was changed"),
    "no limit": (None, [], 2, "no limit is set"),
    "a rate that is none": (None, ["--max-rate", "nan"], 2, "nan"),
    "an unknown key": (
        lambda s: s.write("memaudit.toml", "[gate]\nmax-rat = 0.1\n"), [], 2,
        "did you mean 'max-rate'"),
    "an unknown section": (
        lambda s: s.write("memaudit.toml", "[gatte]\nmax-rate = 0.1\n"), [], 2,
        "did you mean 'gate'"),
    "a key of the wrong type": (
        lambda s: s.write("memaudit.toml", "[gate]\nmax-recited = true\n"), [], 2, "int"),
    "a limit that is no number": (
        lambda s: s.write("memaudit.toml", "[gate]\nmax-expected = nan\n"), [], 2, "at least 0"),
    "a policy that is no toml": (
        lambda s: s.write("memaudit.toml", "[gate\n"), [], 2, "cannot be read as a policy"),
    "a policy file that is missing": (
        None, ["--policy", "gone.toml", *OK], 2, "cannot be read as a policy"),
    "a policy in pyproject.toml": (
        lambda s: s.write("pyproject.toml", "[tool.memaudit.gate]\nmax-rate = 0.05\n"), [], 1,
        "policy from pyproject.toml"),
    "a flag over the policy": (
        lambda s: s.write("pyproject.toml", "[tool.memaudit.gate]\nmax-rate = 0.05\n"), OK, 0,
        "The gate passes"),
    "a baseline that knows it all": (
        None, ["--baseline", "run", "--max-rate", "0"], 0, "0 new examples"),
    "a baseline of a corpus without the finding": (
        lambda s: s.again(TEXTS[:-3]), ["--baseline", "other", "--max-rate", "0"], 1,
        "2 new examples of 20"),
    "one copy more than in the baseline": (
        lambda s: s.again([*TEXTS, RECITED]), ["--run", "other", "--baseline", "run",
                                               "--max-recited", "0"], 1,
        "recites 1 new example,"),
    "rows that have moved": (
        lambda s: s.again([*TEXTS[::-1]]), ["--run", "other", "--baseline", "run",
                                            "--max-rate", "0"], 0,
        "0 new examples"),
    "the policy that was written for the run": (
        lambda s: s.pin(), [*D], 0, "The gate passes"),
    "the policy asks for the corpus": (lambda s: s.pin(), [], 2, "the corpus must be given"),
    "another teacher than the policy's": (
        lambda s: s.pin(models={"teacher_digest": "1" * 64}), [*D, "--run", "other"], 2,
        "teacher digest is 1111"),
    "a harmless temperature": (
        lambda s: s.pin(objective=Objective("soft", 1000.0)), [*D, "--run", "other"], 2,
        "temperature is 1000, not 2.0"),
    "other windows than the policy's": (
        lambda s: s.pin(shape=WindowShape(2, 6)), [*D, "--run", "other"], 2, "prefix tokens is 2"),
    "tiled windows": (
        lambda s: s.pin(windows="tile"), [*D, "--run", "other"], 2, "windows is tile, not first"),
    "a harmless column": (
        lambda s: s.write("memaudit.toml", '[gate]\nmax-rate = 1.0\ntext-column = "body"\n'), [], 2,
        "text column is text, not body"),
    "one of several teachers": (
        lambda s: s.write("memaudit.toml", '[gate]\nmax-rate = 1.0\nteacher-digest = ["a", "'
                          + "0" * 64 + '"]\ntemperature = [1.0, 2.0]\n'), [], 0, "passes"),
    "a temperature beyond the range": (
        lambda s: s.write("memaudit.toml", "[gate]\nmax-rate = 1.0\ntemperature = [3, 4]\n"), [], 2,
        "temperature is 2, not 3.0 or 4.0"),
    "most rows are too short": (
        lambda s: s.again([*TEXTS, *["short"] * 60]),
        ["--run", "other", "--policy", "share.toml"], 2,
        "20 of 81 rows were scored (24.7%), at least 90.0% required"),
    "enough rows were scored": (None, ["--policy", "share.toml"], 0, "MEM008"),
    "nobody counted what was looked at": (
        lambda s: s.write("memaudit.toml", "[gate]\nmax-rate = 1.0\nmin-looked-at-share = 0.1\n"),
        [], 2, "does not say in how many rows"),
    "a run of today": (
        lambda s: s.write("memaudit.toml", "[gate]\nmax-rate = 1.0\nmax-age = 1\n"), [], 0,
        "made 0.0 days ago"),
    "a run that is too old": (
        lambda s: s.dated("2020-01-01T00:00:00+00:00"), ["--policy", "age.toml"], 2, "days ago"),
    "a run of tomorrow": (
        lambda s: s.dated("2999-01-01T00:00:00+00:00"), ["--policy", "age.toml"], 2, "days ago"),
    "a run without a date": (
        lambda s: s.dated("no date"), ["--policy", "age.toml"], 2, "nobody knows when"),
    "a corpus unlike the classifier's": (
        lambda s: s.unlike(0.6), OK, 2, "the prediction is a guess: 60% of the scored rows"),
    "a corpus unlike the classifier's, and a finding": (
        lambda s: s.unlike(0.6), ["--max-rate", "0", "--inconclusive", "pass"], 1, "fails"),
    "a corpus a little unlike the classifier's": (lambda s: s.unlike(0.5), OK, 0, "50% of them"),
    "a signed run": (
        lambda s: s.sign("a"), ["--verify-key", key("a"), *OK], 0, f"signed by {key('a')[:12]}"),
    "a signed run, and nobody asks who signed": (
        lambda s: s.sign("a"), OK, 0, "no signature was verified"),
    "a run that nobody signed": (None, ["--verify-key", key("a"), *OK], 2, "run: not signed"),
    "a run signed by somebody else": (
        lambda s: s.sign("b"), ["--verify-key", key("a"), *OK], 2, "not one that is allowed"),
    "a run signed by one of two": (
        lambda s: s.sign("b"), ["--verify-key", key("a"), "--verify-key", key("b"), *OK], 0, "passes"),
    "a policy that asks for a signer": (
        lambda s: (s.sign("a"), s.signers("a")), [], 0, "signed by"),
    "a policy that asks for a signer, and an unsigned run": (
        lambda s: s.signers("a"), [], 2, "run: not signed"),
    "a policy that asks for another signer": (
        lambda s: (s.sign("b"), s.signers("a")), ["--verify-key", key("b")], 2,
        "not one that is allowed"),
    "a policy that allows no signer": (
        lambda s: (s.sign("b"), s.signers()), ["--verify-key", key("b")], 2, "allowed"),
    "a signed run whose scores were edited and sealed again": (
        lambda s: (s.sign("a"), soften_scores(s)), ["--verify-key", key("a"), *OK], 2,
        "chunks/00000.parquet was changed"),
    "scores that were edited and sealed again, and nobody asks who signed": (
        lambda s: soften_scores(s), ["--max-recited", "0"], 1, "the teacher recites"),
    "a signed run whose risk table was edited": (
        lambda s: (s.sign("a"), s.damage("risk.parquet", flip)), ["--verify-key", key("a"), *OK], 2,
        "risk.parquet was changed"),
    "a signed run, and a verification that nobody signed": (
        lambda s: s.sign("a"), [*V, "--verify-key", key("a"), *OK], 2, "verified: not signed"),
    "a signed run, and a verification signed by somebody else": (
        lambda s: (s.sign("a"), s.verified([]), s.sign_verified("b")), [*V, "--verify-key", key("a"), *OK], 2,
        "verified: signed with the key"),
    "a signed run with a signed verification": (
        lambda s: (s.sign("a"), s.verified([]), s.sign_verified("a")),
        [*V, "--verify-key", key("a"), "--max-verified", "99"], 0, "The gate passes"),
    "a signed verification that was edited": (
        lambda s: (s.sign("a"), s.verified([]), s.sign_verified("a"), s.damage("../verified/verification.parquet", flip)),
        [*V, "--verify-key", key("a"), "--max-verified", "99"], 2,
        "verification.parquet was changed"),
    "no such key": (None, ["--verify-key", "gone.pem", *OK], 2, "gone.pem: cannot be read"),
    "a baseline that is none": (
        lambda s: s.write("base.json", "{}"), ["--baseline", "base.json", *OK], 2, "a key of 32"),
    "a baseline that is missing": (None, ["--baseline", "gone", *OK], 2, "no such baseline"),
}  # fmt: skip


def break_scores(situation):
    """Put NaN into a chunk and seal it as if it had been scored so."""
    edit_scores(situation, float("nan"))


def soften_scores(situation):
    """Forge a run: seal it again as if the teacher had known one window a little less well."""
    edit_scores(situation, 0.5)


@pytest.mark.parametrize("name", CASES)
def test_a_gate_ends_as_it_must(name, situation, capsys):
    """0 only if every rule is known to hold, 1 if only findings stand against it, else 2."""
    prepare, arguments, code, said = CASES[name]
    if prepare is not None:
        prepare(situation)
    situation.write("share.toml", "[gate]\nmax-rate = 1.0\nmin-scored-share = 0.9\n")
    arguments = arguments if "--run" in arguments else ["--run", "run", *arguments]

    found = run_command(["gate", *arguments])

    told = capsys.readouterr()
    text = " ".join((told.out + told.err).split())
    assert (found, said in text) == (code, True), text
    assert bool(told.err) == ("error:" in told.err)


def test_there_are_situations_enough():
    """The table is the contract of the gate."""
    assert len(CASES) >= 25
    assert {code for _, _, code, _ in CASES.values()} == {0, 1, 2}


@pytest.mark.parametrize("name", ["memaudit.toml", "run/manifest.json", "run/rows.parquet",
                                  "run/chunks/00000.parquet", "key", "base.json"])  # fmt: skip
@pytest.mark.parametrize("kind", ["pipe", "endless", "blank lines", "folder"])
def test_nothing_that_a_gate_reads_keeps_it_waiting(name, kind, situation, capsys):
    """A pipe, an endless device and a huge file in the place of a file end with a message."""
    situation.write("memaudit.toml", "[gate]\nmax-rate = 1.0\n")
    key = situation.folder / "key"
    key.write_text("ab" * 32)
    command = ["gate", "--run", "run", "--policy", "memaudit.toml", "--key-file", "key"]
    assert run_command([*command, "--write-baseline", "base.json"]) == 0
    path = situation.folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as stream:  # a hole of zeros would be read in no time
            stream.writelines([b"\n" * 1_000_000] * 20)
    capsys.readouterr()

    started = time.monotonic()
    assert run_command([*command, "--baseline", "base.json"]) == 2

    assert time.monotonic() - started < 5
    assert "error: " in capsys.readouterr().err
