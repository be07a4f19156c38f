"""What a teacher says about a corpus, written as the trainers document that they capture it.

As a script, `python -m tests.support.captures MODEL CORPUS DIR`, it captures the 64 likeliest tokens
of rows with a `text` and writes one file for each layout.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

K = 64
LAYOUTS = ("prepared", "legacy", "plain", "compressed", "two-columns", "one-column")
CONFIG = {
    "d": 0,
    "k": K,
    "exact_k": 16,
    "exact_dtype": "bfloat16",
    "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"],
    "term_dtype": "float32",
    "residual_bins": [],
    "delta_encoding": False,
}
"""What DistillKit recommends, but for k."""


@torch.inference_mode()
def top_k(model, ids, k=K):
    """Return the k likeliest tokens at each place but the first: ids and log-probabilities.

    Both are (T - 1, k).
    """
    logprobs = model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(dim=-1)
    values, found = logprobs.topk(min(k, logprobs.shape[-1]))
    return found.numpy(), values.numpy()


def write_capture(layout, rows, folder, *, k=K, config=None):
    """Write rows in a layout and return where they lie.

    Args:
        layout: one of `LAYOUTS`.
        rows: dicts with `id`, `text`, `input_ids`, `labels`, `ids` and `logprobs`.
        folder: made if missing.
        k: of each entry.
        config: of the compression.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "compressed":
        used = CONFIG | {"k": k, "exact_k": min(16, k)} | (config or {})
        (folder / "compression_config.yaml").write_text(json.dumps(used))
        _WRITERS[layout](rows, folder / "data_0.parquet", used)
        return folder
    path = folder / ("rows.jsonl" if layout == "one-column" else "rows.parquet")
    _WRITERS[layout](rows, path)
    return path


def _write(path, columns):
    pq.write_table(pa.table(columns), path)


def _prepared(rows, path, *, shift=1):
    """Entries for each token, hidden where the token that they are about has no label."""
    columns = {name: [] for name in ("target_logprobs", "target_token_ids", "target_mask")}
    for row in rows:
        n, k = len(row["input_ids"]), row["ids"].shape[1]
        values, ids = np.full((n, k), -1e9), np.zeros((n, k), dtype=np.int64)
        mask = np.zeros((n, k), dtype=np.int64)
        scaled = row["logprobs"] - np.log(np.exp(row["logprobs"]).sum(axis=1, keepdims=True))
        for token in range(1, n):
            entry = token - shift
            values[entry], ids[entry] = scaled[token - 1], row["ids"][token - 1]
            mask[entry] = row["labels"][token] != -100
        columns["target_logprobs"].append(values.tolist())
        columns["target_token_ids"].append(ids.tolist())
        columns["target_mask"].append(mask.tolist())
    tokens = {name: [row[name] for row in rows] for name in ("id", "input_ids", "labels")}
    _write(path, tokens | columns)


def _plain(rows, path):
    _write(
        path,
        {
            "id": [row["id"] for row in rows],
            "input_ids": [row["input_ids"] for row in rows],
            "token_ids": [row["ids"].tolist() for row in rows],
            "top_values": [row["logprobs"].tolist() for row in rows],
        },
    )


def _compressed(rows, path, config):
    packed, ids = [], []
    n_bits = int(np.ceil(np.log2(np.float32(config["d"]))))
    for row in rows:
        packed.append(compress(row["logprobs"], config).tolist())
        ids.append(pack(row["ids"], n_bits).tolist())
    kind = pa.list_(pa.list_(pa.uint8()))
    _write(
        path,
        {
            "id": [row["id"] for row in rows],
            "input_ids": pa.array([row["input_ids"] for row in rows], pa.list_(pa.uint64())),
            "compressed_logprobs": pa.array(packed, kind),
            "bytepacked_indices": pa.array(ids, kind),
        },
    )


def _two_columns(rows, path):
    """Beside the text, with one more entry: about the first token nothing is known."""
    _write(
        path,
        {
            "id": [row["id"] for row in rows],
            "text": [row["text"] for row in rows],
            "logprobs": [[[], *row["logprobs"].tolist()] for row in rows],
            "target_token_ids": [[[], *row["ids"].tolist()] for row in rows],
        },
    )


