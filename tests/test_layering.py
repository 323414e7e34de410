"""Imports point one way: diagnostics <- ir <- ops <- stages <- {frontend, passes, codegen, interp} <- pipelines, driver <- engram.

And heavy packages are imported where they are used: `import engram` and `engram --help` must not pay for them.
"""
from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("compiler", "frontend", "passes", "codegen", "interp", "engram", "benchmarks")

# Which layers a layer may import besides itself. The four in the middle never import each other.
BASE = {"cache", "diagnostics", "ir", "ops", "stages"}
MAY = {
    "cache": set(),
    "diagnostics": set(),
    "ir": {"diagnostics", "cache"},
    "ops": {"diagnostics", "ir", "cache"},
    "stages": {"diagnostics", "ir", "ops", "cache"},
    "frontend": BASE, "passes": BASE, "codegen": BASE, "interp": BASE,
    "driver": BASE | {"frontend", "passes", "codegen", "interp"},
    "engram": BASE | {"frontend", "passes", "codegen", "interp", "driver"},
}
HEAVY = {"llvmlite", "pyopencl", "matplotlib", "rich", "lark", "safetensors", "torch", "jax"}
# The only modules that may import them at their top level (everything else: inside functions).
HEAVY_AT_TOP = {"llvmlite": ("codegen/cpu/",), "pyopencl": ("codegen/opencl/",)}


def layer_of(module: str) -> str:
    """engram.compiler.ir.core -> ir"""
    parts = module.split(".")
    if len(parts) == 1 or parts[1] not in FOLDERS or parts[1] == "benchmarks":
        return "engram"
    if parts[1] != "compiler":
        return parts[1]
    name = parts[2] if len(parts) > 2 else "ir"
    return {"cache_dir": "cache", "diagnostics": "diagnostics", "ir": "ir", "ops": "ops", "stages": "stages"}.get(name, "driver")


def modules() -> list[tuple[str, Path]]:
    out = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            if parts[-1] == "__init__":
                parts.pop()
            out.append((".".join(parts if parts and parts[0] == "engram" else ["engram", *parts]), path))
    return out


def imports(module: str, path: Path) -> list[tuple[str, int, bool]]:
    """(absolute name, line, at the module's top level) of everything the file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    top = set(_module_level(tree))
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            out += [(a.name, node.lineno, node in top) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[:len(package) - node.level + 1], *([node.module] if node.module else [])]) if node.level else node.module
            out += [(f"{base}.{a.name}", node.lineno, node in top) for a in node.names]
    return out


def _module_level(tree: ast.Module):
    todo = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]


@pytest.mark.parametrize("module, path", modules(), ids=lambda v: v if isinstance(v, str) else "")
def test_imports_point_one_way(module, path):
    layer, wrong = layer_of(module), []
    for name, line, _ in imports(module, path):
        if name.split(".")[0] != "engram":
            continue
        target = layer_of(name)
        if target != layer and target not in MAY[layer]:
            wrong.append(f"{path.relative_to(ROOT)}:{line}: {layer} imports {name} ({target})")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module, path", modules(), ids=lambda v: v if isinstance(v, str) else "")
def test_heavy_packages_are_imported_where_used(module, path):
    where = path.relative_to(ROOT).as_posix()
    wrong = [f"{where}:{line}: imports {name} at its top level" for name, line, top in imports(module, path)
             if top and name.split(".")[0] in HEAVY and not where.startswith(HEAVY_AT_TOP.get(name.split(".")[0], ("\0",)))]
    assert not wrong, "\n".join(wrong)


def test_import_engram_is_light():
    code = "import sys, engram; engram.compile; print(*sorted(m for m in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert not {m.split(".")[0] for m in loaded} & HEAVY


def test_every_folder_and_data_file_is_packaged():
    """A folder or a library file that pyproject.toml forgets would be missing from the wheel only."""
    import tomllib
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(["engram", *p.parent.relative_to(ROOT).parts]).replace("engram.engram", "engram")
             for f in FOLDERS for p in (ROOT / f).rglob("__init__.py")}
    assert found == set(tool["packages"])
    for package, patterns in tool["package-data"].items():
        folder = ROOT / tool["package-dir"][package]
        assert all(list(folder.glob(p)) for p in patterns), package
    data = [p for f in FOLDERS for p in (ROOT / f).rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc", ".md", ".png")]
    covered = [q for package, patterns in tool["package-data"].items() for p in patterns
               for q in (ROOT / tool["package-dir"][package]).glob(p)]
    assert set(data) <= set(covered), sorted(set(data) - set(covered))


def test_the_walk_sees_violations(tmp_path):
    """The test itself must be able to fail."""
    bad = tmp_path / "bad.py"
    bad.write_text("from ..frontend import parse\ndef f():\n    import llvmlite\n")
    found = imports("engram.passes.bad", bad)
    assert found == [("engram.frontend.parse", 1, True), ("llvmlite", 3, False)]
    assert layer_of("engram.frontend.parse") not in MAY["passes"]
    assert layer_of("engram.compiler.driver") == "driver" and layer_of("engram.compiler.ir.core") == "ir"
