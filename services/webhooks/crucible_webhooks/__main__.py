"""`python -m crucible_webhooks`."""

from crucible_kit.server import main

from .app import create_app
from .settings import Settings

if __name__ == "__main__":
    main("webhooks", Settings, create_app)
