"""How scripts/env installs, with stand-ins for uv and pip that know some certificates and not others."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ENV = Path(__file__).parents[2] / "scripts" / "env"
UV = """#!/bin/sh
echo "uv system=${UV_SYSTEM_CERTS:-no} native=${UV_NATIVE_TLS:-no} $*" >>"$LOG"
case "$UV_KNOWS" in
  system) [ "${UV_SYSTEM_CERTS:-no}" = true ] || [ "${UV_NATIVE_TLS:-no}" = true ] && exit 0 ;;
  bundled) [ "${UV_SYSTEM_CERTS:-no}" = no ] && [ "${UV_NATIVE_TLS:-no}" = no ] && exit 0 ;;
esac
printf '\\033[31merror\\033[0m: invalid peer certificate: UnknownIssuer\\n' >&2
exit 2
"""
PYTHON = """#!/bin/sh
echo "python $*" >>"$LOG"
case "$*" in
  "-m pip --version") exit 0 ;;
  *--use-feature=truststore*) [ "$PIP_KNOWS" = system ] && exit 0 ;;
  *) [ "$PIP_KNOWS" = bundled ] && exit 0 ;;
esac
printf '\\033[31mERROR: certificate verify failed\\033[0m\\n' >&2
exit 1
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What scripts/env finds around it."""
    for name in ("pyproject.toml", "requirements.lock", "libs/core/pyproject.toml", "services/events/pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ENV, tmp_path / "scripts" / "env")
    for name, text in ((".venv/bin/python", PYTHON), ("bin/uv", UV)):
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def source(checkout: Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_", "SSL_"))}
    path = f"{checkout / 'bin'}:/usr/bin:/bin"
    knows = {"UV_KNOWS": "", "PIP_KNOWS": "", "LOG": str(checkout / "log"), "PATH": path}
    return subprocess.run(
        ["sh", "-c", "set -eu; . scripts/env; echo done"],
        cwd=checkout,
        env=kept | knows | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def calls(checkout: Path) -> list[str]:
    return (checkout / "log").read_text().splitlines()


@pytest.mark.parametrize(
    ("uv", "pip", "tried"),
    [
        ("system", "", 1),
        ("bundled", "", 2),
        ("", "system", 3),
        ("", "bundled", 4),
    ],
)
def test_the_systems_certificates_are_tried_first_and_nothing_red_is_printed(
    checkout: Path, uv: str, pip: str, tried: int
) -> None:
    result = source(checkout, UV_KNOWS=uv, PIP_KNOWS=pip)
    assert (result.returncode, result.stdout) == (0, "done\n")
    assert result.stderr == "Installing the locked dependencies ...\n"
    made = calls(checkout)
    assert made[0].startswith("uv system=true native=true pip install")
    assert len(made) == 2 * tried
    assert (checkout / ".venv" / "crucible.stamp").exists()
    (checkout / "log").unlink()
    assert source(checkout).returncode == 0
    assert not (checkout / "log").exists()


def test_where_nothing_works_the_last_word_and_a_way_out_are_said(checkout: Path) -> None:
    result = source(checkout)
    assert (result.returncode, result.stdout) == (1, "")
    assert "certificate verify failed" in result.stderr
    assert "SSL_CERT_FILE" in result.stderr
    assert result.stderr.count("certificate verify failed") == 1
    assert not (checkout / ".venv" / "crucible.stamp").exists()


def test_what_the_user_says_of_certificates_holds(checkout: Path) -> None:
    source(checkout, UV_KNOWS="bundled", UV_SYSTEM_CERTS="no", UV_NATIVE_TLS="no")
    assert calls(checkout)[0].startswith("uv system=no native=no pip install")


def test_uv_is_got_with_the_systems_certificates_too(checkout: Path) -> None:
    (checkout / "bin" / "uv").unlink()
    result = source(checkout, PIP_KNOWS="system")
    assert result.returncode == 0
    assert result.stderr == "Installing the locked dependencies ...\n"
    assert "--use-feature=truststore" in calls(checkout)[1]
