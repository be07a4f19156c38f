"""The files of a model, looked through before any library that could be led astray opens them."""

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from memaudit.errors import ModelError
from memaudit.text import safe_text, shown_path

_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
"""What a merged model may have left of its adapter; nothing reads it."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".joblib")
_READ_BY_TRANSFORMERS = (".json", ".txt", ".model", ".jinja", ".py")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json")
"""Their keys are tokens, not settings."""
_GGUF_VERSIONS = (2, 3)
_MAX_JSON_BYTES = 256 * 2**20
_MAX_KEY_BYTES = 65_535
"""The limit of the GGUF format."""
_MAX_CONFIG_BYTES = 16 * 2**20
_MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format."""
_CODE_KEYS = ("attn_implementation", "experts_implementation")
"""With an underscore before them too."""
_COUNTED_PARTS = re.compile(
    r"(?:layers?|layers_per_stack|blocks|experts|block_count|expert_count|dense_replace|num_labels)$"
)
_MAX_PARTS = 4096
"""Layers, experts of one layer, or labels. Each is built, or named, before any weight is looked for."""

# One names another file of weights, which nothing here has looked through. The others could set
# what the public keys are checked for.
_FORBIDDEN_KEYS = ("transformers_weights", *(f"_{key}_internal" for key in _CODE_KEYS))


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a model is loaded from."""

    folder: Path
    """Holds all of `used`."""

    gguf_file: str | None
    """Name in `folder`. None: a folder of safetensors."""

    used: tuple[Path, ...]
    """Weights, config and tokenizer, by name."""

    @property
    def digest(self) -> str:
        """Sha256 over names and contents of the files used, hexadecimal."""
        return files_digest(self.used)


def files_digest(paths: Iterable[Path]) -> str:
    """Return the sha256 over names and contents of files, hexadecimal, whatever their order."""
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        stat = path.stat()
        # Size and time are for the cache: a file that is written anew is read anew.
        content = _file_digest(path, stat.st_size, stat.st_mtime_ns)
        total.update(json.dumps([path.name, content]).encode())
    return total.hexdigest()


@lru_cache(maxsize=256)
def _file_digest(path: Path, size: int, modified: int) -> str:
    """Return the sha256 of a file; once, though a run asks before and after it loads the model."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_gguf(path: Path) -> ModelFiles:
    """Return a GGUF file as a model, once its header looks like one.

    Raises:
        ModelError: it is not GGUF, or of a version that cannot be read.
    """
    if not path.is_file():
        raise ModelError(f"{shown_path(path)}: no such file", hint="check the path")
    with path.open("rb") as file:
        start = file.read(8)
    if len(start) < 8 or start[:4] != b"GGUF":
        raise _broken(path, "not a GGUF file, its first bytes are wrong")
    # Of the other byte order, version 3 reads as 3 << 24.
    version = struct.unpack("<I", start[4:])[0]
    if version not in _GGUF_VERSIONS:
        raise ModelError(
            f"{shown_path(path)}: expected GGUF version 2 or 3, got {version}",
            hint="convert the model again with a current llama.cpp",
        )
    # What is no GGUF behind that is left to transformers; ValueError: a length that no seek takes.
    faults = (struct.error, OSError, KeyError, RecursionError, ValueError)
    with path.open("rb") as file, suppress(*faults):
        file.seek(16)  # behind magic, version and the number of tensors
        # The file may claim any number of keys: where it ends, a short read ends the loop.
        for _ in range(_read_number(file, "<Q")):
            key = file.read(min(_read_number(file, "<Q"), _MAX_KEY_BYTES)).decode(errors="replace")
            # transformers builds as many layers as a number says, and takes a list of one for it.
            for number in _gguf_values(file, _read_number(file, "<I")):
                _check_n_parts(path, key, number)
    return ModelFiles(path.parent, path.name, (path,))


_GGUF_NUMBERS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"
}  # fmt: skip
_GGUF_STRING, _GGUF_LIST = 8, 9
# Longer lists have a number for each token or layer: none of them is a count of layers.
_SHORT_LIST = 16


