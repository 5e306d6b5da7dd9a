"""pyproject.toml, requirements.lock, environment.yml and what is installed must agree."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = CONFIGURATION["project"]
FILE_ONLY = CONFIGURATION["tool"]["xlcore"]["file-only"]
DIRECT = [Requirement(text) for text in PROJECT["dependencies"]]
TOOLS = [Requirement(text) for text in PROJECT["optional-dependencies"]["dev"]]
NAMED = ["jupyterlab", "papermill", "torch", "transformers", "datasets", "peft", "matplotlib"]
NAMED += ["jupytext"]


def lock_lines() -> list[Requirement]:
    """Return the lock's requirements in file order."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pins(requirements: list[Requirement]) -> dict[str, str]:
    """Return the pinned version by canonical package name."""
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in requirements}


def conda() -> dict:
    """Return environment.yml."""
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def conda_pip() -> list[str]:
    """Return the lines that environment.yml hands to pip."""
    return next(item["pip"] for item in conda()["dependencies"] if isinstance(item, dict))


@pytest.mark.parametrize("requirement", DIRECT + TOOLS, ids=lambda r: r.name)
def test_lock_satisfies_pyproject(requirement: Requirement) -> None:
    assert pins(lock_lines())[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("requirement", DIRECT + TOOLS, ids=lambda r: r.name)
def test_installed_version_satisfies_pyproject(requirement: Requirement) -> None:
    if requirement.marker and not requirement.marker.evaluate():
        pytest.skip(f"not for this system: {requirement.marker}")
    assert requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)


@pytest.mark.parametrize("pin", FILE_ONLY)
def test_packages_of_which_one_file_is_read_are_locked(pin: str) -> None:
    assert pin in map(str, lock_lines())


def test_installer_lets_a_file_only_package_lack_what_it_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    import install

    name = FILE_ONLY[0].split("==")[0]
    wrong = "torch 2.13.0 requires sympy, which is not installed."
    answer = f"{name} 0.3.0 requires another, which is not installed.\n{wrong}\n"
    assert install.complaints(answer) == [wrong]


def test_every_lock_line_is_an_exact_pin() -> None:
    loose = [str(r) for r in lock_lines() if not re.fullmatch(r"==[\w.]+", str(r.specifier))]
    assert loose == []


def test_lock_names_every_package_once() -> None:
    names = [canonicalize_name(r.name) for r in lock_lines()]
    assert names == sorted(set(names))


def test_lock_leaves_the_build_of_torch_open() -> None:
    foreign = [r.name for r in lock_lines() if re.match("nvidia|cuda|triton", r.name)]
    assert foreign == [] and "+" not in pins(lock_lines())["torch"]


@pytest.mark.parametrize("file", ["requirements.lock", "environment.yml", "pyproject.toml"])
def test_no_file_names_a_registry(file: str) -> None:
    assert not re.search(r"://|--(extra-)?index-url|--find-links", (ROOT / file).read_text())


def test_environment_yml_pins_direct_dependencies_as_the_lock_does() -> None:
    listed = [Requirement(line) for line in conda_pip() if not line.startswith("-")]
    locked = pins(lock_lines())
    assert pins(listed) == {name: locked[name] for name in pins(DIRECT + TOOLS)}


def test_environment_yml_constrains_the_rest_by_the_lock() -> None:
    assert "-c requirements.lock" in conda_pip()


def test_environment_yml_python_is_supported() -> None:
    python = next(d for d in conda()["dependencies"] if str(d).startswith("python="))
    assert python.removeprefix("python=") + ".0" in SpecifierSet(PROJECT["requires-python"])


@pytest.mark.parametrize("name", NAMED)
def test_promised_packages_are_direct_dependencies(name: str) -> None:
    assert name in {r.name for r in DIRECT}


def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"\.PHONY: (.*)", makefile).group(1).split()) - {"FORCE"}
    shown = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert phony == set(re.findall(r"^  (\w+) ", shown.stdout, flags=re.MULTILINE))


def test_installer_refuses_an_unsupported_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    import install

    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    with pytest.raises(install.Stop, match=r"Python 3\.10.*needs 3\.11, 3\.12 or 3\.13"):
        install.check_python()
