"""`python -m crucible_cli` is `crucible`."""

from .main import main

main()
