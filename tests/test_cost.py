"""Costs follow from shapes and counts by formulas that can be checked on paper."""

import dataclasses
import json

import pytest
from support.planning_documents import MODEL, PLAN, SAMPLE, SAMPLED, changed

from memaudit.cost import GPUS, UTILISATION
from memaudit.engines.hf import BATCH_TOKENS


def test_operations_are_two_for_each_weight_and_token_and_attention_for_each_pair():
    """Worked out by hand for ten windows of four tokens."""
    body = 2 * 1_000 * 4 + 4 * 2 * 8 * 4**2
    head = 2 * 100 * 3

    assert MODEL.body_flops(4) == body
    assert MODEL.head_flops(4) == head
    assert (PLAN.body_flops, PLAN.head_flops) == (10 * body, 10 * head)


def test_a_start_of_text_token_is_read_and_not_predicted():
    """The engine puts it before every window; its own probability is never asked for."""
    assert changed(extra_tokens=1).body_flops == 10 * MODEL.body_flops(5)
    assert changed(extra_tokens=1).head_flops == PLAN.head_flops


def test_a_reference_is_paid_for_beside_the_teacher():
    """The student looks at every window too."""
    pair = changed(models={"teacher": MODEL, "student": MODEL})
    assert pair.body_flops == 2 * PLAN.body_flops
    assert pair.tokens == PLAN.tokens


def test_what_a_cascade_leaves_out_costs_no_model():
    """That is its point."""
    screened = changed(screened_windows=9)

    assert screened.body_flops == PLAN.body_flops // 10
    assert screened.tokens == 4


def test_the_time_here_is_loading_reading_and_scoring():
    """10 windows at 5 a second, after 3 s of loading and 2 s of reading."""
    assert SAMPLED.seconds == pytest.approx(3 + 2 + 10 / 5)
    assert dataclasses.replace(SAMPLED, workers=2).seconds == pytest.approx(3 + 2 + 10 / 10)
    assert PLAN.seconds is None
    assert SAMPLED.cpu_seconds == pytest.approx(7 + 10 * 6 / 20)


def test_bodies_run_at_the_peak_of_their_format_and_heads_always_in_float32():
    """A head in bfloat16 is multiplied as fast as the body."""
    t4 = GPUS[0]

    assert PLAN.seconds_on(t4) == pytest.approx(
        (PLAN.body_flops + PLAN.head_flops) / t4.single_flops / UTILISATION
    )
    assert changed(dtype="bfloat16").seconds_on(t4) == pytest.approx(
        (PLAN.body_flops + PLAN.head_flops) / t4.half_flops / UTILISATION
    )


def test_a_model_that_no_gpu_holds_fits_none():
    """Better told by a plan than by an allocator."""
    huge = dataclasses.replace(MODEL, parameters=70 * 10**9)

    assert not any(map(changed(models={"teacher": huge}).fits_on, GPUS))
    assert all(map(PLAN.fits_on, GPUS))


def test_half_the_bytes_a_weight_but_a_float32_copy_of_the_head():
    """What bfloat16 saves in memory, and what not; on a GPU it needs no copy of the head."""
    big = dataclasses.replace(MODEL, parameters=10**9, head_parameters=10**8, activation_width=0)
    for device, copy in (("cpu", 4 * 10**8), ("cuda", 0)):
        single, half = (
            changed(models={"teacher": big}, dtype=dtype).model_memory(device)
            for dtype in ("float32", "bfloat16")
        )

        assert single - half == 2 * 10**9 - copy


def test_what_the_sample_reached_is_the_memory_of_the_audit():
    """A sample measures what no constant knows: the packages, the loading, this machine."""
    matrix = 2 * 8 * PLAN.features * PLAN.distinct_windows

    assert SAMPLED.memory == 10**9 + matrix
    assert dataclasses.replace(SAMPLED, workers=2).memory == 3 * 10**9 + matrix


def test_a_sample_smaller_than_a_batch_is_made_up_to_one():
    """The sample of a large model is a window or two; the audit fills its batches."""
    many = dataclasses.replace(SAMPLED, distinct_windows=10_000)
    per_token = 4 * MODEL.activation_width
    missing = BATCH_TOKENS["cpu"] - SAMPLE.windows * (PLAN.window_tokens - 1)

    assert many.memory == 10**9 + 2 * 8 * PLAN.features * 10_000 + missing * per_token


def test_the_document_is_one_json_object_whose_counts_add_up():
    """Scripts plan with it."""
    document = json.loads(json.dumps(PLAN.document(), allow_nan=False))

    assert document["rows"] == document["scored"] + document["too_short"] + document["bad"] == 10
    assert document["flops"] == document["body_flops"] + document["head_flops"]
    assert document["estimated_seconds"] is None
    assert "not measured" in document["gpus_are"]
