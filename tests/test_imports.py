"""What is imported when, and which way: nothing heavy before it is needed, no room ahead."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "onnxprune"
ORDER = (
    "errors", "graph", "axes", "cost", "runtime", "choose", "cut", "repair", "check", "bench",
    "report", "study", "explain", "summary", "pictures", "pipeline", "cli",
)  # fmt: skip
"""The way through the house: imports only ever point back along it."""

HEAVY = {"onnx", "numpy", "scipy", "onnxruntime", "onnx_graphsurgeon", "rich", "yaml"}
FILES = sorted(PACKAGE.rglob("*.py"))


def loaded(code: str) -> set[str]:
    """Top-level modules that are there after some code has run in a fresh process."""
    ending = "import json, sys; sys.stderr.write(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"import atexit\natexit.register(lambda: exec({ending!r}))\n{code}"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    return {name.split(".")[0] for name in json.loads(done.stderr)}


@pytest.mark.parametrize(
    "code",
    [
        "import onnxprune; assert onnxprune.__version__",
        "from onnxprune.cli.main import main; main(['--help'])",
        "from onnxprune.cli.main import main; main(['--version'])",
        "from onnxprune.cli.main import main; main(['slim', '--help'])",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    found = loaded(code)
    assert "onnxprune" in found
    assert not found & HEAVY


def test_analysis_needs_no_runtime() -> None:
    found = loaded("import onnxprune; onnxprune.analyze")
    assert found >= {"onnx", "numpy"}
    assert not found & {"onnxruntime", "rich", "click", "scipy"}


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant))


def room(parts: tuple[str, ...]) -> str:
    return parts[1].removesuffix(".py") if len(parts) > 1 else ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_backwards(path: Path) -> None:
    here = room(path.relative_to(ROOT).parts)
    if here == "__init__":
        return  # names the verbs and imports none of them
    assert here in ORDER
    rooms = {room(tuple(m.split("."))) for m in imports(path) if m.startswith("onnxprune.")}
    ahead = {r for r in rooms & set(ORDER) if ORDER.index(r) > ORDER.index(here)}
    assert not ahead, f"{here} imports {ahead}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_onnx_runtime_is_imported_in_one_place_only(path: Path) -> None:
    uses = {m.split(".")[0] for m in imports(path)} & {"onnxruntime"}
    assert not uses or path.parent.name == "runtime"


def test_the_runtime_is_found_where_it_is() -> None:
    users = [p for p in FILES if "onnxruntime" in set(imports(p))]
    assert [p.parent.name for p in users] == ["runtime"] * len(users) != []
