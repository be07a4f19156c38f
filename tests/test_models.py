"""What is shipped in `models/` and `sample_data/`: whole, small, and good for what it claims."""

import json
from pathlib import Path
from typing import get_args

import pytest

import memaudit
from memaudit.classifier import find_classifier, shipped_classifiers_dir, shipped_name
from memaudit.features import SHARED_SETS
from memaudit.objectives import ObjectiveKind

MODELS = shipped_classifiers_dir()
DEMO_CORPUS = Path(__file__).parents[1] / "sample_data" / "demo.jsonl"
DEMO_MODELS = ("demo-teacher", "demo-student", "demo-baseline")


@pytest.mark.parametrize("objective", get_args(ObjectiveKind))
@pytest.mark.parametrize("feature_set", SHARED_SETS)
def test_a_classifier_is_shipped_for_all_models_and_objectives_and_fits_its_card(
    feature_set, objective
):
    """A card that describes another file would mislead whoever signs a release by it."""
    classifier = find_classifier(None, feature_set, objective)
    card = json.loads((MODELS / shipped_name(feature_set, objective) / "card.json").read_text())

    assert classifier.feature_set == feature_set
    assert card["digest"] == classifier.digest
    assert tuple(card["features"]) == classifier.features
    assert card["threshold"] == classifier.threshold


@pytest.mark.parametrize("objective", get_args(ObjectiveKind))
@pytest.mark.parametrize("feature_set", SHARED_SETS)
def test_a_shipped_classifier_is_for_suffixes_of_any_length(feature_set, objective):
    """Most cells have suffixes of 16 tokens: a sum over 50 is beyond all that was fitted on."""
    classifier = find_classifier(None, feature_set, objective)

    grow = ("suffix_logprob", "zlib_entropy")
    assert [name for name in classifier.features if name.endswith(grow)] == []
    assert classifier.sampled is not None
    assert [n for n, _ in classifier.sampled.count_log_sds] == [10, 100, 1000]


@pytest.mark.parametrize("objective", get_args(ObjectiveKind))
@pytest.mark.parametrize("feature_set", SHARED_SETS)
def test_a_card_keeps_the_roles_apart_and_shows_the_sceptics_rules(feature_set, objective):
    """Numbers from cells that were fitted on are worth nothing."""
    card = json.loads((MODELS / shipped_name(feature_set, objective) / "card.json").read_text())
    roles = {name: cell["role"] for name, cell in card["cells"].items()}

    judged = {name.partition(": ")[0] for name in card["test_by_run"]}
    # Of plain fine-tuning a baseline tells only where another student was trained on the text.
    knows_all = (feature_set, objective) != ("teacher+baseline", "cross-entropy")
    of_test = {name for name, role in roles.items() if role == "test"}
    assert judged == of_test if knows_all else judged < of_test
    assert set(roles.values()) == {"train", "calibration", "test"}
    assert {"this classifier", "zlib entropy alone"} < set(card["test"])
    assert ("teacher recites it" in card["test"]) == (objective != "cross-entropy")


def test_the_demo_models_are_small_and_hold_no_pickle():
    """They are in every clone and every wheel."""
    files = [path for name in DEMO_MODELS for path in (MODELS / name).iterdir()]

    assert sum(path.stat().st_size for path in files) <= 12e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja"}


@pytest.fixture(scope="module")
def demo():
    """The first command of the README."""
    return memaudit.audit_corpus(str(MODELS / "demo-teacher"), DEMO_CORPUS)


def test_the_demo_corpus_has_something_to_recite(demo):
    """A demo without a finding would show nothing."""
    assert demo.rows == demo.scored > 500
    assert 0 < demo.flagged_distinct < demo.distinct_windows / 2
    assert any("teacher recites it" in example.reason for example in demo.worst)


def test_the_demo_gives_the_numbers_on_record(demo):
    """On another processor the last digits may differ, and nothing else."""
    record = json.loads((Path(__file__).parent / "golden" / "demo.json").read_text())

    assert demo.rows == record["rows"]
    assert demo.flagged == pytest.approx(record["flagged"], abs=3)
    assert demo.expected.mean == pytest.approx(record["expected_memorized"], rel=0.01)
