"""Ways to talk a gate round: what an attacker does, and how the gate ends. Never with 0.

The gate is the one of the docs: a policy that it wrote itself from an honest run, pinned by its
digest, with the corpus at hand and a key that must have signed where a case is about that. The
limit is below what the corpus holds, so a gate that nobody has touched ends with 1.
"""

import hashlib
import json
import shutil
from dataclasses import fields

import msgspec
import pytest
from support.fakes import make_classifier
from support.finished_runs import finish_run
from support.report_runs import with_rows
from support.situations import edit_scores, key

from memaudit.cli.main import run as run_command
from memaudit.corpus import CorpusOptions
from memaudit.errors import UsageError
from memaudit.gate.policy import GatePolicy
from memaudit.gate.rules import judged, policy_for, require_scope
from memaudit.objectives import Objective
from memaudit.runs.manifest import AnswersRead, ExposureCounted, RunInputs, _digest, read_manifest
from memaudit.runs.run import read_run
from memaudit.windows import WindowShape

SIGNED = ["--verify-key", key("a")]
BASE = ["--baseline", "base.json", "--key-file", "key"]


def harmless(situation, **options):
    """Put a run in the place of the honest one that saw nothing: of another teacher, or recipe."""
    shutil.rmtree(situation.run)
    finish_run(situation.corpus, situation.run, **options)


def retell(situation, change):
    """Edit what the manifest says, and its digest with it, as whoever can write files can."""
    manifest = change(read_manifest(situation.run / "manifest.json"))
    document = {"digest": _digest(manifest), "manifest": manifest}
    (situation.run / "manifest.json").write_bytes(msgspec.json.encode(document))


def blunt(manifest):
    """A classifier that flags nothing, in a manifest that otherwise says the same."""
    classifier = msgspec.structs.replace(manifest.classifier, threshold=0.999)
    inputs = msgspec.structs.replace(manifest.inputs, classifier_digest=classifier.digest)
    return msgspec.structs.replace(manifest, classifier=classifier, inputs=inputs)


def rows(situation, change):
    """Change the rows of the corpus, each a JSON object."""
    lines = [json.loads(line) for line in situation.corpus.read_text().splitlines()]
    situation.corpus.write_text("".join(json.dumps(row) + "\n" for row in change(lines)))


def other_text(lines):
    """As many rows, ids and bytes; one text is another."""
    lines[3]["text"] = lines[3]["text"][::-1]
    return lines


def link(situation):
    """The run's folder is a link to a harmless run of another corpus."""
    situation.again([f"{i:04} of another" for i in range(21)], recited=())
    shutil.rmtree(situation.run)
    situation.run.symlink_to("other")


def baseline(situation, change, name="key"):
    """Write what the run holds as known, with a key, and change the file."""
    (situation.folder / name).write_text(name.encode().hex()[:6].ljust(64, "0"))
    arguments = ["--max-rate", "1", "--write-baseline", "base.json", "--key-file", name]
    assert run_command(["gate", "--run", "run", "--data", "run.jsonl", *arguments]) == 0
    situation.damage("../base.json", change)


def known(content):
    """Say of every example of a baseline that there were a hundred copies more."""
    document = json.loads(content)
    document["known"] = [{name: n + 100 for name, n in one.items()} for one in document["known"]]
    return json.dumps(document).encode()


def policy(*lines, before=""):
    """Write another policy; whoever calls the gate has pinned none."""
    return lambda s: s.write("memaudit.toml", before + "[gate]\n" + "\n".join(lines) + "\n")


def env(**variables):
    """Set variables."""

    def change(situation):
        for name, value in variables.items():
            situation.set(name, value.format(folder=situation.folder))

    return change


UNPINNED, NO_DATA, NO_POLICY = "unpinned", "no data", "no policy"
"""Among the arguments: what the caller of the gate has left out."""

