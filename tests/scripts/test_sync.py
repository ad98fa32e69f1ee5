"""The synchronous client follows from the asynchronous one."""

import subprocess
import sys
from pathlib import Path

WRITER = Path(__file__).parents[2] / "scripts" / "write_sync.py"


def test_synchronous_client_is_fresh() -> None:
    done = subprocess.run([sys.executable, str(WRITER), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
