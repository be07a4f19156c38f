"""One scoring pass against real generation: the same answers, and how much sooner.

Every distinct window of the data is asked both ways whether the model recites its suffix, with
generation one by one and in batches. In float32 the answers differ at ties alone.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from memaudit.corpus import CorpusOptions, Example, read_corpus
from memaudit.engines.generation import GenerationCheck, count_generation_disagreements
from memaudit.engines.models import LoadedModel, ModelOptions, load_model
from memaudit.engines.tokenizer import Tokenizer
from memaudit.windows import WindowShape, cut_windows, window_key

_BATCH_SIZES = (1, 16, 64)
_N_WARM_UP = 4
_ENCODED_AT_ONCE = 256


def main() -> None:
    """Compare the two at each batch size, and show them side by side."""
    arguments = _parser().parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    loaded = load_model(arguments.model, ModelOptions(dtype="float32", device="cpu"))
    shape = WindowShape(arguments.prefix_len, arguments.suffix_len)
    windows = list(islice(_windows(arguments.data, loaded.tokenizer, shape), arguments.windows))
    if not windows:
        sys.exit(f"no row has {shape.length} tokens")
    _check(loaded, windows[:_N_WARM_UP], shape, batch_size=_N_WARM_UP)
    checks = {size: _check(loaded, windows, shape, batch_size=size) for size in _BATCH_SIZES}
    _show(checks, shape)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models/demo-teacher", help="folder or hub id")
    parser.add_argument(
        "--data",
        nargs="+",
        default=["sample_data/demo.jsonl", "sample_data/prose.jsonl.zst"],
        help="corpora, read one after the other (default: what the demo teacher knows by heart "
        "in part, then text it does not know)",
    )
    parser.add_argument("--windows", type=int, default=600, help="at most (default: %(default)s)")
    parser.add_argument("--prefix-len", type=int, default=50, help="tokens (default: %(default)s)")
    parser.add_argument("--suffix-len", type=int, default=50, help="tokens (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its choice)")
    return parser


def _windows(
    corpora: list[str], tokenizer: Tokenizer, shape: WindowShape
) -> Iterator[NDArray[np.int32]]:
    """Yield the first window of every row that has one, equal ones once."""
    seen = set()
    for corpus in corpora:
        rows = (row for row in read_corpus(CorpusOptions(corpus)) if isinstance(row, Example))
        while texts := [row.text for row in islice(rows, _ENCODED_AT_ONCE)]:
            for token_ids in tokenizer.encode(texts):
                for window in cut_windows(token_ids, shape):
                    if (key := window_key(window)) not in seen:
                        seen.add(key)
                        yield window


def _check(
    loaded: LoadedModel, windows: list[NDArray[np.int32]], shape: WindowShape, *, batch_size: int
) -> GenerationCheck:
    return count_generation_disagreements(
        loaded.model,
        windows,
        shape.prefix_len,
        bos_token_id=loaded.tokenizer.bos_token_id,
        batch_size=batch_size,
    )


def _show(checks: dict[int, GenerationCheck], shape: WindowShape) -> None:
    """Show one row for each batch size; a ratio is to the median of all the one passes."""
    one_pass = [check.seconds_one_pass for check in checks.values()]
    first = next(iter(checks.values()))
    table = Table(
        title=f"{first.n_windows} windows of {shape.prefix_len} + {shape.suffix_len} tokens, "
        f"{first.n_extracted_one_pass} extracted by one pass, float32"
    )
    columns = ("batch size", "extracted", "disagreements", "of them ties", "time / one pass")
    for column in columns:
        table.add_column(column, justify="right")
    for batch_size, check in checks.items():
        table.add_row(
            str(batch_size),
            str(check.n_extracted_generated),
            _listed(check.disagreements),
            _listed(check.ties),
            f"{check.seconds_generate / statistics.median(one_pass):.1f}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"one pass, slowest to fastest of {len(one_pass)}: {max(one_pass) / min(one_pass):.2f} x"
    )


def _listed(indices: tuple[int, ...]) -> str:
    """Return how many, and which windows."""
    return f"{len(indices)}: {', '.join(map(str, indices))}" if indices else "0"


if __name__ == "__main__":
    main()
