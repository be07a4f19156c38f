"""What `memaudit predict` does once its options are read; these stand in predict_options.py."""

import shlex
import time
from pathlib import Path
from typing import Any

import click

from memaudit.audit import audit_corpus, score_shard
from memaudit.cli import options
from memaudit.cli.command import Shown
from memaudit.cli.options import Afterwards
from memaudit.errors import MemauditError
from memaudit.integrations.trackers import log_scalars
from memaudit.reports import words
from memaudit.reports.predict import plan_page, status_page, summary_page
from memaudit.reports.terminal import print_page
from memaudit.runs.chunks import failure_error
from memaudit.runs.folder import RunFolder
from memaudit.runs.manifest import Shard
from memaudit.runs.signature import sign_folder
from memaudit.text import inert, json_text, number_of, shown_path


def predict_all(audit: dict[str, Any], out: Path, shown: Shown, afterwards: Afterwards) -> None:
    """Score a corpus, write the results, and show them."""
    # Before the work of hours: what is missing, and a key that cannot be read, are found now.
    key = afterwards.signing_key()
    with shown.watched() as progress:
        result = audit_corpus(**audit, out=out, progress=progress)
    # The summary is shown even if chunks failed: what was scored is worth reading.
    if not shown.as_json:
        is_given = any(
            options.given(name) for name in ("recipe", "objective", "temperature", "alpha")
        )
        print_page(summary_page(result, objective_given=is_given), color=shown.color)
    if result.errors:
        raise failure_error(result.failures, result.errors)
    if key is not None:
        shown.signed(sign_folder(out, key))
    if not shown.as_json and result.flagged:
        source, run = audit["data"].source, shlex.quote(shown_path(out))
        lines = ["", "Next:", f"  memaudit report --run {run} --html report.html"]
        if Path(source).exists():  # a hub corpus or a pipe cannot be copied row by row
            data = shlex.quote(shown_path(source))
            cleaned = shlex.quote(words.cleaned_name(source))
            lines.append(f"  memaudit filter --run {run} --data {data} --out {cleaned}")
            if len(lines[-1]) > 80:  # a terminal would break it inside a word
                lines[-1] = lines[-1].replace(" --out ", " \\\n    --out ")
        click.echo(inert("\n".join(lines)))
    if shown.as_json:
        click.echo(json_text(result.document()))
    log_scalars(afterwards.tracker, result.document(), out)


def plan_run(audit: dict[str, Any], shown: Shown) -> None:
    """Show what scoring a corpus would cost."""
    started = time.monotonic(), 0.0  # importing torch is part of what an audit takes
    from memaudit.dry_run import plan_audit

    with shown.watched() as progress:
        plan = plan_audit(**audit, progress=progress, started=started)
    shown.tell(plan.document(), plan_page(plan))


def predict_shard(
    audit: dict[str, Any], out: Path, part: Shard, prepared: Path | None, shown: Shown
) -> None:
    """Score one part of a corpus, and show how far it is."""
    with shown.watched() as progress:
        status = score_shard(**audit, out=out, shard=part, prepared=prepared, progress=progress)
    if not shown.as_json:
        print_page(status_page(status), color=shown.color)
        if prepared is not None:
            place = shown_path(prepared)
            click.echo(
                f"{place} holds token ids of the corpus. Remove it when all shards are "
                f"complete; 'memaudit merge DIR... --out {place}' removes them by itself."
            )
    if status.failures:
        raise failure_error(status.failures)
    if shown.as_json:
        click.echo(json_text(status.document()))


def how_to_go_on(out: Path) -> str:
    """Return what to say when a signal has stopped the run in a folder."""
    try:
        run = RunFolder.read(out)
    except MemauditError:
        return "nothing had been scored yet: give the same command again"
    # Not verified here: that would keep the user waiting, and the next start does it anyway.
    chunks = run.own_chunks
    n_there = sum(run.plan.path(chunk).exists() for chunk in chunks)
    of = number_of(len(chunks), "chunk")
    kept = f"{n_there:,} of {of} {'is' if n_there == 1 else 'are'} kept in {out}"
    return f"give the same command again to go on: {kept}"
