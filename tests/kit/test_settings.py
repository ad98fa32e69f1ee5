"""Settings from an environment."""

from typing import Annotated

import pytest
from msgspec import Meta

from crucible_core.errors import InvalidError
from crucible_kit.settings import KitSettings, Setting, describe, load


class Settings(KitSettings, frozen=True, kw_only=True):
    paths: Annotated[list[str], Meta(description="Where to look")] = []
    retries: Annotated[tuple[float, ...], Meta(description="Waits", extra={"unit": "s"})] = (2.0, 4.5)
    shell: Annotated[bool, Meta(description="Whether shells are allowed")] = False
    token: Annotated[str | None, Meta(description="A token", extra={"secret": True})] = None


class Strict(KitSettings, frozen=True, kw_only=True):
    region: Annotated[str, Meta(description="Where this runs")]


def test_defaults_hold_in_an_empty_environment() -> None:
    settings = load(Settings, {})
    assert (settings.port, settings.host, settings.retention_days, settings.paths) == (0, "127.0.0.1", 30.0, [])


def test_values_are_read_by_type() -> None:
    environ = {
        "CRUCIBLE_PORT": " 8081 ",
        "CRUCIBLE_PATHS": "/a, /b,,",
        "CRUCIBLE_RETRIES": "1,0.5",
        "CRUCIBLE_SHELL": "true",
        "CRUCIBLE_TOKEN": "t",
    }
    settings = load(Settings, environ)
    assert (settings.port, settings.paths, settings.retries) == (8081, ["/a", "/b"], (1.0, 0.5))
    assert settings.shell is True
    assert settings.token == "t"


def test_an_empty_variable_is_as_good_as_none() -> None:
    assert load(Settings, {"CRUCIBLE_PORT": "", "CRUCIBLE_NATS_URL": " "}) == Settings()


def test_variables_of_other_services_are_left_alone() -> None:
    assert load(Settings, {"CRUCIBLE_OTHER": "1", "PATH": "/bin"}) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CRUCIBLE_PORT", "eighty"),
        ("CRUCIBLE_PORT", "65536"),
        ("CRUCIBLE_LOG_LEVEL", "loud"),
        ("CRUCIBLE_RETENTION_DAYS", "0"),
        ("CRUCIBLE_RETENTION_DAYS", "inf"),
        ("CRUCIBLE_RETRIES", "1,soon"),
        ("CRUCIBLE_SHELL", "perhaps"),
        ("CRUCIBLE_BUS_PREFIX", "a.b"),
    ],
)
def test_a_bad_value_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(InvalidError, match=name) as caught:
        load(Settings, {name: value})
    assert [error.path for error in caught.value.errors] == [name]
    assert value not in caught.value.detail.split(": ", 1)[1] or value == "0"


def test_every_bad_variable_is_named_at_once() -> None:
    with pytest.raises(InvalidError) as caught:
        load(Strict, {"CRUCIBLE_PORT": "x"})
    assert {error.path for error in caught.value.errors} == {"CRUCIBLE_PORT", "CRUCIBLE_REGION"}


def test_secrets_are_not_shown() -> None:
    settings = Settings(token="s3cret", nats_url="nats://user:s3cret@host")
    assert "s3cret" not in repr(settings) + str(settings) + repr(settings.__rich_repr__())
    assert "token=None" in repr(Settings())


def test_settings_describe_themselves() -> None:
    described = {setting.name: setting for setting in describe(Settings)}
    assert described["CRUCIBLE_PATHS"] == Setting("CRUCIBLE_PATHS", "list of text", "", "", "Where to look")
    assert described["CRUCIBLE_RETRIES"] == Setting("CRUCIBLE_RETRIES", "list of number", "2,4.5", "s", "Waits")
    assert described["CRUCIBLE_SHELL"].default == "false"
    assert described["CRUCIBLE_TOKEN"].type == "text"
    assert described["CRUCIBLE_SHUTDOWN_GRACE_S"].unit == "s"
    assert next(iter(described)) == "CRUCIBLE_NATS_URL"


def test_a_described_default_reads_back_as_the_default() -> None:
    environ = {setting.name: setting.default for setting in describe(Settings)}
    assert load(Settings, environ) == Settings()
