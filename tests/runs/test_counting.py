"""The counting pass: exposure in a run, where its classifier asks for it."""

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from support.fake_run import (
    ByteWiseEngine,
    Interrupted,
    InterruptedEngine,
    audit_with,
    contents,
    fake_options,
    make_fake_models,
    score_part,
)
from support.fakes import make_classifier, make_rows

from memaudit import audit
from memaudit.classifier import SampledRisk
from memaudit.errors import UsageError
from memaudit.features import EXPOSURE_FEATURES, FEATURE_SETS
from memaudit.objectives import Objective
from memaudit.reports import words
from memaudit.runs import counting
from memaudit.runs.folder import read_summary
from memaudit.runs.manifest import Shard, read_manifest
from memaudit.runs.shards import merge_runs
from memaudit.windows import WindowShape
from study.exposure import exposure_of

SHAPE = WindowShape(20, 40)
CLASSIFIER = make_classifier(features=("log_exposure", "teacher_suffix_mean_logprob"))
POEM = "The rows of this little corpus are about sixty letters long, all of them."
TEXTS = [
    *(f"{i}. {POEM}" for i in range(8)),
    *(f"{chr(97 + i) * 3} and then {i * 7919} nothing but {chr(107 - i) * 50}" for i in range(10)),
    f"something else, {'and more of it, ' * 9} and then at the very end: {POEM}",
]


def run(out, rows=TEXTS, engine=None, **options):
    """Audit the texts with a classifier that asks for exposure."""
    options = {"shape": SHAPE, "classifier": CLASSIFIER} | options
    return audit_with(engine or ByteWiseEngine(), out, rows=make_rows(*rows), **options)


def columns(out):
    """The exposure of each row, by name."""
    return {
        name: pq.read_table(out / "risk.parquet")[name].to_pylist() for name in EXPOSURE_FEATURES
    }


def test_near_copies_are_told_and_the_whole_text_of_a_row_counts(tmp_path):
    """Also what lies behind its only window."""
    run(tmp_path / "run", epochs=2.0)
    rows = [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in TEXTS]
    expected = exposure_of(rows, [row[:60] for row in rows], prefix_len=20)
    found = columns(tmp_path / "run")
    assert found["exposure_median"] == expected.median.tolist()
    assert found["exposure_share"] == expected.share.tolist()
    assert found["log_exposure"] == np.log(2 * expected.median).tolist()
    assert found["exposure_median"][:8] == [9.0] * 8
    assert found["exposure_median"][8:18] == [1.0] * 10


def test_what_stands_far_behind_the_window_of_a_long_row_counts(tmp_path):
    """A row is tokenised to its end where exposure is counted, though one window is scored."""
    long = "".join(f"{i * i * 7919:x} " for i in range(200)) + POEM
    run(tmp_path / "run", [f"x {POEM}", long])
    assert columns(tmp_path / "run")["exposure_median"] == [2.0, 1.0]


def test_equal_windows_count_where_no_gram_fits_into_them(tmp_path):
    """A window of six tokens has none, but it is known how often it occurs."""
    run(tmp_path / "run", ["123456"] * 3 + ["abcdef"], shape=WindowShape(3, 3), epochs=1.0)
    assert columns(tmp_path / "run")["log_exposure"] == [np.log(3)] * 3 + [0.0]


def test_what_other_rows_teach_anyway_is_told_apart(tmp_path):
    """As if the text were taken out of the corpus, with all its copies, and counted once more."""
    texts = [*TEXTS, *["a text of its own that is there three times, " * 2] * 3]
    run(tmp_path / "run", texts, epochs=2.0)
    table = pq.read_table(tmp_path / "run" / "risk.parquet").to_pydict()
    tokens = {text: np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts}
    for i, text in enumerate(texts):
        others = [tokens[other] for other in texts if other != text]
        left = exposure_of(others, [tokens[text][:60]], prefix_len=20, least=0).median[0]
        x = [np.log(max(1.0, 2 * left)), table["teacher_suffix_mean_logprob"][i]]
        generic = min(table["probability"][i], CLASSIFIER.predict_proba(np.array([x]))[0])
        generic *= left >= 0.5
        assert table["specific"][i] == pytest.approx(table["probability"][i] - generic, abs=1e-12)
    assert table["specific"][0] < table["probability"][0] / 50, "a template: the others have it"
    assert table["specific"][-1] == table["probability"][-1]
    summary = read_summary(tmp_path / "run")
    assert 0 < summary["expected_generic_distinct"] < summary["expected_memorized_distinct"]


def test_other_classifiers_cost_no_counting_and_no_columns(tmp_path):
    """A run without exposure says what it said before there was any."""
    run(tmp_path / "run", classifier=make_classifier(), epochs=9.0)
    inputs = read_manifest(tmp_path / "run" / "manifest.json").inputs
    assert inputs.exposure is None
    assert inputs.features == FEATURE_SETS["teacher"]
    assert not (tmp_path / "run" / counting.EXPOSURE).exists()
    assert "specific" not in pq.read_schema(tmp_path / "run" / "risk.parquet").names
    assert read_summary(tmp_path / "run")["expected_generic_distinct"] is None


def test_epochs_are_an_input_of_the_run(tmp_path):
    """They change what is predicted, so they are recorded, and other ones refused."""
    run(tmp_path / "run")
    counted = read_manifest(tmp_path / "run" / "manifest.json").inputs.exposure
    assert (counted.gram_tokens, counted.epochs) == (8, 3.0)
    with pytest.raises(UsageError, match=r"exposure\.epochs was 3.0, is now 5.0"):
        run(tmp_path / "run", epochs=5.0)


