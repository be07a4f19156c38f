"""`memaudit gate`: a finished run held to a policy; the exit code is the verdict."""

import os
import sys
from dataclasses import replace
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memaudit.cli import options
from memaudit.cli.command import Command, FiniteRange, variables_used
from memaudit.cli.options import corpus_option, input_option, limits_option, output_option
from memaudit.errors import OutputError, UsageError
from memaudit.text import json_text, shown_path

if TYPE_CHECKING:
    from memaudit.gate import EffectivePolicy, GateResult
    from memaudit.gate.rescore import Rescoring
    from memaudit.reports.ci import SourceRoot

_PATH = click.Path(path_type=Path)
_SUMMARY_BYTES = 900_000
_KEY_FILE = ".memaudit-key"
_FORMATS = ("text", "json", "sarif", "junit", "github", "markdown")


@click.command(short_help="Hold a run to limits; the exit code is the verdict.", cls=Command)
@input_option(
    "--run", "run_folder", type=_PATH, required=True, metavar="DIR", help="What predict wrote."
)
@limits_option(
    "--policy",
    type=_PATH,
    metavar="FILE",
    help="TOML with a section [gate] or [tool.memaudit.gate]. Default: memaudit.toml, else pyproject.toml.",
)
@limits_option(
    "--policy-digest",
    metavar="SHA256",
    help="The policy file must have this digest, and no other option may weaken it.",
)
@limits_option(
    "--max-rate",
    type=FiniteRange(0, 1),
    metavar="SHARE",
    help="Flagged examples among the scored.",
)
@limits_option(
    "--max-expected",
    type=FiniteRange(min=0),
    metavar="N",
    help="Examples expected to be memorized, by the upper bound.",
)
@limits_option(
    "--max-recited", type=options.COUNT, metavar="N", help="Examples that the teacher recites."
)
@limits_option(
    "--max-verified",
    type=options.COUNT,
    metavar="N",
    help="Examples that a distilled student recites; needs --verification.",
)
@limits_option(
    "--max-sensitive",
    type=options.COUNT,
    metavar="N",
    help="Examples at risk with personal data or secrets; needs a run with --sensitive.",
)
@limits_option(
    "--max-secrets",
    type=options.COUNT,
    metavar="N",
    help="Examples with a secret at risk; needs a run with --sensitive.",
)
@limits_option("--max-bad-rows", type=options.COUNT, metavar="N", help="Rows that were not scored.")
@limits_option(
    "--inconclusive",
    type=click.Choice(("fail", "pass")),
    help="What a rule without evidence does. Default: fail, with exit code 2.",
)
@limits_option(
    "--allow-custom-classifier",
    is_flag=True,
    default=None,
    help="Accept probabilities of a classifier that does not come with memaudit.",
)
@input_option(
    "--verification", type=_PATH, metavar="DIR", help="What verify wrote, for the same corpus."
)
@corpus_option(
    "--data", metavar="CORPUS", help="The corpus: read again, and refused if it has changed."
)
@input_option(
    "--baseline",
    type=_PATH,
    metavar="OLD",
    help="An earlier run's DIR or a baseline file: only what is new counts.",
)
@output_option(
    "--write-baseline", type=_PATH, metavar="FILE", help="Write this run's examples as known ones."
)
@input_option(
    "--verify-key",
    "verify_keys",
    multiple=True,
    metavar="KEY",
    help="Public key that must have signed the run: hexadecimal, or a PEM file. Several: any of them.",
)
@input_option(
    "--rescore",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help="Score N random windows again and compare; needs --data and --teacher.",
)
@input_option(
    "--teacher", metavar="MODEL", help="With --rescore: the run's teacher, folder or hub id."
)
@input_option(
    "--reference", metavar="MODEL", help="With --rescore: the run's student or baseline, if any."
)
@output_option(
    "--write-policy",
    type=_PATH,
    metavar="FILE",
    help="Write a policy with these limits that also asks for what this run scored, with what.",
)
@input_option(
    "--key-file",
    type=_PATH,
    metavar="FILE",
    help=f"Key of the hashes in a baseline file and in SARIF; made if missing. Default: {_KEY_FILE}, "
    "made for --write-baseline alone. SARIF without a key has other fingerprints each time.",
)
@output_option(
    "--output-format",
    type=click.Choice(_FORMATS),
    default="text",
    show_default=True,
    help="How the result is told.",
)
@output_option("--output", type=_PATH, metavar="FILE", help="Where to. Default: standard output.")
@output_option(
    "--source-root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Paths in SARIF and annotations are taken from here. Default: the top of the repository.",
)
@output_option(
    "--attest", type=_PATH, metavar="FILE", help="Write the verdict as an in-toto statement."
)
@output_option(
    "--github-files",
    type=_PATH,
    metavar="DIR",
    help="Write gate.json and gate.sarif into DIR and the verdict to $GITHUB_OUTPUT; for the action.",
)
@options.as_json
@options.color
def gate(**flags: Any) -> int:
    """Hold the run in DIR to limits: exit code 0 if all hold, 1 if one is broken, 2 otherwise.

    Whatever cannot be settled ends with 2: a run that is incomplete, damaged, stale or of
    something else, and a rule without evidence.
    """
    from memaudit.gate import GateInputs, check_gate
    from memaudit.gate.identity import write_baseline
    from memaudit.gate.policy import policy_text
    from memaudit.gate.scope import policy_for
    from memaudit.runs.files import committed_file
    from memaudit.runs.run import read_run
    from memaudit.runs.signature import read_public_keys

    if flags["as_json"]:
        flags["output_format"] = "json"
    policy = _policy(flags)
    inputs = GateInputs(
        verification=flags["verification"],
        data=flags["data"],
        baseline=flags["baseline"],
        key=_key(flags),
        rescoring=_rescoring(flags),
        verify_keys=tuple(chain.from_iterable(map(read_public_keys, flags["verify_keys"]))),
    )
    run = read_run(flags["run_folder"])
    result = replace(check_gate(run, policy, inputs), variables=_variables(flags))
    if flags["write_baseline"] is not None and inputs.key is not None:
        write_baseline(flags["write_baseline"], run, inputs.key)
    if flags["write_policy"] is not None:
        asked = policy_for(result.judged, policy.policy, run.manifest.classifier.digest)
        with committed_file(flags["write_policy"]) as stream:
            stream.write(policy_text(asked).encode())
    if flags["attest"] is not None:
        with committed_file(flags["attest"]) as stream:
            stream.write(json_text(result.statement(), indent=2).encode() + b"\n")
    _tell(result, flags)
    if flags["github_files"] is not None:
        _tell_action(result, flags["github_files"], _source_root(result, flags))
    return result.exit_code


