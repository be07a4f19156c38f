"""The `vllm` engine where vLLM is not installed: a stand-in runs the bodies, all else is real."""

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.fakes import make_classifier
from support.tiny_models import edit_json, make_windows, save_model
from support.vllm_models import largest_gap

from memaudit import engines
from memaudit.classifier import save_classifier
from memaudit.cli.main import run
from memaudit.engines import VllmOptions, vllm, vllm_start
from memaudit.engines.hf import HfEngine
from memaudit.engines.models import ModelOptions, load_model
from memaudit.errors import ModelError

LONGEST = 40


class StandIn:
    """Takes vLLM's place: runs what is in the folder with transformers."""

    def __init__(self):
        self.settings = []
        self.n_calls = 0
        self.spoil = lambda call, hidden: hidden

    def start(self, folder, settings):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        assert len(AutoTokenizer.from_pretrained(folder)) == 1
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, settings["dtype"])
        )
        self.settings.append(settings)

        @torch.inference_mode()
        def hidden_states(prompts):
            self.n_calls += 1
            assert max(map(len, prompts)) <= settings["max_model_len"]
            outputs = [model.base_model(torch.tensor([prompt]))[0][0] for prompt in prompts]
            return [self.spoil(self.n_calls, hidden.float()) for hidden in outputs]

        return hidden_states

    def start_generating(self, folder, settings):
        """Do the same with its head, as far as log-probabilities of a prompt go."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder)
        self.settings.append(settings)

        @torch.inference_mode()
        def prompt_logprobs(prompts):
            self.n_calls += 1
            found = []
            for prompt in prompts:
                assert len(prompt) < settings["max_model_len"]
                logprobs = model(torch.tensor([prompt])).logits[0, :-1].log_softmax(dim=-1)
                own = logprobs.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
                others = logprobs.scatter(1, torch.tensor(prompt[1:])[:, None], -1e9)
                both = torch.stack([own, others.amax(dim=1)]).numpy()
                found.append(self.spoil(self.n_calls, both))
            return found

        return prompt_logprobs

    def refuse(self, folder, settings):
        """Do as vLLM does with a model that it has no pooler for."""
        raise ValueError("no pooling for this model")


@pytest.fixture
def stand_in(monkeypatch):
    """Pretend that vLLM for a CPU is installed."""
    stand_in = StandIn()
    monkeypatch.setattr(vllm_start, "_load_pooling", stand_in.start)
    monkeypatch.setattr(vllm_start, "_load_generating", stand_in.start_generating)
    monkeypatch.setattr(engines, "is_installed", lambda name: True)
    pretend_vllm(monkeypatch)
    return stand_in


def pretend_vllm(monkeypatch, *, platform="cpu", head_sizes=(12, 32), run_by="llama"):
    """Answer what is asked of vLLM's modules."""
    names = ("unspecified", "cpu", "cuda")
    facts = {f"is_{name}": lambda name=name: name == platform for name in names}
    registry = SimpleNamespace(
        get_supported_archs=lambda: {"LlamaForCausalLM"},
        models={"LlamaForCausalLM": SimpleNamespace(module_name=f"vllm.models.{run_by}")},
    )
    backend = SimpleNamespace(get_supported_head_sizes=lambda: head_sizes)
    modules = {
        "vllm.platforms": {"current_platform": SimpleNamespace(**facts)},
        "vllm.model_executor.models.registry": {"ModelRegistry": registry},
        "vllm.v1.attention.backends.cpu_attn": {"CPUAttentionBackend": backend},
    }
    for name, content in modules.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Teacher and reference; the tokenizer puts a BOS in front."""
    root = tmp_path_factory.mktemp("models")
    return [save_model(root / str(rows), vocab_size=rows, bos=True) for rows in (320, 330)]


def load(folders, **options):
    """Load models with transformers."""
    return [load_model(str(folder), ModelOptions(**options)) for folder in folders]


@pytest.mark.parametrize("n_models", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_are_those_of_the_embedded_engine(stand_in, folders, dtype, n_models):
    """The positions, the BOS and the heads must be the same, whoever runs the body."""
    windows = make_windows(30, longest=LONGEST)
    loaded = load(folders[:n_models], dtype=dtype)
    models = [model.model for model in loaded]
    expected = HfEngine(*models, bos_token_id=257).score(windows)

    engine = vllm.load_vllm_engine(*loaded, window_len=LONGEST)
    found = engine.score(windows)

    assert engine.name == f"vllm-unknown-{dtype}"
    gaps = [largest_gap(a, b) for a, b in zip(found, expected, strict=True)]
    assert max(gaps) <= (1e-4 if dtype == "float32" else 0.5)
    assert engine.score([]) == []


@pytest.mark.parametrize("has_hidden_states", [True, False])
def test_the_reference_can_be_asked_alone(stand_in, folders, monkeypatch, has_hidden_states):
    """A cascade asks the small one first, and canaries watch that too."""
    if not has_hidden_states:
        monkeypatch.setattr(vllm_start, "_load_pooling", stand_in.refuse)
    windows = make_windows(10, longest=LONGEST)
    engine = vllm.load_vllm_engine(*load(folders), window_len=LONGEST)

    alone = engine.reference_alone.score(windows)

    for a, b in zip(alone, engine.score(windows), strict=True):
        np.testing.assert_allclose(a.teacher.logprobs, b.reference.logprobs, atol=1e-5)
        assert a.reference is None


def test_only_the_heads_stay_in_memory(stand_in, folders):
    """A large model does not fit twice."""
    loaded = load(folders)

    vllm.load_vllm_engine(*loaded, window_len=LONGEST)

    assert {p.device.type for model in loaded for p in model.model.parameters()} == {"meta"}


def test_many_windows_are_given_in_bounded_calls(stand_in, folders, monkeypatch):
    """Hidden states of a whole corpus would not fit; a window is never cut in two."""
    engine = vllm.load_vllm_engine(*load(folders[:1]), window_len=LONGEST)
    windows = make_windows(40, longest=LONGEST)
    expected = engine.score(windows)
    monkeypatch.setattr(vllm, "_CALL_TOKENS", 50)
    before = stand_in.n_calls

    found = engine.score(windows)

    assert stand_in.n_calls - before > 10
    assert [a.teacher.logprobs.tolist() for a in found] == [
        b.teacher.logprobs.tolist() for b in expected
    ]


def test_classes_of_transformers_are_given_back_as_they_were(stand_in, folders, monkeypatch):
    """VLLM decorates some, and every other model of the process would be broken."""
    (loaded,) = load(folders[:1])
    cls = type(loaded.model.base_model)
    bases, attributes = cls.__bases__, dict(vars(cls))

    def decorate(folder, settings):
        cls.__bases__ = (*cls.__bases__, type("Wrapper", (), {}))
        cls.__init__ = cls.__call__ = cls.do_not_compile = None
        return stand_in.start

    monkeypatch.setattr(vllm_start, "_load_pooling", decorate)
    vllm_start.start_hidden_states(loaded, "float32", LONGEST, VllmOptions(), False)

    assert cls.__bases__ == bases
    assert dict(vars(cls)) == attributes


def test_vllm_is_set_up_to_be_exact(stand_in, folders):
    """Caches and cut windows would make scores depend on what was asked before."""
    vllm.load_vllm_engine(*load(folders), window_len=LONGEST)

    for settings in stand_in.settings:
        assert settings["max_model_len"] == LONGEST
        assert not settings["enable_prefix_caching"]
        assert not settings["enable_chunked_prefill"]
        assert not settings["trust_remote_code"]
        assert settings["kv_cache_memory_bytes"] > 0


def test_the_best_rival_is_another_token_than_the_prompts_own():
    """VLLM lists the own token first, and again where it is one of the two most probable."""
    flat = SimpleNamespace(
        start_indices=[0, 0, 3],
        end_indices=[0, 3, 6],
        token_ids=[7, 7, 2, 9, 1, 3],
        logprobs=[-0.1, -0.1, -3.0, -5.0, -0.5, -1.0],
    )

    found = vllm_start._own_and_rival(flat)

    np.testing.assert_allclose(found, [[-0.1, -5.0], [-3.0, -0.5]])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda call, hidden: hidden * 1.01, "disagrees with transformers"),
        (lambda call, hidden: hidden * float("nan"), "not a finite number"),
        (lambda call, hidden: hidden[:-1], "hidden states of shape"),
        (lambda call, hidden: hidden[:, :-1], "hidden states of shape"),
    ],
)
def test_hidden_states_that_are_wrong_are_refused(stand_in, folders, spoil, message):
    """Releases of vLLM have been wrong in silence."""
    stand_in.spoil = spoil

    with pytest.raises(ModelError, match=message):
        vllm.load_vllm_engine(*load(folders), window_len=LONGEST)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("start", r"refuses .*: RuntimeError: Engine core died"),
        ("run", "fails at .*: RuntimeError$"),
    ],
)
def test_what_vllm_raises_becomes_one_sentence(stand_in, folders, monkeypatch, step, message):
    """With the engine that works instead; once windows are at hand, none of what it says is shown."""

    def fail(*arguments):
        raise RuntimeError("Engine core\n died")

    if step == "start":
        monkeypatch.setattr(vllm_start, "_load_pooling", fail)
        monkeypatch.setattr(vllm_start, "_load_generating", fail)
    else:
        stand_in.spoil = fail
    with pytest.raises(ModelError, match=message) as caught:
        vllm.load_vllm_engine(*load(folders[:1]), window_len=LONGEST)
    assert "--engine hf" in caught.value.hint


@pytest.mark.parametrize("n_models", [1, 2])
def test_without_hidden_states_log_probabilities_are_exact_and_nothing_is_made_up(
    stand_in, folders, monkeypatch, n_models
):
    """An entropy of the twenty best tokens is no entropy, and must not be called one."""
    monkeypatch.setattr(vllm_start, "_load_pooling", stand_in.refuse)
    windows = make_windows(30, longest=LONGEST)
    loaded = load(folders[:n_models])
    expected = HfEngine(*[model.model for model in loaded], bos_token_id=257).score(windows)

    engine = vllm.load_vllm_engine(*loaded, window_len=LONGEST)
    found = engine.score(windows)

    assert engine.name == "vllm-unknown-logprobs-float32"
    assert engine.logprobs_only
    for a, b in zip(found, expected, strict=True):
        for ours, theirs in ((a.teacher, b.teacher), (a.reference, b.reference)):
            if theirs is None:
                assert ours is None
                continue
            np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)
            np.testing.assert_array_equal(ours.is_argmax, theirs.is_argmax)
            np.testing.assert_allclose(ours.margin, theirs.margin, atol=2e-4)
            assert ours.entropy is None
        assert a.kl_divergence is None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda call, both: both * 1.01, "disagrees with transformers"),
        (lambda call, both: both[:, :-1], "38 finite log-probabilities for a window of 40"),
        (lambda call, both: both * float("nan"), "0 finite log-probabilities"),
    ],
)
def test_log_probabilities_that_are_wrong_are_refused(
    stand_in, folders, monkeypatch, spoil, message
):
    """Prompt logprobs have been silently wrong in several releases."""
    monkeypatch.setattr(vllm_start, "_load_pooling", stand_in.refuse)
    stand_in.spoil = spoil

    with pytest.raises(ModelError, match=message):
        vllm.load_vllm_engine(*load(folders[:1]), window_len=LONGEST)


def test_windows_that_are_too_long_are_refused(stand_in, folders):
    """As the embedded engine does."""
    engine = vllm.load_vllm_engine(*load(folders[:1]), window_len=LONGEST)

    with pytest.raises(ModelError, match="reads at most 256"):
        engine.score([np.zeros(256, np.int32)])


@pytest.mark.parametrize(
    ("settings", "options", "reason"),
    [
        ({}, {}, None),
        ({}, {"device": "cpu"}, None),
        ({"platform": "unspecified"}, {}, "finds no device"),
        ({"platform": "cuda"}, {"device": "cpu"}, "runs on GPUs alone"),
        ({}, {"device": "cuda"}, "does not run on cuda"),
        ({"platform": "cuda"}, {"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
        ({"platform": "cuda"}, {"device": "cuda:0"}, None),
        ({"platform": "cuda"}, {"device": "split"}, "the hf engine alone"),
        ({"head_sizes": (32,)}, {}, "no attention for heads of size 12"),
        ({"platform": "cuda", "head_sizes": (32,)}, {}, None),
        ({}, {"trust_remote_code": True}, "code of the model's own"),
        ({}, {"compiled": True}, None),
        ({"run_by": "transformers"}, {}, None),
        ({"run_by": "transformers"}, {"compiled": True}, "not with --compile"),
    ],
    ids=str,
)
def test_what_vllm_cannot_run_is_known_beforehand(folders, monkeypatch, settings, options, reason):
    """`auto` goes by it, and must come to the same answer each time."""
    pretend_vllm(monkeypatch, **settings)

    found = vllm_start.why_not(load(folders), ModelOptions(**options))

    assert found is None if reason is None else reason in found


def test_quantised_and_unknown_models_go_elsewhere(stand_in, folders, tmp_path):
    """Transformers may run them. Once it has unpacked one, the model in memory says nothing of it."""
    folder = shutil.copytree(folders[0], tmp_path / "unpacked")
    loaded = load([folder])
    edit_json(folder / "config.json", quantization_config={"quant_method": "compressed-tensors"})
    assert "quantised" in vllm_start.why_not(loaded, ModelOptions())

    other = load([save_model(tmp_path / "other", family="gpt_neox")])
    assert "architecture GPTNeoXForCausalLM" in vllm_start.why_not(other, ModelOptions())


@pytest.fixture
def predict(folders, tmp_path, capsys):
    """Run the command on a few rows; return the code, the document and what was said."""
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"id": str(i), "text": f"row {i} has a text of its own, {i * 7919}"} for i in range(9)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_classifier(make_classifier(), tmp_path / "classifier")

    def run_predict(*arguments, out="out"):
        given = ["--teacher", folders[0], "--student", folders[1], "--data", corpus]
        given += ["--classifier", tmp_path / "classifier", "--chunk-size", 4, "--quiet", "--json"]
        given += ["--prefix-tokens", 10, "--suffix-tokens", 10, "--out", tmp_path / out]
        code = run(["predict", *map(str, [*given, *arguments])])
        out, err = capsys.readouterr()
        return code, json.loads(out) if code == 0 else None, err

    return run_predict


def test_auto_takes_vllm_where_it_can_and_says_so(stand_in, predict, tmp_path):
    """Which engine ran must never be a guess."""
    for name in ("one", "two"):
        code, document, _ = predict(out=name)
        assert code == 0
        assert document["engine"] == "vllm-unknown-float32"
    tables = [(tmp_path / name / "risk.parquet").read_bytes() for name in ("one", "two")]
    assert tables[0] == tables[1]
    assert predict("--engine", "hf", out="hf")[1]["engine"] == "hf-float32"


def test_what_vllm_cannot_run_goes_to_the_embedded_engine(stand_in, predict, monkeypatch):
    """Unless vLLM was asked for by name."""
    pretend_vllm(monkeypatch, head_sizes=(32,))

    assert predict(out="auto")[1]["engine"] == "hf-float32"
    code, _, err = predict("--engine", "vllm", out="vllm")

    assert code == 2
    assert "heads of size 12" in err
    assert "--engine hf" in err


def test_features_that_cannot_be_exact_are_absent(
    stand_in, predict, monkeypatch, tmp_path, folders
):
    """Asked for by name, vLLM runs what it can; the classifier has to do without the rest."""
    monkeypatch.setattr(vllm_start, "_load_pooling", stand_in.refuse)

    code, document, _ = predict("--engine", "vllm")

    assert code == 0
    assert document["engine"] == "vllm-unknown-logprobs-float32"
    columns = pq.read_schema(tmp_path / "out" / "risk.parquet").names
    given = {"teacher_suffix_logprob", "student_perplexity", "student_suffix_log_ratio"}
    assert given <= {*columns}
    absent = ("_kl_divergence", "_surprise", "_entropy")
    assert [name for name in columns if name.endswith(absent)] == [
        "zlib_entropy",
        "suffix_zlib_entropy",
    ]
    # What is shipped does without entropies: it says the same of what all engines tell.
    code, document, _ = predict("--engine", "vllm", "--classifier", "teacher", out="shipped")
    assert (code, document["scored"]) == (0, document["rows"])


def test_auto_prefers_an_exact_engine_to_a_fast_one(stand_in, predict, monkeypatch):
    """Transformers tells entropies where vLLM cannot."""
    monkeypatch.setattr(vllm_start, "_load_pooling", stand_in.refuse)

    assert predict()[1]["engine"] == "hf-float32"


def test_a_canary_that_disagrees_stops_the_run(stand_in, predict, tmp_path):
    """In the middle of a run too, and the chunk it happened in is not kept."""
    # Two models are asked about all canaries, then about two chunks: the fifth call is the
    # teacher's in the second chunk.
    stand_in.spoil = lambda call, hidden: hidden + (0.5 if call == 5 else 0.0)

    code, _, err = predict()

    assert code == 2
    assert "disagrees with transformers about canary" in err
    assert len(list((tmp_path / "out").rglob("*chunk*/*.parquet"))) <= 1
    assert not (tmp_path / "out" / "risk.parquet").exists()
    stand_in.spoil = lambda call, hidden: hidden
    assert predict()[0] == 0


def test_settings_for_vllm_reach_it(stand_in, predict):
    """A model larger than one GPU needs several."""
    code, _, _ = predict("--tensor-parallel", 2, "--gpu-memory-share", 0.5)

    assert code == 0
    assert {settings["tensor_parallel_size"] for settings in stand_in.settings} == {2}
    code, _, err = predict("--tensor-parallel", 2, "--engine", "hf")
    assert code == 2
    assert "several GPUs" in err
    assert predict("--gpu-memory-share", "nan")[0] == 2


def test_on_gpus_a_model_gets_its_share_of_memory(folders, monkeypatch):
    """Two engines side by side must both fit."""
    config = load(folders)[0].model.config
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    settings = vllm_start._settings(
        config, "bfloat16", 100, VllmOptions(gpu_memory_share=0.3), compiled=False
    )

    assert settings["gpu_memory_utilization"] == 0.3
    assert settings["max_num_batched_tokens"] > 1024
    assert "kv_cache_memory_bytes" not in settings


def test_the_layout_for_vllm_holds_nothing_but_config_and_weights(folders, tmp_path):
    """A chat template is a program; other files could change what vLLM computes."""
    edit_json(folders[0] / "tokenizer_config.json", chat_template="{{ 1 }}")
    (loaded,) = load(folders[:1])

    vllm_start._lay_out(loaded, tmp_path)

    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors"} <= names
    assert all("chat_template" not in path.read_text() for path in tmp_path.glob("tokenizer*"))
