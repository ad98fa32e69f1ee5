"""Every example of the README and the docs, run as a reader would: the pages' shell and Python blocks, in order."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from .conftest import Stack, free_base, until

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#]+)\)")


class Block(NamedTuple):
    page: Path
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(page, found[1].strip(), found[2]) for found in _FENCE.finditer(page.read_text())]


def test_every_example_runs(stack: Stack, tmp_path: Path) -> None:
    environ = {**os.environ, "CRUCIBLE_URL": stack.url, "CRUCIBLE_API_KEY": stack.key, "NO_COLOR": "1"}
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    port = free_base()
    for page in PAGES:
        folder = tmp_path / page.stem
        folder.mkdir()
        for place, block in enumerate(blocks(page)):
            if block.language == "sh":
                _run(["sh", "-eu", "-c", block.text.replace("9000", str(port))], block, folder, environ)
            elif block.language == "python":
                script = folder / f"example{place}.py"
                script.write_text(block.text)
                _run([sys.executable, str(script)], block, folder, environ)
            elif block.language == "yaml":
                file = folder / f"example{place}.md"
                file.write_text(f"---\n{yaml.safe_dump(yaml.safe_load(block.text))}---\n")
                _run(["crucible", "hooks", "add", str(file)], block, folder, environ)
    _delivered(tmp_path / "README" / "deliveries.txt", port)


def _run(command: list[str], block: Block, folder: Path, environ: dict[str, str]) -> None:
    log = folder / "output.txt"
    with log.open("w") as out:  # a file, not a pipe: what goes on in the background would hold a pipe open
        done = subprocess.run(command, cwd=folder, env=environ, stdout=out, stderr=out, timeout=60, check=False)
    assert done.returncode == 0, f"{block.page.name}:\n{block.text}\n{log.read_text()}"


def _delivered(deliveries: Path, port: int) -> None:
    """What the README promises to be in the listener's output."""
    until(lambda: "verified" in deliveries.read_text() and "Memory.Tagged" in deliveries.read_text(), 20)
    subprocess.run(["pkill", "-f", f"crucible listen --port {port}"], check=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [target for target in _LINK.findall(page.read_text()) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "write_docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_commands_that_are_shown_exist() -> None:
    shown = {match for page in PAGES for match in re.findall(r"crucible ([a-z]+)\b", _commands(page))}
    helped = subprocess.run(
        [str(Path(sys.executable).with_name("crucible")), "--help"], capture_output=True, text=True, check=True
    )
    assert {name for name in shown if name not in helped.stdout} == set()


def _commands(page: Path) -> str:
    """Lines of shell blocks, and inline code."""
    text = page.read_text()
    shell = "\n".join(block.text for block in blocks(page) if block.language.startswith("sh"))
    inline = "\n".join(re.findall(r"`(crucible [^`]+)`", text))
    return f"{shell}\n{inline}"
