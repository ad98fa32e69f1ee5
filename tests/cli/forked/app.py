"""Imported once, by the process that is forked from."""

import os

IMPORTED_BY = os.getpid()
