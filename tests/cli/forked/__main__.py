import os
import sys
import time

from tests.cli.forked.app import IMPORTED_BY

mask = os.umask(0o022)
print(os.getpid(), os.getppid() == IMPORTED_BY, os.getsid(0) == os.getpid(), oct(mask), sorted(os.environ), flush=True)
if "LIVE" in os.environ:
    time.sleep(60)
sys.exit(int(os.environ.get("CODE", "0")))
