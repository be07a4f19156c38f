"""Outcomes and probabilities for tests of metrics."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

laws = settings(max_examples=50, deadline=None)


def labelled(*outcomes):
    """Outcomes from 0 and 1."""
    return np.array(outcomes, dtype=bool)


@st.composite
def predictions(draw):
    """Outcomes of both kinds, and probabilities with many ties."""
    n = draw(st.integers(2, 40))
    extracted = draw(arrays(bool, n).filter(lambda y: 0 < y.sum() < len(y)))
    return extracted, draw(arrays(np.int64, n, elements=st.integers(0, 10))) / 10
