"""`python -m crucible_cli` is `crucible`."""

from crucible_cli.main import main

main()
