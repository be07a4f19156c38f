"""The doctor: what memaudit finds on this machine, and whether it computes what it should.

Engines are held to a tiny model whose weights follow from a formula and whose scores are known, so
that a library or a device that computes something else is found before a corpus is scored.
"""

import os
import platform
import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from memaudit.classifier import check_zlib, find_classifier
from memaudit.engines import API_KEY, DEFAULT_VLLM_OPTIONS, engine_to_try
from memaudit.errors import MemauditError, is_installed
from memaudit.features import zlib_record

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 1e-5
"""In nats, for a token of the tiny model in float32."""

_WINDOW = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3], dtype=np.int32)
_KNOWN = {
    "log-probabilities": (
        -2.9742510, -2.9189613, -2.8179329, -3.2958335, -2.6927918,
        -3.8828857, -3.1410048, -4.3954004, -2.7229262, -3.8392446,
        -4.2126649, -2.6632589, -3.7102268, -5.6498564, -3.0741550,
    ),
    "entropies": (
        3.2586145, 3.1546086, 3.1507090, 3.1572560, 3.1521583,
        3.3809762, 3.3013211, 3.0801864, 3.1316518, 3.4186305,
        3.1506279, 3.1237833, 3.4014554, 3.1180270, 3.4144054,
    ),
    "divergences": (
        0.2800838, 0.1599156, 0.1646986, 0.1576427, 0.1140774,
        0.2402857, 1.6423546, 0.7581941, 0.1032804, 0.2276360,
        0.1126036, 0.1097284, 0.1874993, 0.2019430, 0.2155371,
    ),
}  # fmt: skip
"""Computed in float64 by the definitions, for the tokens of the window after its first."""

_PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "scikit-learn"),
    *("datasets", "huggingface-hub", "msgspec", "click", "vllm", "ray", "cryptography"),
)
_ALSO_HEEDED = (
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT"),
    *("HF_TOKEN", "TRANSFORMERS_OFFLINE", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "TMPDIR", "XDG_CACHE_HOME"),
    *("PYTHONPATH", "LD_PRELOAD", "GITHUB_WORKSPACE", "GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT", "CI_PROJECT_DIR"),
    *("HTTP_PROXY", "HTTPS_PROXY", "REQUESTS_CA_BUNDLE"),
)  # fmt: skip
"""Variables of others that change what a command does."""


@dataclass(frozen=True, slots=True)
class Check:
    """Something that was tried."""

    name: str
    status: Literal["good", "bad", "skipped"]
    said: str


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found on a machine. No value of a variable is in it."""

    facts: dict[str, str]
    checks: tuple[Check, ...]
    variables: tuple[str, ...]
    """Names of those that are set and listened to."""

    ignored: tuple[str, ...]
    """Names that look like ours, are set, and are listened to by nothing."""

    @property
    def is_well(self) -> bool:
        """Whether nothing is bad."""
        return all(check.status != "bad" for check in self.checks)

    def document(self) -> dict[str, Any]:
        """Return it as one JSON document."""
        return {"schema_version": 1, **asdict(self), "well": self.is_well}


def examine(listened: Collection[str]) -> Examination:
    """Look at this machine; `listened` are the variables that commands take options from."""
    listened = {*listened, API_KEY}
    ours = sorted(name for name in os.environ if name.startswith(("MEMAUDIT_", "_MEMAUDIT_")))
    heeded = [name for name in (*ours, *_ALSO_HEEDED) if name in (*listened, *_ALSO_HEEDED)]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    engine = (
        "auto is vllm for models that it can run exactly, else hf; with --workers or Ray it is hf"
    )
    if engine_to_try("auto", DEFAULT_VLLM_OPTIONS, elsewhere=False) == "hf":
        engine = "auto is hf: vLLM is not installed"
    gpus, device = list[str](), "none: torch is not installed, so no command can score"
    if is_installed("torch"):
        import torch

        n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        gpus = [torch.cuda.get_device_name(i) for i in range(n_gpus)]
        device = f"auto is cuda: {', '.join(gpus)}" if gpus else "auto is cpu: torch finds no GPU"
    places = (str(Path.cwd()), tempfile.gettempdir())  # results and temporary files
    free = {place: shutil.disk_usage(place).free / 1e9 for place in places}
    rooms = ", ".join(f"{gigabytes:.1f} GB free in {place}" for place, gigabytes in free.items())
    disk = Check("disk", "good" if min(free.values()) >= 1 else "bad", rooms)
    zlib = Check("zlib", "good", f"{zlib_record().version} compresses as the classifiers expect it")
    try:
        check_zlib(find_classifier(None, "teacher"))
    except MemauditError as error:
        zlib = Check("zlib", "bad", error.message)
    return Examination(
        facts={
            "memaudit": _version("memaudit-distill"),
            "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
            "packages": ", ".join(f"{name} {_version(name)}" for name in _PACKAGES),
            "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
            "memory": f"{memory / 1e9:.1f} GB",
            "device": device,
            "engine": engine,
        },
        checks=(*_engine_checks(has_gpu=bool(gpus)), zlib, disk),
        variables=tuple(name for name in heeded if name in os.environ),
        ignored=tuple(name for name in ours if name not in listened),
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "is not installed"


def _engine_checks(*, has_gpu: bool) -> Iterator[Check]:
    """Let each engine that needs no files score the tiny model, on each kind of device."""
    if not is_installed("torch") or not is_installed("transformers"):
        yield Check("hf engine", "skipped", "torch or transformers is not installed")
        return
    for device in ("cpu", "cuda") if has_gpu else ("cpu",):
        name = f"hf engine on {device}"
        try:
            from memaudit.engines.hf import HfEngine

            models = [tiny_model(seed).to(device) for seed in (0, 1)]  # type: ignore[arg-type]
            (scores,) = HfEngine(*models).score([_WINDOW])
        except (MemauditError, RuntimeError, ImportError) as error:
            yield Check(name, "bad", f"the tiny model cannot be scored: {error}")
            continue
        assert scores.teacher.entropy is not None
        assert scores.kl_divergence is not None
        found = (scores.teacher.logprobs, scores.teacher.entropy, scores.kl_divergence)
        largest = max(
            float(np.abs(one - np.array(known)).max())
            for one, known in zip(found, _KNOWN.values(), strict=True)
        )
        is_good = largest <= TOLERANCE  # also not where it is no number
        said = f"the scores of a tiny model differ by {largest:.0e} from those known"
        allowed = f"at most {TOLERANCE:.0e} allowed"
        yield Check(name, "good" if is_good else "bad", f"{said}, {allowed}")


def tiny_model(seed: int) -> "PreTrainedModel":
    """Return a model whose weights follow from a formula: no file, no random numbers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
        pad_token_id=None, bos_token_id=0, eos_token_id=0, rms_norm_eps=1e-6,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    # By name: another version of the library may list them in another order.
    for place, (_, weights) in enumerate(sorted(model.named_parameters())):
        steps = np.arange(weights.numel(), dtype=np.float64)
        values = np.sin(1.7 * steps + 31 * place + 7 * seed).reshape(weights.shape)
        centre, scale = (1.0, 0.1) if weights.ndim == 1 else (0.0, 1.0)
        weights.copy_(torch.from_numpy(centre + scale * values))
    return cast("PreTrainedModel", model)
