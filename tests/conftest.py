"""What several tests share: a small demo set, and the material beside the checkout where there is some."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cgd import birds  # noqa: E402


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory):
    """A demo set of 8 classes x 6 pictures: 4 classes for training, 4 for test."""
    folder = tmp_path_factory.mktemp("data") / "demo"
    birds.draw_demo(folder, classes=8, images_per_class=6)
    return folder


@pytest.fixture(scope="session")
def shared():
    """The folder of real annotation files, pictures and weights that stands beside some checkouts."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared here: real annotation files, pictures and weights are not at hand")
    return folder


def command(*words, cwd=ROOT, **environment):
    """Runs a command of the project as a user would; the finished process, its output as text."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=str(cwd),
        env=dict(os.environ, **environment),
        capture_output=True,
        text=True,
        timeout=300,
    )
