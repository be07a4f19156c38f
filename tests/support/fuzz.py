"""What memaudit reads from elsewhere, fed with bytes that nobody wrote: what tests and people start.

    python -m tests.support.fuzz mutate                     the full counts; minutes
    python -m tests.support.fuzz mutate --only policy --times 500
    python -m tests.support.fuzz guided policy -max_total_time=60    needs the package atheris

A target takes bytes and either accepts them or refuses them with an error of memaudit. Anything
else is a find: any other exception, a hang, and bytes that are accepted and must not be. What was
found is kept below `tests/finds`, one folder for each target, and tried again by the tests.
"""

import argparse
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
from support.ci_commands import SYSTEMS  # noqa: E402

from memaudit.errors import MemauditError  # noqa: E402

FINDS = ROOT / "tests" / "finds"
SECONDS = 10
"""An input that takes longer is a find: it would hold up a job."""

TIMES = {"policy": 10_000, "classifier": 100_000}
"""Inputs of a full run, by target; 2,000 for all others."""

PIECES = (
    *(b"[", b"]", b"{", b"}", b"=", b'"', b"'", b"\n", b"\r\n", b"\x00", b"\xff", b",", b":", b"#"),
    *(b"nan", b"NaN", b"inf", b"Infinity", b"-1", b"1e999", b"-1e308", b"true", b"null", b"1_000"),
    *(b"\\ud800", b"\\u0000", b"\x1b[2J", b"\xef\xbb\xbf", b"\xe2\x80\xa8", "é".encode(), b'"""'),
    *(b"[" * 3000, b"9" * 5000, b"0x10", b"2026-01-01", b"[[gate]]", b"a.b.c=1\n", b"max-rate"),
    *(b"PAR1", b"ARROW1", b"\xff\xff\xff\xff", b"\x1f\x8b\x08", b"PK\x03\x04", b"\x80\x04"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """Something that reads bytes."""

    seeds: tuple[bytes, ...]
    """Which it accepts."""

    take: Callable[[bytes], None]
    """Reads some: returns if it accepts them."""


def mutated(content, rng):
    """Return bytes with one to four places changed, cut, doubled or filled with a piece."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(changed) + 1)
        end = min(len(changed), start + rng.choice((1, 1, 2, 8, 40)))
        match rng.randrange(6):
            case 0 if start < len(changed):
                changed[start] ^= 1 << rng.randrange(8)
            case 1:
                del changed[start:end]
            case 2:
                changed[start:end] = rng.choice(PIECES)
            case 3:
                changed[start:start] = rng.choice(PIECES)
            case 4 if start < len(changed):
                changed[start] = rng.randrange(256)
            case _:
                changed[start:start] = changed[start:end]
    return bytes(changed)


def resealed(content, rng):
    """Return a classifier with a value changed somewhere, whose digest fits again."""
    import hashlib

    import msgspec

    document = json.loads(content)
    node = document["classifier"]
    key = rng.choice(list(node))
    while isinstance(node[key], dict | list) and node[key] and rng.random() < 0.7:
        node = node[key]
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
    values = (
        None,
        True,
        0,
        -1,
        1e308,
        1e-308,
        10**30,
        "",
        "teacher",
        "\x00",
        [],
        [0.5],
        {},
        {"a": "b"},
    )
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = rng.choice(values)
    canonical = msgspec.json.encode(document["classifier"], order="sorted")
    return msgspec.json.encode(document | {"digest": hashlib.sha256(canonical).hexdigest()})


def another_value(content, rng):
    """Return a policy with a value, or a key, that its writer did not mean."""
    lines = content.decode().splitlines()
    place = rng.randrange(1, len(lines))
    key = lines[place].partition(" = ")[0]
    values = (
        "-1", "0", "1", "1.5", "nan", "inf", "-inf", "1e400", "true", "''", "'x'", "[]", "[1, 2]", "[[]]",
        "{}", "{a = 1}", "2026-01-01", "9" * 400, "['" + "a" * 64 + "']", "'required'", "[2, 1]", "'a\\u0000'",
    )  # fmt: skip
    if rng.random() < 0.1:
        key = key[:-1] or "x"
    lines[place] = f"{key} = {rng.choice(values)}"
    if rng.random() < 0.1:
        lines.append(lines[place])
    return "\n".join(lines).encode()


def make_targets(folder):
    """Return all targets by name; they work in a folder."""
    return {
        **_reader_targets(folder),
        "policy": _policy_target(folder),
        "classifier": _classifier_target(folder),
        **_run_targets(folder),
        "reports": _report_target(),
    }


def _reader_targets(folder):
    """One for each format that a corpus may have, and for each compression."""
    import bz2
    import gzip
    import lzma

    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet as pq
    import zstandard

    rows = [{"id": f"doc-{i}", "text": f"{i} is nothing special, é\u2028 or so"} for i in range(40)]
    table = pa.Table.from_pylist(rows)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    chats = (json.dumps(chat) + "\n").encode() * 20
    parquet, feather, stream = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet, row_group_size=16)
    pyarrow.feather.write_feather(table, feather, compression="uncompressed")
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    seeds = {
        "jsonl": (lines, chats), "ndjson": (lines,), "json": (json.dumps(rows, indent=1).encode(),),
        "csv": (b"id,text\n" + b'a,"one, two"\nb,"three\nfour"\n' * 20,),
        "tsv": (b"id\ttext\n" + b"a\tone two\nb\tthree\n" * 20,),
        "parquet": (parquet.getvalue(),), "arrow": (stream.getvalue(), feather.getvalue()),
        "feather": (feather.getvalue(),), "txt": (b"one\n\ntwo\r\n" * 20,),
        "jsonl.gz": (gzip.compress(lines, mtime=0),), "jsonl.bz2": (bz2.compress(lines),),
        "jsonl.xz": (lzma.compress(lines),), "jsonl.zst": (zstandard.compress(lines),),
    }  # fmt: skip
    return {f"reader-{ending}": _reader_target(folder, ending, of) for ending, of in seeds.items()}


def _reader_target(folder, ending, seeds):
    from memaudit.corpus import CorpusOptions, read_corpus
    from memaudit.corpus.base import Rendered

    path = folder / f"corpus.{ending}"
    options = CorpusOptions(str(path), max_row_bytes=1 << 16)

    def render(messages):
        return Rendered("".join(str(message.get("content")) for message in messages.messages))

    def take(content):
        path.write_bytes(content)
        for number, row in enumerate(read_corpus(options, render_messages=render)):
            assert row.row == number, "a row has no outcome, or two"

    return Target(seeds, take)


def _policy_target(folder):
    from memaudit.gate.policy import GatePolicy, effective_policy, policy_text

    path = folder / "policy.toml"
    full = GatePolicy(
        max_rate=0.25, max_expected=10.0, max_recited=3, teacher_digest=("a" * 64, "b" * 64),
        text_column="text", layout="auto", windows="first", prefix_tokens=50, suffix_tokens=50,
        objective="soft", temperature=(1.0, 4.0), alpha=0.0, data="required", max_age=30.0,
        signers=("c" * 64,), min_scored_share=0.9, min_looked_at_share=0.5,
    )  # fmt: skip
    small = b"[tool.memaudit.gate]\nmax-rate = 0.1\ninconclusive = 'fail'\n"

    def take(content):
        path.write_bytes(content)
        found = effective_policy(path, {}).policy
        assert found.has_limits
        for name in ("max_rate", "max_expected", "max_recited", "min_scored_share", "max_age"):
            limit = getattr(found, name)
            assert limit is None or limit >= 0, f"{name} is {limit}"

    return Target((policy_text(full).encode(), small), take)


def _classifier_target(folder):
    from support.fakes import make_classifier

    from memaudit.classifier import load_classifier, save_classifier

    path = folder / "classifier.json"
    save_classifier(make_classifier(), path)
    shipped = ROOT / "models" / "teacher" / "classifier.json"

    def take(content):
        path.write_bytes(content)
        classifier = load_classifier(path)
        X = np.tile([[-9.0], [9.0]], len(classifier.features))
        found = [classifier.predict_proba(X)]
        if classifier.sampled is not None:
            log_odds = classifier.calibrated_logit(X)
            found += list(classifier.sampled.predict(log_odds, np.array([1.0, 50.0])))
        assert all(((p >= 0) & (p <= 1)).all() for p in found)

    return Target((path.read_bytes(), shipped.read_bytes()), take)


def _run_targets(folder):
    """What a gate reads of a run and beside it: sealed, so that no change may be accepted."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from support.gated import make_run

    from memaudit.gate.identity import read_baseline, write_baseline
    from memaudit.gate.rules import judged
    from memaudit.runs.folder import MANIFEST, ROWS
    from memaudit.runs.manifest import read_manifest
    from memaudit.runs.run import read_run
    from memaudit.runs.signature import SIGNATURE, require_signature, sign_folder

    _, run = make_run(folder)
    private = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
    public, key = sign_folder(run, private), b"k" * 32
    baseline = folder / "base.json"
    write_baseline(baseline, read_run(run), key)
    whole = read_run(run)

    def sealed(path, read):
        original, value = path.read_bytes(), read()

        def take(content):
            path.write_bytes(content)
            try:
                assert read() == value, "a change was taken for what was written"
            finally:
                path.write_bytes(original)

        return Target((original,), take)

    def rows():
        return read_run(run).rows

    chunk = run / "chunks" / "00000.parquet"
    summary = run / "summary.json"

    def take_summary(content):
        original = summary.read_bytes()
        summary.write_bytes(content)
        try:
            judged(whole)
        finally:
            summary.write_bytes(original)

    return {
        "manifest": sealed(run / MANIFEST, lambda: read_manifest(run / MANIFEST)),
        "rows": sealed(run / ROWS, rows),
        "chunk": sealed(chunk, lambda: read_run(run).risks.X.tobytes()),
        "signature": sealed(run / SIGNATURE, lambda: require_signature(run, [public])),
        "baseline": sealed(
            baseline, lambda: read_baseline(baseline, key, pinned_digest=None).known
        ),
        "summary": Target((summary.read_bytes(),), take_summary),
    }


def _report_target():
    """Names of any kind in what CI systems read: SARIF, JUnit, annotations, Markdown, JSON."""
    from support.hostile_gates import make_finding, make_result

    from memaudit.reports import ci
    from memaudit.reports.gate import gate_markdown
    from memaudit.text import json_text

    root = ci.SourceRoot("/top", ("/top",))

    def take(content):
        name = content.decode(errors="surrogateescape")
        finding = make_finding(name, f"{name}.jsonl:1", name)
        result = make_result([finding], source=name, reasons=(name,))
        sarif = ci.render_sarif(result, root=root)
        document = json_text(result.document())
        assert json.loads(sarif)["version"] == "2.1.0"
        assert json.loads(document)["verdict"] == "fail"
        junit = ci.render_junit(result)
        ElementTree.fromstring(junit.encode())
        told = ci.render_annotations(result, root=root)
        assert told.count("\n") == 2
        for text in (sarif, document, junit, gate_markdown(result)):
            assert not any(obeys(text) for obeys in SYSTEMS.values()), (
                "the log of a job would obey it"
            )

    return Target((b"row-1", b"##vso[task.complete]", b"\n::error::x", b"section_start:1:a"), take)


class HangError(Exception):
    """An input that takes too long."""


def _hang(number, frame):
    raise HangError


def feed(target, content):
    """Return `accepted`, `refused`, or what else came of it."""
    signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        target.take(content)
    except MemauditError as error:
        return "refused" if error.message else "refused without a message"
    except BaseException as error:  # whatever it is: it is a find
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:100]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "accepted"


def mutations(name, target, times, seed=0):
    """Feed a target that many mutated inputs; return the outcomes, and the inputs of finds."""
    rng, outcomes, finds = random.Random(f"{seed} {name}"), Counter(), {}
    for number in range(times):
        content = rng.choice(target.seeds)
        meant = {"classifier": resealed, "policy": another_value}.get(name, mutated)
        content = (meant if number % 2 else mutated)(content, rng)
        outcome = feed(target, content)
        outcomes[outcome] += 1
        if outcome not in ("accepted", "refused"):
            finds.setdefault(outcome, content)
    return outcomes, finds


def keep(name, content):
    """Write a find to where the tests try it again."""
    from hashlib import sha256

    folder = FINDS / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / sha256(content).hexdigest()[:16]).write_bytes(content)


