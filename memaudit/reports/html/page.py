"""The page: values into a template that escapes all of them."""

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from memaudit.labels import ROLES
from memaudit.reports.html import svg
from memaudit.reports.report_numbers import REASONS_OF, percent_by_name
from memaudit.reports.report_view import (
    Report,
    approximately,
    budget_rows,
    objective_in_words,
    risk_in_words,
    verdict,
)
from memaudit.text import safe_text

_ID_LEN, _ADDRESS_LEN = 100, 160
_METRICS = {
    "pr_auc": "average precision",
    "roc_auc": "ROC-AUC",
    "equal_count_auc": "ROC-AUC among examples that occur equally often",
    "precision": "precision at the threshold",
    "recall": "recall at the threshold",
    "calibration_error": "calibration error",
}
_OUTCOMES = {
    "screened": "left out by the cascade, by the corpus alone: not in the expected number",
    "too_short": "too short for a window: cannot be extracted as defined",
    "bad": "could not be used",
    "error": "could not be scored",
}


def render_page(report: Report) -> str:
    """Return the page: one HTML document that loads nothing and runs only its own script.

    Everything from outside passes `safe_text` and the template's escaping. The same report gives
    the same page.
    """
    source = files("memaudit.reports.html")
    style, script, template = (
        source.joinpath(name).read_text(encoding="utf-8")
        for name in ("style.css", "script.js", "template.html.jinja")
    )
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "safe_text": safe_text,
        "approximately": approximately,
        "risk": risk_in_words,
        "number": _number,
        "words": lambda name: safe_text(name.replace("_", " ")),
    }
    return environment.from_string(template).render(
        report=report,
        style=Markup(style),
        script=Markup(script),
        policy=_content_policy(style, script),
        verdict=verdict(report),
        objective=objective_in_words(report.manifest.inputs.objective),
        svg=svg,
        roles=ROLES,
        metrics=_METRICS,
        outcomes=_OUTCOMES,
        reasons_of=REASONS_OF,
        unfamiliar=percent_by_name(report.unfamiliar),
        budget_rows=budget_rows(report),
        provenance=provenance(report),
        id_len=_ID_LEN,
        address_len=_ADDRESS_LEN,
    )


def _content_policy(style: str, script: str) -> str:
    """Return what the page may load: nothing but its own style and script, told by their hash."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def provenance(report: Report) -> Mapping[str, Mapping[str, str]]:
    """Return all that decides the numbers, by kind; safe to show."""
    inputs, names = report.manifest.inputs, report.manifest.names
    classifier = report.manifest.classifier
    corpus = {name: value for name, value in inputs.corpus.items() if value is not None}
    groups: dict[str, dict[str, object]] = {
        "Run": {
            "fingerprint": inputs.fingerprint,
            "memaudit": names.memaudit_version,
            "engine": f"{inputs.engine} on {inputs.device}",
            "threads": inputs.threads if inputs.threads is not None else "default",
            "windows": f"{inputs.prefix_tokens} + {inputs.suffix_tokens} tokens, {inputs.windows}",
            "distinct windows": f"{inputs.distinct_windows:,}",
            "objective": objective_in_words(inputs.objective),
            "bad rows": inputs.on_bad_row,
        },
        "Corpus": {name.replace("_", " "): value for name, value in corpus.items()}
        | {"sha256 of texts": inputs.texts_digest, "sha256 of rows": inputs.rows_digest},
        "Models": {
            "teacher": names.teacher,
            "sha256 of the teacher": inputs.teacher_digest,
            **_reference(report),
        },
        "Classifier": {
            "name": classifier.name,
            "sha256": inputs.classifier_digest,
            "features": ", ".join(classifier.features),
            "threshold": f"{classifier.threshold:.6f}",
            "zlib": classifier.zlib.version,
            **classifier.provenance,
        },
        "Versions": {**inputs.versions},
    }
    if report.verified is not None:
        settings = report.verified.result.settings
        groups["Verification"] = {
            "sha256 of labels": report.verified.result.labels_digest,
            **{
                name.replace("_", " "): value
                for name, value in settings.items()
                if value is not None
            },
        }
    return {
        group: {safe_text(name): safe_text(str(value), 1000) for name, value in values.items()}
        for group, values in groups.items()
    }


def _reference(report: Report) -> dict[str, object]:
    inputs, names = report.manifest.inputs, report.manifest.names
    if names.reference is None:
        return {}
    role = inputs.feature_set.removeprefix("teacher+")
    return {role: names.reference, f"sha256 of the {role}": inputs.reference_digest or ""}
