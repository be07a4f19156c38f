"""Loading models: what comes back, what is refused, and that nothing is fetched or left behind."""

import json
import os
import shutil
import socket
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import edit_json, make_model, make_windows, save_model

from memaudit.engines import models
from memaudit.engines.hf import HfEngine
from memaudit.engines.locating import quiet_libraries
from memaudit.engines.models import ModelOptions, check_same_vocabulary, load_model
from memaudit.engines.quantised import unpacking
from memaudit.errors import ModelError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder that nothing is wrong with."""
    return save_model(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to connect fails the test."""

    def refuse(*args):
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def change_weights(folder, change):
    """Rewrite the weight file after a change to its tensors."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.usefixtures("no_network")
def test_a_saved_model_comes_back_ready_to_score(saved, capfd):
    """The whole road from a folder to scores, without a word on the terminal."""
    loaded = load_model(str(saved))

    windows = make_windows(5)
    expected = HfEngine(make_model("llama")).score(windows)
    for a, b in zip(HfEngine(loaded.model).score(windows), expected, strict=True):
        np.testing.assert_array_equal(a.teacher.logprobs, b.teacher.logprobs)
    assert loaded.source == str(saved)
    assert len(loaded.digest) == 64
    assert loaded.n_parameters == sum(p.numel() for p in loaded.model.parameters())
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert capfd.readouterr() == ("", "")


def test_the_dtype_is_the_one_asked_for(saved):
    """Labels are decided in float32, whatever the file holds."""
    loaded = load_model(str(saved), ModelOptions(dtype="bfloat16", device="cpu"))

    assert loaded.model.dtype == torch.bfloat16


def test_switches_of_the_libraries_are_left_as_they_were(saved):
    """A program that uses the package keeps its own logging."""
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(str(saved))

    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("source", ["no/such/folder/x", "./nothing", "missing.gguf", "a b"])
def test_a_path_that_is_not_there_is_refused_without_asking_the_hub(source):
    """A typo must not become a request."""
    with pytest.raises(ModelError, match="no such file or folder"):
        load_model(source)


@pytest.mark.usefixtures("no_network")
def test_offline_a_hub_model_that_is_not_cached_is_refused(monkeypatch, tmp_path):
    """And the hint says where it has to be."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
    with pytest.raises(ModelError, match="nor to be had from the hub") as caught:
        load_model("memaudit-test/none", ModelOptions(offline=True))

    assert "cache" in str(caught.value.hint)
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.usefixtures("no_network")
def test_a_hub_model_in_the_cache_loads_like_a_folder(monkeypatch, saved):
    """Everything from the hub goes through the same checks; no pickle is ever asked for."""
    import huggingface_hub

    asked = {}

    def from_cache(source, **settings):
        asked.update(settings, source=source)
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", from_cache)
    loaded = load_model("owner/name", ModelOptions(revision="main"))

    assert loaded.source == "owner/name"
    assert asked["revision"] == "main"
    assert not any("bin" in pattern or "py" in pattern for pattern in asked["allow_patterns"])


def test_code_on_the_hub_is_fetched_only_at_a_full_commit(monkeypatch, saved):
    """A branch can change after the user has read it."""
    import huggingface_hub

    asked = {}

    def from_cache(source, **settings):
        asked.update(settings)
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", from_cache)
    trusted = ModelOptions(trust_remote_code=True, revision="a" * 40)
    load_model("owner/name", trusted)
    assert "*.py" in asked["allow_patterns"]

    for revision in (None, "main", "a" * 39):
        with pytest.raises(ModelError, match="at a full commit hash"):
            load_model("owner/name", ModelOptions(trust_remote_code=True, revision=revision))


