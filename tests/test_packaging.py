"""How the house is built: what is packaged, what the tables name, and which way imports may point."""

import ast
import functools
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import networkx
import pytest

from mattecompress.backends import BACKENDS
from mattecompress.models import ASSETS, MODELS, SHIPPED
from mattecompress.modules import MODULES, build_module
from mattecompress.named_pipelines import PIPELINES
from mattecompress.passes import PASSES
from mattecompress.pipeline_text import parse_pipeline
from tests.conftest import ROOT

SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
HOMES = {
    "mattecompress": ROOT / "mattecompress",
    **{name: ROOT / place for name, place in SETUP["package-dir"].items()},
}
MOST_LINES = 400


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """The name that a file of the package is imported under."""
    home, place = next((name, place) for name, place in HOMES.items() if path.is_relative_to(place))
    parts = path.relative_to(place).with_suffix("").parts
    return ".".join([home, *(part for part in parts if part != "__init__")])


def imports(path: Path, anywhere: bool = True) -> set[str]:
    """Modules that a file imports: anywhere in it, or only as it is loaded."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in ast.walk(tree) if anywhere else _loaded(tree.body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "extra":
            found |= {str(ast.literal_eval(argument)) for argument in node.args}
    return found


def _loaded(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements that run on import, those that only type checkers see left out."""
    nested = [
        inner
        for node in body
        if isinstance(node, ast.If | ast.Try) and "TYPE_CHECKING" not in ast.dump(getattr(node, "test", node))
        for inner in _loaded([*node.body, *node.orelse])
    ]
    return body + nested


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


PACKAGE = sources("mattecompress", "passes", "backends")


def test_every_folder_is_packaged() -> None:
    folders = {module_name(path) for path in PACKAGE if path.name == "__init__.py"}
    assert set(SETUP["packages"]) == folders
    assert len(SETUP["packages"]) == len(folders)


def test_every_file_is_in_a_package() -> None:
    assert [path for path in PACKAGE if not (path.parent / "__init__.py").is_file()] == []


def test_data_files_are_packaged() -> None:
    for package, patterns in SETUP["package-data"].items():
        home, place = max(
            (item for item in HOMES.items() if within(package, item[0])), key=lambda item: len(item[0])
        )
        folder = place / package.removeprefix(home).strip(".").replace(".", "/")
        matched = {path for pattern in patterns for path in folder.glob(pattern)}
        assert matched, package
        if package != "mattecompress":
            assert {path for path in folder.iterdir() if path.suffix in (".c", ".h")} <= matched


