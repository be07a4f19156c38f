"""Made-up plans of audits, whose costs can be worked out on paper."""

import dataclasses

from memaudit.planning.costs import ModelCost
from memaudit.planning.plan import AuditPlan, Calibration

MODEL = ModelCost(
    role="teacher",
    source="t",
    parameters=1_100,
    head_parameters=100,
    body_parameters=1_000,
    layers=2,
    attention_width=8,
    activation_width=50,
)
PLAN = AuditPlan(
    outcomes={"scored": 8, "too_short": 1, "bad": 1},
    windows=12,
    distinct_windows=10,
    screened_windows=0,
    asks_reference=False,
    window_tokens=4,
    extra_tokens=0,
    features=19,
    chunk_size=4,
    dtype="float32",
    on_gpu=False,
    workers=1,
    models=(MODEL,),
    reading_seconds=2.0,
)


def changed(**fields):
    """The plan with some fields changed."""
    return dataclasses.replace(PLAN, **fields)


CALIBRATED = changed(calibration=Calibration(20, 4.0, 3.0, 9.0))
"""Five windows a second, after three seconds of loading."""
