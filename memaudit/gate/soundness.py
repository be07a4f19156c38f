"""Whether the probabilities of a run may be relied on at all."""

import numpy as np

from memaudit.errors import ClassifierError, UsageError
from memaudit.gate.guarantee import is_shipped
from memaudit.gate.policy import GatePolicy
from memaudit.runs.finished import FinishedRun
from memaudit.screening import make_cascade
from memaudit.text import safe_text


def require_sound(run: FinishedRun, policy: GatePolicy) -> None:
    """Refuse a run whose scores are broken or whose classifier is not an allowed one.

    Raises:
        ClassifierError: a score is not finite, or the classifier or what screened the corpus for
            it is not one that the policy allows.
    """
    _require_finite(run)
    _require_classifier(run, policy)
    _require_cascade(run)


def _require_finite(run: FinishedRun) -> None:
    n_broken = int((~np.isfinite(run.judgement.X)).any(axis=1).sum())
    if n_broken or not np.isfinite(run.probabilities[run.is_scored]).all():
        raise ClassifierError(
            f"{n_broken} windows of the run have a feature that is not a finite number",
            hint="the scores are broken: check that the model's weights hold no NaN",
        )


def _require_classifier(run: FinishedRun, policy: GatePolicy) -> None:
    classifier, objective = run.manifest.classifier, run.manifest.inputs.objective
    if classifier.objective != objective.kind:
        raise ClassifierError(
            f"classifier {classifier.name} was fitted on students that learned by "
            f"{classifier.objective} labels, the run expects {objective.kind}",
            hint="predict anew with a classifier of the right objective",
        )
    if policy.classifier_digest not in (None, classifier.digest):
        raise ClassifierError(
            f"classifier {classifier.name} has the digest {classifier.digest[:12]}, the policy "
            f"pins {safe_text(str(policy.classifier_digest)[:12])}",
            hint="predict anew with the classifier that is pinned",
        )
    is_allowed = policy.allow_custom_classifier or policy.classifier_digest is not None
    if not is_allowed and not is_shipped(classifier):
        raise ClassifierError(
            f"classifier {classifier.name} does not come with memaudit",
            hint="pin its digest in the policy as classifier-digest, or allow any with "
            f"--allow-custom-classifier; its digest is {classifier.digest}",
        )


def _require_cascade(run: FinishedRun) -> None:
    """Refuse a screen that memaudit would not have made: it could leave everything out."""
    cascade, inputs = run.manifest.cascade, run.manifest.inputs
    if cascade is None:
        is_known = inputs.cascade_digest is None and run.outcomes["screened"] == 0
    else:
        try:
            known = make_cascade(run.manifest.classifier, cascade.survival).digest
        except UsageError:
            known = ""
        is_known = known == cascade.digest == inputs.cascade_digest
    if not is_known:
        raise ClassifierError(
            "what screened the corpus before it was scored does not come with memaudit",
            hint="predict anew, or without --survival",
        )