def test_code_in_a_folder_is_never_run(folder, tmp_path):
    """Even if trusted: nothing pins a folder's content."""
    sentinel = tmp_path / "ran"
    code = f"open({str(sentinel)!r}, 'w')\n"
    (folder / "modeling_x.py").write_text(code)
    (folder / "tokenization_x.py").write_text(code)
    auto_map = {"AutoConfig": "modeling_x.X", "AutoModelForCausalLM": "modeling_x.X"}
    edit_json(folder / "config.json", auto_map=auto_map)

    for options in (ModelOptions(), ModelOptions(trust_remote_code=True, revision="a" * 40)):
        with pytest.raises(ModelError):
            load_model(str(folder), options)
    assert not sentinel.exists()


def test_a_pickle_is_never_opened(folder, tmp_path):
    """The payload of a pickle runs when it is read."""
    import pickle

    sentinel = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (open, (str(sentinel), "w"))

    payload = pickle.dumps(Payload())
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(payload)

    load_model(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="only as pickle"):
        load_model(str(folder))

    assert not sentinel.exists()


def test_missing_weights_are_refused(folder):
    """Transformers would make them up, and the scores with them."""
    change_weights(folder, lambda tensors: tensors.pop("model.norm.weight"))

    with pytest.raises(ModelError, match=r"1 weight is missing.*model\.norm\.weight"):
        load_model(str(folder))


def test_weights_of_another_shape_are_refused(folder):
    """The config belongs to another model."""
    edit_json(folder / "config.json", intermediate_size=80)

    with pytest.raises(ModelError):
        load_model(str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(folder, value):
    """Before the first row, not after a night of scoring."""
    change_weights(folder, lambda tensors: tensors["model.norm.weight"].fill_(value))

    with pytest.raises(ModelError, match=r"model\.norm\.weight holds values"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "no_such_type"},
        {"model_type": None},
        {"hidden_size": "many"},
        {"num_attention_heads": 0},
        {"hidden_act": "no_such_function"},
        {"rope_parameters": {"rope_type": "no_such_rope"}},
    ],
    ids=str,
)
def test_a_config_that_transformers_cannot_use_is_one_sentence(folder, changes):
    """A hostile or newer config must not end in a traceback."""
    edit_json(folder / "config.json", **changes)

    with pytest.raises(ModelError) as caught:
        load_model(str(folder))
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_folder_without_tokenizer_is_refused(folder):
    """Windows are made of its tokens."""
    for path in folder.glob("tokenizer*"):
        path.unlink()

    with pytest.raises(ModelError, match="cannot load it"):
        load_model(str(folder))


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused(saved, device):
    """With the devices that exist."""
    with pytest.raises(ModelError, match="device"):
        load_model(str(saved), ModelOptions(device=device))


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_local_experts"])
def test_parts_without_number_are_refused_before_any_is_built(folder, key):
    """A hundred thousand layers take hours, and no weight is looked for before."""
    edit_json(folder / "config.json", **{key: 100_000})

    with pytest.raises(ModelError, match=f"{key} is 100,000, more than 4,096"):
        load_model(str(folder))


def test_a_gguf_file_that_breaks_off_is_refused(tmp_path):
    """The reader's errors are of every kind."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 16)

    with pytest.raises(ModelError, match="cannot load it"):
        load_model(str(path))


def test_models_of_one_vocabulary_pass_whatever_their_padding(saved, tmp_path):
    """Embedding rows beyond the tokenizer differ within one family."""
    wider = save_model(tmp_path, family="gpt_neox", vocab_size=352)

    teacher, reference = load_model(str(saved)), load_model(str(wider))

    check_same_vocabulary(teacher, reference)
    assert teacher.tokenizer.fingerprint == reference.tokenizer.fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"swap": (10, 20)}, "token id 10 means two things"),
        ({"merges": [("a", "b"), ("c", "d")]}, "token id 257 means two things"),
        ({"bos": True}, "only one of them puts a token in front"),
        ({"lowercase": True}, r"the normaliser .* differs, \d+ of \d+ test texts"),
        ({"vocab_size": 250}, "320 and 250 embedding rows for 258 token ids"),
    ],
)
def test_what_differs_between_two_vocabularies_is_said(saved, tmp_path, settings, message):
    """The user has to find the right second model."""
    other = save_model(tmp_path, **settings)

    with pytest.raises(ModelError, match=message) as caught:
        check_same_vocabulary(load_model(str(saved)), load_model(str(other)))
    assert "do not share a vocabulary" in caught.value.message
    assert "verify --distilled" in caught.value.hint


def rewrite_weights(folder, change):
    """Save the weights of a folder again, changed."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.7.mlp.down_proj.weight",
        "model.layers.0.mlp.down_proj.weight_scale",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
    ],
)
def test_weights_that_would_not_be_used_are_refused(folder, name):
    """What is scored must be the model that was trained."""
    rewrite_weights(folder, lambda weights: weights | {name: torch.ones(4, 4)})

    with pytest.raises(ModelError, match="1 weight of the file is not used") as caught:
        load_model(str(folder))
    assert name in caught.value.message


