"""Structure of the code in numbers: files, functions, importers, cycles and names, beside the models of the project."""

import ast
import graphlib
import re
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
MODELS = (
    ("starlette", "34", "145 / 748", "5", "2 %", "0"),
    ("cosmicpython/code", "16", "41 / 120", "4", "0 %", "0"),
    ("httpx", "23", "248 / 2,019", "9", "3 %", "0"),
    ("procrastinate", "26", "224 / 1,042", "9", "5 %", "1"),
    ("polar (to avoid)", "854", "82 / 4,216", "10", "8 %", "1"),
    ("Prefect (to avoid)", "386", "72 / 2,565", "12", "8 %", "2"),
)
"""Files, lines a file (median / max), lines a function (median), functions over 50 lines, import cycles."""
SMALL = 60
LONG = 50
NOUNS = frozenset({"signing", "string", "setting", "routing", "pricing", "embed", "feed", "seed", "speed"})
"""Nouns of the field that look like participles."""


class Module(NamedTuple):
    name: str
    path: str
    lines: int
    tree: ast.Module

    @property
    def package(self) -> bool:
        return self.path.endswith("__init__.py")


def modules(root: Path = ROOT) -> dict[str, Module]:
    """Every module of libs/ and services/, by its dotted name."""
    found = {}
    for path in sorted([*root.glob("libs/*/crucible_*/**/*.py"), *root.glob("services/*/crucible_*/**/*.py")]):
        relative = path.relative_to(root)
        parts = relative.with_suffix("").parts[2:]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        found[name] = Module(name, str(relative), len(text.splitlines()), ast.parse(text))
    return found


def imported(module: Module, names: Mapping[str, Module]) -> set[str]:
    """The project's modules that a module imports, wherever in it the statement stands."""
    found = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in names}
        elif isinstance(node, ast.ImportFrom):
            base = _base(module, node)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found |= {full} if full in names else {base} & names.keys()
    return found - {module.name}


def _base(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.name.split(".") if module.package else module.name.split(".")[:-1]
    return ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])


def importers(all_modules: Mapping[str, Module]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {name: set() for name in all_modules}
    for module in all_modules.values():
        for name in imported(module, all_modules):
            found[name].add(module.name)
    return found


def cycle(all_modules: Mapping[str, Module]) -> list[str]:
    """One cycle of imports, empty where there is none."""
    graph = {name: imported(module, all_modules) for name, module in all_modules.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def functions(module: Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{module.path}:{node.lineno} {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def participle(name: str) -> bool:
    """Whether the last part of a module's name is a participle."""
    word = name.rpartition(".")[2]
    return bool(re.search(r"[a-z]{2}(ing|ed)$", word)) and word not in NOUNS


def opens_with_what(module: Module) -> bool:
    return (ast.get_docstring(module.tree) or "").startswith(("What ", "How ", "Where ", "Whether ", "Which "))


def main(listed: bool) -> None:
    every = modules()
    rooms = {name: module for name, module in every.items() if not module.package}
    by = importers(every)
    single = [name for name in rooms if len(by[name]) == 1]
    sizes = sorted(module.lines for module in rooms.values())
    length = dict(pair for module in every.values() for pair in functions(module))
    long = [name for name, lines in length.items() if lines > LONG]
    own = (
        "Crucible",
        str(len(rooms)),
        f"{statistics.median(sizes):.0f} / {sizes[-1]:,}",
        f"{statistics.median(length.values()):.0f}",
        f"{100 * len(long) / len(length):.0f} %",
        "1 or more" if cycle(every) else "0",
    )
    print(f"{'':20}{'files':>6}{'lines a file':>15}{'a function':>12}{'over 50':>9}{'cycles':>11}")
    for row in (*MODELS, own):
        print(f"{row[0]:20}{row[1]:>6}{row[2]:>15}{row[3]:>12}{row[4]:>9}{row[5]:>11}")
    small = [name for name in single if rooms[name].lines < SMALL]
    participles = [name for name in rooms if participle(name)]
    riddles = [module.path for module in every.values() if opens_with_what(module)]
    print()
    print(f"lines of libs/ and services/            {sum(module.lines for module in every.values()):>8,}")
    print(f"modules with one importer               {100 * len(single) / len(rooms):>6.0f} %")
    print(f"  of these, under {SMALL} lines              {len(small):>8}")
    print(f"participles as names of modules         {len(participles):>8}")
    print(f"modules that begin with a question word {len(riddles):>8}")
    if listed:
        for title, names in (
            ("One importer", [f"{name} ({rooms[name].lines} lines)" for name in single]),
            ("Participles", participles),
            ("Begin with a question word", riddles),
            ("Functions over 50 lines", [f"{name} ({length[name]})" for name in long]),
        ):
            print(f"\n{title}")
            for name in names:
                print(f"  {name}")


if __name__ == "__main__":
    main("--list" in sys.argv[1:])
