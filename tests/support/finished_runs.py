"""Finished runs of small corpora: fake models, real files."""

import hashlib
import json
from dataclasses import replace

import msgspec
import numpy as np
import pyarrow as pa
from support.fake_run import audit_with
from support.fakes import ByteTokenizer, RecitingEngine, make_classifier
from support.report_runs import with_rows

from memaudit.corpus import CorpusOptions, Example, read_corpus

WINDOW_LEN = 8
"""Bytes of a window, 4 + 4."""


def windows_of(*texts):
    """What an engine has to know by heart to recite these texts: their first windows."""
    return [tuple(text.encode()[:WINDOW_LEN]) for text in texts]


def finish_run(source, out, *, recited=(), classifier=None, engine=None, **options):
    """Audit the corpus at a path; the teacher recites the texts named, unless it is another one."""
    tokenizer = ByteTokenizer()
    rows = read_corpus(CorpusOptions(str(source)), render_messages=tokenizer.render_messages)
    engine = engine or RecitingEngine(*windows_of(*recited))
    return audit_with(engine, out, rows=rows, classifier=classifier or make_classifier(), **options)


def write_jsonl(path, texts, *, ids=True):
    """Write texts, None as a line that is no JSON; return the path."""
    lines = []
    for number, text in enumerate(texts):
        row = {"id": f"row-{number}"} if ids else {}
        lines.append("{broken" if text is None else json.dumps(row | {"text": text}))
    path.write_text("".join(line + "\n" for line in lines))
    return path


def run_in_memory(template, source, *, seed=0, too_short=3, begin_alike=False):
    """Return a finished run of a corpus as it would be read back, without scoring anything.

    Rows with equal texts have equal windows; how well the teacher knows each is random. If texts
    may begin alike, a window is the first eight bytes, as the shape of the template has it.

    Args:
        template: any finished run.
        source: path of the corpus.
        seed: of what the teacher knows.
        too_short: texts of fewer characters have no window.
        begin_alike: whether different texts that begin with the same window share it.
    """
    options = CorpusOptions(str(source))
    rows = list(read_corpus(options, render_messages=ByteTokenizer().render_messages))
    windows, texts, records = {}, hashlib.sha256(), []
    for row in rows:
        outcome, window = "bad", -1
        if isinstance(row, Example):
            texts.update(msgspec.json.encode(row.text))
            outcome = "too_short"
            if begin_alike and len(row.text.encode()) >= WINDOW_LEN:
                (key,) = windows_of(row.text)
                outcome, window = "scored", windows.setdefault(key, len(windows))
            elif not begin_alike and len(row.text) >= too_short:
                outcome, window = "scored", windows.setdefault(row.text, len(windows))
        records.append((row.example_id, row.row, row.address, outcome, "", window))
    ids, numbers, addresses, outcomes, reasons, worst = map(list, zip(*records, strict=True))
    worst = np.array(worst, dtype=np.int64)
    risks = _judged(template, worst, len(windows), seed)
    inputs = msgspec.structs.replace(
        template.manifest.inputs,
        corpus={"source": str(source)},
        rows=len(rows),
        texts_digest=texts.hexdigest(),
    )
    columns = {"id": ids, "row": numbers, "address": addresses, "outcome": outcomes}
    probabilities = np.full(len(rows), np.nan)
    probabilities[worst >= 0] = risks.window_probabilities[worst[worst >= 0]]
    return with_rows(
        template,
        pa.table(columns | {"reason": reasons}),
        manifest=msgspec.structs.replace(template.manifest, inputs=inputs),
        risks=risks,
        worst_windows=worst,
        probabilities=probabilities,
    )


def texts_of(source):
    """Return numbers of the texts of a corpus, equal for equal texts."""
    rows = read_corpus(CorpusOptions(str(source)), render_messages=ByteTokenizer().render_messages)
    found = [row.text if isinstance(row, Example) else row.row for row in rows]
    return np.array([found.index(text) for text in found])


def _judged(template, worst, n_windows, seed):
    risks = template.risks
    names, classifier = risks.feature_names, risks.classifier
    X = np.ones((n_windows, len(names)))
    copies = np.bincount(worst[worst >= 0], minlength=n_windows).astype(float)
    X[:, names.index("occurrences")] = copies
    X[:, names.index("log_occurrences")] = np.log(np.maximum(1, copies))
    known = np.random.default_rng(seed).uniform(-8, 0, n_windows)
    X[:, names.index("teacher_suffix_mean_logprob")] = known
    columns = [names.index(name) for name in classifier.features]
    return replace(
        risks,
        X=X,
        window_probabilities=classifier.predict_proba(X[:, columns]),
        worst_windows=worst[worst >= 0],
    )
