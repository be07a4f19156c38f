"""Stand-ins that obey the protocols; what they answer is known on paper."""

from dataclasses import replace
from functools import cached_property, partial

import numpy as np

from memaudit.classifier import Calibration, RiskClassifier
from memaudit.corpus import BadRow, Example, Rendered
from memaudit.features import zlib_record
from memaudit.runs.models import AuditModels
from memaudit.runs.scoring import score_here
from memaudit.scores import TokenScores, WindowScores


class ByteTokenizer:
    """One token a byte of UTF-8."""

    bos_token_id = None

    def encode(self, texts):
        return [list(text.encode()) for text in texts]

    def encode_starts(self, texts, n_tokens):
        return [ids[:n_tokens] if len(ids) > 2 * n_tokens else ids for ids in self.encode(texts)]

    def encode_answers(self, texts, answers):
        found = []
        for text, spans in zip(texts, answers, strict=True):
            places = tuple(tuple(len(text[:edge].encode()) for edge in span) for span in spans)
            found.append((list(text.encode()), places))
        return found

    def without_bos(self, ids):
        return ids

    def token_spans(self, text):
        places = [i for i, letter in enumerate(text) for _ in letter.encode()]
        return [(place, place + 1) for place in places]

    def decode(self, token_ids):
        return [bytes(ids).decode(errors="replace") for ids in token_ids]

    def render_messages(self, conversation):
        text, answers = "", []
        for number, message in enumerate(conversation.messages):
            text += f"<{message['role']}>"
            start = len(text)
            text += message.get("content") or ""
            if conversation.n_context is None and message["role"] == "assistant":
                answers.append((start, len(text)))
            elif conversation.n_context == number:
                answers.append((start, None))
        return Rendered(text, tuple((start, end or len(text)) for start, end in answers))


class RecitingEngine:
    """Knows some windows by heart and is clueless about all others.

    A token of a known window has log-probability 0 and is the argmax; any other has that of a
    uniform choice among 256 tokens and is not. The reference, if there is one, knows nothing
    unless it is told.
    """

    name = "reciting"

    def __init__(self, *known, has_reference=False, broken=(), known_to_reference=()):
        """Learn windows, each a sequence of token ids; broken ones get NaN."""
        self._known_to_reference = {tuple(window) for window in known_to_reference}
        self._known = {tuple(window) for window in known}
        self._broken = {tuple(window) for window in broken}
        self._has_reference = has_reference
        self.scored = []

    @cached_property
    def reference_alone(self):
        """What it says when it is asked before the teacher."""
        return RecitingEngine(*self._known_to_reference)

    def score(self, windows):
        self.scored.extend(tuple(window.tolist()) for window in windows)
        return [self._score(tuple(window.tolist())) for window in windows]

    def _score(self, window):
        n_predictions = len(window) - 1
        teacher = self._clueless(n_predictions)
        if window in self._known:
            teacher = TokenScores(
                logprobs=np.zeros(n_predictions, np.float32),
                is_argmax=np.ones(n_predictions, np.bool_),
                entropy=np.zeros(n_predictions, np.float32),
                margin=np.full(n_predictions, 30, np.float32),
            )
        if window in self._broken:
            teacher = replace(teacher, logprobs=teacher.logprobs * np.nan)
        if not self._has_reference:
            return WindowScores(teacher)
        (reference,) = RecitingEngine(*self._known_to_reference).score([np.array(window)])
        divergence = self._clueless(n_predictions).entropy - teacher.entropy
        return WindowScores(teacher, reference.teacher, divergence)

    @staticmethod
    def _clueless(n_predictions):
        nats = np.full(n_predictions, np.log(256), np.float32)
        return TokenScores(-nats, np.zeros(n_predictions, np.bool_), nats, -nats)


ZLIB = zlib_record()
"""Of this interpreter."""


def make_classifier(
    feature_set="teacher", features=("log_occurrences", "teacher_suffix_mean_logprob")
):
    """A classifier of two features: near 1 for a recited suffix, near 0 for a clueless teacher.

    The more often a window occurs, the riskier it is, by a little.
    """
    return RiskClassifier(
        name="by-heart",
        feature_set=feature_set,
        features=features,
        means=(0.0, -3.0),
        scales=(1.0, 1.0),
        coefficients=(0.1, 2.0),
        intercept=0.0,
        calibration=Calibration(slope=1.0, intercept=0.0),
        threshold=0.5,
        count_log_sd=0.2,
        feature_ranges=((0.0, 3.0), (-9.0, 0.0)),
        zlib=ZLIB,
        provenance={"recipe": "made up"},
    )


def make_models(*known_texts, tokenizer=None, role=None, **engine_settings):
    """Stand-ins for an audit; the engine knows these texts by heart."""
    windows = [tuple(text.encode()) for text in known_texts]
    engine = RecitingEngine(*windows, has_reference=role is not None, **engine_settings)
    tokenizer = tokenizer or ByteTokenizer()
    return AuditModels(
        tokenizer=tokenizer,
        score=partial(score_here, engine, tokenizer),
        engine=engine.name,
        teacher="models/demo-teacher",
        reference=None if role is None else "models/demo-reference",
        role=role,
    )


def make_rows(*texts):
    """Rows of a corpus; None makes a bad one."""
    return [
        BadRow(i, f"c.jsonl:{i + 1}", f"c.jsonl:{i + 1}", f"line {i + 1}: invalid JSON")
        if text is None
        else Example(i, f"id-{i}", f"c.jsonl:{i + 1}", text)
        for i, text in enumerate(texts)
    ]


def unless_given(arguments, **defaults):
    """Return options and their values as text, but for those that stand among the arguments."""
    given = {f"--{name}": str(value) for name, value in defaults.items()}
    kept = (pair for pair in given.items() if pair[0] not in arguments)
    return [text for pair in kept for text in pair]
