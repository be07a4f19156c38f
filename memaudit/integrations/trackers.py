"""Numbers of a result in an experiment tracker: scalars alone, never a text or an id."""

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from memaudit.errors import MissingDependency, is_installed

Tracker = Literal["wandb", "mlflow", "trackio", "tensorboard"]
_PROJECT = "memaudit"


def require_tracker(tracker: Tracker | None) -> None:
    """Check that a tracker is installed, if one is asked for: before work of hours.

    Raises:
        MissingDependency: it is not.
    """
    if tracker is not None and not is_installed(tracker):
        raise MissingDependency(tracker, needed_for=f"--log-to {tracker}", extra=tracker)


def log_scalars(tracker: Tracker | None, document: Mapping[str, Any], out: Path) -> None:
    """Hand the numbers of a document to a tracker, where its own variables say.

    Args:
        tracker: installed. None: nothing is done.
        document: of a prediction or a verification.
        out: folder of the run, whose name the tracker's run gets; TensorBoard's events lie in
            its subfolder `tensorboard`.
    """
    if tracker is None:
        return
    found = dict(_scalars(document))
    with redirect_stdout(sys.stderr):  # standard output holds the result and nothing else
        if tracker == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            with SummaryWriter(str(out / "tensorboard")) as writer:
                for name, value in found.items():
                    writer.add_scalar(name, value, 0)
            return
        package = import_module(tracker)
        if tracker == "mlflow":
            with package.start_run(run_name=out.name):
                package.log_metrics(found)
            return
        package.init(project=_PROJECT, name=out.name)
        package.log(found)
        package.finish()


def _scalars(document: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, float]]:
    """Yield finite numbers by name; of an interval both ends, of other lists nothing."""
    for key, value in document.items():
        name = f"{start}{key}"
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{name}/")
        elif name.endswith("_interval") and isinstance(value, list | tuple):
            yield from _scalars(
                {f"{name}/{end}": each for end, each in zip(("low", "high"), value, strict=False)}
            )
        elif (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        ):
            yield name, float(value)
