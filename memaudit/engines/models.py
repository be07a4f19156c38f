"""Models on disk or on the hub, loaded without running code of theirs."""

import copy
import filecmp
import os
import re
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from memaudit.engines.locating import (
    BESIDE_WEIGHTS,
    PATH_HINT,
    Adapter,
    adapter_of,
    download,
    find_files,
    is_hub_id,
    quiet_libraries,
    settle_hub,
)
from memaudit.engines.model_files import ADAPTER_CONFIG, ModelFiles, check_tokenizer_folder
from memaudit.engines.quantised import UNQUANTISED_HINT, quantised_by, unpacking
from memaudit.engines.tokenizer import difference, load_tokenizer
from memaudit.errors import ModelError
from memaudit.progress import tell
from memaudit.text import number_of, safe_text, shown_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from memaudit.corpus import CorpusOptions
    from memaudit.engines.tokenizer import Tokenizer

LIBRARY_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip
"""What transformers and vLLM raise at what they cannot load or run."""

_SHOWN_ERROR = 300
# All files have been looked through by then: nothing is fetched behind that.
_HERE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How a model is loaded."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the body; the head always sums in float32."""

    device: str = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1` or `split` (over all, disk included)."""

    revision: str | None = None
    """Branch, tag or commit of a model on the hub. None: its main branch."""

    trust_remote_code: bool = False
    """Run code that the model brings. Only for a hub model whose revision is a full commit hash."""

    offline: bool = False
    """Use what is in the hub's cache already, and no network."""

    add_special_tokens: Literal["auto", "yes", "no"] = "auto"
    """Whether a BOS token stands in front of every window; auto: if the tokenizer adds one."""

    compiled: bool | None = False
    """Compile the body before it scores: faster afterwards, and needs a C++ compiler. None: `predict`
    finds out whether that pays, once for each run."""

    def for_corpus(self, corpus: "CorpusOptions") -> "ModelOptions":
        """Return them with what a corpus says of how its texts become tokens."""
        return replace(self, add_special_tokens=corpus.add_special_tokens)


DEFAULT_OPTIONS = ModelOptions()


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to score."""

    source: str
    model: "PreTrainedModel"
    """In evaluation mode, without gradients, on its device."""

    tokenizer: "Tokenizer"
    digest: str
    """Sha256 over the files used, hexadecimal."""

    files: ModelFiles | None = None
    """Those. None: it was made in memory."""

    unused: str | None = None
    """In words why it may be another model than the one that was trained: weights of its files that
    it does not use, or that are quantised. None: nothing speaks for that."""

    @property
    def n_parameters(self) -> int:
        """Weights, each counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def load_model(
    source: str | os.PathLike[str],
    options: ModelOptions = DEFAULT_OPTIONS,
    *,
    bases: dict[str, LoadedModel] | None = None,
) -> LoadedModel:
    """Load a causal language model and its tokenizer.

    Args:
        source: a folder that `save_pretrained` wrote, a GGUF file, a LoRA adapter, or a hub id `owner/name`. What
            exists on disk is never looked up on the hub.
        options: how.
        bases: of the adapters that were loaded with it before, and of this one: each is read once,
            and merged into a copy. None: the base is changed, and not kept.

    Raises:
        ModelError: there is no such model, a file of it is missing, broken or not allowed, or
            transformers cannot load it.
    """
    source = os.fspath(source)
    tell(f"load {Path(source).name or source}")
    adapter = adapter_of(source, options)
    if adapter is not None:
        return _load_adapted(source, adapter, options, bases)
    with open_model(source, options) as (files, folder, where):
        # Before the weights, which take longer: what is wrong with it is told first.
        tokenizer = load_tokenizer(folder, where, options.add_special_tokens)
        model, unused = _load_weights(source, folder, where, options)
    return LoadedModel(source, model, tokenizer, files.digest, files, unused)


def model_digest(source: str, options: ModelOptions) -> str:
    """Return the digest that a model has once it is loaded: see `LoadedModel`.

    Raises:
        ModelError: there is no such model, or a file of it is missing, broken or not allowed.
    """
    adapter = adapter_of(source, options)
    if adapter is not None:
        return adapter.digest_with(model_digest(adapter.base, base_options(adapter, options)))
    return find_files(source, options).digest


def base_options(adapter: Adapter, options: ModelOptions) -> ModelOptions:
    """Return how the base of an adapter is loaded: at the revision that the adapter names."""
    return replace(options, revision=adapter.base_revision)


def _load_adapted(
    source: str, adapter: Adapter, options: ModelOptions, bases: dict[str, LoadedModel] | None
) -> LoadedModel:
    if options.device == "split":
        raise ModelError(
            f"{shown_path(source)}: an adapter cannot be merged into a model that is split",
            hint="merge it into its base model, and save the result in a folder of its own",
        )
    own = {} if bases is None else bases
    key = f"{adapter.base}@{adapter.base_revision}"
    try:
        if key not in own:
            own[key] = load_model(adapter.base, base_options(adapter, options))
    except ModelError as error:
        raise ModelError(
            f"{shown_path(source)} is an adapter of {shown_path(adapter.base)}, which cannot be "
            f"loaded: {error.message}",
            hint="get the base model, or correct base_model_name_or_path in adapter_config.json",
        ) from error
    base = own[key]
    tokenizer = base.tokenizer
    with quiet_libraries(), _as_model_error(source):
        if adapter.has_tokenizer:
            tokenizer = load_tokenizer(adapter.folder, _HERE, options.add_special_tokens)
        # To merge changes the weights, and another adapter may need them as they are.
        model = adapter.merged_into(base.model if bases is None else copy.deepcopy(base.model))
    digest = adapter.digest_with(base.digest)
    return LoadedModel(source, model, tokenizer, digest, unused=base.unused)


def open_tokenizer(source: str, options: ModelOptions) -> "tuple[Tokenizer, str]":
    """Load a tokenizer without its model.

    Returns:
        it, and the sha256 over its files, hexadecimal.

    Raises:
        ModelError: there is none, or a file of it is broken or not allowed.
    """
    if Path(source).is_dir():
        files = check_tokenizer_folder(Path(source))
    elif is_hub_id(source):
        settle_hub(options)
        files = check_tokenizer_folder(download(source, options, BESIDE_WEIGHTS))
    else:
        raise ModelError(f"{shown_path(source)}: no such folder", hint=PATH_HINT)
    with quiet_libraries(), _as_model_error(source):
        return load_tokenizer(files.folder, _HERE, options.add_special_tokens), files.digest


def cuts_alike(
    source: str | os.PathLike[str], other: str | os.PathLike[str], options: ModelOptions
) -> bool:
    """Whether the tokenizers of two models give every text the same ids.

    Raises:
        ModelError: one cannot be loaded.
    """
    # Where the files are equal, no tokenizer needs to be loaded.
    pairs = [(Path(source) / name, Path(other) / name) for name in _TOKENIZER_FILES]
    are_there = all(path.is_file() for pair in pairs for path in pair)
    if are_there and all(filecmp.cmp(*pair, shallow=False) for pair in pairs):
        return True
    one, another = (_tokenizer_of(os.fspath(each), options) for each in (source, other))
    return difference(one, another) is None


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def _tokenizer_of(source: str, options: ModelOptions) -> "Tokenizer":
    """Load the tokenizer that `load_model` would."""
    adapter = adapter_of(source, options)
    if adapter is not None and not adapter.has_tokenizer:
        return _tokenizer_of(adapter.base, base_options(adapter, options))
    if adapter is not None or is_hub_id(source):
        return open_tokenizer(os.fspath(adapter.folder) if adapter else source, options)[0]
    with open_model(source, options) as (_, folder, where):
        return load_tokenizer(folder, where, options.add_special_tokens)


@contextmanager
def open_model(
    source: str, options: ModelOptions
) -> Iterator[tuple[ModelFiles, Path, dict[str, Any]]]:
    """Give the files of a model, the folder to load from, and what transformers is told of it.

    Raises:
        ModelError: there is no such model, a file of it is missing, broken or not allowed, or
            transformers fails at the work inside.
    """
    files = find_files(source, options)
    where = _HERE | {"trust_remote_code": options.trust_remote_code}
    if files.gguf_file is not None:
        where["gguf_file"] = files.gguf_file
    with quiet_libraries(), ExitStack() as opened:
        folder = files.folder
        # A GGUF file is given alone. Of a merged model that still has the config of its adapter
        # transformers would follow that to another model.
        if files.gguf_file is not None or (folder / ADAPTER_CONFIG).exists():
            alone = tempfile.TemporaryDirectory(prefix="memaudit-")
            folder = Path(opened.enter_context(alone))
            for path in files.used:
                (folder / path.name).symlink_to(files.folder.resolve() / path.name)
        with _as_model_error(source):
            yield files, folder, where


def check_same_vocabulary(teacher: LoadedModel, reference: LoadedModel) -> None:
    """Refuse two models between which no divergence per token is defined.

    Tokens that only one of them has, and rows that belong to no token, are left out of it.

    Raises:
        ModelError: saying what differs.
    """
    found = difference(teacher.tokenizer, reference.tokenizer)
    if found is None:
        rows = [_n_rows(teacher.model), _n_rows(reference.model)]
        n_ids = min(teacher.tokenizer.n_ids, reference.tokenizer.n_ids)
        # Rows beyond the ids are padding, and models of one family are padded differently.
        if rows[0] != rows[1] and min(rows) < n_ids:
            found = f"{rows[0]} and {rows[1]} embedding rows for {n_ids} token ids"
    if found is not None:
        raise ModelError(
            f"{shown_path(teacher.source)} and {shown_path(reference.source)} do not share a "
            f"vocabulary: {found}",
            hint="take one family, or distil elsewhere and give the student to verify --distilled",
        )


def _n_rows(model: "PreTrainedModel") -> int:
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def _load_weights(
    source: str, folder: Path, where: dict[str, Any], options: ModelOptions
) -> "tuple[PreTrainedModel, str | None]":
    """Return the model, and in words which weights of its files it does not use."""
    from transformers import AutoModelForCausalLM

    device, method = device_here(options.device), quantised_by(folder)
    is_split = device == "split"
    loader: Any = AutoModelForCausalLM
    model, report = loader.from_pretrained(
        folder,
        dtype=options.dtype,
        use_safetensors=True,  # else transformers would take a pickle where there is nothing else
        output_loading_info=True,
        # Some quantised models cannot be moved once they are loaded.
        **({"device_map": "auto" if is_split else {"": device}} if is_split or method else {}),
        **unpacking(source, folder, method),
        **where,
    )
    # transformers fills these with random numbers.
    unset = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if unset:
        raise ModelError(
            f"{shown_path(source)}: {number_of(len(unset), 'weight is', 'weights are')} missing or of another shape, "
            f"the first is {safe_text(unset[0])}",
            hint="get the model again, or check that config.json belongs to these weights",
        )
    unused = _unused_weights(source, report["unexpected_keys"], model.config.get_text_config())
    if method is not None:
        quantised = (
            f"the weights of {shown_path(source)} are quantised ({safe_text(method, 40)}), and the "
            "scores are those of the quantised model"
        )
        unused = quantised if unused is None else f"{unused}; {quantised}"
    if "gguf_file" in where:
        _apply_rope_factors(source, model, folder / where["gguf_file"])
    # Scores that are no numbers are refused as well, but perhaps after a night of scoring.
    for name, parameter in model.named_parameters():
        if parameter.is_meta:  # read from its file whenever it is used; the scores are checked, too
            continue
        # torch has no isfinite for numbers of eight bits
        values = parameter.float() if parameter.element_size() == 1 else parameter
        if not values.isfinite().all():
            raise ModelError(
                f"{shown_path(source)}: {safe_text(name)} holds values that are not finite numbers",
                hint="get the model again, or choose an earlier checkpoint",
            )
    if model.device.type == "meta":
        raise ModelError(f"{shown_path(source)}: no room for its first layer", hint="free memory")
    loaded: PreTrainedModel = model.eval() if is_split or method else model.to(device).eval()
    return loaded.requires_grad_(False), unused


_LAYER = re.compile(r"\.(?:layers|h|blocks?)\.(\d+)\.")
# Without its scale a quantised weight is another number.
_SCALES = ("_scale", "_scale_inv", ".scales", ".qzeros", ".absmax", ".SCB")
_HARMLESS = re.compile(
    r"\.inv_freq$|\bat\w+\.(?:masked_)?bias$"  # of positions and masks, which are computed anew
    r"|(?:^|[._])(?:vision|visual|image|audio|speech|multi_modal|mm|mtp)(?:[._]|$)"
)
"""Weights that say nothing about the next token of a text: towers for pictures and sounds, and
layers for further tokens, too."""


def _unused_weights(source: str, unexpected: Iterable[str], config: Any) -> str | None:
    """Say which weights of a model's files go unused, if nobody knows that they are harmless.

    Layers that predict further tokens stand behind the last one, and the config counts them.

    Raises:
        ModelError: the model was trained with them, and is another function without them.
    """
    n_layers = getattr(config, "num_hidden_layers", None)
    n_further = getattr(config, "num_nextn_predict_layers", None) or 0
    names = sorted(name for name in unexpected if not _HARMLESS.search(name))
    # Each joins the last state with the next token; what a wrong count cuts off does not.
    further = {layer[1] for name in names if ".eh_proj." in name and (layer := _LAYER.search(name))}
    unknown, needed = list[str](), list[str]()
    for name in names:
        layer = _LAYER.search(name)
        if layer and layer[1] in further and int(layer[1]) < (n_layers or 0) + n_further:
            continue
        # A layer more than the config counts: without it the teacher would recite too little.
        of_body = layer is not None and n_layers is not None
        is_needed = of_body or "lora_" in name or name.endswith(_SCALES)
        (needed if is_needed else unknown).append(name)
    if needed:
        raise ModelError(
            f"{shown_path(source)}: {number_of(len(needed), 'weight of the file is', 'weights of the file are')} not used, "
            f"the first is {safe_text(needed[0])}: this is another model than the one that was "
            "trained",
            hint="merge adapters into the model and save it again, "
            "or get the config.json that belongs to these weights",
        )
    if not unknown:
        return None
    return (
        f"{len(unknown)} weights in the file of {shown_path(source)} are not used, "
        f"the first is {safe_text(unknown[0])}"
    )


def _apply_rope_factors(source: str, model: "PreTrainedModel", path: Path) -> None:
    """Divide the rotary frequencies by the factors that llama.cpp keeps as a tensor.

    Llama 3.1 and later have them; transformers reads neither the tensor nor a setting for it.
    """
    from gguf import GGUFReader

    tensors = GGUFReader(path).tensors
    found = next((each.data for each in tensors if each.name == "rope_freqs.weight"), None)
    if found is None:
        return
    rotaries: list[Any] = [module for module in model.modules() if hasattr(module, "inv_freq")]
    if not rotaries or any(module.inv_freq.shape != found.shape for module in rotaries):
        raise ModelError(
            f"{shown_path(source)}: factors for rotary frequencies that the model does not have",
            hint="use the safetensors that the file was made from",
        )
    for module in rotaries:
        # After a long text, some models go back to the second.
        for name in ("inv_freq", "original_inv_freq"):
            if hasattr(module, name):
                getattr(module, name).div_(module.inv_freq.new_tensor(found))


def device_here(name: str) -> str:
    """Return the device that a name stands for, or raise a `ModelError`: it is not here."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|split|cuda(:\d+)?", name):
        raise ModelError(f"unknown device {safe_text(name)}", hint="use auto, cpu, cuda:1 or split")
    if name.startswith("cuda") and int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise ModelError(f"there is no device {name} here", hint="use --device cpu")
    return name


@contextmanager
def _as_model_error(source: str) -> Iterator[None]:
    """Turn what transformers raises on a broken model into one sentence."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except (*LIBRARY_ERRORS, SafetensorError, StrictDataclassError, struct.error) as error:
        text = safe_text(" ".join(str(error).split()), _SHOWN_ERROR)
        raise ModelError(
            f"{shown_path(source)}: transformers cannot load it: {type(error).__name__}: {text}",
            hint="install the package that is named"
            if isinstance(error, ImportError)
            else UNQUANTISED_HINT
            if "quantiz" in text
            else "check that the files belong together and that transformers knows the architecture",
        ) from error
