"""The conventions of the house, as tests: packages, layers, docstrings, exports."""

import ast
import importlib
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ROOMS = ("cli", "search", "latency", "compile", "supernet", "device_db")
CODE = [*ROOMS, "benchmarks", "tools"]
MODULES = sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def packages_in_the_tree() -> dict[str, str]:
    folders = {
        path.parent.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py")
    }
    return {"bignas." + ".".join(folder.parts): folder.as_posix() for folder in folders}


def test_listed_packages_are_those_of_the_tree() -> None:
    tree = packages_in_the_tree()
    setuptools = SETTINGS["tool"]["setuptools"]
    assert setuptools["package-dir"] == tree
    assert sorted(setuptools["packages"]) == sorted(tree)


def test_every_package_has_an_init_with_a_docstring_only() -> None:
    for folder in packages_in_the_tree().values():
        body = ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8")).body
        assert [type(node) for node in body] == [ast.Expr], folder


def test_bignas_is_a_namespace() -> None:
    assert not (ROOT / "__init__.py").exists()
    assert getattr(importlib.import_module("bignas"), "__file__", None) is None


def test_every_file_beside_the_code_is_packaged() -> None:
    data = SETTINGS["tool"]["setuptools"]["package-data"]
    packaged = {
        path
        for package, patterns in data.items()
        for pattern in patterns
        for path in (ROOT / package.removeprefix("bignas.").replace(".", "/")).glob(pattern)
    }
    present = {
        path
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert present == packaged


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_are_absolute_and_rooms_are_reached_through_bignas(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        assert not {name.partition(".")[0] for name in names} & {*ROOMS, "benchmarks"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_rooms_import_downwards_only(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    if room not in ROOMS:
        return
    below = ROOMS[ROOMS.index(room) :]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bignas."):
            assert str(node.module).split(".")[1] in below


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_exported_name_exists(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined: set[str] = set()
    exported: list[str] = []
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                defined.add(name)
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                exported = ast.literal_eval(value)
            case ast.Assign(targets=targets):
                defined |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                defined.add(name)
            case ast.ImportFrom(names=names) | ast.Import(names=names):
                defined |= {alias.asname or alias.name for alias in names}
            case _:
                pass
    assert set(exported) <= defined
    assert len(exported) == len(set(exported))


@pytest.mark.slow
def test_the_wheel_holds_every_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for room in ROOMS:
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(ROOT / room, source / room, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    wanted = {
        f"bignas/{path.relative_to(source).as_posix()}"
        for room in ROOMS
        for path in (source / room).rglob("*")
        if path.is_file()
    }
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert wanted - set(archive.namelist()) == set()