@pytest.mark.parametrize("n_layers", [-1, 0, 1])
def test_layers_that_the_config_does_not_count_are_refused(folder, n_layers):
    """A teacher without layers recites nothing, and would vouch for any corpus."""
    config = json.loads((folder / "config.json").read_text())
    counts = {"num_hidden_layers": n_layers, "layer_types": None}
    (folder / "config.json").write_text(json.dumps(config | counts))
    with pytest.raises(ModelError, match=r"weights? of the file (is|are) not used"):
        load_model(str(folder))

    # Nor by calling them layers that predict further tokens, which are known by their join.
    further = counts | {"num_nextn_predict_layers": 5}
    (folder / "config.json").write_text(json.dumps(config | further))
    with pytest.raises(ModelError, match=r"weights? of the file (is|are) not used"):
        load_model(str(folder))


def test_layers_that_predict_further_tokens_are_left_out(folder):
    """They stand behind the last layer in the files of some models, and say nothing here."""
    names = ("model.layers.2.eh_proj.weight", "model.layers.2.mlp.up_proj.weight")
    rewrite_weights(folder, lambda weights: weights | {n: torch.ones(4, 4) for n in names})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))

    assert load_model(str(folder)).unused is None


HARMLESS = [
    "model.layers.0.self_attn.rotary_emb.inv_freq", "visual.blocks.0.mlp.weight",
    "model.vision_tower.encoder.layers.3.fc1.weight", "multi_modal_projector.linear_1.weight",
    "transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias", "mtp.layers.0.mlp.weight",
    "gpt_neox.layers.0.attention.bias", "model.audio_tower.layers.0.fc1.weight",
]  # fmt: skip


def test_weights_that_change_nothing_pass(folder):
    """Frequencies that are computed anew, and towers for pictures, say nothing about text."""
    rewrite_weights(folder, lambda weights: weights | {n: torch.ones(4, 4) for n in HARMLESS})

    assert load_model(str(folder)).unused is None


def test_weights_that_nobody_knows_are_told(folder):
    """The head of a reward model does not write text, but was it meant?"""
    names = ("score.weight", "v_head.summary.weight")
    rewrite_weights(folder, lambda weights: weights | {n: torch.ones(4, 4) for n in names})

    assert load_model(str(folder)).unused == (
        f"2 weights in the file of {folder} are not used, the first is score.weight"
    )


def test_a_merged_model_with_its_adapters_config_is_loaded_itself(folder):
    """The config would lead to another model."""
    config = {"base_model_name_or_path": "owner/base", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(config))

    assert load_model(str(folder)).n_parameters > 0


def test_factors_of_rotary_frequencies_are_applied(tmp_path):
    """Llama 3 keeps them as a tensor in a GGUF file, which transformers does not read."""
    from gguf import GGUFWriter

    writer = GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_tensor("rope_freqs.weight", np.array([1, 1, 2, 2, 4, 8], dtype=np.float32))
    for write in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{write}_to_file")()
    writer.close()
    model = make_model("llama")
    plain = model.model.rotary_emb.inv_freq.clone()

    models._apply_rope_factors("m.gguf", model, tmp_path / "m.gguf")

    assert (plain / model.model.rotary_emb.inv_freq).tolist() == [1, 1, 2, 2, 4, 8]
    with pytest.raises(ModelError, match="that the model does not have"):
        models._apply_rope_factors("m.gguf", make_model("gemma3"), tmp_path / "m.gguf")


