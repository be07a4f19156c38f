"""LoRA adapters as models: merged in memory, and never taken for something that they are not."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import edit_json, make_model, make_windows, save_model

from memaudit.dry_run import load_sizes
from memaudit.engines import models
from memaudit.engines.hf import HfEngine
from memaudit.engines.models import ModelOptions, load_model
from memaudit.errors import ModelError

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, about transformers


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A base model, and an adapter of it with weights of some size."""
    place = tmp_path_factory.mktemp("adapted")
    base = save_model(place / "base")
    model = peft.get_peft_model(
        load_model(str(base)).model,
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]),
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.2)
    model.save_pretrained(place / "adapter")
    edit_json(place / "adapter" / "adapter_config.json", base_model_name_or_path=str(base))
    return model.eval(), place


@pytest.fixture
def adapter(adapted, tmp_path):
    """A copy of the adapter to spoil."""
    return shutil.copytree(adapted[1] / "adapter", tmp_path / "adapter")


def test_a_merged_adapter_scores_as_the_unmerged_one(adapted):
    """What is audited must be the model that was trained, to rounding."""
    unmerged, place = adapted
    windows = make_windows(20)
    loaded = load_model(str(place / "adapter"))
    found = HfEngine(loaded.model).score(windows)
    gap = 0.0
    for window, scores in zip(windows, found, strict=True):
        ids = torch.as_tensor(window, dtype=torch.int64)[None]
        with torch.no_grad():
            logprobs = unmerged(input_ids=ids).logits[0, :-1].log_softmax(-1)
        expected = logprobs.gather(-1, ids[0, 1:, None])[:, 0].numpy()
        gap = max(gap, float(np.abs(scores.teacher.logprobs - expected).max()))
    assert gap < 1e-5
    plain = HfEngine(make_model("llama")).score(windows)
    assert np.abs(found[0].teacher.logprobs - plain[0].teacher.logprobs).max() > 0.1


def test_adapters_of_one_base_read_it_once_and_score_as_each_alone(adapted, adapter, monkeypatch):
    """Of ten checkpoints the base is the same; what one merged into it must not reach the next."""
    other = shutil.copytree(adapter, adapter.with_name("other"))
    weights = load_file(other / "adapter_model.safetensors")
    save_file({k: v * -3 for k, v in weights.items()}, other / "adapter_model.safetensors")
    windows, bases, read = make_windows(8), {}, []
    load_weights = models._load_weights
    monkeypatch.setattr(
        models, "_load_weights", lambda *given: (read.append(given[0]), load_weights(*given))[1]
    )
    together = [load_model(str(each), bases=bases) for each in (adapter, other, adapter)]
    assert len(read) == len(bases) == 1
    for source, loaded in zip((adapter, other, adapter), together, strict=True):
        alone = load_model(str(source))
        assert loaded.digest == alone.digest
        scores, expected = (HfEngine(each.model).score(windows) for each in (loaded, alone))
        for found, true in zip(scores, expected, strict=True):
            np.testing.assert_array_equal(found.teacher.logprobs, true.teacher.logprobs)
    assert together[0].digest != together[1].digest


def test_an_adapter_has_a_digest_of_its_own_and_the_sizes_of_its_base(adapted, adapter):
    """Two adapters of one base are two models: a run must not go on with the other."""
    _, place = adapted
    base, loaded = load_model(str(place / "base")), load_model(str(place / "adapter"))
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({k: v * 2 for k, v in weights.items()}, adapter / "adapter_model.safetensors")
    assert len({base.digest, loaded.digest, load_model(str(adapter)).digest}) == 3
    assert load_sizes(str(adapter))[0].parameters == base.n_parameters == loaded.n_parameters


def test_a_base_beside_the_adapter_is_found(adapted, tmp_path, monkeypatch):
    """A relative name in the config is one from the adapter's folder, if it leads nowhere from here."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(adapted[1], tmp_path / "moved")
    edit_json(
        tmp_path / "moved" / "adapter" / "adapter_config.json", base_model_name_or_path="../base"
    )
    assert load_model(str(tmp_path / "moved" / "adapter")).n_parameters > 0


def test_a_missing_base_is_named(adapter):
    """The user must know what to get."""
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="/gone/base-7b")
    with pytest.raises(ModelError, match=r"is an adapter of /gone/base-7b, which cannot be loaded"):
        load_model(str(adapter))


def _without_weights(adapter):
    (adapter / "adapter_model.safetensors").unlink()


def _of_another_model(adapter):
    weights = load_file(adapter / "adapter_model.safetensors")
    weights["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = torch.ones(4, 48)
    save_file(weights, adapter / "adapter_model.safetensors")


def _config(**changes):
    return lambda adapter: edit_json(adapter / "adapter_config.json", **changes)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_weights, "an adapter without adapter_model.safetensors"),
        (_of_another_model, "not belong to its base model"),
        (_config(peft_type="PROMPT_TUNING"), "of the kind PROMPT_TUNING"),
        (_config(megatron_config={}, megatron_core="antigravity"), None),
        (_config(megatron_config={"a": 1}, megatron_core="antigravity"), "expected plain LORA"),
        (_config(base_model_name_or_path=None), "does not name its base"),
        (lambda adapter: (adapter / "adapter_config.json").write_text("["), "not the config"),
    ],
)
def test_an_adapter_that_is_not_whole_is_refused(adapter, spoil, message):
    """Half an adapter would score as another model; a config must not get code imported."""
    spoil(adapter)
    if message is None:
        assert load_model(str(adapter)).n_parameters > 0
    else:
        with pytest.raises(ModelError, match=message):
            load_model(str(adapter))


def test_an_adapter_is_not_merged_into_a_model_that_is_split(adapter):
    """Weights that lie on a disk take no change."""
    with pytest.raises(ModelError, match="cannot be merged into a model that is split"):
        load_model(str(adapter), ModelOptions(device="split"))
