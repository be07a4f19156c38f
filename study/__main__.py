"""`python -m study RECIPE`: train what is missing, then write the file of each finished cell."""

import argparse
import sys
import time
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from study.measure import finished_models, measure_cell, read_cell, wanted_models, write_cell
from study.recipe import read_recipe
from study.stages import Workshop, train_cell


def main() -> None:
    """Run the study, or go on where it was stopped."""
    parser = argparse.ArgumentParser(prog="python -m study", description=__doc__)
    parser.add_argument("recipe", type=Path, help="TOML file, such as study/recipes/natural.toml")
    parser.add_argument("--work", type=Path, required=True, help="folder for models; kept")
    parser.add_argument("--sample-data", type=Path, default=Path("sample_data"))
    parser.add_argument(
        "--cells", type=Path, default=Path("study/cells"), help="folder of the cell files"
    )
    parser.add_argument(
        "--no-training", action="store_true", help="only write the files of finished cells"
    )
    parser.add_argument(
        "--no-later", action="store_true", help="without the students that can wait"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the matrix products in training",
    )
    arguments = parser.parse_args()
    disable_progress_bar()
    shop = Workshop(
        read_recipe(arguments.recipe),
        arguments.sample_data,
        arguments.work,
        say,
        device=arguments.device,
        dtype=arguments.dtype,
    )
    for later in (False,) if arguments.no_later else (False, True):
        for cell in shop.recipe.cells:
            path = arguments.cells / f"{cell.name}.parquet"
            known = list(read_cell(path).about["seconds"]) if path.exists() else []
            if not arguments.no_training and set(wanted_models(cell, later=later)) - set(known):
                train_cell(shop, cell, later=later)
            found = finished_models(shop, cell)
            if set(found) - set(known):
                write_cell(measure_cell(shop, cell, found), path)
                say(f"{path.name}: {path.stat().st_size:,} bytes")


def say(line: str) -> None:
    """Write a line with the time to standard error."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
