"""`python -m crucible_memory`."""

from crucible_kit.http.server import main
from crucible_memory.app import SERVICE, create_app
from crucible_memory.settings import Settings

if __name__ == "__main__":
    main(SERVICE, Settings, create_app)
