"""Made-up plans of audits, whose costs can be worked out on paper."""

import dataclasses

from memaudit.cost import AuditPlan, ModelSizes, Sample

MODEL = ModelSizes(
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
    out_of_reach_windows=0,
    window_tokens=4,
    extra_tokens=0,
    features=19,
    chunks=3,
    dtype="float32",
    device="cpu",
    workers=1,
    models={"teacher": MODEL},
    reading_seconds=2.0,
)


def changed(**fields):
    """The plan with some fields changed."""
    return dataclasses.replace(PLAN, **fields)


SAMPLE = Sample(
    windows=20,
    seconds=4.0,
    cpu_seconds=6.0,
    seconds_before=5.0,
    cpu_seconds_before=7.0,
    total_seconds=9.0,
    memory=10**9,
)
SAMPLED = changed(sample=SAMPLE)
"""Five windows per second, after three seconds of loading and two of reading."""
