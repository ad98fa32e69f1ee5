"""The OpenAPI document as other people's software sees it: linters find no error, clients that generators make of it
compile and work, and so does the page that shows it."""

import datetime
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import Stack

CLIENTS = Path(__file__).with_name("clients")
_GENERATOR = """
generatorName: {name}
inputSpec: {document}
outputDir: {folder}
globalProperties:
  {{models: "", apis: "", supportingFiles: "", apiDocs: "false", modelDocs: "false", apiTests: "false",
    modelTests: "false"}}
"""
_GO = "packageName: crucible\n"
_JAVA = """
library: native
invokerPackage: crucible
apiPackage: crucible.api
modelPackage: crucible.model
additionalProperties:
  {useJakartaEe: "true", openApiNullable: "false", hideGenerationTimestamp: "true", useSingleRequestParameter: "true"}
"""
_FAST = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


def run(*command: str | Path, at: Path, **environ: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=at,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def document(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("document") / "openapi.json"
    with stack.http() as http:
        file.write_bytes(http.get("/openapi.json").raise_for_status().content)
    return file


@pytest.fixture(scope="module")
def generated(tools: Path, document: Path) -> Path:
    """The folder with a client in Go and one in Java, which share the start of one generator."""
    folder = document.parent
    [jar] = (tools / "jars").glob("openapi-generator-cli-*.jar")
    for name, options in (("go", _GO), ("java", _JAVA)):
        text = _GENERATOR.format(name=name, document=document, folder=folder / name) + options
        (folder / f"{name}.yaml").write_text(text)
    run("java", *_FAST, "-jar", jar, "batch", "--threads", "2", "--fail-fast", "go.yaml", "java.yaml", at=folder)
    return folder


def test_redocly_finds_no_error(tools: Path, document: Path) -> None:
    run(tools / "node_modules/.bin/redocly", "lint", document, at=document.parent)


def test_spectral_finds_no_error(tools: Path, document: Path) -> None:
    (document.parent / ".spectral.yaml").write_text("extends: [spectral:oas]\n")
    run(tools / "node_modules/.bin/spectral", "lint", "--fail-severity=error", document, at=document.parent)


def test_python_client_works(tools: Path, document: Path, stack: Stack, tmp_path: Path) -> None:
    python = tools / "venv/bin/python"
    path = f"{tools / 'venv/bin'}:{os.environ['PATH']}"
    generate = ("generate", "--path", document, "--output-path", "crucible_api", "--meta", "none")
    told = run(python, "-m", "openapi_python_client", *generate, at=tmp_path, PATH=path)
    assert "duplicate models" not in told
    assert "Unable" not in told
    check(run(python, CLIENTS / "client.py", stack.url, stack.key, at=tmp_path, PYTHONPATH=str(tmp_path)), "Python")


def test_typescript_client_works(tools: Path, document: Path, stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(tools / "node_modules")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "client.ts").write_text((CLIENTS / "client.ts").read_text())
    bin = tools / "node_modules/.bin"
    run(bin / "openapi-typescript", document, "-o", "api.ts", at=tmp_path)
    options = ("--strict", "--module", "nodenext", "--target", "es2022", "--skipLibCheck")
    run(bin / "tsc", *options, "client.ts", at=tmp_path)
    check(run("node", "client.js", stack.url, stack.key, at=tmp_path), "TypeScript")


def test_go_client_works(generated: Path, stack: Stack) -> None:
    folder = generated / "go"
    (folder / "go.mod").write_text("module local/crucible\n\ngo 1.21\n")
    (folder / "client").mkdir()
    (folder / "client/main.go").write_text((CLIENTS / "client.go").read_text())
    offline = {"GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local"}
    run("go", "build", "./...", at=folder, **offline)
    check(run("go", "run", "./client", stack.url, stack.key, at=folder, **offline), "Go")


def test_java_client_works(tools: Path, generated: Path, stack: Stack) -> None:
    jars = [str(jar) for jar in (tools / "jars").glob("*.jar") if "generator" not in jar.name]
    sources = [str(file) for file in (generated / "java/src/main").rglob("*.java")]
    classes = generated / "classes"
    options = [f"-J{option}" for option in _FAST]
    where = ("-nowarn", "-d", str(classes), "-cp", ":".join(jars))
    run("javac", *options, *where, *sources, str(CLIENTS / "Client.java"), at=generated)
    told = run("java", *_FAST, "-cp", ":".join([str(classes), *jars]), "Client", stack.url, stack.key, at=generated)
    check(told, "Java")


def test_the_page_is_to_read_and_try(tools: Path, document: Path, stack: Stack, tmp_path: Path) -> None:
    told = json.loads(run("node", CLIENTS / "page.mjs", stack.url, stack.key, tools, at=tmp_path))
    assert told["broken"] == []
    assert (told["refused"], told["appended"], told["listed"]) == ("401", "201", [told["id"]])
    assert told["one"] == {"n": 1}
    assert told["operations"] == sum(map(len, json.loads(document.read_bytes())["paths"].values()))
    assert told["markdown"] == []


def check(output: str, language: str) -> None:
    """What every client must have seen."""
    told: dict[str, Any] = json.loads(output)
    year = datetime.datetime.now(datetime.UTC).year
    assert told["appended"][1] == f"Custom.{language}"
    assert (told["committed"], told["listed"]) == (2, [1, 1, 1])
    assert told["first"] == [told["appended"][0], year]
    assert told["links"] == ["mem_other", "On logs"]
    assert told["found"] == [f"The {language} client remembers"]
    assert told["webhook"] == [language.lower(), True]
    assert told["refused"] == [422, "Memory.Created"]
