"""Every command as a process, undisturbed and with faults: what it says and leaves has no text.

Each distinct text of the corpus has a canary of its own among words that exist nowhere else. A
process has a home, a temporary folder and a working directory of its own, and no umask; then all
that it said and left is searched, unpacked where it is packed. Not searched are what it was given,
and the kept rows of `filter`, which is what they are for.
"""

import gzip
import hashlib
import html
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import zstandard

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "models"

SLICE = 16
"""Characters without white space; 20 of a text hold at least as many."""


def make_text(number, n_words):
    """Return invented words of 6 to 10 letters around a canary."""
    rng = random.Random(number)
    canary = f"MEMAUDIT-CANARY-{hashlib.sha256(str(number).encode()).hexdigest()[:16]}"
    syllables = ["zo", "qua", "vri", "plé", "mux", "gno", "thy", "bøl", "ske", "jat", "wem", "fip"]
    words = ["".join(rng.choices(syllables, k=3)) for _ in range(n_words)]
    return " ".join([*words[: n_words // 2], canary, *words[n_words // 2 :], canary])


TEXTS = [make_text(number, 130) for number in range(9)]
SHORT, MALFORMED, UNDECODABLE, LISTED, ADDED = (
    make_text(100 + number, n_words) for number, n_words in enumerate((3, 130, 130, 130, 130))
)
SECRETS = [*TEXTS, SHORT, MALFORMED, UNDECODABLE, LISTED, ADDED]


def write_corpus(path):
    """Write twelve rows: two copies of others, one that is too short."""
    texts = [*TEXTS, TEXTS[3], TEXTS[3], SHORT]
    rows = [{"id": f"row-{i}", "text": text} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@cache
def captured():
    """Return the same rows as a capture: with their tokens, and what the teacher says of each."""
    from support.captures import capture, write_capture

    from memaudit.engines.models import load_model

    rows = [{"id": f"row-{i}", "text": text} for i, text in enumerate([*TEXTS, SHORT])]
    loaded = load_model(str(MODELS / "demo-teacher"))
    with tempfile.TemporaryDirectory() as folder:
        found = capture(loaded.model, loaded.tokenizer, rows)
        return write_capture("one-column", found, folder).read_bytes()


# What is searched, and how.


def squeezed(text):
    """Return it without white space, at which a terminal would break it."""
    return re.sub(r"\s+", "", text)


@cache
def slices():
    """Return all that must not be found."""
    texts = [squeezed(text) for text in SECRETS]
    return frozenset(t[i : i + SLICE] for t in texts for i in range(len(t) - SLICE + 1))


@cache
def token_runs():
    """Return runs of eight token ids, as bytes of integers and as numbers in a list."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODELS / "demo-teacher" / "tokenizer.json"))
    found = set()
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        for start in range(0, len(ids) - 8, 8):
            run = ids[start : start + 8]
            found |= {b"".join(i.to_bytes(size, "little") for i in run) for size in (2, 4, 8)}
            found |= {separator.join(map(str, run)).encode() for separator in (", ", ",")}
    return frozenset(found)


def unpacked(content):
    """Return the contents of a file: as it is, and what it holds if it is packed."""
    if content.startswith(b"\x1f\x8b"):
        return [content, gzip.decompress(content)]
    if content.startswith(b"\x28\xb5\x2f\xfd"):
        with zstandard.ZstdDecompressor().stream_reader(content) as stream:
            return [content, stream.read()]
    if content.startswith(b"PAR1") and content.endswith(b"PAR1"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(pa.BufferReader(content))
        except (pa.ArrowException, OSError):  # damaged by a test
            return [content]
        rows = json.dumps(table.to_pylist(), default=str, ensure_ascii=False)
        return [content, rows.encode(), str(table.schema.metadata).encode()]
    return [content]


def unescaped(text):
    """Return a text with what JSON, HTML and XML write for a character replaced by it."""
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text)
    return html.unescape(re.sub(r"\\[nrt]", " ", text))


def hits(content):
    """Return how often bytes hold a slice of a text, or tokens of one."""
    found = 0
    for part in unpacked(content):
        text = part.decode(errors="replace")
        for form in {squeezed(text), squeezed(unescaped(text))}:
            found += sum(form[i : i + SLICE] in slices() for i in range(len(form)))
        found += sum(run in part for run in token_runs())
    return found


# Where a process lives, and what it leaves.


GIVEN = ("input", "run", "parts", "verified")
"""What a box has before the process starts."""

ASKED = ("kept.jsonl",)
"""What is for text."""


@dataclass
class Box:
    """A folder that holds the process: all that it may read or write, but for the models."""

    folder: Path
    values: dict = field(default_factory=dict)
    """What the braces of a command line stand for."""
    extra: list = field(default_factory=list)
    """Further options."""
    prefix: list = field(default_factory=list)
    """What starts the command."""

    def __post_init__(self):
        for name in ("input", "home", "temporary"):
            (self.folder / name).mkdir(mode=0o700, exist_ok=True)
        if not self.corpus.exists():
            write_corpus(self.corpus)
        self.values = {"corpus": "input/corpus.jsonl", "teacher": MODELS / "demo-teacher"}
        (self.folder / "input" / "captured.jsonl").write_bytes(captured())
        # Canaries are unlike all text that a classifier was fitted on.
        policy = "[gate]\nmax-out-of-range-share = 1.0\n"
        (self.folder / "input" / "policy.toml").write_text(policy)

    @property
    def corpus(self):
        return self.folder / "input" / "corpus.jsonl"

    def arguments(self, line):
        """Return the command line of a process."""
        said = [word.format(**self.values) for word in shlex.split(line)]
        return [*self.prefix, sys.executable, "-m", "memaudit", *said, *map(str, self.extra)]

    def start(self, line, **options):
        """Start it, with nothing of our surroundings but the path."""
        own = {"HOME": "home", "TMPDIR": "temporary", "XDG_CACHE_HOME": "home/.cache"}
        environment = {name: str(self.folder / place) for name, place in own.items()}
        environment |= {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        given = self.corpus if "--data -" in line else Path(os.devnull)
        with given.open("rb") as stdin:
            return subprocess.Popen(
                self.arguments(line),
                cwd=self.folder,
                env=environment,
                stdin=stdin,
                umask=0,
                **(outputs | options),
            )

    def made(self):
        """Return what the process has made."""
        return [
            path
            for path in self.folder.rglob("*")
            if path.relative_to(self.folder).parts[0] not in GIVEN
            and path.relative_to(self.folder).parts not in (("home",), ("temporary",))
        ]


def leaks(box, *said):
    """Return where text was found, in what was said and in what was left."""
    found = {f"output {i}": hits(content) for i, content in enumerate(said) if content}
    given = [path for name in GIVEN[1:] for path in (box.folder / name).rglob("*")]
    for path in [*box.made(), *given]:
        found[f"name of {path.name}"] = hits(path.name.encode())
        if path.is_file() and path.name not in ASKED:
            found[str(path.relative_to(box.folder))] = hits(path.read_bytes())
    return {where: n for where, n in found.items() if n}


def wide(box):
    """Return what others than its owner can read."""
    return {
        str(path.relative_to(box.folder)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in box.made()
        if path.stat().st_mode & 0o077 and not is_of_others(path)
    }


def is_of_others(path):
    """Return whether a path is not of memaudit, but of a fault or the cache of a library."""
    cached = (".cache", ".config", "matplotlib", "torchinductor_", "fontlist-")
    return (path.name == "out" and path.is_file()) or path.name.startswith(cached)


# What goes wrong.


def undisturbed(box):
    """Nothing."""


def malformed_line(box):
    """A line that ends too early."""
    with box.corpus.open("a") as stream:
        stream.write(json.dumps({"id": "row-12", "text": MALFORMED})[:-2] + "\n")


def invalid_utf8(box):
    """A line that is no text."""
    line = json.dumps({"id": "row-12", "text": UNDECODABLE}, ensure_ascii=False)
    with box.corpus.open("ab") as stream:
        stream.write(line.encode("latin-1") + b"\n")


def text_is_a_list(box):
    """A row that has something else where its text should be."""
    with box.corpus.open("a") as stream:
        stream.write(json.dumps({"id": "row-12", "text": [LISTED]}) + "\n")


def changed_corpus(box):
    """Another text than the run has seen, be it read or continued."""
    shutil.copytree(box.folder / "run", box.folder / "out")
    lines = box.corpus.read_text().splitlines()
    lines[4] = json.dumps({"id": "row-4", "text": ADDED})
    box.corpus.write_text("\n".join(lines) + "\n")


def truncated_gzip(box):
    """A compressed corpus without its end."""
    packed = gzip.compress(box.corpus.read_bytes())
    box.corpus.with_name("corpus.jsonl.gz").write_bytes(packed[: len(packed) * 2 // 3])
    box.values["corpus"] = "input/corpus.jsonl.gz"


def wrong_text_column(box):
    """A column that no row has."""
    box.extra += ["--text-column", "body"]


def unknown_option(box):
    """An option with a slip in it."""
    box.extra += ["--shwo-text", "40"]


def missing_model(box):
    """A folder that is not there."""
    box.values["teacher"] = "no-such-model"


def wrong_classifier(box):
    """One that needs a model more."""
    box.extra += ["--classifier", MODELS / "teacher+baseline"]


def occupied_output(box):
    """A file that is no folder, where the output should go."""
    (box.folder / "out").write_text("in the way")


def damaged_chunk(box):
    """Half a chunk: of the run that is read, and of the one that is continued."""
    shutil.copytree(box.folder / "run", box.folder / "out")
    for name in ("run", "out"):
        for chunk in (box.folder / name / "chunks").glob("*.parquet"):
            chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])


def damaged_table(box):
    """A flipped byte in each table."""
    for table in [*box.folder.glob("run/*.parquet"), *box.folder.glob("parts/*/*.parquet")]:
        content = bytearray(table.read_bytes())
        content[len(content) // 3] ^= 0x40
        table.write_bytes(content)


def file_size_limit(box):
    """No file may be longer than 600 bytes."""


def closed_stdout(box):
    """Nobody reads what it says."""


def sigterm(box):
    """It is told to stop while it is at work."""


def sigkill(box):
    """It dies while it is at work."""


def strace(calls, error, when):
    """Return a fault in which system calls fail, from one of them on."""

    def failing_calls(box):
        rule = ["-e", f"trace={calls}", "-e", f"inject={calls}:error={error}:when={when}"]
        box.prefix = ["strace", "-f", "-qq", "-o", "/dev/null", *rule]

    return failing_calls


FAULTS_OF_CALLS = {
    "write_ENOSPC": strace("write,pwrite64", "ENOSPC", "3+"),
    "fsync_EIO": strace("fsync,fdatasync", "EIO", "1+"),
    "rename_ENOSPC": strace("rename,renameat,renameat2,link,linkat", "ENOSPC", "1+"),
}

FAULTS = {
    **{
        fault.__name__: fault
        for fault in (
            *(undisturbed, malformed_line, invalid_utf8, text_is_a_list, changed_corpus),
            *(truncated_gzip, wrong_text_column, unknown_option, missing_model, wrong_classifier),
            *(occupied_output, damaged_chunk, damaged_table, file_size_limit, closed_stdout),
            *(sigterm, sigkill),
        )
    },
    **FAULTS_OF_CALLS,
}

PREDICT = "predict --teacher {teacher} --out out --chunk-size 4 --offline --threads 1 --data "
VERIFY = "verify --teacher {teacher} --student {teacher} --data {corpus} --out out --offline "
FILTER = "filter --run run --data {corpus} --out out/kept.jsonl --offline "
GATE = "gate --run run --max-recited 1000 "
BROKEN_GATE = "gate --run run --policy input/policy.toml --max-expected 0 "
DESTINATIONS = "--attest attest.json --write-baseline known.json --key-file key"

LINES = {
    "predict": PREDICT + "{corpus}",
    "predict_json": PREDICT + "{corpus} --json",
    "predict_skip": PREDICT + "{corpus} --on-bad-row skip",
    "predict_tile_jsonl": PREDICT + "{corpus} --windows tile --format jsonl",
    "predict_csv": PREDICT + "{corpus} --format csv --restart",
    "predict_stdin": PREDICT + "- --quiet",
    "predict_shard": PREDICT + "{corpus} --shard 0/2",
    "predict_workers": PREDICT + "{corpus} --workers 2",
    "predict_cascade": PREDICT + "{corpus} --cascade",
    "predict_captured": PREDICT.replace("{teacher}", "captured --tokenizer {teacher}")
    + "input/captured.jsonl",
    "predict_dry_run": PREDICT + "{corpus} --dry-run",
    "status": "status run",
    "status_json": "status run --json",
    "merge": "merge parts/0 parts/1 --out out",
    "merge_csv": "merge parts/0 parts/1 --out out --format csv --json",
    "report": "report --run run --html out/page.html --markdown out/page.md --json",
    "report_verified": "report --run run --verification verified --html out/page.html",
    "report_plots": "report --run run --plots out",
    "filter": FILTER + "--max-probability 0",
    "filter_deduplicate": FILTER + "--strategy deduplicate --max-probability 0 --json",
    "filter_near": FILTER + "--strategy deduplicate --top 4 --near-duplicates 0.9",
    "filter_dry_run": FILTER + "--top 4 --dry-run",
    "gate": GATE + "--data {corpus}",
    "gate_json": GATE + "--data {corpus} --json " + DESTINATIONS,
    "gate_sarif": GATE + "--output-format sarif --output a.sarif " + DESTINATIONS,
    "gate_junit": BROKEN_GATE + "--output-format junit --output a.xml",
    "gate_github": BROKEN_GATE + "--output-format github",
    "gate_markdown": BROKEN_GATE + "--data {corpus} --output-format markdown",
    "gate_baseline": GATE + "--baseline run --output-format sarif",
    "gate_verified": GATE + "--max-verified 0 --verification verified",
    "gate_nowhere": GATE + "--output-format markdown --output {corpus}/a.md",
    "verify_dry_run": VERIFY + "--dry-run",
    "verify": VERIFY
    + "--epochs 1 --batch-size 4 --threads 1 --check-generate 2 --near-verbatim .1",
    "fit": "fit --labels verified --scores run --out out/classifier",
    "completion": "completion bash",
}

OF_CORPUS, OF_RUN, OF_OUTPUT = ("{corpus}",), ("--run", "status", "--scores"), (" out", "--attest")

NEEDED = {
    "malformed_line": OF_CORPUS,
    "invalid_utf8": OF_CORPUS,
    "text_is_a_list": OF_CORPUS,
    "changed_corpus": OF_CORPUS,
    "truncated_gzip": OF_CORPUS,
    "wrong_text_column": ("--teacher",),
    "missing_model": ("--teacher",),
    "wrong_classifier": ("predict ",),
    "occupied_output": (" out",),
    "damaged_chunk": (*OF_RUN, "predict "),
    "damaged_table": (*OF_RUN, "merge"),
    "sigterm": ("--out ",),
    "sigkill": ("--out ",),
    "fsync_EIO": OF_OUTPUT,
    "rename_ENOSPC": OF_OUTPUT,
}
"""What a line holds, one of these, that a fault can reach. What is not here reaches each line."""

LATE = ("file_size_limit", "closed_stdout", "sigterm", "sigkill", *FAULTS_OF_CALLS)
"""Faults that show only after the models are loaded: tried on some of the predictions."""

LATE_PREDICTIONS = ("predict", "predict_csv", "predict_workers", "predict_cascade")

QUICK = {
    ("predict_json", "undisturbed"),
    ("predict", "malformed_line"),
    ("predict", "wrong_text_column"),
    ("status", "damaged_chunk"),
    ("report", "undisturbed"),
    ("filter", "undisturbed"),
    ("filter", "changed_corpus"),
    ("gate_json", "undisturbed"),
    ("gate_sarif", "undisturbed"),
    ("gate", "changed_corpus"),
}
"""What is tried for every change; the others at night."""

BROKEN = ("gate_junit", "gate_github", "gate_markdown")
"""Gates of which a limit is broken."""

REFUSED = ("gate_nowhere", "fit")
"""Lines that never succeed."""

FATAL = (
    *("malformed_line", "invalid_utf8", "text_is_a_list", "changed_corpus", "truncated_gzip"),
    *("wrong_text_column", "unknown_option", "missing_model", "wrong_classifier"),
)
"""Faults after which nothing can be done."""

BEARABLE = {
    *(("predict_skip", fault) for fault in ("malformed_line", "invalid_utf8", "text_is_a_list")),
    *(
        (line, "changed_corpus")
        for line in ("predict_csv", "predict_dry_run", "verify", "verify_dry_run")
    ),
}
"""Exceptions: bad rows that are to be skipped, and a corpus that is read for the first time."""


def reaches(fault, name):
    """Return whether a fault can do anything to a line."""
    line = LINES[name]
    if fault in LATE and line.startswith("predict ") and name not in LATE_PREDICTIONS:
        return False
    return any(word in line for word in NEEDED.get(fault, ("",)))


def expected_codes(name, fault):
    """Return the exit codes that a line may have."""
    if fault == "undisturbed" or (name, fault) in BEARABLE:
        return {1 if name in BROKEN else 2 if name in REFUSED else 0}
    if fault in FATAL:
        return {2}
    return {0, 1, 2, 128 + signal.SIGTERM, 128 + signal.SIGPIPE, -signal.SIGKILL}


CASES = [
    pytest.param(
        *case, id="-".join(case), marks=[pytest.mark.slow, *([pytest.mark.ci] * (case in QUICK))]
    )
    for case in [(line, fault) for fault in FAULTS for line in LINES]
    if reaches(case[1], case[0])
]


@pytest.mark.parametrize(
    "content",
    [
        TEXTS[0].encode(),
        TEXTS[0][200:220].encode(),
        json.dumps(TEXTS[0][:40]).encode(),
        html.escape(TEXTS[0].replace("é", "&eacute;")).encode(),
        TEXTS[0].replace(" ", "\n    ").encode(),
        gzip.compress(TEXTS[0].encode()),
        zstandard.compress(TEXTS[0].encode()),
    ],
    ids=["plain", "slice", "json", "html", "wrapped", "gzip", "zstd"],
)
def test_the_search_finds_a_text(content):
    """Whatever it is packed in, or nothing found would mean nothing."""
    assert hits(content)
    assert hits(b"a text of another corpus, of which there is nothing to find") == 0


def test_the_search_finds_texts_and_tokens_in_columns(tmp_path):
    """Parquet compresses its pages, and token ids are no text."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(MODELS / "demo-teacher" / "tokenizer.json")).encode(TEXTS[1]).ids
    for name, column in (("text", [TEXTS[0]]), ("tokens", [ids]), ("number", [1])):
        pq.write_table(pa.table({name: column}), tmp_path / name, compression="zstd")

    assert hits((tmp_path / "text").read_bytes())
    assert hits((tmp_path / "tokens").read_bytes())
    assert not hits((tmp_path / "number").read_bytes())
    assert hits(b"".join(i.to_bytes(4, "little") for i in ids))


@pytest.mark.slow
@pytest.mark.ci
def test_a_text_that_is_asked_for_is_found_where_it_goes(box):
    """The same search, in a page that shows the beginning of each text."""
    code, *said = finish(box, LINES["report"] + " --show-text 40 --data {corpus}", undisturbed)

    assert code == 0, said[1].decode()
    assert "out/page.html" in leaks(box, *said)
    assert wide(box) == {}


def limited():
    """Take from a process the right to write long files."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))


def finish(box, line, fault):
    """Run the line, and disturb it if the fault is one of its life; return code and outputs."""
    if fault is closed_stdout:
        reading, writing = os.pipe()
        os.close(reading)
        process = box.start(line, stdout=writing)
        os.close(writing)
    else:
        process = box.start(line, preexec_fn=limited if fault is file_size_limit else None)
    if fault in (sigterm, sigkill):
        at_work = box.folder / "out"
        limit = time.monotonic() + 60
        while process.poll() is None and not at_work.exists() and time.monotonic() < limit:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM if fault is sigterm else signal.SIGKILL)
    said = process.communicate(timeout=300)
    return process.returncode, *said


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A box with a finished run."""
    box = Box(tmp_path_factory.mktemp("finished"))
    code, out, err = finish(box, LINES["predict"], undisturbed)
    assert code == 0, err.decode()
    assert json.loads((box.folder / "out" / "summary.json").read_text())
    assert leaks(box, out, err) == {}
    (box.folder / "out").rename(box.folder / "run")
    return box.folder


@pytest.fixture(scope="module")
def verified(tmp_path_factory):
    """A box with the two parts of a run, and with what verify found."""
    box = Box(tmp_path_factory.mktemp("verified"))
    (box.folder / "parts").mkdir(mode=0o700)
    for line, place in (
        (LINES["predict_shard"], "parts/0"),
        (LINES["predict_shard"].replace("0/2", "1/2"), "parts/1"),
        (LINES["verify"], "verified"),
    ):
        code, _, err = finish(box, line, undisturbed)
        assert code == 0, err.decode()
        (box.folder / "out").rename(box.folder / place)
    return box.folder


@pytest.fixture
def box(finished, tmp_path):
    """A box of its own for a process, with a copy of the finished run."""
    shutil.copytree(finished / "run", tmp_path / "run")
    return Box(tmp_path)


@pytest.mark.parametrize(("name", "fault"), CASES)
def test_no_command_says_or_leaves_what_a_text_says(box, name, fault, request, record_property):
    """Reports, tables and logs are passed on to people who may not read the corpus."""
    if LINES[name].startswith("merge") or " verified" in LINES[name]:
        shutil.copytree(request.getfixturevalue("verified"), box.folder, dirs_exist_ok=True)
    if fault in FAULTS_OF_CALLS and shutil.which("strace") is None:
        pytest.skip("needs strace")
    FAULTS[fault](box)

    code, *said = finish(box, LINES[name], FAULTS[fault])

    assert code in expected_codes(name, fault), said[1].decode()
    record_property("code", code)
    record_property("traceback", b"Traceback" in b"".join(x or b"" for x in said))
    record_property("err", (said[1] or b"").decode(errors="replace")[-3000:])
    record_property("made", len(box.made()))
    assert leaks(box, *said) == {}
    assert wide(box) == {}
