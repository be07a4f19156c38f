"""A reference with a tokenizer of its own, which reads a teacher's windows as text.

What it says about its own tokens is carried over to the teacher's, character by character: a
log-probability is shared out by the bytes that two tokens have in common, so the nats of a text are
the same in sum, whoever's tokens it is counted in. No divergence over a vocabulary is defined.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memaudit.corpus.layouts import n_shared
from memaudit.engines import Engine
from memaudit.engines.hf import HfEngine
from memaudit.engines.models import LoadedModel
from memaudit.engines.tokenizer import Tokenizer
from memaudit.scores import TokenScores, WindowScores


@dataclass(frozen=True, slots=True)
class AlignedReference:
    """An `Engine` on a model that cuts texts differently from the teacher."""

    engine: Engine
    """Scores the model's own tokens."""

    own: Tokenizer
    """The model's."""

    of_windows: Tokenizer
    """The teacher's."""

    @property
    def name(self) -> str:
        """As the engine that scores."""
        return self.engine.name

    @property
    def reference_alone(self) -> Engine:
        """There is no other model."""
        raise ValueError("a model alone has no reference")

    def score(self, windows: Sequence[NDArray[np.int32]]) -> list[WindowScores]:
        """Return the model's scores about the teacher's tokens, without entropies.

        A token of the teacher's is the argmax if all tokens that share a character with it are,
        and its margin is the smallest of theirs. The first token of the model's own has no
        prediction: what it covers counts as given, at 0 nats.

        Raises:
            ModelError: as for `Engine`, or the tokenizer does not say where its tokens stand.
        """
        texts = [self.of_windows.decode([window.tolist()])[0] for window in windows]
        own_ids = [np.array(ids, dtype=np.int32) for ids in self.own.encode(texts)]
        told = iter(self.engine.score([ids for ids in own_ids if len(ids) > 1]))
        found = []
        for window, text, ids in zip(windows, texts, own_ids, strict=True):
            if len(ids) > 1:
                spans = self.own.token_spans(text)
                starts = [*(start for start, _ in spans[1:]), spans[-1][1]]
                # Of tokens that share a character the last one has it.
                own_ends = [min(end, start) for (_, end), start in zip(spans, starts, strict=True)]
                scores = next(told).teacher
                found.append(carried_over(scores, own_ends, self._ends(window, text), text))
            else:  # the model has nothing to predict
                nothing = np.zeros(len(window) - 1, dtype=np.float32)
                is_argmax = np.zeros(len(nothing), dtype=np.bool_)
                found.append(TokenScores(nothing, is_argmax, entropy=None, margin=nothing))
        return [WindowScores(scores) for scores in found]

    def _ends(self, window: NDArray[np.int32], text: str) -> list[int]:
        """Return where each of the teacher's tokens ends in the text, in characters."""
        ids = window.tolist()
        starts = self.of_windows.decode([ids[:n] for n in range(1, len(ids))])
        # A token may end in the midst of a character: it is not there yet.
        return [*(n_shared(start, text) for start in starts), len(text)]


@dataclass(frozen=True, slots=True)
class AlignedEngine:
    """An `Engine` on a teacher and an aligned reference."""

    teacher: Engine
    reference: AlignedReference

    @property
    def name(self) -> str:
        """As the engine that scores the teacher."""
        return self.teacher.name

    @property
    def reference_alone(self) -> Engine:
        """The reference, where it is asked before the teacher."""
        return self.reference

    def score(self, windows: Sequence[NDArray[np.int32]]) -> list[WindowScores]:
        """Return the scores of each window, in the order given; the reference's are aligned."""
        pairs = zip(self.teacher.score(windows), self.reference.score(windows), strict=True)
        return [WindowScores(own.teacher, other.teacher) for own, other in pairs]


def aligned_reference(
    loaded: LoadedModel, of_windows: Tokenizer, compiled: bool = False
) -> AlignedReference:
    """Return an engine on a loaded model that reads the windows of another tokenizer."""
    own = loaded.tokenizer
    # Behind its own BOS, as it was trained, whatever the teacher has.
    engine = HfEngine(loaded.model, bos_token_id=own.bos_token_id, compiled=compiled)
    return AlignedReference(engine, own, of_windows)


def carried_over(
    scores: TokenScores, own_ends: Sequence[int], ends: Sequence[int], text: str
) -> TokenScores:
    """Return what a model says about its own tokens of a text, told of other tokens of it.

    Args:
        scores: of its own S tokens but the first, S - 1.
        own_ends: (S,) where each of them ends in the text, characters.
        ends: (T,) where each of the other tokens ends; the last at the end of the text.
        text: both cut all of it.

    Returns:
        of T - 1 tokens, all but the first.
    """
    # In bytes, for tokens may end within a character.
    bytes_before = np.cumsum([0, *(len(c.encode("utf-8", "surrogatepass")) for c in text)])
    own_places, own_of = _places(own_ends, bytes_before)
    places, of_token = _places(ends, bytes_before)
    n_own = len(own_places) - 1
    # Tokens that end at the same character are one piece of the text.
    nats = np.zeros(n_own)
    np.add.at(nats, own_of[1:], scores.logprobs.astype(np.float64))
    is_argmax = np.ones(n_own, dtype=np.bool_)
    np.logical_and.at(is_argmax, own_of[1:], scores.is_argmax)
    # A piece without a prediction must not be the smallest.
    margin = np.full(n_own, scores.margin.max())
    np.minimum.at(margin, own_of[1:], scores.margin)
    # Every piece of the one with every piece of the other: a window has few of either.
    starts = np.maximum(own_places[:-1, None], places[None, :-1])
    shared = np.maximum(0, np.minimum(own_places[1:, None], places[None, 1:]) - starts)
    share_of_own = shared / np.maximum(1, np.diff(own_places))[:, None]
    n_tokens = np.bincount(of_token[1:], minlength=len(places) - 1)  # the first is not predicted
    touches = shared > 0
    # Several tokens that end in one piece share its nats evenly.
    found_nats = nats @ share_of_own / np.maximum(1, n_tokens)
    # A piece that a token does not touch has no say in it.
    found_argmax = (is_argmax[:, None] | ~touches).all(axis=0)
    found_margin = np.where(touches, margin[:, None], np.inf).min(axis=0)
    return TokenScores(
        found_nats[of_token[1:]].astype(np.float32),
        found_argmax[of_token[1:]],
        entropy=None,
        margin=found_margin[of_token[1:]].astype(np.float32),
    )


def _places(
    ends: Sequence[int], bytes_before: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pieces that tokens cut a text into.

    Returns:
        (P + 1,) where the P pieces begin and end, bytes; and (T,) the piece of each token. One that
        ends in the midst of a character belongs to the piece that ends the character.
    """
    reached = np.maximum.accumulate(np.asarray(ends, dtype=np.int64))
    reached[-1] = len(bytes_before) - 1  # what a tokenizer drops at the end belongs to the last
    before = np.array([0, *reached[:-1]])
    is_empty = reached == before
    edges = np.array([0, *np.unique(reached[~is_empty])])
    # The piece that a token ends; an empty one waits for the next that is not.
    piece = np.searchsorted(edges, reached, side="left") - 1
    piece[is_empty] += 1
    return bytes_before[edges], np.clip(piece, 0, max(0, len(edges) - 2))
