"""What an audit leaves in its folder: the risk table and `summary.json`."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from memaudit.runs.commit import committed_file
from memaudit.runs.result import SCHEMA_VERSION, AuditResult
from memaudit.runs.risk_table import RiskRow, write_risk_table


def write_outputs(
    result: AuditResult, table: Path, features: Sequence[str], rows: Iterable[RiskRow]
) -> None:
    """Write the table and, beside it, the summary; neither takes its name before both are whole.

    Args:
        result: what the summary says.
        table: where the table goes; its ending is its format.
        features: its columns.
        rows: of the table.

    Raises:
        OutputError: they cannot be written.
    """
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