def _gguf_values(file: BinaryIO, kind: int) -> Iterator[float]:
    """Yield the numbers of a value, of a list if it is short, and leave the file behind it."""
    if kind == _GGUF_STRING:
        file.seek(_read_number(file, "<Q"), os.SEEK_CUR)
    elif kind == _GGUF_LIST:
        kind, n = _read_number(file, "<I"), _read_number(file, "<Q")
        if kind in _GGUF_NUMBERS and n > _SHORT_LIST:
            file.seek(n * struct.calcsize(_GGUF_NUMBERS[kind]), os.SEEK_CUR)
            return
        for _ in range(n):
            yield from _gguf_values(file, kind)
    else:
        yield _read_number(file, _GGUF_NUMBERS[kind])


def _read_number(file: BinaryIO, form: str) -> Any:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def check_folder(folder: Path, *, trust_remote_code: bool = False) -> ModelFiles:
    """Return a folder as a model, once nothing in it can run code or lead elsewhere.

    Args:
        folder: of the layout that `save_pretrained` writes, or with one GGUF file.
        trust_remote_code: allow Python files of the model; the caller vouches for them.

    Raises:
        ModelError: a file is missing, broken or not allowed.
    """
    folder, entries = _entries(folder)
    names = [path.name for path in entries]
    ggufs = [name for name in names if name.endswith(".gguf")]
    has_config = (folder / "config.json").is_file()
    is_gguf = not any(name.endswith(".safetensors") or name == "config.json" for name in names)
    if ggufs and is_gguf:
        if len(ggufs) > 1:
            raise ModelError(
                f"{shown_path(folder)}: {len(ggufs)} GGUF files: {_listed(ggufs)}",
                hint="name one of the files itself",
            )
        return check_gguf(folder / ggufs[0])
    # A merged model may have the config of its adapter left.
    if ADAPTER_CONFIG in names and not (has_config and "adapter_model.safetensors" not in names):
        raise ModelError(
            f"{shown_path(folder)}: an adapter, whose base model is elsewhere",
            hint="merge the adapter into its base model and save the result in a folder of its own",
        )
    if not has_config:
        raise ModelError(
            f"{shown_path(folder)}: no config.json",
            hint="name a folder that save_pretrained has written, or a .gguf file",
        )
    if not trust_remote_code:
        _check_no_code(entries)
    files = [path for path in entries if path.is_file()]
    weights = _weight_files(folder, files, _indices(files, trust_remote_code))
    # Which of two weights with one name is loaded depends on the order in which files are read.
    holders: dict[str, Path] = {}
    named = ((path, name) for path in weights for name in _check_safetensors(path))
    for path, name in named:
        if holders.setdefault(name, path) != path:
            raise _broken(path, f"{safe_text(name)} is also in {safe_text(holders[name].name)}")
    return ModelFiles(folder, None, tuple(sorted({*weights, *_read_beside_weights(files)})))


def check_tokenizer_folder(folder: Path) -> ModelFiles:
    """Return the tokenizer in a folder, once nothing there can run code; weights are passed over.

    Raises:
        ModelError: there is no tokenizer, or a file is broken or not allowed.
    """
    folder, entries = _entries(folder)
    _check_no_code(entries)
    files = [path for path in entries if path.is_file()]
    _indices(files, trust_remote_code=False)
    read = _read_beside_weights(files)
    if not any(path.name.startswith(("tokenizer", "vocab", "spiece")) for path in read):
        raise ModelError(
            f"{shown_path(folder)}: no tokenizer", hint="name a folder that holds tokenizer.json"
        )
    return ModelFiles(folder, None, tuple(read))


