"""What every command writes on the demo, into a folder: compare two checkouts with `diff -r`.

Run with the working directory in a checkout: `python -m tests.support.golden OUT_DIR`. What differs
from run to run (times, dates, speeds, versions, temporary paths) is replaced by a sign, and only
that. A checkout without this file runs it by its path: `python /other/tests/support/golden.py`.
"""

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DEMO = ["--teacher", "models/demo-teacher", "--data", "sample_data/demo.jsonl"]
PREDICTIONS = {
    "plain": [],
    "cascade": ["--cascade"],
    "student": ["--student", "models/demo-student"],
    "baseline": ["--baseline", "models/demo-baseline"],
    "tile": ["--windows", "tile", "--prefix-tokens", "25", "--suffix-tokens", "25"],
}
GATE_FORMATS = ("text", "json", "sarif", "junit", "github", "markdown")
NOT_COMPARED = re.compile(r"((^|/)(chunks|parts|lock|state|models)\b|\.arrow$)")

_TEXT = [
    (re.compile(r"\d{4}-\d\d-\d\d[T ][\d:.]+(\+00:00|Z)?"), "<DATE>"),
    (re.compile(r"\d{4}-\d\d-\d\d"), "<DAY>"),
    (re.compile(r"[\d.,]+k? (tokens|windows|rows)/s"), r"<SPEED> \1/s"),
    (re.compile(r"eta [\d:]+"), "eta <TIME>"),
    (re.compile(r"\b[\d.,]+ (s|min|h)\b"), r"<TIME> \1"),
    (re.compile(r"memaudit[ /]\d+\.\d+\.\d+[\w.+]*"), "memaudit <VERSION>"),
]
_KEYS = {"seconds", "tokens_per_second", "started", "finished", "created", "versions", "version"}
_KEYS |= {"memaudit_version", "hostname", "host", "pid", "tool_version", "semanticVersion"}


def normalised(text, places):
    """Return a text without what differs from run to run."""
    for place, sign in places.items():
        text = text.replace(place, sign)
    for pattern, sign in _TEXT:
        text = pattern.sub(sign, text)
    return text


def normalised_document(value):
    """Return a JSON value without what differs from run to run."""
    if isinstance(value, dict):
        return {k: "<…>" if k in _KEYS else normalised_document(v) for k, v in value.items()}
    if isinstance(value, list):
        return [normalised_document(item) for item in value]
    return value


def content_of(path, places):
    """Return what is compared of a file, as text."""
    content = path.read_bytes()
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        head = f"sha256 {hashlib.sha256(content).hexdigest()}\n{table.schema.to_string()}\n"
        return head + "".join(f"{row}\n" for row in table.to_pylist())
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    text = content.decode(errors="backslashreplace")
    if path.suffix == ".json":
        try:
            document = normalised_document(json.loads(text))
        except ValueError:
            return normalised(text, places)
        text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    return normalised(text, places)


