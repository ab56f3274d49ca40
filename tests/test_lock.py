"""`constraints.txt` and `constraints-oldest.txt` hold one tested version of everything that is installed."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCK, OLDEST, DATA = ROOT / "constraints.txt", ROOT / "constraints-oldest.txt", ROOT / "requirements-data.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [
    Requirement(line)
    for lines in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for line in lines
]
PYTHONS = ["3.11", "3.12"]


def linux(python):
    """Where marks are evaluated."""
    system = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"}
    return default_environment() | system | {"python_version": python, "python_full_version": f"{python}.0"}


def read(file):
    lines = (line.split("#")[0].strip() for line in file.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def pins(file, python):
    found = {}
    for pin in read(file):
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and "*" not in specifier.version, pin
        if pin.marker is None or pin.marker.evaluate(linux(python)):
            assert canonicalize_name(pin.name) not in found, f"{file.name} has {pin.name} twice"
            found[canonicalize_name(pin.name)] = Version(specifier.version)
    return found


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("file", [LOCK, OLDEST], ids=lambda file: file.name)
def test_direct_dependencies_are_pinned_in_their_ranges(file, python):
    found = pins(file, python)
    for wanted in DIRECT:
        assert canonicalize_name(wanted.name) in found, f"{file.name} lacks {wanted}; run `make lock`"
        assert found[canonicalize_name(wanted.name)] in wanted.specifier, f"{file.name}: {wanted}; run `make lock`"


def test_oldest_are_those_that_the_project_says_it_supports():
    oldest = pins(OLDEST, "3.11")
    for name in ("torch", "triton", "diffusers", "transformers"):
        (bound,) = next(wanted.specifier for wanted in DIRECT if wanted.name == name)
        assert bound.operator == ">=" and Version(bound.version) == oldest[canonicalize_name(name)]


def test_packages_of_data_are_pinned_alike():
    found, data = pins(LOCK, "3.11"), pins(DATA, "3.11")
    assert data and {name: found.get(name) for name in data} == data


@pytest.mark.parametrize("file", [LOCK, OLDEST], ids=lambda file: file.name)
def test_a_lock_names_no_place_and_no_build(file):
    """Wheels come from wherever a user's pip looks, torch's CPU builds among them."""
    assert not re.search(r"://|--|\+|@|sha256", file.read_text())


@pytest.mark.parametrize("python", PYTHONS)
def test_what_is_needed_indirectly_is_pinned_too(python):
    found = pins(LOCK, python)
    missing = {f"{need.name} of {name}" for name, need in walk(python) if canonicalize_name(need.name) not in found}
    assert not missing, f"constraints.txt lacks {sorted(missing)}; run `make lock`"


def walk(python):
    """What the installed packages say they need, from this project's dependencies on."""
    environment = linux(python)
    waiting = [("psa-triton", wanted) for wanted in DIRECT]
    seen = set()
    while waiting:
        by, need = waiting.pop()
        yield by, need
        extras = frozenset(need.extras)
        if (need.name, extras) in seen:
            continue
        seen.add((need.name, extras))
        try:
            lines = metadata.requires(need.name) or []
        except metadata.PackageNotFoundError:
            continue  # for another Python than this
        for following in map(Requirement, lines):
            marker = following.marker
            if marker is None or any(marker.evaluate(environment | {"extra": extra}) for extra in ["", *extras]):
                waiting.append((need.name, following))


@pytest.mark.parametrize("target", ["lock", "test", "test-newest", "test-oldest"])
def test_how_to_renew_and_to_use_it_is_documented(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f"`make {target}`" in (ROOT / "CONTRIBUTING.md").read_text()
