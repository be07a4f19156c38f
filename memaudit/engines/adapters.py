"""Adapters: LoRA weights beside a base model, merged into it in memory."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memaudit.engines.model_files import ADAPTER_CONFIG, files_digest
from memaudit.errors import MissingDependency, ModelError
from memaudit.text import safe_text, shown_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WEIGHTS = "adapter_model.safetensors"
_MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Adapter:
    """What PEFT has saved of a LoRA training."""

    folder: Path

    base: str
    """Folder or hub id of the model that the adapter was trained on."""

    base_revision: str | None
    """Of a base on the hub. None: its main branch."""

    @property
    def digest(self) -> str:
        """Sha256 over config and weights, hexadecimal."""
        return files_digest([self.folder / ADAPTER_CONFIG, self.folder / _WEIGHTS])

    def digest_with(self, base_digest: str) -> str:
        """Return the digest of the merged model: sha256 over those of base and adapter."""
        return hashlib.sha256(f"{base_digest} {self.digest}".encode()).hexdigest()

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer was saved with it: its chat template may be the adapter's own."""
        return (self.folder / "tokenizer.json").is_file()

    def merged_into(self, model: "PreTrainedModel") -> "PreTrainedModel":
        """Return the model with the adapter in its weights; the model itself is changed.

        Raises:
            MissingDependency: peft is not installed.
            ModelError: the weights are not those of the adapter that the config describes.
        """
        try:
            from peft import PeftModel, get_peft_model_state_dict
        except ImportError as error:
            raise MissingDependency("peft", needed_for="LoRA adapters", extra="peft") from error
        from safetensors import safe_open

        with safe_open(self.folder / _WEIGHTS, framework="pt") as file:
            names = set(file.keys())
        adapted: Any = PeftModel.from_pretrained(model, str(self.folder))
        # peft fills a weight that the file lacks with its first value, and drops what it does not
        # know, with no more than a warning.
        unmatched = names ^ set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
        unmatched = {name for name in unmatched if "embed" not in name or "lora_" in name}
        if unmatched:
            raise ModelError(
                f"{shown_path(self.folder)}: {len(unmatched)} weights of the adapter do not belong to "
                f"its base model, the first is {safe_text(min(unmatched))}",
                hint="check that base_model_name_or_path names the model it was trained on",
            )
        merged: PreTrainedModel = adapted.merge_and_unload().eval().requires_grad_(False)
        return merged


def find_adapter(folder: Path) -> Adapter | None:
    """Return the adapter in a folder. None: it holds none, or a model that was merged already.

    Raises:
        ModelError: the adapter cannot be used.
    """
    config = folder / ADAPTER_CONFIG
    has_weights = (folder / _WEIGHTS).is_file()
    if not config.is_file() or ((folder / "config.json").is_file() and not has_weights):
        return None
    shown = shown_path(folder)
    if not has_weights:
        raise ModelError(
            f"{shown}: an adapter without {_WEIGHTS}",
            hint="save it with a current peft, which writes safetensors; pickles are never loaded",
        )
    try:
        if config.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError("too large")
        found = json.loads(config.read_bytes())
        kind, base = found["peft_type"], found["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{shown_path(config)}: not the config of an adapter", hint="get the adapter again"
        ) from error
    # megatron_config names a module that peft would import.
    if kind != "LORA" or found.get("megatron_config") or found.get("is_prompt_learning"):
        raise ModelError(
            f"{shown}: an adapter of the kind {safe_text(str(kind))}, expected plain LORA",
            hint="merge the adapter into its base model and save the result in a folder of its own",
        )
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{shown}: an adapter whose config does not name its base model",
            hint="write the base model's folder or hub id as base_model_name_or_path",
        )
    beside = folder / base
    is_here = not Path(base).exists() and beside.is_dir()
    revision = found.get("revision")
    return Adapter(
        folder, str(beside) if is_here else base, revision if isinstance(revision, str) else None
    )
