"""The `vllm` engine itself, against transformers: one sequence at a time, all logits."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import requests
import torch
from support.fakes import make_classifier
from support.tiny_models import make_windows, naive_kl, naive_log_softmax, naive_scores
from support.vllm_models import FAMILIES, largest_gap, save_vllm_model

from memaudit.audit import audit_corpus
from memaudit.classifier import save_classifier
from memaudit.cli.main import run
from memaudit.engines import EndpointOptions, VllmOptions
from memaudit.engines.endpoint import Endpoint, find_model, load_endpoint_engine
from memaudit.engines.hf import HfEngine
from memaudit.engines.models import ModelOptions, load_model
from memaudit.engines.vllm_start import start_hidden_states
from memaudit.runs.options import AuditOptions
from memaudit.windows import WindowShape

pytestmark = pytest.mark.vllm

AGAINST_NAIVE = 1e-3
ACROSS_BATCHES = 1e-5
TIE = 1e-4
LONGEST = 40


@pytest.fixture(scope="module", autouse=True)
def modules_out_of_the_heap():
    """Each start collects garbage 8 times: two thirds of its time, spent on modules that are none."""
    import vllm  # noqa: F401

    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patched:
        for name in ("freeze", "unfreeze"):  # vLLM would take everything in again
            patched.setattr(gc, name, lambda: None)
        yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return where a model of a family is, saved once."""
    folder = tmp_path_factory.mktemp("models")

    def path(family, seed=0, **settings):
        model = folder / f"{family}-{seed}-{bool(settings)}"
        return model if model.exists() else save_vllm_model(model, family, seed=seed, **settings)

    return path


def load_engine(teacher, reference=None, *, compiled=False, **options):
    """Let vLLM take over one or two models."""
    from memaudit.engines.vllm import load_vllm_engine

    loaded = [
        load_model(str(path), ModelOptions(**options)) for path in (teacher, reference) if path
    ]
    return load_vllm_engine(*loaded, window_len=LONGEST, compiled=compiled)


def wrong_argmaxes(found, log_softmax, window):
    """Return how far the argmaxes that differ are from a tie, nats."""
    logprobs, is_argmax, _ = naive_scores(log_softmax, window)
    differs = found.is_argmax != is_argmax
    return (log_softmax.max(axis=1) - logprobs)[differs].tolist()


# First what takes longest: else a second process has nothing to do in the end.
@pytest.fixture(scope="module")
def served(models):
    """Serve a model over HTTP; return the address and the model's folder."""
    folder = models("llama")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "served", "--dtype", "float32", "--enforce-eager"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "64"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    server = subprocess.Popen(command, env=os.environ | settings, start_new_session=True)
    try:
        for _ in range(600):
            assert server.poll() is None
            try:
                requests.get(f"{url}/v1/models", timeout=1).raise_for_status()
                break
            except requests.RequestException:
                time.sleep(1)
        yield url, folder
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def test_a_served_model_says_what_the_model_here_says(served):
    """In both ways in which servers tell the log-probabilities of a prompt."""
    url, folder = served
    loaded = load_model(str(folder))
    windows = [each % loaded.tokenizer.n_ids for each in make_windows(40, longest=LONGEST)]
    bos_token_id = loaded.tokenizer.bos_token_id
    expected = HfEngine(loaded.model, bos_token_id=bos_token_id).score(windows)

    for echoes in (False, True):  # in one test, so that one process starts one server
        endpoint = Endpoint(url)
        endpoint._echoes = echoes
        found = find_model(endpoint, EndpointOptions(tokenizer=str(folder)), ModelOptions())
        engine, _ = load_endpoint_engine(endpoint, found, LONGEST)
        for mine, its in zip(engine.score(windows), expected, strict=True):
            for name in ("logprobs", "margin"):
                gap = getattr(mine.teacher, name) - getattr(its.teacher, name)
                assert np.abs(gap).max() < AGAINST_NAIVE, echoes


