"""Recipes: how other trainers distil, by their name or read from their own configuration file.

`PRESETS` holds what each trainer does where its file says nothing, `FIELDS` what each field of its
file means. Both are data: a trainer that changes a default changes one line here.
"""

import json
import math
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from memaudit.errors import UsageError
from memaudit.files import read_small
from memaudit.objectives import Divergence, Objective
from memaudit.text import number_of, safe_text, shown_path

Settings = dict[str, Any]
"""What a preset or a field sets: `kind` (as in `Objective`), `temperature`, `ce` and `kd` (weights
of cross-entropy and of the distillation loss), `squared` (whether the trainer multiplies the latter
by T²), `divergence`, `beta`, `top_k`, `tail`, `on_policy` (share of the training on text that the
student writes, 0 to 1), `answers_only`, `epochs`, `learning_rate`, and `note` (a sentence)."""

_SFT: Settings = {"kind": "cross-entropy", "epochs": 3.0}
_KL: Settings = {"kind": "soft", "temperature": 1.0}
_REVERSE: Settings = {"divergence": "reverse-kl"}
_GKD: Settings = _KL | {"temperature": 0.9, "beta": 0.5, "on_policy": 0.5}
_TOP_K_OF_DATA = "the captured data decide how many top tokens there are; none are left out here"
_OWN_TEXT = "the corpus must be the text that the teacher wrote: that is what is trained on"
_HF = {"num_train_epochs": "epochs", "learning_rate": "learning_rate"}


@dataclass(frozen=True, slots=True)
class Preset:
    """What a trainer does by default."""

    trainer: str
    """The name of the trainer, as its file is recognised."""

    settings: Settings
    source: str
    """Where the trainer documents it."""


_AXOLOTL = "https://docs.axolotl.ai/docs/custom_integrations.html#knowledge-distillation-kd"
_TRL = "https://huggingface.co/docs/trl/"
_TINKER = "https://tinker-docs.thinkingmachines.ai/cookbook/api-reference/distillation/"
_EASY = "https://github.com/modelscope/easydistill"

PRESETS: dict[str, Preset] = {
    "axolotl": Preset("axolotl", _KL | {"answers_only": True, "note": _TOP_K_OF_DATA}, _AXOLOTL),
    "distillkit": Preset(
        "DistillKit",
        _KL | {"ce": 0.5, "kd": 0.5, "top_k": 128, "epochs": 1.0},
        "https://github.com/arcee-ai/DistillKit",
    ),
    "llama-factory": Preset(
        "LLaMA-Factory",
        _SFT | {"answers_only": True, "note": _OWN_TEXT},
        "https://llamafactory.readthedocs.io/en/latest/getting_started/sft.html",
    ),
    "trl": Preset(
        "TRL DistillationTrainer",
        _KL | _REVERSE | {"on_policy": 1.0, "epochs": 3.0},
        f"{_TRL}distillation_trainer",
    ),
    "trl-gkd": Preset("TRL GKDTrainer", _GKD | {"epochs": 3.0}, f"{_TRL}gkd_trainer"),
    "trl-gold": Preset("TRL GOLDTrainer", _GKD | {"epochs": 3.0}, f"{_TRL}gold_trainer"),
    "trl-sft": Preset("TRL SFTTrainer", _SFT | {"answers_only": True}, f"{_TRL}sft_trainer"),
    "ms-swift": Preset(
        "ms-swift",
        _GKD | {"answers_only": True},
        "https://swift.readthedocs.io/en/latest/Instruction/GKD.html",
    ),
    "nemo": Preset(
        "NeMo AutoModel",
        _KL | {"kd_ratio": 0.5, "squared": True, "answers_only": True},
        "https://docs.nvidia.com/nemo/automodel/latest/guides/llm/knowledge-distillation.html",
    ),
    "modelopt": Preset(
        "ModelOpt",
        _KL | {"squared": True},
        "https://github.com/NVIDIA/Model-Optimizer/tree/main/examples/llm_distill",
    ),
    "tinker": Preset("tinker", _KL | {"top_k": 20, "answers_only": True}, _TINKER),
    "tinker-on-policy": Preset("tinker", _KL | _REVERSE | {"on_policy": 1.0}, _TINKER),
    "easydistill": Preset(
        "EasyDistill", {"kind": "sampled", "epochs": 3.0, "answers_only": True}, _EASY
    ),
}
"""By the name that `--recipe` takes."""

