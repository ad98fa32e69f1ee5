"""Where the CLI finds the gateway and the key."""

import os
from pathlib import Path

import pytest

from crucible_cli.session import Gateway, find_gateway
from crucible_cli.up.state import DataDir, UpState, write_private, write_up

UP = "http://127.0.0.1:9080"


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    data = DataDir(tmp_path)
    write_up(data, UpState(UP, {}, os.getpid(), str(tmp_path), ""))
    write_private(data.key_file, "ck_local\n")
    return data


def test_a_local_up_is_found(data: DataDir) -> None:
    assert find_gateway(None, None, data, {}) == Gateway(UP, "ck_local")


def test_options_win_over_the_environment(data: DataDir) -> None:
    environ = {"CRUCIBLE_URL": "https://there", "CRUCIBLE_API_KEY": "ck_env"}
    assert find_gateway("https://here/", "ck_option", data, environ) == Gateway("https://here", "ck_option")
    assert find_gateway(None, None, data, environ) == Gateway("https://there", "ck_env")


def test_the_local_key_stays_on_this_machine(data: DataDir) -> None:
    assert find_gateway("https://elsewhere", None, data, {}) == Gateway("https://elsewhere", None)


def test_what_a_killed_up_left_does_not_count(data: DataDir) -> None:
    write_up(data, UpState(UP, {}, 2**22 + 1, "", ""))
    assert find_gateway(None, None, data, {}) == Gateway("http://127.0.0.1:8080", None)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_a_broken_up_file_does_not_count(data: DataDir, content: bytes) -> None:
    data.up_file.write_bytes(content)
    assert find_gateway(None, None, data, {}).url == "http://127.0.0.1:8080"
