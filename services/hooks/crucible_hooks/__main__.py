"""`python -m crucible_hooks`."""

from crucible_kit.server import main

from .app import create_app
from .settings import Settings

if __name__ == "__main__":
    main("hooks", Settings, create_app)