def quantise(folder, method="fp8"):
    """Store the weights of a model in eight bits; return those that they stand for."""
    meant = {}

    def change(tensors):
        for name in [name for name in tensors if "proj" in name]:
            weight = tensors[name]
            scale = weight.abs().max() / 448
            tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
            tensors[name.replace("weight", "weight_scale_inv")] = scale.reshape(1, 1)
            meant[name] = tensors[name].float() * scale

    change_weights(folder, change)
    settings = {
        "quant_method": method,
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
    }
    edit_json(folder / "config.json", quantization_config=settings)
    return meant


def test_quantised_weights_have_the_values_that_they_stand_for(folder):
    """FP8 is how many large models are published; the card says that scores are of that model."""
    meant = quantise(folder)

    loaded = load_model(str(folder))

    found = dict(loaded.model.named_parameters())
    assert len(meant) > 10
    for name, weight in meant.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=1e-7)
    assert "quantised (fp8)" in loaded.unused
    HfEngine(loaded.model).score(make_windows(2))


@pytest.mark.parametrize("blocks", [[0, 0], ["a", "b"], "ab", {"a": 1}, 7, [None, 128], [[], []]])
def test_blocks_of_no_size_are_a_message(folder, blocks):
    """Anybody can write a config."""
    quantise(folder)
    settings = {"quant_method": "fp8", "weight_block_size": blocks, "activation_scheme": "dynamic"}
    edit_json(folder / "config.json", quantization_config=settings)

    with pytest.raises(ModelError):
        load_model(str(folder))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_quantised_weight_that_is_no_number_is_refused(folder, value):
    """Its scale alone may be broken."""
    quantise(folder)
    name = "model.layers.0.mlp.down_proj.weight_scale_inv"
    change_weights(folder, lambda tensors: tensors[name].fill_(value))

    with pytest.raises(ModelError, match="not finite"):
        load_model(str(folder))


@pytest.mark.parametrize("method", ["modelopt", "foo"])
def test_a_format_that_transformers_does_not_know_is_refused(folder, method):
    """It would warn, and compute with the stored numbers as if they were the weights."""
    quantise(folder, method)

    with pytest.raises(ModelError, match=f"quantised by {method}, which transformers does not"):
        load_model(str(folder))


@pytest.mark.parametrize(("n_rows", "fits"), [(192, False), (256, True), (64, True)])
def test_fp8_weights_whose_last_block_is_cut_off_are_refused(folder, n_rows, fits):
    """Transformers makes two blocks of 96 rows of what is scaled as 128 and 64."""
    name, n_blocks = "model.layers.0.mlp.down_proj.weight", -(-n_rows // 128)

    def change(tensors):
        tensors[name] = torch.zeros(n_rows, 64).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.ones(n_blocks, 1)

    change_weights(folder, change)

    if fits:
        assert unpacking("m", folder, "fp8")
    else:
        with pytest.raises(ModelError, match=f"do not fit {name}") as caught:
            unpacking("m", folder, "fp8")
        assert "quantised from" in caught.value.hint


def test_a_library_that_prints_does_not_spoil_a_document(folder, capsys):
    """One of them shows a banner on standard output, where --json has its document."""
    with quiet_libraries():
        sys.stdout.write("banner")

    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("method", ["bitsandbytes", "compressed-tensors"])
def test_a_package_that_a_quantised_model_needs_is_named(folder, method):
    """The weights are all right, and no other file is needed."""
    if find_spec(method.replace("-", "_")):
        pytest.skip(f"{method} is installed")
    quantise(folder, method)
    edit_json(
        folder / "config.json", quantization_config={"quant_method": method, "load_in_4bit": True}
    )

    with pytest.raises(ModelError, match=method) as caught:
        load_model(str(folder))
    assert caught.value.hint == "install the package that is named"
