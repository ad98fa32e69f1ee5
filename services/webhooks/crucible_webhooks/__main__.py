"""`python -m crucible_webhooks`."""

from crucible_kit.http.server import main
from crucible_webhooks.app import create_app
from crucible_webhooks.settings import Settings

if __name__ == "__main__":
    main("webhooks", Settings, create_app)