def _one_column(rows, path):
    """As vLLM names tokens; the first entries, of a prompt, may not be there at all."""
    with path.open("w") as file:
        for row in rows:
            entries = [
                [
                    {"logprob": float(value), "token": f"token_id:{token}"}
                    for value, token in zip(*entry, strict=True)
                ]
                for entry in zip(row["logprobs"], row["ids"], strict=True)
            ]
            line = {"id": row["id"], "text": row["text"]}
            file.write(json.dumps(line | {"llm_text_generation_vllm_logprobs": entries}) + "\n")


_WRITERS = {
    "prepared": _prepared,
    "legacy": lambda rows, path: _prepared(rows, path, shift=0),
    "plain": _plain,
    "compressed": _compressed,
    "two-columns": _two_columns,
    "one-column": _one_column,
}

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def compress(logprobs, config):
    """Return (n, bytes) of (n, k) sorted log-probabilities, by the steps that DistillKit names."""
    values = torch.tensor(logprobs, dtype=torch.float64)
    if config["delta_encoding"]:
        values = torch.cat([values[:, :1], values.diff(dim=1)], dim=1)
    exact, rest = values[:, : config["exact_k"]], values[:, config["exact_k"] :]
    parts = [as_bytes(exact, config["exact_dtype"])]
    terms = config["polynomial_terms"]
    if terms:
        t = torch.arange(rest.shape[1], dtype=torch.float64)
        curve = torch.stack([t.sqrt() if i == "sqrt" else t**i for i in terms], dim=1)
        weights = torch.linalg.lstsq(curve, rest.T, driver="gelsd").solution.T
        parts.append(as_bytes(weights, config["term_dtype"]))
        weights = weights.to(_DTYPES[config["term_dtype"]]).double()
        rest = rest - weights @ curve.T
    start = 0
    for each in config["residual_bins"]:
        n, bits = each["num_elements"], each["element_bits"]
        part = rest[:, start : start + n]
        start += n
        half = 1.0 if bits == 1 else 2.0 ** (bits - 1)
        scale = part.abs().amax(dim=1, keepdim=True) / half
        parts.append(as_bytes(scale, each["scale_dtype"]))
        scale = scale.to(_DTYPES[each["scale_dtype"]]).double()
        if bits == 1:
            steps = (part > 0).long()
        else:
            steps = (part / scale).round().clamp(-half, half - 1).long() + int(half)
        parts.append(pack(steps.numpy(), bits))
    return np.concatenate(parts, axis=1)


def as_bytes(values, dtype):
    """Return the bytes of (n, m) numbers: (n, bytes)."""
    return values.to(_DTYPES[dtype]).contiguous().view(torch.uint8).reshape(len(values), -1).numpy()


def pack(numbers, n_bits):
    """Return (n, bytes) of (n, m) numbers, the highest bit of each first."""
    texts = ["".join(f"{number:0{n_bits}b}" for number in row) for row in np.asarray(numbers)]
    n_bytes = -(-n_bits * np.asarray(numbers).shape[1] // 8)
    padded = [int(text.ljust(8 * n_bytes, "0"), 2).to_bytes(n_bytes, "big") for text in texts]
    return np.array([list(each) for each in padded], dtype=np.uint8)


def capture(model, tokenizer, rows, *, k=K, n_prompt=None):
    """Return rows with what a model says: for `write_capture`.

    Args:
        model: of transformers.
        tokenizer: ours.
        rows: dicts with `id` and `text`.
        k: tokens of an entry.
        n_prompt: tokens of each row that have no label. None: none.
    """
    found = []
    for row in rows:
        (ids,) = tokenizer.encode([row["text"]])
        likeliest, logprobs = top_k(model, ids, k)
        labels = [-100] * (n_prompt or 0) + ids[n_prompt or 0 :]
        found.append(
            {**row, "input_ids": ids, "labels": labels, "ids": likeliest, "logprobs": logprobs}
        )
    return found


def main(model, corpus, folder):
    """Capture a corpus in every layout."""
    from memaudit.engines.models import load_model

    loaded = load_model(model)
    with Path(corpus).open() as file:
        rows = [json.loads(line) for line in file]
    captured = capture(loaded.model, loaded.tokenizer, rows)
    for layout in LAYOUTS:
        config = {"d": loaded.tokenizer.n_ids}
        write_capture(layout, captured, Path(folder) / layout, config=config)


if __name__ == "__main__":
    main(*sys.argv[1:])
