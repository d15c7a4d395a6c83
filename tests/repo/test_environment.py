"""The files that describe the environment agree with each other, with the installation and with the code's imports."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("app", "callbacks", "datamodules", "models")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Requirements that we use through another library: the name in our code or configuration that needs them.
USED_THROUGH = {
    "jsonargparse": r"\bLightningCLI\b",
    "rich": r"\bRich(ProgressBar|ModelSummary)\b",
    "tensorboard": r"\bTensorBoardLogger\b|\btorch\.utils\.tensorboard\b",
}


def by_name(lines: list[str]) -> dict[str, Requirement]:
    requirements = [Requirement(line) for line in lines]
    named = {canonicalize_name(requirement.name): requirement for requirement in requirements}
    assert len(named) == len(requirements), "a package is listed twice"
    return named


def pinned(text: str) -> dict[str, Requirement]:
    return by_name(re.findall(r"^[^#\s].*$", text, flags=re.MULTILINE))


RUNTIME_TEXT, DEVELOPMENT_TEXT = (ROOT / "requirements.txt").read_text(encoding="utf-8").split("\n# Development tools:")
RUNTIME_PINS, DEVELOPMENT_PINS = pinned(RUNTIME_TEXT), pinned(DEVELOPMENT_TEXT)
PINS = RUNTIME_PINS | DEVELOPMENT_PINS
RUNTIME_RANGES = by_name(PYPROJECT["project"]["dependencies"])
RANGES = RUNTIME_RANGES | by_name(PYPROJECT["dependency-groups"]["dev"])


def pinned_version(name: str) -> Version:
    (specifier,) = PINS[name].specifier
    assert specifier.operator == "==", f"{name} is not pinned to one version"
    return Version(specifier.version)


def third_party_imports() -> set[str]:
    names = set()
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.partition(".")[0])
    distributions = packages_distributions()
    return {distributions[name][0].lower() for name in names - set(sys.stdlib_module_names) - set(PACKAGES)}


def test_requirements_and_pyproject_list_the_same_packages():
    assert RUNTIME_PINS.keys() == RUNTIME_RANGES.keys()
    assert PINS.keys() == RANGES.keys()
    assert {name: pin.extras for name, pin in PINS.items()} == {name: wanted.extras for name, wanted in RANGES.items()}


@pytest.mark.parametrize("name", PINS)
def test_pin_lies_in_its_range_and_is_what_is_installed(name):
    assert pinned_version(name) in RANGES[name].specifier
    installed = Version(version(name)).public  # without a build's label, as in 2.13.0+cpu
    assert installed == str(pinned_version(name)), "run `make test`: it installs what requirements.txt says"


@pytest.mark.parametrize("malicious", ["2.6.2", "2.6.3"])
def test_malicious_lightning_uploads_are_excluded(malicious):
    assert Version(malicious) not in RANGES["lightning"].specifier
    assert Version(malicious) not in PINS["lightning"].specifier


def test_conda_environment_takes_its_pins_from_requirements():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert [entry for entry in dependencies if isinstance(entry, dict)] == [{"pip": ["-r requirements.txt"]}]
    assert {re.split(r"[<>=]", entry)[0] for entry in dependencies if isinstance(entry, str)} == {"python", "pip"}


def test_python_floor_is_the_same_everywhere():
    floor = PYPROJECT["project"]["requires-python"].removeprefix(">=")
    major, minor = floor.split(".")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"- python>={floor}\n" in (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert PYPROJECT["tool"]["mypy"]["python_version"] == floor
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{major}{minor}"
    assert set(re.findall(r"version_info < \((\d+), (\d+)\)", makefile)) == {(major, minor)}
    assert f"needs Python {floor} or newer" in makefile
    assert sys.version_info >= (int(major), int(minor))


def test_the_version_is_the_same_everywhere_and_told_without_torch():
    program = "import sys; from app.__main__ import main; main(['--version']); print('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.stdout == f"greenhouse {PYPROJECT['project']['version']}\nFalse\n"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PYPROJECT["project"]["version"]


def test_continuous_integration_runs_the_oldest_python_and_a_newer_one():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["test"]
    assert PYPROJECT["project"]["requires-python"] == f">={job['strategy']['matrix']['python'][0]}"
    assert len(job["strategy"]["matrix"]["python"]) > 1
    assert (ROOT / ".ci/run").read_text(encoding="utf-8").strip().endswith("make test")
    assert ".ci/run" in [step.get("run") for step in job["steps"]]


def test_every_third_party_import_is_a_runtime_requirement():
    assert third_party_imports() <= RUNTIME_PINS.keys()


def test_every_runtime_requirement_is_used():
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in {".py", ".yaml"}]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    indirect = {name for name, usage in USED_THROUGH.items() if re.search(usage, text)}
    assert RUNTIME_PINS.keys() - third_party_imports() - indirect == set()


def test_no_file_names_a_package_index():
    for name in ("requirements.txt", "environment.yml", "pyproject.toml", "Makefile"):
        assert "index-url" not in (ROOT / name).read_text(encoding="utf-8")