@pytest.mark.parametrize(
    ("family", "compiled"), [("llama", True), *((family, False) for family in FAMILIES)]
)
def test_scores_equal_the_naive_ones_in_every_family(family, compiled, models):
    """An engine that is fast and a little wrong would go unnoticed."""
    teacher, reference = models(family), models(family, seed=1)
    windows = make_windows(60, longest=LONGEST)
    naive = [load_model(str(path)).model for path in (teacher, reference)]

    found = load_engine(teacher, reference, compiled=compiled).score(windows)

    gaps, not_tied = {"logprobs": 0.0, "entropy": 0.0, "kl_divergence": 0.0}, []
    for window, scores in zip(windows, found, strict=True):
        p, q = (naive_log_softmax(model, window) for model in naive)
        for token_scores, log_softmax in ((scores.teacher, p), (scores.reference, q)):
            logprobs, _, entropy = naive_scores(log_softmax, window)
            for name, expected in (("logprobs", logprobs), ("entropy", entropy)):
                gap = np.abs(getattr(token_scores, name) - expected).max()
                gaps[name] = max(gaps[name], float(gap))
            not_tied += wrong_argmaxes(token_scores, log_softmax, window)
        gap = np.abs(scores.kl_divergence - naive_kl(p, q)).max()
        gaps["kl_divergence"] = max(gaps["kl_divergence"], float(gap))
    sys.stdout.write(f"{family}: {gaps}, argmax differs at gaps of {not_tied} nats\n")
    assert max(gaps.values()) <= AGAINST_NAIVE
    assert all(gap <= TIE for gap in not_tied), not_tied


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_logprobs_are_as_exact_and_tell_no_entropy(family, models, monkeypatch):
    """The fallback, for models that vLLM has no pooler for."""
    from memaudit.engines import vllm_start

    def refuse(folder, settings):
        raise ValueError("no pooling for this model")

    monkeypatch.setattr(vllm_start, "_load_pooling", refuse)
    teacher, reference = models(family), models(family, seed=1)
    windows = make_windows(60, longest=LONGEST)
    naive = [load_model(str(path)).model for path in (teacher, reference)]

    engine = load_engine(teacher, reference)
    found = engine.score(windows)

    assert "-logprobs-" in engine.name
    largest, not_tied = 0.0, []
    for window, scores in zip(windows, found, strict=True):
        p, q = (naive_log_softmax(model, window) for model in naive)
        for token_scores, log_softmax in ((scores.teacher, p), (scores.reference, q)):
            gap = np.abs(token_scores.logprobs - naive_scores(log_softmax, window)[0]).max()
            largest = max(largest, float(gap))
            not_tied += wrong_argmaxes(token_scores, log_softmax, window)
            assert token_scores.entropy is None
        assert scores.kl_divergence is None
    sys.stdout.write(f"{family}: {largest}, argmax differs at gaps of {not_tied} nats\n")
    assert largest <= AGAINST_NAIVE
    assert all(gap <= TIE for gap in not_tied), not_tied


def test_order_and_batch_change_nothing_and_the_same_call_has_the_same_bits(models):
    """A run that is resumed must write the same chunks."""
    engine = load_engine(models("llama"), models("llama", seed=1))
    windows = make_windows(100, longest=LONGEST)
    order = np.random.default_rng(1).permutation(len(windows))

    first, second = engine.score(windows), engine.score(windows)
    shuffled = []
    for start in range(0, len(order), 7):
        shuffled += engine.score([windows[i] for i in order[start : start + 7]])

    for a, b in zip(first, second, strict=True):
        assert a.teacher.logprobs.tobytes() == b.teacher.logprobs.tobytes()
        assert a.teacher.entropy.tobytes() == b.teacher.entropy.tobytes()
        assert a.kl_divergence.tobytes() == b.kl_divergence.tobytes()
    gaps = [largest_gap(a, first[i]) for a, i in zip(shuffled, order, strict=True)]
    assert max(gaps) <= ACROSS_BATCHES


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what vLLM imports
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hidden_states_stay_where_the_model_runs(models, monkeypatch, dtype):
    """Carried to the host and back they would take longer than a small model on a GPU."""
    from vllm import LLM

    encode, handed_over = LLM.encode, []

    def watched(*args, **kwargs):
        outputs = encode(*args, **kwargs)
        handed_over.extend(output.outputs.data.numel() for output in outputs)
        return outputs

    def hidden_states():
        loaded = load_model(str(models("llama")), ModelOptions(dtype=dtype))
        options = VllmOptions(gpu_memory_share=0.2)  # on a GPU, for each of the two
        run = start_hidden_states(loaded, dtype, LONGEST, options, compiled=False)
        return [hidden for _ in range(2) for hidden in run(prompts)], loaded.model.device

    prompts = [window.tolist() for window in make_windows(60, longest=LONGEST)]
    monkeypatch.setattr(LLM, "encode", watched)
    kept, device = hidden_states()
    assert set(handed_over) == {1}
    monkeypatch.setattr(LLM, "apply_model", lambda *_: None)
    carried, _ = hidden_states()

    assert {(hidden.device, hidden.dtype) for hidden in kept} == {(device, getattr(torch, dtype))}
    for one, other in zip(kept, carried, strict=True):
        assert torch.equal(one.cpu(), other)
    assert min(handed_over[len(kept) :]) > 1