def classes(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize("name", PASSES)
def test_passes_exist(name: str) -> None:
    module, _, kind = PASSES[name].partition(":")
    assert module == name.replace("-", "_")
    assert kind in classes(ROOT / "passes" / f"{module}.py")


def test_every_file_of_passes_is_in_the_table() -> None:
    assert list(PASSES) == sorted(PASSES)
    files = {path.stem for path in sources("passes")} - {"__init__"}
    assert files == {name.replace("-", "_") for name in PASSES}


@pytest.mark.parametrize("name", BACKENDS)
def test_backends_exist(name: str) -> None:
    module, _, kind = BACKENDS[name].partition(":")
    place = ROOT / "backends" / module.replace(".", "/")
    assert kind in classes(place / "__init__.py" if place.is_dir() else place.with_suffix(".py"))


@pytest.mark.parametrize("name", MODELS)
def test_models_exist(name: str) -> None:
    module, _, builder = MODELS[name].partition(":")
    assert callable(getattr(importlib.import_module(f"mattecompress.models.{module}"), builder))
    assert name not in SHIPPED or (ASSETS / SHIPPED[name]).is_file()


@pytest.mark.parametrize("name", MODULES)
def test_modules_exist(name: str) -> None:
    module = importlib.import_module(f"mattecompress.modules.{MODULES[name]}")
    assert getattr(module, name).__name__ == name
    with pytest.raises(Exception, match="unknown option"):
        build_module(f"{name}{{no-such-option=1}}")


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_name_registered_passes(name: str) -> None:
    assert {step.name for step in parse_pipeline(name).passes} <= set(PASSES)
    assert PIPELINES[name].__doc__


ORDER = (
    ("ops", "modules", "data"),
    ("models",),
    ("analysis", "binarization", "capturing", "running"),
    ("quantization", "reconstruction"),
    ("passes", "backends"),
    ("measuring",),
    ("inspection", "training"),
    ("api",),
    ("cli",),
)
"""Rooms in the order in which data goes through them."""
STRANGERS = {"passes": ("backends",), "backends": ("passes",), "training": ("backends",)}
"""Rooms that a room may not reach although it comes no earlier."""


def forbidden(room: str) -> tuple[str, ...]:
    """The packages that no file of a room may import, nor anything that it imports."""
    place = next(number for number, rooms in enumerate(ORDER) if room in rooms)
    later = [name for rooms in ORDER[place + 1 :] for name in rooms]
    return tuple(f"mattecompress.{name}" for name in (*later, *STRANGERS.get(room, ())))


@functools.cache
def imported(anywhere: bool = True) -> networkx.DiGraph:
    """Which file of the package imports which, by the names of the modules."""
    names = {module_name(path): path for path in PACKAGE}
    return networkx.DiGraph(
        (name, wanted)
        for name, path in names.items()
        for wanted in imports(path, anywhere)
        if wanted in names and not within(name, wanted)
    )


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {module_name(path).split(".")[1] for path in PACKAGE if path.parent not in HOMES.values()}
    rooms |= {name.split(".")[1] for name in HOMES if "." in name}
    assert sorted(rooms | {"api"}) == sorted(name for names in ORDER for name in names)


@pytest.mark.parametrize("room", [name for names in ORDER for name in names])
def test_imports_do_not_point_backwards(room: str) -> None:
    graph = imported()
    backwards = [
        " imports ".join(networkx.shortest_path(graph, name, wanted))
        for name in graph
        if within(name, f"mattecompress.{room}")
        for wanted in sorted(networkx.descendants(graph, name))
        if within(wanted, *forbidden(room))
    ]
    assert backwards == []


def test_only_the_command_line_imports_the_command_line() -> None:
    importers = [
        module_name(path) for path in PACKAGE if any(within(n, "mattecompress.cli") for n in imports(path))
    ]
    assert {name for name in importers if not within(name, "mattecompress.cli")} == {"mattecompress.__main__"}


OWNERS = {
    "tvm": ("mattecompress.backends.tvm",),
    "onnx": ("mattecompress.backends.onnx",),
    "onnxruntime": ("mattecompress.backends.onnx",),
    "onnxsim": ("mattecompress.backends.onnx",),
    "typer": ("mattecompress.cli",),
    "cv2": ("mattecompress.optical_flow",),
    "transformers": ("mattecompress.models",),
}


@pytest.mark.parametrize("library", OWNERS)
def test_libraries_have_one_owner(library: str) -> None:
    users = {module_name(path) for path in PACKAGE if any(within(name, library) for name in imports(path))}
    assert users
    assert {name for name in users if not within(name, *OWNERS[library])} == set()


def test_nothing_imports_in_a_circle() -> None:
    circles = networkx.simple_cycles(imported(anywhere=False), length_bound=6)
    assert next(circles, None) is None


@pytest.mark.parametrize(
    "folder", ["mattecompress", "passes", "backends", "examples", "tests", "docs", "benchmarks"]
)
def test_no_file_is_long(folder: str) -> None:
    files = [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".c", ".h", ".html")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


@pytest.mark.parametrize("path", sources("mattecompress", "passes", "backends", "examples", "tests"), ids=str)
def test_our_folders_are_imported_by_their_package_name(path: Path) -> None:
    assert {name for name in imports(path) if within(name, "passes", "backends")} == set()


LIGHT = {
    "import mattecompress": ("torch", "numpy", "typer"),
    "import mattecompress.cli.app": ("torch", "tvm", "onnx", "onnxruntime", "av"),
    "import mattecompress.api": ("tvm", "onnx", "onnxruntime", "av"),
}


@pytest.mark.parametrize("statement", LIGHT)
def test_imports_are_light(statement: str) -> None:
    """Nothing heavy is loaded before it is needed; so `mattecompress --help` is quick."""
    code = f"{statement}, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {name for name in LIGHT[statement] if name in loaded} == set()


def test_versions_of_the_tested_packages_meet_the_wanted_ones() -> None:
    """Every dependency that is declared is pinned for the tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    names = {re.split(r"[<>=]", one)[0].lower() for one in wanted}
    pinned = {
        line.partition("==")[0].lower() for line in (ROOT / ".ci/constraints.txt").read_text().splitlines()
    }
    assert names - pinned == set()