def _entries(folder: Path) -> tuple[Path, list[Path]]:
    """Return where a folder really is, and what is in it, once none of that leads elsewhere."""
    if not folder.is_dir():
        raise ModelError(f"{shown_path(folder)}: no such folder", hint="check the path")
    folder = folder.resolve()
    # The cache of the hub keeps contents in blobs/ and links to them from snapshots/<commit>/.
    blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else None
    entries = sorted(folder.iterdir())
    for path in entries:
        if not path.exists():
            raise ModelError(f"{shown_path(path)}: a link to nothing", hint="get the model again")
        # To open a pipe would wait for ever.
        if not path.is_file() and not path.is_dir():
            raise ModelError(f"{shown_path(path)}: not a regular file", hint="remove it")
        target = path.resolve()
        leads_out = path.is_symlink() and not target.is_relative_to(folder)
        if leads_out and target.parent != blobs:
            raise ModelError(
                f"{shown_path(path)}: a link out of the model's folder",
                hint="copy the file that it points to into the folder",
            )
    return folder, entries


def _read_beside_weights(files: list[Path]) -> list[Path]:
    return [
        path
        for path in files
        if path.suffix in _READ_BY_TRANSFORMERS and path.name != ADAPTER_CONFIG
    ]


def _check_no_code(entries: list[Path]) -> None:
    for path in entries:
        # transformers runs custom_generate/generate.py in place of its own generate.
        if path.suffix == ".py" or path.name == "custom_generate":
            raise ModelError(f"{shown_path(path)}: the model brings its own code", hint=_TRUST_HINT)


_TRUST_HINT = (
    "choose a model that transformers knows; or, if you have read the code, name the model on the "
    "hub with --trust-remote-code and the full commit hash as its revision"
)


def _indices(files: list[Path], trust_remote_code: bool) -> dict[str, Any]:
    """Return the indices of weights by name, once no setting in any of the JSON files is refused."""
    found: dict[str, Any] = {}
    for path in files:
        if path.suffix != ".json":
            continue
        is_config, size = path.name == "config.json", path.stat().st_size
        max_size = _MAX_CONFIG_BYTES if is_config else _MAX_JSON_BYTES
        if size > max_size:
            raise _broken(path, f"expected at most {max_size} bytes, got {size}")
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise _broken(path, "not valid JSON") from error
        if is_config and not isinstance(content, dict):
            raise _broken(path, "not a JSON object")
        if path.name not in _VOCABULARIES:
            _check_keys(path, content, trust_remote_code)
        if path.name.endswith(".index.json"):
            found[path.name] = content
    return found


def _check_keys(path: Path, content: object, trust_remote_code: bool) -> None:
    """Refuse settings at any depth that make transformers fetch or run something, or build for hours."""
    pending = [content]
    while pending:
        node = pending.pop()
        items = node.items() if isinstance(node, dict) else ()
        pending += node if isinstance(node, list) else [value for _, value in items]
        for key, value in items:
            _check_n_parts(path, key, value)
            what, hint = None, "remove the key"
            if key in _FORBIDDEN_KEYS:
                what = f"the key {key} is not allowed"
            elif key.removeprefix("_") in _CODE_KEYS and "/" in str(value):
                what = f"{key} names code on the hub"
            elif key == "auto_map" and not trust_remote_code:
                what, hint = "auto_map asks for own code", _TRUST_HINT
            elif key == "auto_map" and "--" in json.dumps(value):  # as in owner/name--module.Class
                what = "auto_map names code in another repository, whose revision is not pinned"
                hint = "name the repository that holds the code"
            if what is not None:
                raise ModelError(f"{shown_path(path)}: {what}", hint=hint)


def _check_n_parts(path: Path, key: str, value: object) -> None:
    what = None
    if key == "attention_types" and isinstance(value, list):
        # GPT-Neo's [[names, times], ...]: its config class writes the names out, so many times each.
        n = 0
        for each in value:
            match each:
                case [str() | list() | dict() as names, int(times), *_]:
                    n += max(1, len(names)) * max(0, times)
        what = f"stands for more than {_MAX_PARTS:,} layers" if n > _MAX_PARTS else None
    elif _COUNTED_PARTS.search(key) and isinstance(value, int) and value > _MAX_PARTS:
        what = f"is {value:,}, more than {_MAX_PARTS:,}"
    if what is not None:
        raise ModelError(
            f"{shown_path(path)}: {safe_text(key)} {what}",
            hint="get the file that belongs to the weights",
        )


