"""`memaudit gate`: a finished run held to a policy; the exit code is the verdict."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memaudit.cli import options
from memaudit.cli.command import Command, FiniteRange, Shown, bundle, variables_used, write_file
from memaudit.cli.options import (
    COUNT,
    PATH,
    corpus_option,
    input_option,
    limits_option,
    output_option,
)
from memaudit.errors import OutputError, UsageError
from memaudit.gate import Rescoring
from memaudit.reports.markdown import cut
from memaudit.text import json_text, safe_text, shown_path

if TYPE_CHECKING:
    from memaudit.gate.result import GateResult

# GitHub takes 1 MiB of all that a step writes.
_SUMMARY_BYTES = 900_000
_KEY_FILE = ".memaudit-key"
Render = Callable[[str], str]
"""Makes of a result what one of the formats has."""
_FORMATS = ("text", "json", "sarif", "junit", "github", "markdown")


@bundle(
    limits_option(
        "--policy",
        "TOML with a section [gate] or [tool.memaudit.gate]. Default: memaudit.toml, else pyproject.toml.",
        PATH,
        metavar="FILE",
    ),
    limits_option(
        "--policy-digest",
        "The policy file must have this digest, and no other option may weaken it.",
        metavar="SHA256",
    ),
    limits_option(
        "--max-rate", "Share of the scored examples that may be flagged.", FiniteRange(0, 1)
    ),
    limits_option(
        "--max-expected",
        "Number of examples that may be memorized, by the upper bound.",
        FiniteRange(min=0),
    ),
    limits_option("--max-recited", "Examples that the teacher recites.", COUNT),
    limits_option(
        "--max-verified", "Examples that a distilled student recites; needs --verification.", COUNT
    ),
    limits_option(
        "--max-sensitive",
        "Examples at risk with personal data or secrets; needs a run with --sensitive.",
        COUNT,
    ),
    limits_option(
        "--max-secrets", "Examples with a secret at risk; needs a run with --sensitive.", COUNT
    ),
    limits_option("--max-bad-rows", "Rows that were not scored.", COUNT),
    limits_option(
        "--inconclusive",
        "What a rule without evidence does. Default: fail, with exit code 2.",
        ("fail", "pass"),
    ),
    limits_option(
        "--allow-custom-classifier",
        "Accept probabilities of a classifier that does not come with memaudit.",
        is_flag=True,
        # None, not False, unless it is given: False would overrule the policy file.
        default=None,
    ),
)
def limits(policy: Path | None, policy_digest: str | None, **flags: Any) -> dict[str, Any]:
    """Return what `effective_policy` is given; it reads the policy once the screen says so."""
    prefix = f"{click.get_current_context().auto_envvar_prefix}_"
    # A variable that was never set arrives as an empty text. Click drops empty variables itself.
    empty = [name for name, value in os.environ.items() if name.startswith(prefix) and not value]
    if policy_digest == "" or empty:
        what = empty[0] if empty else "the digest of the policy"
        raise UsageError(
            f"{safe_text(what)} is empty, so it would ask for nothing",
            hint="give it a value, or leave it out",
        )
    return {"path": policy, "flags": flags, "pinned_digest": policy_digest}


@bundle(
    input_option(
        "--rescore",
        "Score N random windows again and compare; needs --data and --teacher.",
        click.IntRange(1, 1_000_000),
        metavar="N",
    ),
    input_option(
        "--teacher", "With --rescore: the run's teacher, folder or hub id.", metavar="MODEL"
    ),
    input_option(
        "--reference", "With --rescore: the run's student or baseline, if any.", metavar="MODEL"
    ),
)
def rescoring(rescore: int | None, teacher: str | None, reference: str | None) -> Rescoring | None:
    """Return what is scored again, if anything is."""
    if rescore is None:
        return None
    if teacher is None:
        raise UsageError("--rescore needs the teacher", hint="name it with --teacher")
    options.prepare_libraries()
    return Rescoring(rescore, teacher, reference)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What is written, and how."""

    key_file: Path | None
    write_baseline: Path | None
    write_policy: Path | None
    output_format: str
    output: Path | None
    """None: standard output."""
    source_root: Path | None
    attest: Path | None
    github_files: Path | None

    def write(self, path: Path | None, content: str) -> None:
        """Write a file whole or not at all; without a path, to standard output."""
        if path is None:
            click.echo(content, nl=False)
            return
        write_file(path, content.encode())

    def variables(self) -> tuple[str, ...]:
        """Return the names of the variables that changed what the gate does, or where it writes."""
        found = [*variables_used(click.get_current_context())]
        if self.output_format == "github" or self.github_files is not None:
            found += ["GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"]
        if self.output_format in ("github", "sarif") or self.github_files is not None:
            found += ["GITHUB_WORKSPACE", "CI_PROJECT_DIR"]
        return tuple(name for name in found if os.environ.get(name))