class Golden:
    """Runs commands in a scratch folder and keeps what they print and write."""

    def __init__(self, out, scratch, checkout):
        self.out = out
        self.scratch = scratch
        self.checkout = checkout
        self.places = {str(scratch): "<SCRATCH>", str(checkout): "<CHECKOUT>"}

    def run(self, name, *arguments):
        """Run a command; keep exit code, standard output and standard error."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.scratch),
            "PYTHONPATH": str(self.checkout),
            "COLUMNS": "100",
            "LC_ALL": "C.UTF-8",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "memaudit", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=self.checkout, env=environment, capture_output=True, text=True
        )
        is_document = done.stdout.startswith("{")
        stdout = done.stdout
        if is_document:
            document = normalised_document(json.loads(stdout))
            stdout = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        lines = [f"exit {done.returncode}", "-- stdout", stdout, "-- stderr", done.stderr]
        (self.out / f"{name}.txt").write_text(normalised("\n".join(lines), self.places))

    def keep(self, name, path):
        """Keep a file, or the files of a folder that users read."""
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        for file in files:
            inner = "" if path.is_file() else str(file.relative_to(path))
            if NOT_COMPARED.search(inner):
                continue
            target = self.out / f"{name}{'/' if inner else ''}{inner or file.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content_of(file, self.places))

    def predict(self):
        """Every kind of prediction, as text and table; the plain one in each format."""
        for name, arguments in PREDICTIONS.items():
            folder = self.scratch / name
            common = [*DEMO, *arguments, "--out", folder]
            self.run(f"predict-{name}", "predict", *common)
            self.run(f"predict-{name}-json", "predict", *common, "--json", "--quiet")
            self.keep(f"predict-{name}", folder)
        for table in ("csv", "jsonl"):
            folder = self.scratch / table
            self.run(f"predict-{table}", "predict", *DEMO, "--out", folder, "--table-format", table)
            self.keep(f"predict-{table}", folder / f"risk.{table}")
        self.run("status", "status", self.scratch / "plain")
        self.run("status-json", "status", self.scratch / "plain", "--json")

    def shards(self):
        """Two shards, and the run that they are merged to."""
        for index in (0, 1):
            folder = self.scratch / f"shard-{index}"
            self.run(f"shard-{index}", "predict", *DEMO, "--out", folder, "--shard", f"{index}/2")
        folders = [self.scratch / "shard-0", self.scratch / "shard-1"]
        self.run("merge", "merge", *folders, "--out", self.scratch / "merged")
        self.keep("merge", self.scratch / "merged" / "risk.parquet")

    def gate(self):
        """Each format, of a policy that passes and of one that fails."""
        key = self.scratch / "key"
        key.write_text("ab" * 32 + "\n")
        key.chmod(0o600)
        run = ["gate", "--run", self.scratch / "plain", "--key-file", key]
        for limit in ("100000", "10"):
            for form in GATE_FORMATS:
                arguments = ["--max-expected", limit, "--output-format", form]
                self.run(f"gate-{form}-{limit}", *run, *arguments)
        self.run("gate-no-rule", *run)
        baseline = self.scratch / "baseline.json"
        self.run("gate-baseline", *run, "--max-rate", "1", "--write-baseline", baseline)
        self.keep("gate-baseline-file", baseline)

    def report(self, *more):
        """The page and Markdown, with and without a verification."""
        name = "report-verified" if more else "report"
        page, note = self.scratch / f"{name}.html", self.scratch / f"{name}.md"
        run = ["report", "--run", self.scratch / "plain", *more]
        self.run(name, *run, "--html", page, "--markdown", note)
        self.run(f"{name}-json", *run, "--html", page, "--json")
        self.keep(f"{name}-page", page)
        self.keep(f"{name}-note", note)

    def runs(self):
        """What differs between two runs, and why one row is at risk."""
        plain = self.scratch / "plain"
        for name, arguments in (
            ("diff", ["diff", plain, self.scratch / "student"]),
            ("explain", ["explain", "prose-020-29", "--run", plain]),
        ):
            self.run(name, *arguments)
            self.run(f"{name}-json", *arguments, "--json")

    def filter(self):
        """Each strategy."""
        for strategy in ("drop", "deduplicate", "downsample"):
            out = self.scratch / strategy / "cleaned.jsonl"
            out.parent.mkdir()
            run = ["filter", "--run", self.scratch / "plain", "--data", "sample_data/demo.jsonl"]
            self.run(f"filter-{strategy}", *run, "--out", out, "--strategy", strategy)
            self.keep(f"filter-{strategy}", out.parent)

    def verify(self):
        """A distillation of a few steps, and what follows from it."""
        folder = self.scratch / "verified"
        models = [*DEMO, "--student", "models/demo-student", "--baseline", "models/demo-baseline"]
        small = ["--sample", "64", "--epochs", "1", "--batch-size", "32"]
        common = [*models, *small, "--predictions", self.scratch / "plain", "--out", folder]
        self.run("verify", "verify", *common)
        self.run("verify-json", "verify", *common, "--json", "--quiet")
        self.keep("verify", folder)
        self.report("--verification", folder)
        verified = ["--verification", folder, "--max-verified", "0"]
        self.run("gate-verified", "gate", "--run", self.scratch / "plain", *verified)

    def errors(self):
        """What a user meets who mistyped."""
        self.run("no-command")
        self.run("error-option", "predict", "--techer", "x")
        self.run(
            "error-teacher", "predict", "--teacher", "gone", "--data", "sample_data/demo.jsonl"
        )
        self.run(
            "error-data", "predict", "--teacher", "models/demo-teacher", "--data", "gone.jsonl"
        )


def main(out):
    """Write what the checkout of the working directory prints and writes."""
    out = Path(out).resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="golden-") as scratch:
        golden = Golden(out, Path(scratch), Path.cwd())
        steps = (golden.predict, golden.shards, golden.gate, golden.report, golden.runs)
        for step in (*steps, golden.filter):
            step()
        golden.verify()
        golden.errors()


if __name__ == "__main__":
    main(*sys.argv[1:])
