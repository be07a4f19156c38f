"""`memaudit predict`: a corpus in, a risk table and a summary out."""

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memaudit.cli import options, predict_options
from memaudit.cli.command import Command, Shown
from memaudit.cli.options import Corpus, Models, Windows
from memaudit.cli.predict_options import Machines, Output, Speed
from memaudit.cli.signals import Stopped
from memaudit.errors import MemauditError
from memaudit.objectives import Objective
from memaudit.reports.predict import plan_page, status_page, summary_page
from memaudit.text import inert, json_text, shown_path

if TYPE_CHECKING:
    from memaudit.integrations.trackers import Tracker


@click.command(
    cls=Command,
    common=predict_options.COMMON,
    short_help="Predict which examples a student would memorize.",
)
@predict_options.models
@predict_options.corpus
@options.window
@options.objective
@predict_options.epochs
@predict_options.out
@predict_options.output
@predict_options.speed
@predict_options.machines
@predict_options.dry_run
@options.sign
@options.log_to
@options.shown_with_progress
def predict(  # noqa: PLR0913  one for each group of options
    *,
    models: Models,
    corpus: Corpus,
    window: Windows,
    objective: Objective,
    epochs: float,
    out: Path | None,
    output: Output,
    speed: Speed,
    machines: Machines,
    dry_run: bool,
    sign: Path | None,
    log_to: "Tracker | None",
    shown: Shown,
) -> None:
    """Predict which examples of CORPUS a student distilled from MODEL would memorize.

    Writes risk.parquet, one row per example, and summary.json into DIR. No file and no output
    holds text of the corpus unless --show-text asks for it. If the run is interrupted or the
    machine dies, give the same command again: it goes on where it was. 'memaudit status DIR' shows
    how far a run is.
    """
    out = out or Path("runs") / _default_name(corpus.stem, machines.shard)
    with stop_explained(out):
        # Imported here, so that a signal while torch is imported is answered like any other.
        from memaudit.runs.options import AuditOptions

        audit = {
            "teacher": models.teacher,
            "data": corpus.rows,
            "student": models.student,
            "baseline": models.baseline,
            "options": AuditOptions(
                classifier=models.classifier,
                model=models.load,
                objective=objective,
                epochs=epochs,
                shape=window.shape,
                windows=window.policy,
                turns=window.turns,
                min_suffix_len=window.min_suffix_len,
                on_bad_row=corpus.on_bad_row,
                ray=machines.ray,
                **options.by_name(speed),
                **options.by_name(output),
            ),
        }
        if dry_run:
            _plan(audit, shown)
        elif machines.shard is None:
            _predict_all(audit, out, shown, sign, log_to)
        else:
            _predict_shard(audit, out, machines.shard, shown)


def _default_name(stem: str, shard: str | None) -> str:
    """Return the name of the folder of a run whose user named none."""
    if shard is None:
        return stem
    from memaudit.runs.manifest import parse_shard

    part = parse_shard(shard)
    return f"{stem}-{part.index}-of-{part.count}"


def _predict_all(
    audit: dict[str, Any], out: Path, shown: Shown, sign: Path | None, log_to: "Tracker | None"
) -> None:
    from memaudit.integrations.trackers import log_scalars, require_tracker
    from memaudit.runs.signature import read_signing_key, sign_run

    require_tracker(log_to)

    # Before the work of hours: a key that cannot be read is found now.
    key = None if sign is None else read_signing_key(sign)
    from memaudit.audit import audit_corpus
    from memaudit.reports.terminal import print_page
    from memaudit.runs.chunks import failure_error

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
        signer = sign_run(out, key)
        if not shown.as_json:
            click.echo(f"Signed with the key {signer}.")
    if not shown.as_json and result.flagged:
        click.echo(inert(_next_steps(out, audit["data"].source)))
    if shown.as_json:
        click.echo(json_text(result.document()))
    log_scalars(log_to, result.document(), out)


def _next_steps(out: Path, source: str) -> str:
    """Return the commands that look at what was found, and clean the corpus of it."""
    run = shlex.quote(shown_path(out))
    lines = ["", "Next:", f"  memaudit report --run {run} --html report.html"]
    if Path(source).exists():  # a hub corpus or a pipe cannot be copied row by row
        data = shlex.quote(shown_path(source))
        cleaned = f"cleaned{''.join(Path(source).suffixes[-2:])}"
        lines.append(f"  memaudit filter --run {run} --data {data} --out {shlex.quote(cleaned)}")
    return "\n".join(lines)


def _plan(audit: dict[str, Any], shown: Shown) -> None:
    started = time.monotonic(), 0.0  # importing torch is part of what an audit takes
    from memaudit.dry_run import plan_audit

    with shown.watched() as progress:
        plan = plan_audit(**audit, progress=progress, started=started)
    shown.tell(plan.document(), plan_page(plan))


def _predict_shard(audit: dict[str, Any], out: Path, shard: str, shown: Shown) -> None:
    from memaudit.audit import score_shard
    from memaudit.reports.terminal import print_page
    from memaudit.runs.chunks import failure_error
    from memaudit.runs.manifest import parse_shard

    with shown.watched() as progress:
        status = score_shard(**audit, out=out, shard=parse_shard(shard), progress=progress)
    if not shown.as_json:
        print_page(status_page(status), color=shown.color)
    if status.failures:
        raise failure_error(status.failures)
    if shown.as_json:
        click.echo(json_text(status.document()))


@contextmanager
def stop_explained(out: Path) -> Iterator[None]:
    """If a signal stops the run in a folder, say how to go on."""
    try:
        yield
    except Stopped as stopped:
        raise Stopped(stopped.number, hint=_how_to_go_on(out)) from None


def _how_to_go_on(out: Path) -> str:
    from memaudit.runs.folder import MANIFEST, RunFolder
    from memaudit.runs.manifest import read_manifest

    try:
        run = RunFolder(out, read_manifest(out / MANIFEST))
    except MemauditError:
        return "nothing had been scored yet: give the same command again"
    # Not verified here: that would keep the user waiting, and the next start does it anyway.
    chunks = run.own_chunks
    n_there = sum(run.plan.path(chunk).exists() for chunk in chunks)
    return f"give the same command again to go on: {n_there:,} of {len(chunks):,} chunks are kept in {out}"
