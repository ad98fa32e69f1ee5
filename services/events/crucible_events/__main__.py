"""`python -m crucible_events`."""

from crucible_events.app import SERVICE, create_app
from crucible_events.settings import Settings
from crucible_kit.http.server import main

if __name__ == "__main__":
    main(SERVICE, Settings, create_app)