_GKD_FIELDS: dict[str, Any] = {
    **_HF,
    **{"beta": "beta", "lmbda": "on_policy", "temperature": "temperature"},
    "seq_kd": {False: {}, True: {"note": _OWN_TEXT}},
    "teacher_model": "",
}

FIELDS: dict[str, dict[str, Any]] = {
    "axolotl": {
        **{"num_epochs": "epochs", "learning_rate": "learning_rate"},
        **{"kd_ce_alpha": "ce", "kd_alpha": "kd", "kd_temperature": "temperature"},
        **{"kd_beta": "beta", "kd_online_topk": "top_k"},
        "kd_trainer": {True: {}, False: _SFT | {"answers_only": True}},
        "train_on_inputs": {True: {"answers_only": False}, False: {"answers_only": True}},
        "kd_normalize_topk": {True: {}, False: {"tail": True}},
        "rl": {None: {}},
        **dict.fromkeys(("kd_online_server", "kd_online_server_base_url", "kd_online_timeout"), ""),
        **dict.fromkeys(("datasets[].logprobs_field", "datasets[].temperature"), ""),
    },
    "distillkit": {
        **{f"training_args.{name}": meaning for name, meaning in _HF.items()},
        **{"teacher.top_k": "top_k", "teacher.logprob_compressor.k": "top_k"},
        "teacher.kind": {
            "dataset": {},
            "vllm": {},
            "hf": {"top_k": None, "note": "the teacher runs in the training: all tokens count"},
        },
        **dict.fromkeys(
            ("teacher.path", "teacher.model", "teacher.base_url", "teacher.kwargs"), ""
        ),
        "loss_functions[].function": {
            "cross_entropy": {"weight": "ce"},
            "kl": {"weight": "kd"},
            "jsd": {"weight": "kd", "beta": 0.5},
        },
        "loss_functions[].temperature": "temperature",
        "loss_functions[].weight": "",
        "loss_functions[].missing_probability_handling": {
            "zero": {"note": "zero handling of missing probabilities is taken as renormalisation"},
            "symmetric_uniform": {"tail": True},
        },
        "loss_functions[].sparse_chunk_length": "",
    },
    "llama-factory": {
        **_HF,
        "stage": {"sft": {}, "pt": {"answers_only": False}},
        "train_on_prompt": {True: {"answers_only": False}, False: {}},
        **{f"use_{name}_loss": {False: {}} for name in ("dft", "asft", "eaft")},
    },
    "trl": {**_GKD_FIELDS, "teacher_model_name_or_path": "", "top_k": ""},
    "trl-gkd": {**_GKD_FIELDS, "teacher_model_name_or_path": ""},
    "trl-gold": {
        **_GKD_FIELDS,
        **{"teacher_model_name_or_path": "", "top_k": ""},
        "use_uld_loss": {False: {}},
    },
    "trl-sft": {
        **_HF,
        "loss_type": {"nll": {}, "chunked_nll": {}},
        "completion_only_loss": {False: {"answers_only": False}, True: {}, None: {}},
        "assistant_only_loss": {True: {"answers_only": True}, False: {}},
    },
    "ms-swift": {
        **_GKD_FIELDS,
        "rlhf_type": {"gkd": {}},
        "gkd_logits_topk": "top_k",
        "sft_alpha": "ce",
        **dict.fromkeys(("teacher_model_server", "teacher_deepspeed", "teacher_model_type"), ""),
    },
    "nemo": {
        "kd_ratio": "kd_ratio",
        **{f"kd_loss_fn.{name}": "temperature" for name in ("temperature", "T")},
        "temperature": "temperature",
        "kd_loss_fn._target_": {"nemo_automodel.components.loss.kd_loss.KDLoss": {}},
        "kd_loss_fn.ignore_index": "",
        "loss_fn": "",
        "teacher_model": "",
        **{"step_scheduler.num_epochs": "epochs", "optimizer.lr": "learning_rate"},
    },
    "modelopt": {
        "logit_kl_temperature": "temperature",
        **dict.fromkeys(("logit_kl_topk", "logit_kl_top_k"), "top_k"),
        "skip_lm_loss": {True: {}, False: {"ce": 1.0, "kd": 1.0}},
        "kd_loss_scale": "kd_scale",
        "logit_layers": "",
        "intermediate_layer_pairs": {None: {}, "[]": {}},
    },
    "tinker": {"learning_rate": "learning_rate", "n_teacher_targets": "top_k"},
    "easydistill": {
        **{f"training.{name}": meaning for name, meaning in _HF.items()},
        "job_type": {
            "kd_black_box_local": {},
            "kd_black_box_api": {},
            "kd_black_box_train_only": {"kind": "cross-entropy", "note": _OWN_TEXT},
            **dict.fromkeys(
                ("kd_white_box", "kd_white_box_local", "kd_white_box_train_only"),
                _KL | {"kd_ratio": 0.5, "top_k": 10, "note": _OWN_TEXT},
            ),
        },
        "distillation.kd_ratio": "kd_ratio",
        "distillation.distillation_type": {"forward_kld": {}, "reverse_kld": _REVERSE},
        "distillation.max_seq_length": "",
        "inference.top_logits_num": "top_k",
        **dict.fromkeys(("inference.temperature", "models.teacher", "dataset.logits_path"), ""),
    },
}
"""What a field means, by preset: the setting that its value is, "" where it does not change what is
learned, or what each value sets. A value that is not there is not understood."""