def _weight_files(folder: Path, files: list[Path], indices: dict[str, Any]) -> list[Path]:
    """Return the safetensors files, as transformers would choose them."""
    names = {path.name for path in files}
    for name, index in indices.items():
        _check_shard_names(folder / name, index, names)
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if _WEIGHTS_INDEX in indices:
        return sorted({folder / name for name in indices[_WEIGHTS_INDEX]["weight_map"].values()})
    pickles = [path.name for path in files if path.suffix in _PICKLES]
    ggufs = [path for path in files if path.suffix == ".gguf"]
    if ggufs:
        raise ModelError(
            f"{shown_path(folder)}: no {_WEIGHTS}",
            hint=f"name the file itself: {shown_path(ggufs[0])}",
        )
    if pickles:
        raise ModelError(
            f"{shown_path(folder)}: weights only as pickle ({_listed(pickles)}), which is never "
            "loaded: safetensors and GGUF are accepted",
            hint=_PICKLE_HINT,
        )
    raise ModelError(
        f"{shown_path(folder)}: neither {_WEIGHTS} nor {_WEIGHTS_INDEX}",
        hint="name a folder that save_pretrained has written",
    )


def _check_shard_names(path: Path, index: object, names: set[str]) -> None:
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise _broken(path, "no weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or "/" in name or "\\" in name or ".." in name:
            raise ModelError(
                f"{shown_path(path)}: weight_map names {safe_text(str(name))!r}, "
                "expected the name of a file in the same folder",
                hint="get the model from a source you trust",
            )
    if not path.name.endswith(".safetensors.index.json"):
        return  # of pickles, which may well be absent: nothing reads them
    shards = set(weight_map.values())
    if not all(name.endswith(".safetensors") for name in shards):
        raise ModelError(
            f"{shown_path(path)}: names other files than safetensors", hint=_PICKLE_HINT
        )
    missing = sorted(shards - names)
    if missing:
        counts = f"{len(missing)} of {len(shards)} files"
        raise _broken(path, f"{counts} are missing: {_listed(missing)}")


_PICKLE_HINT = (
    "convert it: load it with transformers where the file may be trusted, since loading a pickle "
    "runs whatever code it holds, and save it with save_pretrained, which writes safetensors"
)


def _check_safetensors(path: Path) -> list[str]:
    """Refuse a file that is cut off, or whose header does not describe it byte for byte.

    Returns:
        the names of its weights.
    """
    size = path.stat().st_size
    header_len, header = header_of(path)
    if not header:
        raise _broken(path, "holds no weights")
    spans = []
    for tensor in header.values():
        match tensor:
            # Integers of JSON have no bound; those of the format have 64 bits.
            case {"data_offsets": [int(a), int(b)]} if a.bit_length() < 64 > b.bit_length():
                spans.append((a, b))
            case _:
                raise _broken(path, "its header does not say where each weight is")
    end = 0
    for span in sorted(spans):
        if span[0] != end or span[1] < end:
            raise _broken(path, f"expected weights from byte {end}, got {span[0]} to {span[1]}")
        end = span[1]
    if 8 + header_len + end != size:
        raise _broken(path, f"cut off: expected {8 + header_len + end} bytes, got {size}")
    return list(header)


def header_of(path: Path) -> tuple[int, dict[str, Any]]:
    """Return the length of a safetensors file's header, and what it says of each weight."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_len = int.from_bytes(file.read(8), "little")
        # Eight bytes can claim any length: no more is read than the file has.
        if size < 8 or not 2 <= header_len <= min(_MAX_HEADER_BYTES, size - 8):
            raise _broken(path, f"damaged: {size} bytes, with a header of {header_len}")
        try:
            header = json.loads(file.read(header_len).decode(), object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise _broken(path, "its header is not valid JSON") from error
    if not isinstance(header, dict):
        raise _broken(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    return header_len, header


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    # Of two weights with one name each reader could take another.
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _broken(path: Path, what: str) -> ModelError:
    return ModelError(f"{shown_path(path)}: {what}", hint="get the file again")


def _listed(names: list[str]) -> str:
    shown = ", ".join(safe_text(name) for name in names[:5])
    return f"{shown}, ..." if len(names) > 5 else shown
