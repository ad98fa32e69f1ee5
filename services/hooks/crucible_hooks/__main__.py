"""`python -m crucible_hooks`."""

from crucible_hooks.app import create_app
from crucible_hooks.settings import Settings
from crucible_kit.http.server import main

if __name__ == "__main__":
    main("hooks", Settings, create_app)