def _rescoring(flags: dict[str, Any]) -> "Rescoring | None":
    from memaudit.gate.rescore import Rescoring

    if flags["rescore"] is None:
        return None
    if flags["teacher"] is None:
        raise UsageError("--rescore needs the teacher", hint="name it with --teacher")
    options.prepare_libraries(offline=False)
    return Rescoring(flags["rescore"], flags["teacher"], flags["reference"])


def _variables(flags: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the variables that changed what the gate does, or where it writes."""
    context = click.get_current_context()
    found = [*variables_used(context)]
    if flags["output_format"] == "github" or flags["github_files"] is not None:
        found += ["GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"]
    if flags["output_format"] in ("github", "sarif") or flags["github_files"] is not None:
        found += ["GITHUB_WORKSPACE", "CI_PROJECT_DIR"]
    return tuple(name for name in found if os.environ.get(name))


def _policy(flags: dict[str, Any]) -> "EffectivePolicy":
    from memaudit.gate import effective_policy
    from memaudit.gate.policy import LIMITS

    # A variable that was never set arrives as an empty text. Click drops empty variables itself.
    if "" in (flags["policy_digest"], os.environ.get("MEMAUDIT_GATE_POLICY_DIGEST")):
        raise UsageError(
            "the digest of the policy is empty, so nothing would be pinned",
            hint="set the variable that --policy-digest comes from, or leave the option out",
        )
    names = (*LIMITS, "max_bad_rows", "inconclusive", "allow_custom_classifier")
    given = {name: flags[name] for name in names}
    return effective_policy(flags["policy"], given, pinned_digest=flags["policy_digest"])


def _key(flags: dict[str, Any]) -> bytes | None:
    """Return the project's key if something needs it; one that a baseline needs must be there.

    A key is a secret that lies in a checkout, so none is made that nobody has asked for.
    """
    from memaudit.gate.identity import one_time_key, read_key

    reads = flags["baseline"] is not None and not flags["baseline"].is_dir()
    if reads and not flags["baseline"].exists():
        shown = shown_path(flags["baseline"])
        raise UsageError(f"{shown}: no such baseline", hint="write one with --write-baseline")
    has_sarif = flags["output_format"] == "sarif" or flags["github_files"] is not None
    asked = flags["key_file"] is not None or flags["write_baseline"] is not None
    path = flags["key_file"] or Path(_KEY_FILE)
    if not reads and not asked and not path.exists():
        return one_time_key() if has_sarif else None
    if not reads and not has_sarif and flags["write_baseline"] is None:
        return None
    is_new = not path.exists()
    key = read_key(path, create=not reads)
    if is_new:
        shown = shown_path(path)
        click.echo(f"note: {shown} is a new secret key: add it to .gitignore", err=True)
    return key


def _tell(result: "GateResult", flags: dict[str, Any]) -> None:
    from memaudit.runs.files import committed_file

    if flags["output_format"] == "github":
        _append_summary(result)
    if flags["output_format"] == "text" and flags["output"] is None:
        from memaudit.reports.gate import gate_page
        from memaudit.reports.terminal import print_page

        print_page(gate_page(result), color=flags["color"])
        return
    content = _rendered(result, flags["output_format"], _source_root(result, flags))
    if flags["output"] is None:
        click.echo(content, nl=False)
        return
    with committed_file(flags["output"]) as stream:
        stream.write(content.encode())


def _source_root(result: "GateResult", flags: dict[str, Any]) -> "SourceRoot":
    """Return the top of the repository that code scanning takes paths from.

    Git itself is not asked: it would read the settings of a checkout that may be hostile.
    """
    from memaudit.reports.ci import SourceRoot

    here = Path.cwd()
    given = flags["source_root"]
    for name in ("GITHUB_WORKSPACE", "CI_PROJECT_DIR"):
        given = given or os.environ.get(name)
    repositories = (folder for folder in (here, *here.parents) if (folder / ".git").exists())
    top = Path(given).resolve() if given else next(repositories, here)
    corpus = result.provenance["corpus"]
    moved = (corpus, flags["data"]) if corpus and flags["data"] else None
    # A run mostly lies below the folder that predict worked in.
    folders = (here, *flags["run_folder"].resolve().parents)
    return SourceRoot(str(top), tuple(map(str, folders)), moved)


def _rendered(result: "GateResult", output_format: str, root: "SourceRoot") -> str:
    match output_format:
        case "json":
            content = json_text(result.document()) + "\n"
        case "sarif":
            from memaudit.reports.ci import render_sarif

            content = render_sarif(result, root=root)
        case "junit":
            from memaudit.reports.ci import render_junit

            content = render_junit(result)
        case "github":
            from memaudit.reports.ci import render_annotations

            content = render_annotations(result, root=root)
        case "markdown":
            from memaudit.reports.gate import gate_markdown

            content = gate_markdown(result)
        case _:
            from memaudit.reports.gate import gate_page
            from memaudit.reports.terminal import print_page

            stream = StringIO()
            print_page(gate_page(result), stream, color="never")
            content = stream.getvalue()
    return content


def _tell_action(result: "GateResult", folder: Path, root: "SourceRoot") -> None:
    """Write the files that later steps of a GitHub job use, and last of all the verdict.

    Nothing may fail once a verdict is told: the job would read another one than the exit code.
    """
    from memaudit.runs.files import committed_file

    for kind in ("json", "sarif"):
        with committed_file(folder / f"gate.{kind}") as stream:
            stream.write(_rendered(result, kind, root).encode())
    outputs: dict[str, object] = {"verdict": result.verdict, "flagged": result.counts["flagged"]}
    files = {"report": folder / "report.html", "sarif": folder / "gate.sarif"}
    outputs |= {name: path for name, path in files.items() if path.is_file()}
    sys.stdout.flush()
    _append("GITHUB_OUTPUT", "".join(f"{name}={value}\n" for name, value in outputs.items()))


def _append_summary(result: "GateResult") -> None:
    """Add to the summary of the job, as far as there is room."""
    from memaudit.reports.gate import gate_markdown
    from memaudit.reports.markdown import cut

    path = Path(os.environ.get("GITHUB_STEP_SUMMARY") or os.devnull)
    used = path.stat().st_size if path.is_file() else 0
    _append("GITHUB_STEP_SUMMARY", cut(gate_markdown(result), max(0, _SUMMARY_BYTES - used)))


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
