"""Models of a verification: what can be trained, and what is said of the rest."""

from types import SimpleNamespace

import pytest
import torch
from support.scratch import scratch_model

from memaudit.engines.models import LoadedModel
from memaudit.errors import ModelError
from memaudit.verification.models import make_trainable


class UnpackedGguf:
    """Stands for what transformers leaves on a model whose GGUF weights it has unpacked."""

    quantization_config = SimpleNamespace(quant_method="gguf")

    def remove_quantization_config(self, model):
        del model.hf_quantizer

    def is_serializable(self):
        return False


def loaded(model):
    """A model without a tokenizer: none is asked for."""
    return LoadedModel("m.gguf", model, None, "0")


def test_a_student_from_a_gguf_file_can_be_trained_and_saved(tmp_path):
    """Its weights are floats already; only transformers' opinion of it is in the way."""
    model = scratch_model()
    model.hf_quantizer = UnpackedGguf()
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path)

    make_trainable(loaded(model))

    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()


def test_a_student_of_quantized_weights_is_refused():
    """Before the corpus is read, with what to give instead."""
    model = scratch_model()
    model.hf_quantizer = UnpackedGguf()
    model.register_buffer("blocks", torch.zeros(4, dtype=torch.uint8))

    with pytest.raises(ModelError, match=r"m\.gguf: quantized weights cannot be trained") as caught:
        make_trainable(loaded(model))
    assert "float32" in caught.value.hint


def test_an_ordinary_student_is_left_alone():
    """Most are."""
    model = scratch_model()
    before = dict(vars(model))

    make_trainable(loaded(model))

    assert vars(model) == before