@bundle(
    input_option(
        "--key-file",
        f"Key of the hashes in a baseline file and in SARIF; made if missing. Default: {_KEY_FILE}, "
        "made for --write-baseline alone. SARIF without a key has other fingerprints each time.",
        PATH,
        metavar="FILE",
    ),
    output_option(
        "--write-baseline", "Write this run's examples as known ones.", PATH, metavar="FILE"
    ),
    output_option(
        "--write-policy",
        "Write a policy with these limits that also asks for this run's teacher, column and settings.",
        PATH,
        metavar="FILE",
    ),
    output_option("--output-format", "Format of the result.", _FORMATS, "text"),
    output_option(
        "--output", "File for the result. Default: standard output.", PATH, metavar="FILE"
    ),
    output_option(
        "--source-root",
        "Paths in SARIF and annotations are taken from here. Default: the top of the repository.",
        click.Path(path_type=Path, file_okay=False, exists=True),
        metavar="DIR",
    ),
    output_option("--attest", "Write the verdict as an in-toto statement.", PATH, metavar="FILE"),
    output_option(
        "--github-files",
        "Write gate.json and gate.sarif into DIR and the verdict to $GITHUB_OUTPUT; for the action.",
        PATH,
        metavar="DIR",
    ),
)
def outputs(**values: Any) -> Outputs:
    """Return what is written."""
    return Outputs(**values)


@click.command(cls=Command)
@input_option("--run", "What predict wrote.", PATH, name="run_folder", required=True, metavar="DIR")
@limits
@input_option("--verification", "What verify wrote, for the same corpus.", PATH, metavar="DIR")
@corpus_option("--data", "The corpus: read again, and refused if it has changed.", metavar="CORPUS")
@input_option(
    "--baseline",
    "An earlier run's DIR or a baseline file: only what is new counts.",
    PATH,
    metavar="OLD",
)
@input_option(
    "--verify-key",
    "Public key that must have signed the run: hexadecimal, or a PEM file. Several: any of them.",
    name="verify_keys",
    multiple=True,
    metavar="KEY",
)
@rescoring
@outputs
@options.shown
def gate(  # noqa: PLR0913  one for each kind of evidence
    *,
    run_folder: Path,
    limits: dict[str, Any],
    verification: Path | None,
    data: str | None,
    baseline: Path | None,
    verify_keys: tuple[str, ...],
    rescoring: Rescoring | None,
    outputs: Outputs,
    shown: Shown,
) -> int:
    """Hold the run in DIR to limits: exit code 0 if all hold, 1 if one is broken, 2 otherwise.

    Whatever cannot be settled ends with 2: a run that is incomplete, damaged, too old or of
    another corpus, and a rule without evidence.
    """
    if shown.as_json:
        outputs = replace(outputs, output_format="json")
    with shown.reading(run_folder):
        from memaudit.gate import check, identity, policy, rules
        from memaudit.reports.ci import render, source_root
        from memaudit.runs.run import read_run
        from memaudit.runs.signature import read_public_keys

        # Before the run is read: a typo in a policy, and a key that is missing, are found at once.
        held_to, key = policy.effective_policy(**limits), _key(baseline, outputs)
        keys = tuple(chain.from_iterable(map(read_public_keys, verify_keys)))
        inputs = check.GateInputs(verification, data, baseline, key, rescoring, keys)
        run = read_run(run_folder)
        result = replace(check.check_gate(run, held_to, inputs), variables=outputs.variables())
    # Whatever the verdict: a project that starts with findings writes them down here.
    if outputs.write_baseline is not None and key is not None:
        identity.write_baseline(outputs.write_baseline, run, key)
    if outputs.write_policy is not None:
        asked = rules.policy_for(result.judged, held_to.policy, run.manifest.classifier.digest)
        outputs.write(outputs.write_policy, policy.policy_text(asked))
    if outputs.attest is not None:
        outputs.write(outputs.attest, json_text(result.statement(), indent=2) + "\n")
    root = source_root(result, run_folder, data, outputs.source_root)
    rendered = partial(render, result, root)
    _tell(result, outputs, rendered, shown.color)
    return result.exit_code


