"""kill -9 at random moments: a verification goes on and ends with the same numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_numbers(tmp_path):
    """A distillation takes days, and machines go down."""
    harness = Path(__file__).parents[1] / "support" / "kill_harness.py"
    done = subprocess.run(
        [sys.executable, harness, tmp_path, "20"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )

    kills = json.loads(done.stdout)
    assert len(kills) == 20
    assert all(kill["killed"] and kill["same"] and kill["clean"] for kill in kills)
