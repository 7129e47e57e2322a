"""What is installed, and the rules of the house: floors, Flower in one room, no pickle."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LIBRARY = ROOT / "fedsam_pipeline"
MAPPED = {"fedsam_pipeline.plans": ROOT / "plans", "fedsam_pipeline.entrypoints": ROOT / "entrypoints"}
FLOORS = {
    **dict.fromkeys(("specs", "paths", "errors", "files", "logs", "memory", "cores"), 0),
    "dataset": 1,
    **dict.fromkeys(("planning", "preprocessing"), 2),
    "model": 3,
    **dict.fromkeys(("evaluation", "postprocessing"), 4),
    **dict.fromkeys(("federation", "training", "inference"), 5),
    **dict.fromkeys(("flower", "report"), 6),
    "pipeline": 7,
    "entrypoints": 8,
}
SAME_FLOOR = {("planning", "preprocessing"), ("postprocessing", "evaluation")}
"""fingerprints are taken of cropped volumes, by the same worker processes; rules are judged by the Dice that is reported"""


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    """Room, file and syntax tree of every module. A module without a room is a room of its own."""
    for path in sorted([*LIBRARY.rglob("*.py"), *(ROOT / "entrypoints").glob("*.py")]):
        if path in (LIBRARY / "__init__.py",):
            continue
        room = path.relative_to(ROOT).with_suffix("").parts[0 if path.is_relative_to(ROOT / "entrypoints") else 1]
        yield room, path, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[tuple[str, str, int]]:
    """Module, imported name (empty for a whole module) and line of every import, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, "imports are absolute"
            for alias in node.names:
                yield node.module, alias.name, node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, "", node.lineno


def test_every_room_has_a_floor() -> None:
    assert {room for room, _, _ in modules()} <= FLOORS.keys()


def test_imports_go_down_the_floors_only() -> None:
    wrong = []
    for room, path, tree in modules():
        for module, name, line in imports(tree):
            if module.split(".")[0] != "fedsam_pipeline":
                continue
            other = [*module.split("."), name][1]
            if (
                other in (room, "plans")
                or (room, other) in SAME_FLOOR
                or FLOORS[other] < FLOORS[room]
                or FLOORS[room] == 0 == FLOORS[other]
            ):
                continue
            wrong.append(f"{path.relative_to(ROOT)}:{line}: {room} (floor {FLOORS[room]}) imports {other} (floor {FLOORS[other]})")
    assert not wrong, "\n".join(wrong)


def test_no_room_takes_private_names_of_another() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module}.{name}"
        for _, path, tree in modules()
        for module, name, line in imports(tree)
        if module.startswith("fedsam_pipeline")
        and any(part.startswith("_") and part != "__version__" for part in (*module.split("."), name))
    ]
    assert not wrong, "\n".join(wrong)


def test_flower_and_ray_are_known_in_one_room_only() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for room, path, tree in modules()
        for module, _, line in imports(tree)
        if module.split(".")[0] in ("flwr", "ray") and room != "flower"
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_reads_or_writes_pickles() -> None:
    wrong = []
    for _, path, tree in modules():
        where = path.relative_to(ROOT)
        wrong += [
            f"{where}:{line}: imports {module}"
            for module, name, line in imports(tree)
            if {module.split(".")[0], name} & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
        ]
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called == "torch.save" or (called == "torch.load" and given.get("weights_only") != "True"):
                wrong.append(f"{where}:{node.lineno}: {ast.unparse(node)}")
            if called in ("np.save", "np.savez", "np.savez_compressed", "np.load") and given.get("allow_pickle") != "False":
                wrong.append(f"{where}:{node.lineno}: {ast.unparse(node)} without allow_pickle=False")
            if given.get("allow_pickle") == "True":
                wrong.append(f"{where}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)


def test_no_file_holds_more_than_one_concept() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for _, path, _ in modules()}
    assert not {path: lines for path, lines in long.items() if lines > 400}


def test_every_package_is_listed_and_exists() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    folders = {".".join(init.parent.relative_to(ROOT).parts) for init in LIBRARY.rglob("__init__.py")} | MAPPED.keys()
    assert listed == folders
    with_code = {path.parent for path in LIBRARY.rglob("*.py")}
    assert not [folder for folder in with_code if not (folder / "__init__.py").is_file()]
    mapping = PROJECT["tool"]["setuptools"]["package-dir"]
    assert {package: ROOT / folder for package, folder in mapping.items()} == MAPPED
    assert all((folder / "__init__.py").is_file() for folder in MAPPED.values())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources, so that nothing is left in the project's folder."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    for name in ("fedsam_pipeline", "plans", "entrypoints"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(sources)], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_carries_every_module_and_every_plan(unpacked: Path) -> None:
    expected = {path.relative_to(ROOT) for path in LIBRARY.rglob("*.py")} | {Path("fedsam_pipeline/py.typed")}
    expected |= {path.relative_to(ROOT) for pattern in ("licences/*.txt", "templates/*", "app/*.toml") for path in LIBRARY.rglob(pattern)}
    for package, folder in MAPPED.items():
        expected |= {Path(*package.split(".")) / path.relative_to(folder) for path in [*folder.rglob("*.py"), *folder.rglob("*.toml")]}
    found = {path.relative_to(unpacked) for path in unpacked.rglob("*") if path.is_file() and ".dist-info" not in str(path)}
    assert found == expected
    for name in ("plans/rules.toml", "plans/recipes/flap_sam.toml", "entrypoints/train_federated.py"):
        assert Path("fedsam_pipeline") / name in found


def test_the_wheel_has_the_commands_and_the_licence(unpacked: Path) -> None:
    (info,) = unpacked.glob("*.dist-info")
    scripts = ConfigParser()
    scripts.read(info / "entry_points.txt")
    assert dict(scripts["console_scripts"]) == PROJECT["project"]["scripts"]
    assert (info / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_wheel_works_without_the_sources(unpacked: Path, tmp_path: Path) -> None:
    code = """
import fedsam_pipeline.plans, fedsam_pipeline.entrypoints.download_weights as command
from fedsam_pipeline.planning.thresholds import load_thresholds
from fedsam_pipeline.specs.recipe import load_recipe, recipe_names
print(fedsam_pipeline.__file__, fedsam_pipeline.plans.__file__, command.__file__, sep="\\n")
[load_recipe(name) for name in recipe_names()]
load_thresholds()
"""
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_relative_to(unpacked) for line in done.stdout.split())


def test_the_editable_install_finds_the_mapped_folders() -> None:
    code = "import fedsam_pipeline.plans as p, fedsam_pipeline.entrypoints as e; print(p.__file__, e.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(sys.prefix), capture_output=True, text=True, check=True)
    assert [Path(file).parent for file in done.stdout.split()] == [ROOT / "plans", ROOT / "entrypoints"]