def test_the_process_is_left_as_it_was(models):
    """Other engines, and whoever uses the package, run in it too."""
    set_num_threads, n_threads = torch.set_num_threads, torch.get_num_threads()

    load_engine(models("llama"))

    assert torch.set_num_threads is set_num_threads
    assert torch.get_num_threads() == n_threads


def test_a_bos_token_is_context_and_never_scored(models):
    """Models that expect one are far less sure without it."""
    folder = models("llama", bos=True)
    windows = make_windows(5, longest=LONGEST)
    model = load_model(str(folder)).model

    found = load_engine(folder).score(windows)

    for window, scores in zip(windows, found, strict=True):
        expected = naive_scores(naive_log_softmax(model, window, 257), window)[0]
        np.testing.assert_allclose(scores.teacher.logprobs, expected, rtol=0, atol=AGAINST_NAIVE)


def test_an_audit_with_vllm_equals_the_embedded_one(models, tmp_path, capsys):
    """From the command line to the table, and done again to the same bytes."""
    rows = [
        {"id": f"r{i}", "text": f"row {i} holds a secret of its own, {i * 7919}"} for i in range(20)
    ]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_classifier(make_classifier(), tmp_path / "classifier")
    arguments = ["predict", "--teacher", models("llama"), "--student", models("llama", seed=1)]
    arguments += ["--data", corpus, "--classifier", tmp_path / "classifier", "--chunk-size", 8]
    arguments += ["--prefix-tokens", 16, "--suffix-tokens", 16, "--json", "--quiet", "--engine"]
    capsys.readouterr()  # the models may have been saved just now, with bars

    tables = {}
    for name, engine in (("one", "vllm"), ("two", "auto"), ("hf", "hf")):
        code = run([str(a) for a in (*arguments, engine, "--out", tmp_path / name)])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        assert json.loads(out)["engine"].startswith("hf" if name == "hf" else "vllm")
        tables[name] = tmp_path / name / "risk.parquet"

    assert tables["one"].read_bytes() == tables["two"].read_bytes()
    ours, theirs = (pq.read_table(tables[name]) for name in ("one", "hf"))
    columns = [name for name in ours.column_names if "entropy" in name or "kl_" in name]
    assert len(columns) > 3
    for name in columns:
        np.testing.assert_allclose(ours[name].to_pylist(), theirs[name].to_pylist(), atol=1e-3)


def test_what_vllm_cannot_run_goes_to_the_embedded_engine_or_is_refused(tmp_path, capsys):
    """Auto must not fail where transformers works; an engine asked for by name must not change."""
    from support.tiny_models import save_model

    small_heads = save_model(tmp_path / "model", family="llama")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"text": "a text that is long enough for a window " * 3}) + "\n")
    save_classifier(make_classifier(), tmp_path / "classifier")
    options = {"classifier": str(tmp_path / "classifier"), "shape": WindowShape(16, 16)}

    result = audit_corpus(str(small_heads), corpus, options=AuditOptions(**options))
    arguments = ["predict", "--teacher", small_heads, "--data", corpus, "--engine", "vllm"]
    code = run([str(a) for a in (*arguments, "--out", tmp_path / "out")])

    assert result.names.engine == "hf-float32"
    assert code == 2
    assert "heads of size 12" in capsys.readouterr().err
    assert Path(small_heads).exists()


def test_bfloat16_is_another_rounding_of_the_same_scores(models):
    """The body is rounded, the head is not."""
    windows = make_windows(20, longest=LONGEST)
    model = load_model(str(models("llama"))).model

    engine = load_engine(models("llama"), dtype="bfloat16")
    found = engine.score(windows)

    assert engine.name.endswith("-bfloat16")
    logprobs = [naive_scores(naive_log_softmax(model, window), window)[0] for window in windows]
    gaps = np.concatenate([a.teacher.logprobs - b for a, b in zip(found, logprobs, strict=True)])
    assert 1e-4 < np.abs(gaps).mean() < 0.1
