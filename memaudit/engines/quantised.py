"""Models whose weights are quantised: by what, and how transformers is made to read them rightly."""

import json
from pathlib import Path
from typing import Any

from memaudit.engines.model_files import header_of
from memaudit.errors import ModelError
from memaudit.text import safe_text, shown_path

UNQUANTISED_HINT = "audit the model that it was quantised from, or a copy in another format"


def quantised_by(folder: Path) -> str | None:
    """Return the name of the method by which the weights in a folder are quantised, if they are."""
    settings = _settings(folder)
    # Older files of bitsandbytes name none.
    return None if settings is None else str(settings.get("quant_method", "bitsandbytes"))


def _settings(folder: Path) -> dict[str, Any] | None:
    try:
        settings = json.loads((folder / "config.json").read_bytes())["quantization_config"]
    except (OSError, ValueError, LookupError, TypeError):
        return None  # it has none, or transformers will say what is wrong
    return settings if isinstance(settings, dict) else None


def unpacking(source: str, folder: Path, method: str | None) -> dict[str, Any]:
    """Return what makes transformers unpack weights that it would else compute with as they are.

    Few machines have kernels for these formats; unpacked, a weight has the value that it stands for.

    Raises:
        ModelError: transformers would take the weights for what they are not.
    """
    from transformers.quantizers import auto as formats

    auto: Any = formats
    # transformers tells bitsandbytes of 4 and of 8 bits apart, where a config says it alone.
    known = {name.removesuffix("_4bit") for name in auto.AUTO_QUANTIZATION_CONFIG_MAPPING}
    refusal = None
    # transformers would only warn, and compute with the stored numbers.
    if method is not None and method not in known:
        refusal = f"quantised by {safe_text(method, 40)}, which transformers does not know"
    elif method == "fp8" and (name := _misfit(folder)):
        refusal = f"in blocks that do not fit {safe_text(name)}: it would be unpacked wrongly"
    if refusal is not None:
        raise ModelError(
            f"the weights of {shown_path(source)} are {refusal}", hint=UNQUANTISED_HINT
        )
    ways: dict[str | None, Any] = {
        "compressed-tensors": lambda: auto.CompressedTensorsConfig(run_compressed=False),
        "fp8": lambda: auto.FineGrainedFP8Config(dequantize=True),
        "mxfp4": lambda: auto.Mxfp4Config(dequantize=True),
    }
    return {"quantization_config": ways[method]()} if method in ways else {}


def _misfit(folder: Path) -> str | None:
    """Return the name of an FP8 weight whose last block is cut off, if there is one.

    transformers takes all blocks to be of one size then, and most values get a wrong scale.
    """
    headers = (header_of(path)[1] for path in sorted(folder.glob("*.safetensors")))
    # As transformers takes them where the config says nothing.
    blocks = (_settings(folder) or {}).get("weight_block_size") or (128, 128)
    try:
        shapes = {name: each["shape"] for header in headers for name, each in header.items()}
        for name, grid in shapes.items():
            weight = name.removesuffix("_scale_inv")
            sizes = zip(shapes.get(weight, ())[-2:], grid[-2:], blocks, strict=False)
            for n, n_blocks, block in sizes if weight != name else ():
                # Experts may be scaled in other blocks than the rest.
                if 1 < n_blocks == -(-n // block) and n % block:
                    return weight
    except (TypeError, LookupError, ArithmeticError):  # sizes that are no positive numbers
        return "weight_block_size"
    return None