_SIGNS: tuple[tuple[str, str], ...] = (
    ("distillkit", "loss_functions"),
    ("easydistill", "job_type"),
    ("nemo", "kd_ratio"),
    ("nemo", "kd_loss_fn"),
    ("modelopt", "logit_kl_temperature"),
    ("modelopt", "logit_layers"),
    ("modelopt", "skip_lm_loss"),
    ("ms-swift", "rlhf_type"),
    ("axolotl", "kd_trainer"),
    ("axolotl", "base_model"),
    ("llama-factory", "stage"),
    # From here on ever wider: GOLD has lmbda as well, GKD a teacher, and all of them a model.
    ("trl-gold", "use_uld_loss"),
    ("trl-gkd", "lmbda"),
    ("trl", "teacher_model_name_or_path"),
    ("tinker", "n_teacher_targets"),
    ("trl-sft", "model_name_or_path"),
)
"""The first field that a file has tells whose it is."""

# By words: the next release of a trainer may bring a field of the loss that no table here has.
_SUSPECT = re.compile(
    r"(^|_)(loss|kl|kd|kld|jsd|ce|distil\w*|teacher\w*|logits?|logprobs?|alpha|beta|gamma|lambda"
    r"|lmbda|temperature|top_?k|topk|objective|reward|mask\w*|label_smoothing\w*|neftune\w*|rl|rlhf)"
    r"(_|$|s$)"
)
# `lora_alpha` and others have such a word and leave the loss alone.
_HARMLESS = re.compile(
    r"lora_|adam_|_lora|^peft|^optim|scheduler|vllm_|^generation|logging|_dtype$"
)
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a student is trained, as far as it decides what it can memorize."""

    trainer: str

    objective: Objective

    divergence: Divergence

    on_policy: float = 0.0
    """Share of the training on text that the student writes itself, in [0, 1]."""

    answers_only: bool = False
    """Whether prompts are no targets."""

    epochs: float | None = None
    """Passes over the corpus. None: not known."""

    learning_rate: float | None = None
    """None: not known."""

    notes: tuple[str, ...] = ()
    """What was taken for granted, in sentences."""

    not_understood: tuple[str, ...] = ()
    """Fields of the file that may change what is learned, by name: nothing here reflects them."""

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {value:g}")
        if not 0 <= self.on_policy <= 1:
            raise ValueError(f"on_policy must be in [0, 1], got {self.on_policy:g}")

    @property
    def in_words(self) -> str:
        """One line, such as "axolotl: forward KL on the top 64, T = 1, answers only, 3 epochs"."""
        loss, share = self.divergence, self.objective.cross_entropy_share
        parts = {
            "hard": ["text that the teacher writes"],
            "sampled": ["text that the teacher samples"],
            "cross-entropy": ["plain fine-tuning"],
        }
        soft = {"forward-kl": "forward KL", "reverse-kl": "reverse KL"}.get(
            loss.kind, f"JSD with beta {loss.beta:g}"
        )
        if loss.top_k is not None:
            soft += f" on the top {loss.top_k}" + (" and the rest as one" if loss.tail else "")
        told = parts.get(self.objective.kind, [soft, f"T = {self.objective.temperature:g}"])
        told += [f"{share:.0%} cross-entropy"] if share and self.objective.kind == "soft" else []
        told += [f"{self.on_policy:.0%} on text of the student"] if self.on_policy else []
        told += ["answers only"] if self.answers_only else []
        if self.epochs is not None:
            told.append(number_of(self.epochs, "epoch"))
        told += [] if self.learning_rate is None else [f"learning rate {self.learning_rate:g}"]
        return f"{self.trainer}: {', '.join(told)}"

    @property
    def beyond_prediction(self) -> tuple[str, ...]:
        """What no shipped classifier was fitted on, in words."""
        found = []
        if self.objective.kind == "soft" and self.divergence.settings:
            found.append(
                "this divergence; the numbers are those of forward KL over all tokens, in the study "
                "2 to 5 times too high"
            )
        if self.on_policy:
            found.append(
                "training on text of the student, where no text of the corpus is a target; the "
                "numbers are those of training on the corpus itself"
            )
        return tuple(found)


def read_recipe(name_or_file: str) -> Recipe:
    """Return the recipe of a trainer: its preset by name, or what its file says.

    Raises:
        UsageError: there is neither such a preset nor such a file, or the file is not understood.
    """
    if name_or_file in PRESETS:
        return _recipe(PRESETS[name_or_file].trainer, dict(PRESETS[name_or_file].settings), [], [])
    shown = shown_path(name_or_file)
    fields = _read_file(Path(name_or_file), shown)
    name = next((name for name, sign in _SIGNS if sign in fields), None)
    if name is None and isinstance(fields.get("model"), dict) and "kd_config" in fields["model"]:
        name, fields = "modelopt", fields["model"]["kd_config"]
    if name is None:
        raise UsageError(
            f"{shown}: no field tells which trainer this file is for",
            hint=f"give --objective and --temperature, or a recipe's name: {', '.join(PRESETS)}",
        )
    settings = dict(PRESETS[name].settings)
    if name == "axolotl" and not fields.get("kd_trainer"):  # plain fine-tuning
        settings = _SFT | {"answers_only": True}
    elif name == "distillkit":  # what its losses do not name, it has not
        settings = {"kind": "cross-entropy", "temperature": 1.0, "ce": 0.0, "kd": 0.0}
    notes: list[str] = []
    unknown: list[str] = []
    for key, value in _flat(fields, FIELDS[name]):
        _apply(FIELDS[name], key, value, settings, notes, unknown)
    try:
        return _recipe(PRESETS[name].trainer, settings, notes, unknown)
    except (TypeError, ValueError, ArithmeticError) as error:
        said = "a number is out of range" if isinstance(error, ArithmeticError) else str(error)
        raise UsageError(
            f"{shown}: {safe_text(said)}", hint="correct the value in the file"
        ) from error


def _read_file(path: Path, shown: str) -> dict[str, Any]:
    try:
        content = read_small(path, _MAX_BYTES)
    except OSError as error:
        raise UsageError(
            f"{shown}: no recipe and no file of this name ({error.strerror})",
            hint=f"recipes: {', '.join(PRESETS)}",
        ) from error
    try:
        is_json = path.suffix == ".json"
        # The safe loader: YAML can name Python objects to be made, and the file may come
        # from anywhere.
        found = json.loads(content) if is_json else yaml.safe_load(content)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(
            f"{shown}: not a YAML or JSON file: {type(error).__name__}",
            hint="give the configuration file of the trainer",
        ) from error
    if not isinstance(found, dict):
        raise UsageError(f"{shown}: expected fields with values, got {type(found).__name__}")
    return {str(key): value for key, value in found.items()}


def _flat(value: object, known: Mapping[str, Any], key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield fields by their dotted names; the fields of a list's items have names with `[]`.

    An item's weight goes with its function, for which it is kept: `(function, weight)`.
    """
    if isinstance(value, dict) and (not key or key not in known):
        for name, inner in value.items():
            is_function = key.endswith("[]") and name == "function"
            found = (inner, value.get("weight")) if is_function else inner
            yield from _flat(found, known, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for item in value:
            yield from _flat(item, known, f"{key}[]")
    else:
        yield key, value


def _apply(
    known: Mapping[str, Any],
    key: str,
    value: Any,
    settings: dict[str, Any],
    notes: list[str],
    unknown: list[str],
) -> None:
    """Let a field change the settings, or count it among those that are not understood."""
    value, weight = value if isinstance(value, tuple) else (value, None)
    meaning = known.get(key)
    if meaning is None:
        last = key.rsplit(".", 1)[-1].lower()
        # What is switched off changes nothing; 0 is equal to False.
        is_on = value not in (None, False, [], {})
        if is_on and _SUSPECT.search(last) and not _HARMLESS.search(key):
            unknown.append(key)
    elif isinstance(meaning, str):
        if meaning and value is not None:
            settings[meaning] = _number(key, value)
    else:
        # A list or a mapping is no key: `[]` is meant by its words.
        chosen = meaning.get(value if isinstance(value, Hashable) else str(value))
        if chosen is None:
            unknown.append(f"{key}: {safe_text(str(value), 80)}")
            return
        if "weight" in chosen:
            settings[chosen["weight"]] += 1.0 if weight is None else _number(key, weight)
            chosen = {name: found for name, found in chosen.items() if name != "weight"}
        settings |= {name: found for name, found in chosen.items() if name != "note"}
        notes += [chosen["note"]] if "note" in chosen else []


def _number(key: str, value: Any) -> float:
    # YAML takes 2e-6 for text: it wants a point and a sign.
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"expected a number for {safe_text(key)}, got {type(value).__name__}"
        ) from error


