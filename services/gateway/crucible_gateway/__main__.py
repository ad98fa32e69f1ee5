"""`python -m crucible_gateway`."""

from crucible_gateway.app import SERVICE, create_app
from crucible_gateway.settings import Settings
from crucible_kit.http.server import main

if __name__ == "__main__":
    main(SERVICE, Settings, create_app)
