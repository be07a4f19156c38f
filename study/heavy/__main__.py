"""`python -m study.heavy RECIPE`: distil cell by cell, and judge classifiers on what came out."""

import argparse
import sys
from pathlib import Path

from memaudit.errors import MemauditError
from study.heavy.rate_tables import study_tables
from study.heavy.recipe import read_recipe
from study.heavy.workflow import conduct_study
from study.tables import markdown, write_markdown


def main() -> int:
    """Run every distillation of the recipe that has no result yet, and judge classifiers on all."""
    parser = argparse.ArgumentParser(prog="python -m study.heavy", description=main.__doc__)
    parser.add_argument("recipe", type=Path, help="such as study/recipes/heavy.toml")
    parser.add_argument("--sample-data", type=Path, default=Path("sample_data"), metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("build/study"), metavar="DIR")
    parser.add_argument("--jobs", type=int, default=1, help="cells that run at the same time")
    parser.add_argument("--models", type=Path, metavar="DIR", help="put the demo models here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here too")
    flags = parser.parse_args()
    try:
        document = conduct_study(
            read_recipe(flags.recipe),
            flags.sample_data,
            flags.out,
            models=flags.models,
            n_jobs=flags.jobs,
        )
        tables = study_tables(document)
        if flags.markdown is not None:
            write_markdown(tables, flags.markdown)
    except MemauditError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(markdown(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
