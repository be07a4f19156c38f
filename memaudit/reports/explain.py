"""Why one row is at risk: what `memaudit explain` finds in a finished run, and its page."""

import math
from dataclasses import asdict, dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from memaudit.errors import UsageError
from memaudit.filtering.selection import with_fewer_copies
from memaudit.gate import Rescoring
from memaudit.reports import words
from memaudit.reports.charts import Bar
from memaudit.reports.html import render_html
from memaudit.reports.page import (
    BARS,
    Cell,
    Column,
    Page,
    Paragraph,
    Section,
    Sentence,
    Table,
    Words,
    facts,
    name,
    numbers,
)
from memaudit.reports.report import read_row_texts
from memaudit.reports.tokens import WindowToken, score_tokens, tokens_section
from memaudit.runs.run import Run, read_run
from memaudit.text import number_of, safe_text

SCHEMA_VERSION = 1
"""Of the JSON document; goes up when a reader of the old one would misread."""

_EQUALS = 10
_TEXTS = ("text", "tokens")
"""Of the JSON document, the keys that may hold text of the corpus."""
_TEMPERATURES = (2.0, 3.0, 4.0, 6.0, 8.0)


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one feature adds to the log-odds of a window."""

    feature: str
    """Name, as in the risk table."""
    value: float
    typical: float
    """Mean over the windows that the classifier was fitted on."""
    log_odds: float
    """Above 0 where the feature raises the risk, compared with the typical window."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change, and the probability after it."""

    change: str
    """In words, such as "keep 1 of 32 copies"."""
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a row has its probability. No text of the corpus is in it unless it was asked for."""

    row: int
    """Ordinal in the corpus, from 0."""
    example_id: str
    """As in the corpus: untrusted, like the addresses."""
    address: str
    """`<file>:<line or row>`."""
    run: str
    """Fingerprint."""
    classifier: str
    probability: float
    """That the student memorizes the row: that of its riskiest window."""
    threshold: float
    """Rows at or above it are at risk."""
    log_odds: float
    """log(p / (1 - p)) of the probability."""
    start: float
    """Log-odds of a window whose features are all typical."""
    contributions: tuple[Contribution, ...]
    """The largest first; with `start` they add up to `log_odds`."""
    reason: str
    """In words, such as "occurs 16 times"."""
    holds: tuple[str, ...]
    """What is sensitive in it, if that was looked for."""
    occurrences: int
    """Times that the window occurs in the corpus."""
    same_window: int
    """Rows whose riskiest window is this one, the row itself among them."""
    same_text: int | None
    """Rows with the same text. None: the run is of a version that did not compare texts."""
    equals: tuple[tuple[str, str], ...]
    """Id and address of the first of the other rows with the same window."""
    remedies: tuple[Remedy, ...]
    features: dict[str, float] = field(default_factory=dict)
    """All that the run keeps of the window."""
    text: str | None = None
    """Start of the row, if it was asked for: text of the corpus."""
    tokens: tuple[WindowToken, ...] = ()
    """Of the window but its first, if the models were given to score them again."""

    @property
    def is_flagged(self) -> bool:
        """Whether it is at risk."""
        return self.probability >= self.threshold

    def document(self) -> dict[str, Any]:
        """Return it as one JSON document."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "flagged": self.is_flagged}

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the page, in a frame of its own."""
        # In a frame: the style of the page would else apply to the whole notebook.
        page = escape(render_html(explanation_page(self)))
        return f'<iframe srcdoc="{page}" title="Explanation" width="100%" height="640"></iframe>'


def read_explanation(
    folder: Path, named: str, data: str | None, n_characters: int, again: Rescoring | None
) -> Explanation:
    """Read a finished run, and return why the row with this id or address has its probability.

    Args:
        folder: of the run.
        named: the row.
        data: the corpus, if text or tokens are shown.
        n_characters: of the row's text that are shown.
        again: the models that score its window's tokens. None: they are not shown.

    Raises:
        MemauditError: as `read_run`, `explain_row`, `read_row_texts` and `score_tokens` do.
    """
    run = read_run(folder)
    found = explain_row(run, named)
    if data is not None and n_characters:
        found = replace(found, text=read_row_texts(run, data, [found.row], n_characters)[found.row])
    if data is not None and again is not None:
        tokens = score_tokens(run, found.row, data, again, with_text=n_characters > 0)
        found = replace(found, tokens=tokens)
    return found


def explain_row(run: Run, named: str) -> Explanation:
    """Return why the row with this id or address has its probability.

    Raises:
        UsageError: no row or several rows are called so, or the row was not scored.
    """
    row = find_row(run, named)
    source, risks = run.row(row), run.risks
    if not run.is_scored[row]:
        raise UsageError(
            f"{safe_text(named)}: the row was not scored: {source.outcome.replace('_', ' ')}",
            hint="a row without a score has no probability to explain",
        )
    window = int(run.worst_windows[row])
    # Features and what is sensitive are kept of scored rows alone: its place among those.
    scored = int(run.is_scored[:row].sum())
    classifier, probability = run.manifest.classifier, float(run.probabilities[row])
    start, contributions = _contributions(run, window)
    same = np.flatnonzero(run.worst_windows == window)
    others = [run.row(int(other)) for other in same[same != row][:_EQUALS]]
    features = risks.row_features(scored)
    texts = risks.row_texts
    return Explanation(
        row=row,
        example_id=source.example_id,
        address=source.address,
        run=run.manifest.inputs.fingerprint,
        classifier=classifier.name,
        probability=probability,
        threshold=classifier.threshold,
        # Not from the probability: one that has rounded to 1 has no log-odds.
        log_odds=start + math.fsum(one.log_odds for one in contributions),
        start=start,
        contributions=contributions,
        reason=risks.reason(window),
        holds=() if risks.sensitivity is None else risks.sensitivity.in_words(scored),
        occurrences=int(features["occurrences"]),
        same_window=len(same),
        same_text=None if texts is None else int((texts == texts[scored]).sum()),
        equals=tuple((other.example_id, other.address) for other in others),
        remedies=tuple(_remedies(run, window, int(features["occurrences"]), probability)),
        features=features,
    )


def find_row(run: Run, named: str) -> int:
    """Return the ordinal of the row with this id or address; of an address, its end will do.

    Raises:
        UsageError: there is none, or there are several.
    """
    addresses = run.rows.column("address")
    found: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    for is_it in (
        pc.equal(run.rows.column("id"), named),
        pc.equal(addresses, named),
        # From a slash on: 'b.jsonl:5' must not find 'ab.jsonl:5'.
        pc.ends_with(addresses, f"/{named}"),
    ):
        if not len(found):
            found = np.flatnonzero(is_it.to_pylist())
    if not len(found) and "\\" in named:
        # As every page shows it: a character that could steer a terminal is written out.
        ids = run.rows.column("id").to_pylist()
        found = np.flatnonzero([safe_text(each) == named for each in ids])
    if len(found) == 1:
        return int(found[0])
    shown = safe_text(named)
    if len(found):
        raise UsageError(
            f"{shown}: {len(found):,} rows are called so",
            hint=f"give the address of one, such as {safe_text(run.row(int(found[0])).address)}",
        )
    raise UsageError(
        f"{shown}: no row of the run has this id or address",
        hint="give an id as 'memaudit gate' or the risk table shows it, or FILE:LINE",
    )


def _contributions(run: Run, window: int) -> tuple[float, tuple[Contribution, ...]]:
    """Return the log-odds of a typical window, and what each feature of this one adds."""
    classifier, risks = run.manifest.classifier, run.risks
    slope = classifier.calibration.slope
    x = risks.X[window, [risks.feature_names.index(each) for each in classifier.features]]
    # The log-odds are a sum over the features, so that each has a part of its own.
    added = slope * np.array(classifier.coefficients) * (x - classifier.means) / classifier.scales
    weighed = np.array(classifier.coefficients) != 0  # one without a weight only has a range
    each = map(
        Contribution,
        np.array(classifier.features)[weighed].tolist(),
        x[weighed].tolist(),
        np.array(classifier.means)[weighed].tolist(),
        added[weighed].tolist(),
    )
    start = slope * classifier.intercept + classifier.calibration.intercept
    return start, tuple(sorted(each, key=lambda one: -abs(one.log_odds)))


def _remedies(run: Run, window: int, occurrences: int, probability: float) -> list[Remedy]:
    """Return changes of the corpus or the training after which the probability is lower."""
    one = np.array([window])
    # Other rows may have the same wording.
    dropped = run.risks.probabilities_without(one, np.array([occurrences]))
    found = [Remedy("drop the row and its copies", float(dropped[0]))]
    # A set: half of two or three copies is one, too.
    for left in sorted({1, occurrences // 2}):
        if 1 <= left < occurrences:
            n_gone = np.array([occurrences - left])
            after, _ = with_fewer_copies(run.risks, one, one, n_gone)
            found.append(Remedy(f"keep {left:,} of {occurrences:,} copies", float(after[0])))
    classifier, names = run.manifest.classifier, run.risks.feature_names
    if "log_temperature" in classifier.features and classifier.objective == "soft":
        x = run.risks.X[window, [names.index(each) for each in classifier.features]]
        column = classifier.features.index("log_temperature")
        lowest, highest = classifier.feature_ranges[column]
        for temperature in _TEMPERATURES:
            # The range may end at a logarithm that was rounded.
            if lowest <= math.log(temperature) <= highest + 1e-9:
                x[column] = math.log(temperature)
                after = classifier.predict_proba(x[None])
                found.append(Remedy(f"distil at temperature {temperature:g}", float(after[0])))
    return [one for one in found if one.probability < probability]


def explanation_page(found: Explanation) -> Page:
    """Return why a row has its probability: what drives it, its equals, what would lower it."""
    verb = "is" if found.is_flagged else "is not"
    holds = f" It holds {', '.join(found.holds)}." if found.holds else ""
    tokens = (tokens_section(found.tokens),) if found.tokens else ()
    note = (
        "A run keeps no scores of single tokens. Give --teacher and --data to see how probable "
        "each token of the window is."
    )
    lower = Table(
        columns=(Column("change"), *numbers("probability then")),
        rows=tuple((one.change, words.percent(one.probability)) for one in found.remedies),
    )
    estimate = Paragraph(
        "Each is an estimate for this row alone, with the scores of the teacher as it is. Run "
        "'memaudit predict' on the cleaned corpus for the real number.",
        "quiet",
    )
    return Page(
        title="Why a row is at risk",
        verdict=(
            name(found.example_id),
            Words(f" {verb} at risk", "risk" if found.is_flagged else "good"),
            f": it is memorized with probability {words.percent(found.probability)}; at risk is "
            f"{words.percent(found.threshold)} or more.",
        ),
        lead=f"Why: {found.reason}.{holds}",
        sections=(
            Section("What drives it", "drivers", "What drives it", (_drivers(found),)),
            *tokens,
            Section("What would lower it", "remedies", "What would lower it", (lower, estimate)),
            Section("Where it stands", "place", "Where", _places(found)),
        ),
        notes=() if tokens else (note,),
        document={key: value for key, value in found.document().items() if key not in _TEXTS},
    )


def _drivers(found: Explanation) -> Table:
    largest = max(abs(one.log_odds) for one in found.contributions) or 1.0
    total = f"all together: a probability of {words.percent(found.probability)}"
    rows: tuple[tuple[Sentence | Cell, ...], ...] = (
        ("a window with typical values", "", "", f"{found.start:+.2f}", ""),
        *(
            (
                words.feature(one.feature),
                _number(one.feature, one.value),
                _number(one.feature, one.typical),
                f"{one.log_odds:+.2f}",
                Cell(bar=Bar(abs(one.log_odds) / largest, is_risk=one.log_odds > 0)),
            )
            for one in found.contributions
        ),
        (Words(total, "strong"), "", "", Words(f"{found.log_odds:+.2f}", "strong"), ""),
    )
    return Table(
        title="Log-odds: above 0 raises the risk, below 0 lowers it",
        columns=(Column("feature"), *numbers("here", "typical", "log-odds"), BARS),
        rows=rows,
    )


def _number(feature: str, value: float) -> str:
    """Return a value as people think of it: not its logarithm."""
    return f"{math.exp(value) if feature.startswith('log_') else value:,.3g}"


def _places(found: Explanation) -> tuple[Table, ...]:
    same_text = "" if found.same_text is None else number_of(found.same_text - 1, "other row")
    listed = facts(
        {
            "row": name(found.address, max_len=4096),
            "window": f"occurs {number_of(found.occurrences, 'time')}; it is the riskiest of "
            f"{number_of(found.same_window, 'row')}",
            "same text": same_text,
            "text": "" if found.text is None else Cell(quote=found.text),
            "classifier": name(found.classifier),
            "run": name(found.run[:12]),
        }
    )
    if not found.equals:
        return (listed,)
    equals = Table(
        title="Other rows with this window",
        columns=(Column("example", "anywhere"), Column("where", "anywhere")),
        rows=tuple((name(one), name(where, max_len=300)) for one, where in found.equals),
        rest=words.and_more(found.same_window - 1 - len(found.equals)),
    )
    return listed, equals
