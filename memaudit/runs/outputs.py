"""What an audit leaves in its folder: the risk table and `summary.json`."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from memaudit.runs.commit import committed_file, output_errors
from memaudit.runs.result import SCHEMA_VERSION, AuditResult
from memaudit.runs.risk_table import RiskRow, TableFormat, write_risk_table


def write_outputs(
    result: AuditResult, table: Path, features: Sequence[str], rows: Iterable[RiskRow]
) -> None:
    """Write the table and, beside it, the summary; neither takes its name before both are whole.

    A table in another format stays if it is of the same run.

    Args:
        result: what the summary says.
        table: where the table goes; its ending is its format.
        features: its columns.
        rows: of the table.

    Raises:
        OutputError: they cannot be written.
    """
    was_another = _is_of_another_run(table.with_name("summary.json"), result.run)
    with committed_file(table.with_name("summary.json")) as summary, committed_file(table) as file:
        document = json.dumps(result.document(), sort_keys=True, indent=2, allow_nan=False)
        summary.write(document.encode() + b"\n")
        write_risk_table(
            file,
            table.suffix.removeprefix("."),  # type: ignore[arg-type]  # a TableFormat
            rows,
            features=features,
            metadata=_metadata(result),
        )
    for kind in get_args(TableFormat) if was_another else ():
        stale = table.with_name(f"risk.{kind}")
        if stale != table and stale.exists():
            with output_errors(stale):
                stale.unlink()


def _is_of_another_run(summary: Path, run: str) -> bool:
    """Whether the results that are there were made before the run was started over."""
    if not summary.exists():
        return False
    try:
        with output_errors(summary, "read"):
            found = json.loads(summary.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("run", run) != run


def _metadata(result: AuditResult) -> dict[str, str]:
    names, shape = result.names, result.shape
    values = {
        "schema": str(SCHEMA_VERSION),
        "version": names.memaudit_version,
        "classifier": names.classifier,
        "classifier_digest": names.classifier_digest,
        "teacher_digest": names.teacher_digest,
        "reference_digest": names.reference_digest,
        "feature_set": names.feature_set,
        "engine": names.engine,
        "run": result.run,
        "windows": f"{result.policy} {shape.prefix_len}+{shape.suffix_len}",
    }
    return {f"memaudit.{key}": value for key, value in values.items() if value is not None}
