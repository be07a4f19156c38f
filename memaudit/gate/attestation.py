"""Attestations: a gate's verdict as an in-toto statement about the corpus."""

import json
from pathlib import Path
from typing import Any

import msgspec

from memaudit.gate.result import GateResult
from memaudit.runs.commit import committed_file

PREDICATE_TYPE = "urn:memaudit:gate:v1"
"""What the predicate is."""


def make_statement(result: GateResult) -> dict[str, Any]:
    """Return an unsigned statement, in the shape of in-toto's Statement v1.

    Its subject is the corpus: the digest of its texts in their order.
    """
    provenance = result.provenance
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "corpus", "digest": {"sha256": provenance["corpus_digest"]}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "verdict": result.verdict,
            "rules": [
                {
                    "id": rule.id,
                    "status": rule.status,
                    "observed": rule.observed,
                    "limit": rule.limit,
                }
                for rule in result.rules
            ],
            "guarantee": msgspec.to_builtins(result.guarantee),
            "policy": {
                "settings": msgspec.to_builtins(result.policy.policy),
                "digest": result.policy.digest,
                "pinned": result.policy.is_pinned,
            },
            "run": provenance["run"],
            "digests": {
                name.removesuffix("_digest"): value
                for name, value in provenance.items()
                if name.endswith("_digest")
            },
            "memaudit_version": provenance["memaudit_version"],
        },
    }


def write_statement(path: Path, result: GateResult) -> None:
    """Write a gate's statement; the same result gives the same bytes.

    Raises:
        OutputError: it cannot be written.
    """
    content = json.dumps(make_statement(result), indent=2, sort_keys=True, allow_nan=False)
    with committed_file(path) as stream:
        stream.write(content.encode() + b"\n")