def _mutate(given, folder):
    targets = make_targets(folder)
    document = {}
    for name in given.only or targets:
        started, times = time.process_time(), given.times or TIMES.get(name, 2_000)
        outcomes, finds = mutations(name, targets[name], times, given.seed)
        for content in finds.values():
            keep(name, content)
        seconds = round(time.process_time() - started, 1)
        document[name] = {"inputs": times, **outcomes, "cpu_seconds": seconds}
        sys.stderr.write(f"{name}: {document[name]}\n")
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


def _guided(given, folder):
    """Let atheris look for inputs that reach new branches."""
    import atheris

    with atheris.instrument_imports(include=["memaudit", "tomllib", "json", "csv"]):
        target = make_targets(folder)[given.name]
    seeds = folder / "seeds"
    seeds.mkdir()
    for number, content in enumerate(target.seeds):
        (seeds / str(number)).write_bytes(content)

    def once(content):
        outcome = feed(target, content)
        if outcome not in ("accepted", "refused"):
            keep(given.name, content)
            raise AssertionError(outcome)

    atheris.Setup([sys.argv[0], str(seeds), *given.settings], once)
    atheris.Fuzz()


def main():
    """Run one of them."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    mutate = commands.add_parser("mutate")
    mutate.add_argument("--only", nargs="*")
    mutate.add_argument("--times", type=int)
    mutate.add_argument("--seed", type=int, default=0)
    mutate.set_defaults(run=_mutate)
    guided = commands.add_parser("guided")
    guided.add_argument("name")
    guided.set_defaults(run=_guided)
    given, rest = parser.parse_known_args()
    given.settings = rest
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        given.run(given, Path(name))


if __name__ == "__main__":
    main()