def test_other_epochs_are_estimated_as_a_run_that_is_told_of_them(tmp_path):
    """Else the numbers beside each other in a summary would be of two kinds."""
    three = run(tmp_path / "three", epochs=3.0).finished.risks
    nine = run(tmp_path / "nine", epochs=9.0).finished.risks
    objective = Objective()

    assert three.expected_if(objective, 9.0) == nine.expected_if(objective)
    assert three.expected_if(objective, 9.0) != three.expected_if(objective)


def test_different_texts_that_samples_reveal_are_expected_once_each(tmp_path):
    """The sum over texts of the classifier's own map; copies share their fate."""
    sampled = SampledRisk(
        intercept=1.0,
        slope=0.5,
        nats_slope=0.7,
        interaction=-0.02,
        count_log_sds=((10, 0.3), (1000, 0.4)),
    )
    told = msgspec.structs.replace(CLASSIFIER, sampled=sampled)
    risks = run(tmp_path / "run", [*TEXTS, TEXTS[0]], classifier=told).finished.risks

    p = risks.texts.probabilities
    log_odds = np.log(p) - np.log1p(-p)
    expected = sampled.predict(log_odds, np.full(len(p), 40.0)).sum(axis=1)
    for i, found in enumerate(risks.expected_if_sampled.values()):
        assert found.mean == pytest.approx(expected[i])
        assert found.low <= found.mean <= found.high
    assert len(p) == len(TEXTS)
    document = read_summary(tmp_path / "run")["expected_if_sampled"]
    assert list(document) == ["10", "1000"]
    assert document["1000"]["mean"] == risks.expected_if_sampled[1000].mean
    assert f"{round(document['1000']['mean'])} in 1,000 (" in words.sampled(risks)


def test_a_classifier_for_greedy_decoding_alone_says_nothing_of_samples(tmp_path):
    """A sentence without a number would look like a number of none."""
    risks = run(tmp_path / "run").finished.risks

    assert risks.expected_if_sampled == {}
    assert words.sampled(risks) == ""


def test_what_was_counted_is_not_counted_again(tmp_path, monkeypatch):
    """A run that was interrupted after the counting goes on with the scoring."""
    run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "run", engine=InterruptedEngine(1))
    monkeypatch.setattr(counting, "GramCounts", None)
    run(tmp_path / "run")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.parametrize(("grams", "n_passes"), [(1000, 1), (300, 3), (30, 19)])
def test_several_passes_and_small_parts_count_the_same(tmp_path, monkeypatch, grams, n_passes):
    """Memory is bounded whatever the size of the corpus, and the rows are read as often as needed."""
    run(tmp_path / "whole", chunk_size=1)
    passes, parts = [], counting.RowTokens.parts
    monkeypatch.setattr(
        counting.RowTokens, "parts", lambda rows: passes.append(rows) or parts(rows)
    )
    monkeypatch.setattr(counting, "_LEAST_GRAMS", 1)
    monkeypatch.setattr(counting, "available_memory", lambda: grams * 4 * counting._BYTES_PER_GRAM)
    monkeypatch.setattr(counting, "_TOKENS_AT_ONCE", 7)
    run(tmp_path / "run", chunk_size=1)
    assert len(passes) == n_passes
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_as_many_grams_are_counted_at_once_as_memory_allows(monkeypatch):
    """At least as many as before it was looked at, but where tasks share a smaller table."""
    for gib, grams in ((None, 1 << 23), (1, 1 << 23), (200, (50 << 30) // 60), (999, 1 << 30)):
        monkeypatch.setattr(counting, "available_memory", lambda gib=gib: gib and gib << 30)
        assert counting.grams_at_once() == grams
        assert counting.grams_at_once(24_000) == 1000
        assert counting.grams_at_once(1 << 50) == grams


def files_of(root, files):
    """Files of a system, by path."""
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    return root


def test_available_memory_is_what_the_machine_and_every_cgroup_leave(tmp_path):
    """In a container or a job the machine's memory is not ours; file caches are given up."""
    machine = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n"}
    assert counting.available_memory(tmp_path / "another system") is None
    assert counting.available_memory(files_of(tmp_path / "none", machine)) == 8000 * 1024

    job = {
        "proc/self/cgroup": "0::/slurm/job\n",
        "sys/fs/cgroup/slurm/job/memory.max": "max\n",
        "sys/fs/cgroup/slurm/job/memory.current": "9\n",
        "sys/fs/cgroup/slurm/memory.max": "5000\n",
        "sys/fs/cgroup/slurm/memory.current": "3000\n",
        "sys/fs/cgroup/slurm/memory.stat": "active_file 70\ninactive_file 700\n",
    }
    assert counting.available_memory(files_of(tmp_path / "job", machine | job)) == 2700

    container = {
        "proc/self/cgroup": "5:cpu:/\n4:memory:/docker/8d16\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "5000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "5001\n",
        "sys/fs/cgroup/memory/memory.stat": "inactive_file 0\n",
    }
    assert counting.available_memory(files_of(tmp_path / "docker", machine | container)) == 0


def test_shards_merged_say_what_the_whole_says(tmp_path):
    """Each counts its own windows in the whole corpus."""
    run(tmp_path / "whole", chunk_size=4)
    options = fake_options(shape=SHAPE, chunk_size=4)
    inputs = audit.AuditInputs(make_rows(*TEXTS), make_fake_models(), CLASSIFIER, options)
    for index in range(2):
        score_part(tmp_path / f"{index}", inputs, Shard(index, 2))
    merge_runs([tmp_path / "0", tmp_path / "1"], tmp_path / "merged")
    whole = contents(tmp_path / "whole")
    del whole[counting.EXPOSURE]  # a merged run has all its chunks
    assert contents(tmp_path / "merged") == whole
