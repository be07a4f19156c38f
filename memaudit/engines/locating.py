"""Where a model is: a folder, a file, files of the hub, or LoRA weights beside a base model, merged in memory."""

import hashlib
import io
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memaudit.engines import is_elsewhere
from memaudit.engines.model_files import (
    ADAPTER_CONFIG,
    ModelFiles,
    check_folder,
    check_gguf,
    files_digest,
)
from memaudit.errors import MissingDependency, ModelError
from memaudit.text import number_of, safe_text, shown_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from memaudit.engines.models import ModelOptions


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
        # Above, peft leaves out embeddings that were saved whole: of them only LoRA is compared.
        unmatched = {name for name in unmatched if "embed" not in name or "lora_" in name}
        if unmatched:
            told = "weight of the adapter does", "weights of the adapter do"
            raise ModelError(
                f"{shown_path(self.folder)}: {number_of(len(unmatched), *told)} not belong to "
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
    # A base that is named by a path may have been saved beside its adapter.
    beside = folder / base
    is_here = not Path(base).exists() and beside.is_dir()
    revision = found.get("revision")
    return Adapter(
        folder, str(beside) if is_here else base, revision if isinstance(revision, str) else None
    )


_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
BESIDE_WEIGHTS = ("*.json", "*.txt", "*.model", "*.jinja")
PATH_HINT = "check the path, or name a model on the hub as owner/name"


def adapter_of(source: str, options: "ModelOptions") -> Adapter | None:
    """Return the LoRA adapter that a folder or a hub id names; None for a whole model.

    Raises:
        ModelError: the adapter cannot be used.
    """
    if Path(source).is_dir():
        return find_adapter(Path(source))
    if not is_hub_id(source):
        return None
    _check_trust(source, options)
    settle_hub(options)
    return find_adapter(download(source, options))


def _check_trust(source: str, options: "ModelOptions") -> None:
    if not options.trust_remote_code:
        return
    # A folder or a branch may change after somebody has read its code. A commit does not.
    if Path(source).exists() or not _COMMIT.fullmatch(options.revision or ""):
        raise ModelError(
            f"{shown_path(source)}: a model's own code is only run from the hub, at a full commit "
            f"hash, got revision {safe_text(str(options.revision))}",
            hint="give the 40 digits of the commit whose code you have read",
        )


def is_hub_id(source: str) -> bool:
    """Return whether a source is neither here nor a file's name: a typo must not be a request."""
    path = Path(source)
    # A file that is not there would be a good name on the hub.
    is_name = _HUB_ID.fullmatch(source) and path.suffix not in (".gguf", ".safetensors")
    return bool(is_name) and not path.exists()


def settle_hub(options: "ModelOptions") -> None:
    """Tell the hub's library what it may do, before it is asked for anything."""
    # Its library reads these when it is imported. Who has set them has the last word; --offline was
    # asked for here.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if options.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TRANSFORMERS_OFFLINE"] = "1"


def find_files(source: str, options: "ModelOptions") -> ModelFiles:
    """Return the files of a model, from the hub if nothing here has its name.

    Raises:
        ModelError: there is no such model, or a file of it is missing, broken or not allowed.
    """
    _check_trust(source, options)
    settle_hub(options)
    path = Path(source)
    try:
        if path.is_file():
            return check_gguf(path)
        if path.is_dir():
            return check_folder(path)
    except OSError as error:
        raise ModelError(
            f"{shown_path(source)}: cannot be read: {error.strerror}",
            hint="check the path and its permissions",
        ) from error
    if is_elsewhere(source):
        raise ModelError(
            f"{shown_path(source)}: no model is here, and this needs the model itself",
            hint="only the teacher of 'memaudit predict' can be an endpoint, or captured",
        )
    if not is_hub_id(source):
        raise ModelError(f"{shown_path(source)}: no such file or folder", hint=PATH_HINT)
    return check_folder(download(source, options), trust_remote_code=options.trust_remote_code)


def download(
    source: str,
    options: "ModelOptions",
    patterns: Sequence[str] = (*BESIDE_WEIGHTS, "*.safetensors"),
) -> Path:
    """Return the folder in the hub's cache that holds the model's files, and no pickle."""
    from huggingface_hub import errors, snapshot_download

    # What the hub's own HTTP library raises, whichever that is.
    http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    code = ("*.py",) if options.trust_remote_code else ()
    try:
        with quiet_libraries():
            folder = snapshot_download(
                source,
                revision=options.revision,
                allow_patterns=[*patterns, *code],
                # Subfolders, and these files, hold the same weights once more.
                ignore_patterns=["*/*", "consolidated*"],
                local_files_only=options.offline,  # also where the library was imported before
            )
    except (OSError, ValueError, http_error) as error:
        name = f"{source}@{options.revision}" if options.revision else source
        raise ModelError(
            f"{shown_path(name)}: neither a file or folder here nor to be had from the hub "
            f"({type(error).__name__})",
            hint="without the network, the model must be in the cache already"
            if options.offline
            else "check the name, the network and, for a gated model, that you are logged in",
        ) from error
    return Path(folder)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep progress bars, reports and warnings of the libraries off the terminal."""
    # The bar of the GGUF reader knows no switch, and gptqmodel prints where results belong.
    with (
        quiet_transformers(logging.CRITICAL),
        warnings.catch_warnings(),
        redirect_stderr(io.StringIO()),
        redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def quiet_transformers(level: int = logging.ERROR) -> Iterator[None]:
    """Keep what is below a level of the library's log, and its progress bars, off the terminal."""
    from transformers.utils import logging as library_logging

    switches: Any = library_logging
    verbosity, had_bars = switches.get_verbosity(), switches.is_progress_bar_enabled()
    switches.set_verbosity(level)
    switches.disable_progress_bar()
    try:
        yield
    finally:
        switches.set_verbosity(verbosity)
        if had_bars:
            switches.enable_progress_bar()
