"""The files that set the project up: what can be said of them without installing anything."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipelines.settings import PROJECT_ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PHOTO_SUFFIXES = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp")
BINARY_SUFFIXES = (*PHOTO_SUFFIXES, "h5", "onnx", "dat", "npy", "npz", "pt", "pb", "tflite", "zip", "whl")


def pyproject():
    return tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())


def pins():
    lines = (PROJECT_ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def environment(python, platform="linux"):
    return {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": platform,
        "platform_system": "Linux",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }


def tracked_files():
    if not (PROJECT_ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git clone, or no git here, so nothing is tracked")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    return [PROJECT_ROOT / name for name in listed.stdout.split("\0") if name and (PROJECT_ROOT / name).is_file()]


# Pins


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_has_one_exact_pin_that_fits(python):
    project = pyproject()["project"]
    declared = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    here = [pin for pin in pins() if pin.marker is None or pin.marker.evaluate(environment(python))]
    versions = {}
    for pin in here:
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert "*" not in specifier.version
        assert canonicalize_name(pin.name) not in versions, f"{pin.name} is pinned twice"
        versions[canonicalize_name(pin.name)] = specifier.version
    for text in declared:
        requirement = Requirement(text)
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier, text


def test_no_pin_names_a_place():
    assert [pin.name for pin in pins() if pin.url] == []
    assert not re.search(r"^\s*-|://", (PROJECT_ROOT / "constraints.txt").read_text(), re.MULTILINE)


# What is in the repository


@pytest.mark.skipif(shutil.which("git") is None, reason="asks git, which is not installed")
def test_photos_are_ignored_by_git(tmp_path):
    shutil.copy(PROJECT_ROOT / ".gitignore", tmp_path)
    git = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True, env=git)
    photos = [f"photos/a/b/photo.{suffix}" for suffix in (*PHOTO_SUFFIXES, "JPG", "HEIC")]
    checked = subprocess.run(
        ["git", "check-ignore", *photos], cwd=tmp_path, capture_output=True, text=True, check=False, env=git
    )
    assert checked.stdout.split() == photos


def test_no_photo_or_weights_file_is_tracked():
    assert [path.name for path in tracked_files() if path.suffix.lower().lstrip(".") in BINARY_SUFFIXES] == []


def test_tracked_files_are_text():
    assert [path.name for path in tracked_files() if b"\0" in path.read_bytes()] == []


def test_no_tracked_file_names_a_place_of_one_machine():
    machine_paths = r"(?<![\w.$}])/(?:work|root|opt|Users|home/\w+)/\w"
    # Of a registry only its packages' names are said: each machine has its own way to it.
    registries = "|".join(
        ("pypi" + r"\.org", "pythonhosted" + r"\.org", "registry" + r"\.npmjs", "extra-index" + "-url")
    )
    found = [
        f"{path.relative_to(PROJECT_ROOT)}: {match.group()}"
        for path in tracked_files()
        for match in re.finditer(f"{machine_paths}|{registries}", path.read_text(encoding="utf-8"))
    ]
    assert found == []


# How Dagster finds the code


def test_workspace_and_dg_load_the_same_code_location_under_one_name():
    (location,) = yaml.safe_load((PROJECT_ROOT / "workspace.yaml").read_text())["load_from"]
    dg = pyproject()["tool"]["dg"]["project"]
    assert location["python_module"] == {
        "module_name": dg["code_location_target_module"],
        "location_name": dg["code_location_name"],
    }


# Make, and the script that makes .venv


def test_ci_ends_with_make_test_and_runs_no_test_by_itself():
    script = (PROJECT_ROOT / ".ci" / "run").read_text()
    assert re.search(r"\bmake test\n$", script)
    assert "pytest" not in script


def test_make_test_runs_linter_formatter_types_definitions_and_all_tests():
    shown = subprocess.run(
        ["make", "--dry-run", "test"], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    python = ".venv/bin/python -m"
    assert [line.strip() for line in shown if line.startswith(".venv")] == [
        f"{python} ruff check",
        f"{python} ruff format --check",
        f"{python} mypy",
        ".venv/bin/dg check defs",
        f"{python} pytest -n logical --maxprocesses 4 --dist worksteal",
    ]


PYTHON_STUB = """#!/bin/sh
# A Python that can only say its version, "install" and make a .venv with itself in it.
echo "$*" >>"$CALLS"
case "$*" in
*"-m pip"*) [ -z "${NO_REGISTRY:-}" ] || { echo no registry; exit 1; } ;;
*"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
*-c*) echo 3.11 ;;
esac
"""


class Clone:
    """A clone with the script and what it reads, a PATH of our own, and no other environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a clone"
        self.commands = folder / "bin"
        self.calls = folder / "calls"
        (self.folder / "tools").mkdir(parents=True)
        for name in ("pyproject.toml", "constraints.txt", "tools/bootstrap.sh"):
            shutil.copy(PROJECT_ROOT / name, self.folder / name)
        self.commands.mkdir()
        for name in ("sh", "sed", "env", "cat", "cksum", "dirname", "rm", "mkdir", "cp", "tail"):
            (self.commands / name).symlink_to(shutil.which(name) or name)

    def add_python(self, name: str, script: str) -> None:
        (self.commands / name).write_text(script)
        (self.commands / name).chmod(0o755)

    def bootstrap(self, **variables: str) -> subprocess.CompletedProcess:
        self.calls.write_text("")
        return subprocess.run(
            [str(self.commands / "sh"), "tools/bootstrap.sh"],
            cwd=self.folder,
            env={"PATH": str(self.commands), "CALLS": str(self.calls), **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    def made_venv(self) -> bool:
        return "-m venv" in self.calls.read_text()

    def installed(self) -> bool:
        return "-m pip" in self.calls.read_text()


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def real_python(patch):
    """This interpreter, but for what `patch` changes before it runs the given code."""
    return f"#!/bin/sh\nexec '{sys.executable}' -I -c 'import sys; {patch}; exec(sys.argv[1])' \"$3\"\n"


def test_no_python_is_said_in_one_sentence(clone):
    ended = clone.bootstrap()
    assert ended.returncode == 1
    assert re.fullmatch(r"No Python was found as python3\.11 .* apt-get install python3 python3-venv.*\n", ended.stderr)


@pytest.mark.parametrize("version", ["(3, 9, 18)", "(3, 14, 0)"])
def test_an_unfit_python_is_said_in_one_sentence(clone, version):
    clone.add_python("python3", real_python(f"sys.version_info = {version}"))
    ended = clone.bootstrap()
    assert ended.returncode == 1
    found = ".".join(version.strip("()").split(", ")[:2])
    assert re.fullmatch(
        rf"Python 3\.10 to 3\.13 is needed and 'python3' is Python {re.escape(found)}: .*python3\.11-venv.*\n",
        ended.stderr,
    )


def test_a_missing_venv_module_is_said_in_one_sentence(clone):
    clone.add_python("python3.9", real_python("sys.version_info = (3, 9, 1)"))
    clone.add_python("python3.12", real_python('sys.version_info = (3, 12, 1); sys.modules["ensurepip"] = None'))
    ended = clone.bootstrap()
    assert ended.returncode == 1
    assert ended.stderr == (
        "Python 3.12 ('python3.12') lacks its venv module: install it (Debian and Ubuntu: apt-get install python3.12-venv).\n"
    )


def test_a_command_that_only_looks_like_a_python_is_passed_over(clone):
    clone.add_python("python3.11", "#!/bin/sh\necho 'python3.11: command not found' >&2\nexit 127\n")
    clone.add_python("python3.13", PYTHON_STUB)
    assert clone.bootstrap().returncode == 0


def test_the_second_run_does_nothing(clone):
    clone.add_python("python3", PYTHON_STUB)
    assert clone.bootstrap().returncode == 0
    assert clone.made_venv()
    second = clone.bootstrap()
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert not clone.made_venv()
    assert not clone.installed()


def test_changed_pins_renew_the_venv_that_is_there(clone):
    clone.add_python("python3", PYTHON_STUB)
    clone.bootstrap()
    with (clone.folder / "constraints.txt").open("a") as constraints:
        constraints.write("another==1.0\n")
    assert clone.bootstrap().returncode == 0
    assert clone.installed()
    assert not clone.made_venv()


def test_an_interrupted_install_is_begun_anew(clone):
    clone.add_python("python3", PYTHON_STUB)
    failed = clone.bootstrap(NO_REGISTRY="1")
    assert failed.returncode == 1
    assert failed.stderr.startswith("no registry\nInstalling packages failed")
    assert clone.bootstrap().returncode == 0
    assert clone.made_venv()


def test_a_moved_clone_gets_a_new_venv(clone):
    clone.add_python("python3", PYTHON_STUB)
    clone.bootstrap()
    clone.folder = clone.folder.rename(clone.folder.with_name("moved"))
    assert clone.bootstrap().returncode == 0
    assert clone.made_venv()


def test_a_venv_whose_python_is_gone_is_made_anew(clone):
    clone.add_python("python3", PYTHON_STUB)
    clone.bootstrap()
    (clone.folder / ".venv" / "bin" / "python").unlink()
    assert clone.bootstrap().returncode == 0
    assert clone.made_venv()


def test_settings_of_other_projects_do_not_reach_pip_but_the_way_to_packages_does(clone):
    clone.add_python("python3", PYTHON_STUB.replace('echo "$*"', "env"))
    clone.bootstrap(
        PIP_TARGET="elsewhere", PIP_NO_DEPS="0", PYTHONPATH="elsewhere", PIP_INDEX_URL="here", PIP_CERT="cert"
    )
    seen = clone.calls.read_text()
    assert "elsewhere" not in seen
    assert "PIP_NO_DEPS" not in seen
    assert "PIP_INDEX_URL=here" in seen
    assert "PIP_CERT=cert" in seen
