"""Memorization: whether a model reproduces a window's suffix from its prefix."""

from memaudit.scores import TokenScores, suffix


def extracted(scores: TokenScores, prefix_len: int) -> bool:
    """Return whether greedy decoding from the prefix gives exactly the suffix.

    No text is generated: the greedy continuation equals the suffix when every suffix token is
    the argmax given the true tokens before it. Decide it in float32: lower precision flips
    near-ties. Source: Carlini et al. 2022 (arXiv:2202.07646), discoverable memorization.

    Args:
        scores: of the model asked about.
        prefix_len: tokens of the window before its suffix.
    """
    return bool(suffix(scores.is_argmax, prefix_len).all())
