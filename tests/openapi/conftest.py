"""A stack for the clients, and the tools of other languages."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.conftest import Stack

ROOT = Path(__file__).parents[2]
NEEDED = ("node", "npm", "java", "javac", "mvn", "go")


@pytest.fixture(scope="session")
def tools() -> Path:
    """The folder of linters and generators. Only in CI is it a failure that they cannot be had."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return _without(f"this machine has no {', '.join(missing)}")
    done = subprocess.run(
        [ROOT / "scripts" / "openapi-tools"], capture_output=True, text=True, timeout=500, check=False
    )
    if done.returncode != 0:
        return _without(f"the tools cannot be installed: {done.stderr[-1000:]}")
    return Path(done.stdout.strip())


def _without(reason: str) -> Path:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    found = Stack(tmp_path_factory.mktemp("openapi") / "data", {})
    found.start()
    yield found
    found.stop()
    shutil.rmtree(found.data, ignore_errors=True)
