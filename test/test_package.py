"""The package's files: consistent metadata, and everything that a user of the installed package needs."""
from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml
from ament_index_python.packages import get_package_prefix, get_package_share_directory, get_resource

import sam3d_ros
from sam3d_ros.doctor_checks import LIBRARIES

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "sam3d_ros").rglob("*.py"))
EXECUTABLES = ("grasp_consumer", "sam3d", "sam3d_node", "simulated_camera", "tabletop_segmenter")
ROS_PACKAGES = {"ament_index_python", "cv_bridge", "launch", "launch_ros", "rclpy"}
# Module -> distribution, where the names differ.
DISTRIBUTIONS = {"PIL": "pillow", "skimage": "scikit-image",
                 "yaml": "pyyaml", "igl": "libigl",
                 "lightning_fabric": "lightning-fabric"}


def imported_modules(file: Path) -> set[str]:
    """Top-level names of the modules that a file imports absolutely, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def is_ros_package(module: str) -> bool:
    return module in ROS_PACKAGES or module.endswith(("_msgs", "_srvs", "_interfaces"))


def pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text()


def listed_distributions(name: str) -> set[str]:
    """Distributions of a list in pyproject.toml, without their versions."""
    [entries] = re.findall(rf"^{name} = \[(.*?)\]$", pyproject(), re.MULTILINE | re.DOTALL)
    return set(re.findall(r'"([\w-]+)', entries))


def test_version_is_the_same_everywhere():
    manifest = ElementTree.parse(ROOT / "package.xml").getroot()
    assert manifest.findtext("version") == sam3d_ros.__version__
    assert re.search(r'^version = "(.*)"$', pyproject(), re.MULTILINE)[1] == sam3d_ros.__version__


def test_manifest_names_every_ros_package_that_is_imported():
    manifest = ElementTree.parse(ROOT / "package.xml").getroot()
    declared = {element.text for element in manifest if element.tag in ("depend", "exec_depend")}
    imported = set().union(*map(imported_modules, [*SOURCES, *ROOT.glob("launch/*.py")]))
    assert {module for module in imported if is_ros_package(module)} <= declared | {"builtin_interfaces"}


def test_every_other_import_is_a_declared_dependency():
    imported = set().union(*map(imported_modules, [*SOURCES, *ROOT.glob("launch/*.py")]))
    foreign = {DISTRIBUTIONS.get(module, module) for module in imported - sys.stdlib_module_names - {"sam3d_ros"}
               if not is_ros_package(module)}
    declared = listed_distributions("dependencies") | listed_distributions("train")
    # imported through torch.utils.tensorboard
    indirect = {"tensorboard"}
    assert foreign == {name for name in declared - indirect if not name.startswith("ros-")}


def test_only_training_needs_what_training_installs():
    """Benchmarks, grasp planning and the simulated cameras work in an environment without the extra `train`."""
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in SOURCES
               if not {"training", "models", "__init__.py"} & set(file.relative_to(ROOT / "sam3d_ros").parts)
               and file != ROOT / "sam3d_ros" / "synth" / "sdf.py"]
    absent = sorted({"igl", "lightning_fabric", "tensorboard", "torch"})
    code = (f"import importlib, sys\nsys.modules.update(dict.fromkeys({absent}))\n"
            f"for name in {modules}:\n    importlib.import_module(name)")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr


def test_interfaces_are_all_generated():
    listed = set(re.findall(r"(?:msg|action)/\w+\.(?:msg|action)", (ROOT / "CMakeLists.txt").read_text()))
    assert listed == {str(file.relative_to(ROOT)) for kind in ("msg", "action") for file in ROOT.glob(f"{kind}/*")}


@pytest.mark.parametrize(("forbidden", "allowed_in"), [
    ("rclpy", ("nodes", "ros")),
    ("torch", ("models", "training")),
    ("pickle", ()),
])
def test_imports_keep_to_their_layer(forbidden, allowed_in):
    importing = [file.relative_to(ROOT / "sam3d_ros") for file in SOURCES if forbidden in imported_modules(file)]
    assert [file for file in importing if file.parts[0] not in allowed_in] == []


# Folder -> folders of this package that it may import from: the way of the data, and nothing back.
USES = {
    "runtime": {"models"},                 # only for the engine in PyTorch
    "models": {"runtime", "terminal"},     # the signature of the graph; what a user is told who lacks the backbone
    "perception": {"runtime"},
    "scene": {"perception"},
    "grasping": {"perception"},
    "synth": {"perception"},
    "ros": {"perception", "runtime", "scene", "msg", "action"},
}


@pytest.mark.parametrize("folder", USES)
def test_folders_are_used_in_one_direction(folder):
    used = set()
    for file in (ROOT / "sam3d_ros" / folder).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                if node.level == 2:
                    used |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
                elif node.level == 0 and node.module.startswith("sam3d_ros."):
                    used.add(node.module.split(".")[1])
    assert used - {folder, "__version__"} <= USES[folder]


def test_compiled_code_depends_on_its_own_file_alone():
    """Numba keeps what it has compiled until that file changes, with the functions and constants of others in it."""
    for file in SOURCES:
        source = ast.parse(file.read_text())
        ours = {alias.asname or alias.name for node in ast.walk(source) if isinstance(node, ast.ImportFrom)
                and (node.level or (node.module or "").startswith("sam3d_ros")) for alias in node.names}
        for function in (node for node in ast.walk(source) if isinstance(node, ast.FunctionDef)):
            if any("njit" in ast.unparse(d) or "_compiled" in ast.unparse(d) for d in function.decorator_list):
                used = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
                used -= {argument.arg for argument in function.args.args}
                assert not used & ours, f"{file}: {function.name}"


@pytest.mark.parametrize("name", EXECUTABLES)
def test_executable_is_installed_where_ros2_run_looks(name):
    executable = Path(get_package_prefix("sam3d_ros"), "lib", "sam3d_ros", name)
    assert os.access(executable, os.X_OK)
    assert executable.read_text().startswith("#!/usr/bin/env python3\n")


@pytest.mark.parametrize("file", [
    *(str(file.relative_to(ROOT)) for folder in ("launch", "config") for file in sorted((ROOT / folder).glob("*.*"))),
    "package.xml", "msg/ObjectMesh.msg", "action/Reconstruct.action"])
def test_share_holds(file):
    assert Path(get_package_share_directory("sam3d_ros"), file).exists()


def test_package_is_in_the_ament_index():
    assert get_resource("packages", "sam3d_ros")
    assert "msg/ObjectMesh.msg" in get_resource("rosidl_interfaces", "sam3d_ros")[0]


def test_the_doctor_looks_for_every_library_that_the_node_imports():
    folders = [ROOT / "sam3d_ros" / name for name in ("perception", "scene")]
    imported = set().union(*(imported_modules(file) for folder in folders for file in folder.glob("*.py")))
    optional = {"coacd"}
    needed = {library.module for library in LIBRARIES if library.needed}
    assert imported - set(sys.stdlib_module_names) - {"sam3d_ros"} - optional <= needed


def test_an_executable_without_a_package_of_pip_says_what_to_do(tmp_path):
    """As on a robot where ROS is installed, and nothing else."""
    (tmp_path / "numba.py").write_text("raise ModuleNotFoundError(\"No module named 'numba'\", name='numba')")
    executable = tmp_path / "sam3d_node"
    template = (ROOT / "cmake" / "executable.in").read_text()
    executable.write_text(template.replace("@EXECUTABLE_MODULE@", "sam3d_ros.nodes.sam3d_node"))
    environment = {name: value for name, value in os.environ.items() if name != "_ROS_WHEELS_BOOTSTRAP_COMPLETE"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    run = subprocess.run([sys.executable, executable], capture_output=True, text=True, timeout=60, env=environment)
    assert run.returncode == 1
    assert run.stderr.startswith("sam3d_ros: error: the Python package numba is not installed: `sam3d doctor`")
    assert "Traceback" not in run.stderr


def test_installed_command_runs_outside_of_the_source_tree(tmp_path):
    prefix = get_package_prefix("sam3d_ros")
    environment = {name: value for name, value in os.environ.items() if name != "_ROS_WHEELS_BOOTSTRAP_COMPLETE"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    # The source tree, if it is there, must not stand in for what is installed.
    environment["PYTHONPATH"] = os.pathsep.join(
        part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part and Path(part).resolve() != ROOT)
    run = subprocess.run([Path(prefix, "lib", "sam3d_ros", "sam3d"), "--version"], cwd=tmp_path, env=environment,
                         capture_output=True, text=True, check=False, timeout=60)
    assert run.stdout == f"sam3d_ros {sam3d_ros.__version__}\n", run.stderr


def test_the_shipped_model_is_installed():
    packages = [Path(folder) for folder in sam3d_ros.__path__]
    installed = [folder for folder in packages if folder != ROOT / "sam3d_ros"]
    assert [folder for folder in installed if (folder / "weights" / "base.onnx").exists()] == installed


def test_requirements_for_a_ros_machine_are_dependencies():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {re.match(r"[\w-]+", line)[0] for line in lines if not line.startswith("#")}
    assert required <= listed_distributions("dependencies")


def test_no_image_takes_in_what_is_built_beside_the_sources():
    built = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line.startswith("/")}
    assert built | {".git"} <= set((ROOT / ".dockerignore").read_text().splitlines())


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.yaml")) + [ROOT / ".github/workflows/ci.yml"],
                         ids=lambda file: file.name)
def test_yaml_files_are_valid(file):
    assert yaml.safe_load(file.read_text())
