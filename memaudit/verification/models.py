"""The models of a verification: loaded, checked before any training, and trained stage by stage."""

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from memaudit.distillation import TrainingOptions
from memaudit.engines import Engine
from memaudit.engines.aligned import aligned_reference
from memaudit.engines.hf import HfEngine
from memaudit.engines.locating import quiet_transformers
from memaudit.engines.models import LoadedModel, check_same_vocabulary, load_model
from memaudit.engines.tokenizer import difference
from memaudit.errors import ModelError, OutputError, UsageError
from memaudit.runs.files import output_errors, sync
from memaudit.text import shown_path
from memaudit.verification.examples import VerificationOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A kill costs a twentieth of a training. Each checkpoint is three times as large as the model.
_CHECKPOINTS_A_TRAINING = 20


@dataclass(frozen=True, slots=True)
class VerificationModels:
    """Models that share a vocabulary, but for students and baselines that were trained elsewhere."""

    teacher: LoadedModel
    student: LoadedModel
    baseline: LoadedModel | None
    """Trained on the corpus without a teacher; None: it is made from the student."""

    @property
    def given(self) -> dict[str, LoadedModel]:
        """By role."""
        pairs = {"teacher": self.teacher, "student": self.student, "baseline": self.baseline}
        return {role: model for role, model in pairs.items() if model is not None}

    @property
    def bos(self) -> NDArray[np.int32]:
        """(0,) or (1,) what stands in front of every window."""
        bos = self.teacher.tokenizer.bos_token_id
        return np.array([] if bos is None else [bos], dtype=np.int32)

    @property
    def aligned(self) -> list[str]:
        """Roles of the models that cut texts differently from the teacher."""
        told = self.teacher.tokenizer
        return [role for role, each in self.given.items() if difference(told, each.tokenizer)]

    def engine(self, model: "PreTrainedModel") -> Engine:
        """Return what scores the teacher's windows on a model: one of these, or trained from one."""
        for role in self.aligned:
            if self.given[role].model is model:
                return aligned_reference(self.given[role], self.teacher.tokenizer)
        return HfEngine(model, bos_token_id=self.teacher.tokenizer.bos_token_id)

    def with_bos(self, windows: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return (n, T) or (n, T + 1) windows as the models read them."""
        bos_nB = np.tile(self.bos, (len(windows), 1))
        return np.concatenate([bos_nB, windows], axis=1, dtype=np.int32)


def load_models(
    teacher: str | PathLike[str],
    student: str | PathLike[str],
    baseline: str | PathLike[str] | None,
    options: VerificationOptions,
) -> VerificationModels:
    """Load the models in float32.

    Raises:
        ModelError: one cannot be loaded, or two do not share a vocabulary.
    """
    if options.model.device == "split":
        raise UsageError(
            "a model that is split over devices cannot be trained, nor teach one that is",
            hint="distil elsewhere, and give the student with --distilled",
        )
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    loaded = VerificationModels(
        load_model(teacher, options.model),
        load_model(student, options.model),
        None if baseline is None else load_model(baseline, options.model),
    )
    for model in (loaded.student, loaded.baseline):
        if model is not None:
            check_same_vocabulary(loaded.teacher, model)
    make_trainable(loaded.student)
    return loaded


def make_trainable(loaded: LoadedModel) -> None:
    """Make an ordinary model of one that was read from a GGUF file.

    Its weights are unpacked already, but transformers goes on to call it quantized, and would
    neither train nor save it.

    Raises:
        ModelError: its weights really are quantized.
    """
    model: Any = loaded.model
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return
    if not all(weight.is_floating_point() for weight in model.state_dict().values()):
        raise ModelError(
            f"{shown_path(loaded.source)}: quantized weights cannot be trained",
            hint="give the student in float32 or bfloat16",
        )
    quantizer.remove_quantization_config(model)


def check_readable(models: VerificationModels, window: NDArray[np.int32]) -> None:
    """Score a window with every model: what cannot be scored is better known before training.

    Raises:
        ModelError: a window is too long for a model, or its head is not understood.
    """
    for loaded in models.given.values():
        models.engine(loaded.model).score([window])


def trained_model(
    folder: Path,
    initial: "PreTrainedModel",
    train: "Callable[[PreTrainedModel, TrainingOptions, Path], None]",
    options: TrainingOptions,
    *,
    n_examples: int,
) -> "PreTrainedModel":
    """Return a copy of a model after its training, which goes on or is skipped if it can be.

    Args:
        folder: of the finished stage.
        initial: stays as it is.
        train: called with the copy, the options for it and a work folder.
        options: checkpoints are added here.
        n_examples: rows of the training set.
    """
    if not folder.exists():
        checkpoints = folder.with_name(f"{folder.name}-checkpoints")
        # Baseline and student both start at these weights.
        model: Any = copy.deepcopy(initial)
        save_every = -(-options.n_steps(n_examples) // _CHECKPOINTS_A_TRAINING)
        with model_write_errors(folder), quiet_transformers():
            train(model, replace(options, save_every=save_every), checkpoints)
            commit_folder(folder, model.save_pretrained)
            shutil.rmtree(checkpoints)
    model_class: Any = type(initial)
    with quiet_transformers():
        # Read back even if it was trained just now: one that goes on later has the same
        # weights to the bit.
        loaded = model_class.from_pretrained(folder, dtype=torch.float32)
    trained: PreTrainedModel = loaded.to(initial.device).eval()
    return trained


def commit_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Make a private folder that takes its name when all in it is on the disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    with output_errors(path):
        # One that a kill has left is gone: `begin` removes those.
        temporary.mkdir(mode=0o700)
        write(temporary)
        # Contents before the name: a power cut could else leave a named folder of empty files.
        for file in [*temporary.rglob("*"), temporary]:
            file.chmod(0o700 if file.is_dir() else 0o600)
            sync(file)
        temporary.replace(path)
        sync(path.parent)


@contextmanager
def model_write_errors(folder: Path) -> Iterator[None]:
    """Tell what a full disk makes torch and safetensors raise as an `OutputError`."""
    try:
        with output_errors(folder):
            yield
    except (RuntimeError, SafetensorError) as error:
        # The part of torch that writes files names itself in its errors, and has no class for them.
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        raise OutputError(
            f"{shown_path(folder)}: weights or a checkpoint cannot be written",
            hint="make room on the disk, and give the same command again to go on",
        ) from error


def save_tokenizer(loaded: LoadedModel, folder: Path) -> None:
    """Write the files of a model's tokenizer, so that the folder can be loaded by itself."""
    loaded.tokenizer._tokenizer.save_pretrained(folder)
    # The library writes them with the rights that the user's umask leaves.
    for file in folder.iterdir():
        file.chmod(0o600)
