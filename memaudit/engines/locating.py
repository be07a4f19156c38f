"""Where a model is: a folder, a file, an adapter, or files of the hub."""

import io
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memaudit.engines import is_elsewhere
from memaudit.engines.adapters import Adapter, find_adapter
from memaudit.engines.model_files import ModelFiles, check_folder, check_gguf
from memaudit.errors import ModelError
from memaudit.text import safe_text, shown_path

if TYPE_CHECKING:
    from memaudit.engines.models import ModelOptions

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
    if Path(source).exists() or not _COMMIT.fullmatch(options.revision or ""):
        raise ModelError(
            f"{shown_path(source)}: a model's own code is only run from the hub, at a full commit "
            f"hash, got revision {safe_text(str(options.revision))}",
            hint="give the 40 digits of the commit whose code you have read",
        )


def is_hub_id(source: str) -> bool:
    """Return whether a source is neither here nor a file's name: a typo must not be a request."""
    path = Path(source)
    is_name = _HUB_ID.fullmatch(source) and path.suffix not in (".gguf", ".safetensors")
    return bool(is_name) and not path.exists()


def settle_hub(options: "ModelOptions") -> None:
    """Tell the hub's library what it may do, before it is asked for anything."""
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
        raise ModelError(
            f"{shown_path(source)}: no such file or folder",
            hint=PATH_HINT,
        )
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
                ignore_patterns=["*/*", "consolidated*"],
                local_files_only=options.offline,
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
    from transformers.utils import logging as library_logging

    switches: Any = library_logging
    verbosity = switches.get_verbosity()
    had_bars = switches.is_progress_bar_enabled()
    try:
        # The bar of the GGUF reader knows no switch.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            switches.set_verbosity(logging.CRITICAL)
            switches.disable_progress_bar()
            yield
    finally:
        switches.set_verbosity(verbosity)
        if had_bars:
            switches.enable_progress_bar()
