"""A corpus, its run, and what happens to them before a gate looks."""

import json
import shutil

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.gated import TEXTS, make_run, shipped, verify_run

from memaudit.cli.main import run as run_command
from memaudit.labels import PARTS
from memaudit.runs.signature import sign_folder


def signing_key(name):
    """Return a private key."""
    return Ed25519PrivateKey.from_private_bytes(name.encode() * 32)


def key(name):
    """Return its public part."""
    return signing_key(name).public_key().public_bytes_raw().hex()


class Situation:
    """A folder with a corpus, its run, and whatever a case adds to it."""

    def __init__(self, folder, monkeypatch):
        self.folder, self._monkeypatch = folder, monkeypatch
        self.corpus, self.run = folder / "run.jsonl", folder / "run"

    def card(self, **card):
        shipped(self._monkeypatch, self.folder / "few", **card)

    def damage(self, name, change):
        path = self.run / name
        path.write_bytes(change(path.read_bytes()))

    def write(self, name, text):
        (self.folder / name).write_text(text)

    def set(self, variable, value):
        self._monkeypatch.setenv(variable, value)

    def again(self, texts=TEXTS, name="other", **options):
        return make_run(self.folder, texts, name=name, **options)

    def pin(self, **options):
        """Write a policy for the run, and make another run, of the same corpus if nothing is said."""
        limits = ["--max-rate", "1", "--write-policy", "memaudit.toml"]
        assert run_command(["gate", "--run", "run", *limits]) == 0
        if options:
            make_run(self.folder, TEXTS, name="other", **options)
            shutil.copy(self.folder / "other.jsonl", self.corpus)

    def dated(self, date):
        document = json.loads((self.run / "summary.json").read_text())
        (self.run / "summary.json").write_text(json.dumps(document | {"date": date}))
        self.write("age.toml", "[gate]\nmax-rate = 1.0\nmax-age = 30\n")

    def unlike(self, share):
        risks = "memaudit.runs.risks.Risks"
        self._monkeypatch.setattr(f"{risks}.out_of_range", {"log_occurrences": share})

    def sign(self, name):
        sign_folder(self.run, signing_key(name))

    def sign_verified(self, name):
        """Sign the verification."""
        sign_folder(self.folder / "verified", signing_key(name), PARTS)

    def signers(self, *names):
        self.write("memaudit.toml", f"[gate]\nmax-rate = 1.0\nsigners = {[*map(key, names)]}\n")

    def verified(self, recites, name="verified", **settings):
        verify_run(self.run, self.folder / name, recites, **settings)


def flip(content):
    """Change one bit."""
    changed = bytearray(content)
    changed[len(changed) // 3] ^= 1
    return bytes(changed)


def edit_scores(situation, value):
    """Put a value into a chunk and seal it as if it had been scored so."""
    from memaudit.runs.chunks import read_chunk, write_chunk
    from memaudit.runs.folder import RunFolder
    from memaudit.runs.manifest import read_manifest

    run = RunFolder(situation.run, read_manifest(situation.run / "manifest.json"))
    X = read_chunk(run.plan, 0)
    X[3, run.plan.features.index("teacher_suffix_argmax_rate")] = value
    write_chunk(run.plan, 0, X)
