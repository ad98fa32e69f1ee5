"""The CLI's fixtures: commands run against a gateway that is played, with nothing of this machine in sight."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from crucible_cli.main import build
from tests.client.playing import KEY, Played, playing

Run = Callable[..., Result]


@pytest.fixture
def played() -> Iterator[Played]:
    with playing() as played:
        yield played


@pytest.fixture
def run(played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `crucible …` in this process; an exception that is no exit fails the test."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("CRUCIBLE_URL", played.url)
    monkeypatch.setenv("CRUCIBLE_API_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "200")
    app = build()

    def run(*arguments: str, input: str | None = None) -> Result:
        result = CliRunner().invoke(app, list(arguments), input=input)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
