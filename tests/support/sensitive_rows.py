"""Rows with invented secrets and personal data in them, and a teacher that knows some."""

import string
from dataclasses import replace

import numpy as np
from support.fakes import RecitingEngine, make_rows
from support.labelled_texts import drawn

from memaudit.scores import WindowScores
from memaudit.windows import WindowShape

SHAPE = WindowShape(24, 40)
"""Bytes of a window."""

BOILERPLATE = "Permission is hereby granted, free of charge, to any person obtaining a copy of it."


def token(seed):
    """Return what looks like a token of a well-known vendor."""
    return "ghp_" + drawn(string.ascii_letters + string.digits, 36, seed)


KNOWN, REPEATED, SAFE = (f"the login is {token(seed)} now, see above" for seed in (1, 2, 3))
EMAIL = "Write to martha.quillfeather@brightmoor-labs.com, she knows all about it by now."
RECITED_EMAIL = "Or to tobias.wrenfield@brightmoor-labs.com, who wrote most of it, years ago."
PLAIN = "Nothing in this line is of any interest to anybody, and nothing is to be learnt."
TILED = "a plain first window, which the teacher knows by heart, as it is. " + " " * 4 + SAFE

TEXTS = (BOILERPLATE, KNOWN, REPEATED, REPEATED, SAFE, EMAIL, RECITED_EMAIL, PLAIN, "short", None)
"""Boilerplate and an email are recited; of the tokens one is known, one is repeated."""


class LeakyEngine(RecitingEngine):
    """Knows some windows by heart, and in those of one other the token, but not the rest.

    It knows the token with little confidence: its first choice is right, its probability low.
    """

    name = "leaky"

    def _score(self, window):
        scores = super()._score(window)
        text = bytes(window).decode()
        if text not in KNOWN:
            return scores
        start = text.index("ghp_")
        places = np.arange(1, len(window))
        is_argmax = (places >= start) & (places < start + 40)
        teacher = replace(scores.teacher, is_argmax=is_argmax)
        return WindowScores(teacher)


def window_of(text):
    """Return the token ids of the first window of a text."""
    return tuple(text.encode()[: SHAPE.length])


def leaky_engine():
    """Return the engine for `TEXTS`."""
    return LeakyEngine(window_of(BOILERPLATE), window_of(RECITED_EMAIL))


def rows():
    """Return the rows of `TEXTS`."""
    return make_rows(*TEXTS)