def _recipe(trainer: str, settings: dict[str, Any], notes: list[str], unknown: list[str]) -> Recipe:
    temperature = settings.get("temperature", 1.0)
    Objective(temperature=temperature)  # refuses 0 by its name, before it is divided by
    ce, kd = settings.get("ce", 0.0), settings.get("kd", 1.0) * settings.get("kd_scale", 1.0)
    if (ratio := settings.get("kd_ratio")) is not None:
        ce, kd = 1 - ratio, ratio
    # In memaudit's loss the other part is multiplied by T².
    kd = kd if settings.get("squared") else kd / temperature**2
    kind, share = settings["kind"], float(ce / (ce + kd)) if ce + kd else 0.0
    if settings.get("kd"):
        kind = "soft"
    if kind == "soft" and share == 1:
        kind, share = "cross-entropy", 0.0
    beta, top_k = settings.get("beta"), settings.get("top_k")
    divergence = settings.get("divergence", "forward-kl")
    if beta is not None:
        # At its ends the formula of the JSD is 0 for every student: TRL computes the two KLs there.
        divergence = {0.0: "forward-kl", 1.0: "reverse-kl"}.get(beta, "jsd")
    if top_k and divergence != "forward-kl":
        notes = [*notes, f"the restriction to the top {top_k:g} tokens is left out"]
    only_top = int(top_k) if top_k and divergence == "forward-kl" else None
    return Recipe(
        trainer,
        Objective(kind, temperature if kind == "soft" else 1.0, share if kind == "soft" else 0.0),
        Divergence(
            divergence,
            beta=beta if divergence == "jsd" and beta is not None else 0.5,
            top_k=only_top,
            tail=bool(settings.get("tail")) and only_top is not None,
        ),
        on_policy=settings.get("on_policy", 0.0) if kind == "soft" else 0.0,
        answers_only=settings.get("answers_only", False),
        epochs=settings.get("epochs"),
        learning_rate=settings.get("learning_rate"),
        notes=(*notes, *([settings["note"]] if "note" in settings else [])),
        not_understood=tuple(unknown),
    )
