"""`python -m crucible_gateway`."""

from crucible_kit.server import main

from .app import SERVICE, create_app
from .settings import Settings

if __name__ == "__main__":
    main(SERVICE, Settings, create_app)