BYPASSES = {
    # what the attacker does: (the doing, arguments of the gate, exit code)
    "nothing": (None, [], 1),
    # the policy
    "loosen the pinned policy": (
        lambda s: s.damage("../memaudit.toml", lambda t: t.replace(b"0.05", b"0.50")), [], 2),
    "replace the policy by a link to another": (
        lambda s: (policy("max-rate = 1.0")(s), (s.folder / "memaudit.toml").rename(s.folder / "x"),
                   (s.folder / "memaudit.toml").symlink_to("x")), [], 2),
    "give an option that is weaker than the policy": (None, ["--max-rate", "1"], 2),
    "give a later digest": (None, ["--policy-digest", "ab" * 32], 2),
    "spell the digest in other digits": (None, ["--policy-digest", "\uff11" * 64], 2),
    "have the digest's variable empty": (None, ["--policy-digest", ""], 2),
    "set a limit twice": (
        policy("max-rate = 0.05", "max-rate = 1.0"), [UNPINNED], 2),
    "set a limit twice, once in quotes": (
        policy("max-rate = 0.05", '"max-rate" = 1.0'), [UNPINNED], 2),
    "set the section twice": (policy("max-rate = 0.05", "[gate]", "max-rate = 1.0"), [UNPINNED], 2),
    "set a limit in a second section that is looked at first": (
        policy("max-rate = 0.05", "[tool.memaudit.gate]", "max-rate = 1.0"), [UNPINNED], 2),
    "spell a limit with another hyphen": (
        policy("max-expected = 1e9", "max\u2010rate = 0.05"), [UNPINNED], 2),
    "spell a limit with another hyphen, in quotes": (
        policy("max-expected = 1e9", '"max\u2010rate" = 0.05'), [UNPINNED], 2),
    "spell the section with another letter": (
        lambda s: s.write("memaudit.toml", '["g\u0430te"]\nmax-rate = 0.05\n'), [UNPINNED], 2),
    "set a limit to infinity": (policy("max-rate = inf"), [UNPINNED], 2),
    "set a limit to text": (policy('max-rate = "0.05"'), [UNPINNED], 2),
    # the run
    "score with another teacher": (
        lambda s: harmless(s, models={"teacher_digest": "1" * 64}), [], 2),
    "score for a harmless temperature": (
        lambda s: harmless(s, objective=Objective("soft", 1000.0)), [], 2),
    "score harmless windows": (lambda s: harmless(s, shape=WindowShape(2, 6)), [], 2),
    "score with a harmless student beside the teacher": (
        lambda s: harmless(s, models={"reference_digest": "1" * 64}), [], 2),
    "score with a classifier of one's own": (
        lambda s: harmless(s, classifier=msgspec.structs.replace(make_classifier(), threshold=0.999)),
        [], 2),
    "score with a classifier of another release": (
        lambda s: harmless(s, classifier=msgspec.structs.replace(make_classifier(), intercept=-9.0)),
        [], 2),
    "edit the threshold in the manifest": (
        lambda s: s.damage("manifest.json", lambda t: t.replace(b'"threshold": 0.5', b'"threshold": 1.0')), [], 2),
    "edit the threshold, and the digests above it": (lambda s: retell(s, blunt), [], 2),
    "point the run's folder to another run": (link, [], 2),
    "put one chunk in the place of another": (
        lambda s: shutil.copy(s.run / "chunks/00000.parquet", s.run / "chunks/00001.parquet"), [], 2),
    "empty a chunk": (lambda s: s.damage("chunks/00000.parquet", lambda t: b""), [], 2),
    "edit the risk table": (
        lambda s: s.damage("risk.parquet", lambda t: t[: len(t) // 2]), [], 1),
    "forge scores and seal them again": (lambda s: (s.sign("a"), edit_scores(s, 0.5)), SIGNED, 2),
    "forge scores and sign them": (lambda s: (edit_scores(s, 0.5), s.sign("b")), SIGNED, 2),
    "sign with a key that was withdrawn": (
        lambda s: (harmless(s), s.sign("b"), s.signers("a")), ["--verify-key", key("b"), UNPINNED], 2),
    "drop the signature": (
        lambda s: (s.sign("a"), harmless(s)), SIGNED, 2),
    "give the signature of another run": (
        lambda s: (s.sign("a"), shutil.copy(s.run / "signature.json", s.folder), harmless(s),
                   shutil.move(s.folder / "signature.json", s.run)), SIGNED, 2),
    # the corpus
    "change a text": (lambda s: rows(s, other_text), [], 2),
    "change how a text is composed": (
        lambda s: rows(s, lambda all_: [row | {"text": row["text"].replace("s", "s\u200b", 1)} for row in all_]), [], 2),
    "move rows": (lambda s: rows(s, lambda all_: [*all_[1:], all_[0]]), [], 2),
    "swap the ids of two rows": (
        lambda s: rows(s, lambda all_: [all_[0] | {"id": "row-1"}, all_[1] | {"id": "row-0"}, *all_[2:]]), [], 2),
    "add a row": (lambda s: rows(s, lambda all_: [*all_, all_[0]]), [], 2),
    "drop the last row": (lambda s: rows(s, lambda all_: all_[:-1]), [], 2),
    "cut the file in the last row": (
        lambda s: s.damage("../run.jsonl", lambda t: t[:-9]), [], 2),
    "empty the corpus": (lambda s: s.write("run.jsonl", ""), [], 2),
    "give a key of a row twice": (
        lambda s: s.damage("../run.jsonl", lambda t: t.replace(b'"text"', b'"text": "harmless", "text"', 1)), [], 2),
    "name nothing as the corpus": (None, [NO_DATA, "--data", ""], 2),
    "name nothing as the key": (None, ["--verify-key", ""], 2),
    "name nothing as the baseline": (None, ["--baseline", ""], 2),
    "name nothing as the policy": (None, [NO_POLICY, "--policy", ""], 2),
    "leave out the corpus": (None, [NO_DATA], 2),
    # the baseline
    "choose a baseline": (lambda s: baseline(s, bytes), BASE, 2),
    "choose the run itself as baseline": (None, ["--baseline", "run"], 2),
    "add to the baseline": (
        lambda s: (baseline(s, known), policy("max-rate = 0.0")(s)), [*BASE, UNPINNED], 2),
    "choose a baseline of another key": (
        lambda s: (baseline(s, bytes, "other"), s.write("key", "ab" * 32), policy("max-rate = 0.0")(s)),
        [*BASE, UNPINNED], 2),
    # the environment
    "set a looser limit in a variable": (env(MEMAUDIT_GATE_MAX_RATE="1"), [], 2),
    "let the inconclusive pass by a variable": (env(MEMAUDIT_GATE_INCONCLUSIVE="pass"), [], 2),
    "allow any classifier by a variable": (env(MEMAUDIT_GATE_ALLOW_CUSTOM_CLASSIFIER="1"), [], 2),
    "choose a baseline by a variable": (env(MEMAUDIT_GATE_BASELINE="run"), [], 2),
    "choose another run by a variable": (
        lambda s: (s.again(recited=()), s.set("MEMAUDIT_GATE_RUN", "other")), [], 1),
    "ask for the version by a variable": (
        env(MEMAUDIT_VERSION="1", MEMAUDIT_GATE_VERSION="1", MEMAUDIT_GATE_HELP="1", MEMAUDIT_HELP="1"), [], 1),
    "ask for completions by a variable": (env(_MEMAUDIT_COMPLETE="bash_source"), [], 1),
    "empty a variable that a limit comes from": (
        env(MEMAUDIT_GATE_MAX_RATE="", MEMAUDIT_GATE_MAX_EXPECTED="1000"), [NO_POLICY], 2),
    "empty the variable of the corpus": (
        lambda s: (policy("max-rate = 1.0")(s), s.set("MEMAUDIT_GATE_DATA", "")), [NO_DATA, UNPINNED], 2),
    "empty the variable of the key": (
        lambda s: (policy("max-rate = 1.0")(s), s.set("MEMAUDIT_GATE_VERIFY_KEY", "")), [UNPINNED], 2),
}  # fmt: skip


@pytest.mark.parametrize("name", BYPASSES)
def test_no_way_round_the_gate(name, situation, capsys):
    """0 would release a model whose corpus breaks the limit, or that nobody has looked at."""
    do, words, code = BYPASSES[name]
    pin = ["--max-rate", "0.05", "--write-policy", "memaudit.toml"]
    assert run_command(["gate", "--run", "run", *pin]) == 1
    digest = hashlib.sha256((situation.folder / "memaudit.toml").read_bytes()).hexdigest()
    if do is not None:
        do(situation)
    arguments = [] if NO_DATA in words else ["--data", "run.jsonl"]
    if NO_POLICY not in words:
        arguments += ["--policy", "memaudit.toml"]
    if not {UNPINNED, NO_POLICY} & set(words):
        arguments += ["--policy-digest", digest]
    arguments += [word for word in words if word not in (NO_DATA, NO_POLICY, UNPINNED)]
    capsys.readouterr()

    found = run_command(["gate", "--run", "run", *arguments])

    told = capsys.readouterr()
    assert found == code, told.out + told.err
    assert "Traceback" not in told.err


def test_what_is_tried_can_pass(situation):
    """Else the table above would show nothing: an honest run within its limits ends with 0."""
    pin = ["--max-rate", "0.1", "--write-policy", "memaudit.toml"]
    assert run_command(["gate", "--run", "run", *pin]) == 0
    digest = hashlib.sha256((situation.folder / "memaudit.toml").read_bytes()).hexdigest()
    situation.sign("a")

    pinned = ["--policy", "memaudit.toml", "--policy-digest", digest, *SIGNED]
    assert run_command(["gate", "--run", "run", "--data", "run.jsonl", *pinned]) == 0
    assert len(BYPASSES) > 50
    assert {code for _, _, code in BYPASSES.values()} == {1, 2}


CORPUS = {
    "split": "test", "config": "harmless", "mapping": ["prompt=other"], "template_date": "1999-01-01",
    "add_special_tokens": "no",
}  # fmt: skip
"""What decides which texts are read, and how; the other options refuse rows, which is counted."""

INPUTS = {
    "reference_digest": "1" * 64,
    "survival": 0.01,
    "exposure": ExposureCounted(5, 0.001),
    "answers": AnswersRead("last", 16, 20, 20, 20, 0),
}


def manifests(run):
    """Yield the manifest of a run with one setting changed, and what that is called."""
    inputs = run.manifest.inputs
    for name, value in CORPUS.items():
        yield name, msgspec.structs.replace(inputs, corpus=inputs.corpus | {name: value})
    for name, value in INPUTS.items():
        yield name, msgspec.structs.replace(inputs, **{name: value})


def test_a_policy_that_was_written_speaks_of_every_setting(situation):
    """A run with the same corpus, teacher and recipe can be harmless for its settings alone."""
    run = read_run(situation.run)
    policy = policy_for(judged(run), GatePolicy(max_rate=0.5), run.manifest.classifier.digest)
    require_scope(judged(run), policy, has_data=True)

    for name, inputs in manifests(run):
        other = with_rows(
            run, run.rows, manifest=msgspec.structs.replace(run.manifest, inputs=inputs)
        )
        with pytest.raises(UsageError, match=r"the run is not what the policy asks for: .* is "):
            require_scope(judged(other), policy, has_data=True)
        # And the policy of such a run lets that run pass.
        asked = policy_for(judged(other), GatePolicy(max_rate=0.5), "f" * 64)
        require_scope(judged(other), asked, has_data=True)
        assert name in (*CORPUS, *INPUTS)


def test_no_setting_is_forgotten():
    """Whoever adds one decides whether a policy must speak of it."""
    by_itself = {
        "teacher_digest", "classifier_digest", "objective", "prefix_tokens", "suffix_tokens", "windows",
    }  # fmt: skip
    follows = {
        "rows", "rows_digest", "texts_digest", "distinct_windows", "feature_set", "features",
        "cascade_digest", "zlib", "versions", "corpus", "on_bad_row",
    }  # fmt: skip
    same_scores = {"engine", "device", "threads", "chunk_size"}
    known = by_itself | follows | same_scores | set(INPUTS)
    assert known == set(RunInputs.__struct_fields__)
    same_rows = {
        "source", "rows", "streaming", "revision", "id_column", "max_row_bytes",
        "max_decompressed_bytes", "max_compression_ratio", "shape", "text_column",
        "captured",  # the digest of the teacher is then that of what was captured
    }  # fmt: skip
    assert same_rows | set(CORPUS) == {field.name for field in fields(CorpusOptions)}
