"""A teacher that was really trained on a tiny corpus, a student that was not, and the corpus."""

import json

import numpy as np
import torch
from support.scratch import PREFIX_LEN, scratch_model
from support.tiny_models import save_tokenizer

from memaudit.distillation import TrainingOptions
from memaudit.distillation.methods import fine_tune
from memaudit.verification.examples import VerificationOptions
from memaudit.windows import WindowShape

N_TEXTS = 24


def make_texts(seed=0):
    """Texts of letters in which each letter has three likely followers."""
    rng = np.random.default_rng(seed)
    followers = rng.integers(26, size=(26, 3))
    texts = []
    for _ in range(N_TEXTS):
        letters = [int(rng.integers(26))]
        while len(letters) < 2 * PREFIX_LEN + 2:
            letters.append(int(followers[letters[-1], rng.integers(3)]))
        texts.append("".join(chr(97 + letter) for letter in letters))
    return texts


def write_corpus(path, texts):
    """Each text 1, 1, 2 or 6 times, and last a row that is too short."""
    rows = [text for i, text in enumerate(texts) for _ in range((1, 1, 2, 6)[i % 4])]
    lines = [json.dumps({"id": f"id-{i}", "text": text}) for i, text in enumerate([*rows, "abc"])]
    path.write_text("\n".join(lines) + "\n")
    return path


def save_scratch(folder, hidden, layers, *, bos, seed, windows=()):
    """Save a model with a tokenizer of one token a byte, trained on windows if there are any."""
    model = scratch_model(hidden, layers, seed=seed, vocabulary=260)
    save_tokenizer(folder, merges=(), bos=bos)
    if windows:
        # Of a model this small, threads only wait for each other: 104 s instead of some, on busy cores.
        torch.set_num_threads(1)
        options = TrainingOptions(12, 5e-3, batch_size=16)
        fine_tune(model, windows, options, work_dir=folder / "unused")
    model.save_pretrained(folder)
    return folder


def make_miniatures(folder, *, bos=False):
    """Write teacher, student and corpus."""
    from memaudit.engines.models import load_model

    texts = make_texts()
    corpus = write_corpus(folder / "corpus.jsonl", texts)
    student = save_scratch(folder / "student", 32, 1, bos=bos, seed=1)
    tokenizer = load_model(str(student)).tokenizer
    front = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    windows = [
        np.array([*front, *ids[: 2 * PREFIX_LEN]], dtype=np.int32)
        for i, ids in enumerate(tokenizer.encode(texts))
        for _ in range((1, 1, 2, 6)[i % 4])
    ]
    teacher = save_scratch(folder / "teacher", 64, 2, bos=bos, seed=0, windows=windows)
    return {"teacher": str(teacher), "student": str(student), "data": corpus}


def make_options(*, epochs=1, **changes):
    """Windows of 8 + 8 tokens, trained on for a moment."""
    training = TrainingOptions(epochs, 8e-3, batch_size=16)
    shape = WindowShape(PREFIX_LEN, PREFIX_LEN)
    return VerificationOptions(**{"training": training, "shape": shape, "threads": 1, **changes})