def _key(baseline: Path | None, outputs: Outputs) -> bytes | None:
    """Return the project's key if something needs it; one that a baseline needs must be there.

    A key is a secret that lies in a checkout, so none is made that nobody has asked for.
    """
    from memaudit.gate.identity import one_time_key, read_key

    # The folder of a run is hashed on the spot, and needs no key of the project.
    reads = baseline is not None and not baseline.is_dir()
    if baseline is not None and reads and not baseline.exists():
        shown = shown_path(baseline)
        raise UsageError(f"{shown}: no such baseline", hint="write one with --write-baseline")
    has_sarif = outputs.output_format == "sarif" or outputs.github_files is not None
    asked = outputs.key_file is not None or outputs.write_baseline is not None
    path = outputs.key_file or Path(_KEY_FILE)
    if not reads and not asked and not path.exists():
        return one_time_key() if has_sarif else None
    if not reads and not has_sarif and outputs.write_baseline is None:
        return None
    is_new = not path.exists()
    key = read_key(path, create=not reads)
    if is_new:
        shown = shown_path(path)
        note = f"note: {shown} is a new secret key: add it to .gitignore"
        click.echo(note, sys.stderr, err=True)
    return key


def _tell(result: "GateResult", outputs: Outputs, rendered: Render, color: str) -> None:
    """Show the result; last of all write what later steps of a GitHub job use."""
    from memaudit.reports.gate import gate_page
    from memaudit.reports.terminal import print_page

    if outputs.output_format == "github":
        # To the summary of the job, as far as there is room.
        path = Path(os.environ.get("GITHUB_STEP_SUMMARY") or os.devnull)
        room = max(0, _SUMMARY_BYTES - (path.stat().st_size if path.is_file() else 0))
        _append("GITHUB_STEP_SUMMARY", cut(rendered("markdown"), room))
    if outputs.output_format != "text":
        outputs.write(outputs.output, rendered(outputs.output_format))
    elif outputs.output is None:
        print_page(gate_page(result), color=color)
    else:
        stream = StringIO()
        print_page(gate_page(result), stream, color="never")
        outputs.write(outputs.output, stream.getvalue())
    folder = outputs.github_files
    if folder is None:
        return
    for kind in ("json", "sarif"):
        outputs.write(folder / f"gate.{kind}", rendered(kind))
    values: dict[str, object] = {"verdict": result.verdict, "flagged": result.counts["flagged"]}
    files = {"report": folder / "report.html", "sarif": folder / "gate.sarif"}
    # A step before makes the report; where it could not, nothing points to it.
    values |= {name: path for name, path in files.items() if path.is_file()}
    # Nothing may fail once a verdict is told: the job would read another one than the exit code.
    # So a closed pipe, and a full disk behind it, are found before.
    sys.stdout.flush()
    _append("GITHUB_OUTPUT", "".join(f"{name}={value}\n" for name, value in values.items()))


def _append(variable: str, text: str) -> None:
    """Add text to the file that a variable names, if it is set."""
    name = os.environ.get(variable)
    if not name:
        return
    try:
        with Path(name).open("a", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise OutputError(
            f"{shown_path(name)}: cannot be written: {error.strerror}",
            hint=f"check the variable {variable}",
        ) from error
