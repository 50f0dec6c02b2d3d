"""Who imports whom: the seams of the house, and what --version and --help do without."""

from __future__ import annotations

import ast
import configparser
import functools
import importlib.metadata
import importlib.resources
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import owm_outbox
import owm_outbox_backends

from support.commands import environment

FRAMEWORK = Path(owm_outbox.__file__).parent
BACKENDS = Path(owm_outbox_backends.__file__).parent
HEAVY = {"opentelemetry", "prometheus_client", "pybreaker", "redis", "requests", "sqlite_utils", "tenacity", "tqdm"}


def _modules() -> dict[str, Path]:
    """Return all modules that we ship, by name."""
    found = {}
    for package, root in (("owm_outbox", FRAMEWORK), ("owm_outbox_backends", BACKENDS)):
        for path in sorted(root.rglob("*.py")):
            parts = (package, *path.relative_to(root).with_suffix("").parts)
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = _modules()


@functools.cache
def _tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text("utf-8"))


def _imports(module: str) -> Iterator[tuple[str, str | None]]:
    """Yield what a module imports, wherever in it: the full name of the module, and the name taken from it."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            origin = importlib.util.resolve_name(name, package) if node.level else name
            yield from ((origin, alias.name) for alias in node.names)


def _importers(package: str) -> set[str]:
    """Return our modules that import from a package."""
    return {module for module in MODULES if any(name.partition(".")[0] == package for name, _ in _imports(module))}


def _defined(module: str) -> dict[str, ast.stmt]:
    """Return what a module defines or imports at its top, by name; none of them need be importable here."""
    found: dict[str, ast.stmt] = {}
    todo = list(_tree(module).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If):  # imports for type checkers
            todo += node.body
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id: node for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


def _public(module: str) -> list[str] | None:
    """Return a module's ``__all__``."""
    node = _defined(module).get("__all__")
    assert node is None or isinstance(node, ast.Assign)
    return None if node is None else list(ast.literal_eval(node.value))


@pytest.mark.parametrize(
    ("command", "flag", "unwanted"),
    [
        ("producer", "--version", HEAVY | {"owm_outbox_backends", "stevedore"}),
        ("producer", "--help", HEAVY | {"owm_outbox_backends"}),
        ("main", "--version", HEAVY | {"owm_outbox_backends", "stevedore"}),
        ("main", "--help", HEAVY | {"owm_outbox_backends", "stevedore"}),
    ],
)
def test_help_and_version_do_without_heavy_packages(command: str, flag: str, unwanted: set[str]) -> None:
    """A command that only tells about itself loads none of the packages that take long to import."""
    code = (
        "import atexit, json, sys\n"
        "from owm_outbox import cli\n"
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
        f"sys.argv = ['owm', {flag!r}]\n"
        f"cli.{command}()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith(("owm", "Usage: owm"))
    loaded = {name.partition(".")[0] for name in json.loads(done.stderr)}
    assert {"click", "owm_outbox"} <= loaded
    assert not unwanted & loaded


def test_the_framework_knows_no_backend() -> None:
    """Nothing in owm_outbox imports a plugin: entry points are the only tie."""
    assert {name.partition(".")[0] for name in _importers("owm_outbox_backends")} <= {"owm_outbox_backends"}


def test_only_one_module_imports_stevedore() -> None:
    """How plugins are found is the business of one module."""
    assert _importers("stevedore") == {"owm_outbox.plugins"}


def test_backends_use_only_what_a_third_party_may() -> None:
    """A backend imports public names of owm_outbox itself, none of its modules."""
    taken = {
        (module, origin, name)
        for module in MODULES
        if module.startswith("owm_outbox_backends")
        for origin, name in _imports(module)
        if origin.partition(".")[0] == "owm_outbox"
    }
    assert {origin for _, origin, _ in taken} <= {"owm_outbox", "owm_outbox.testing"}
    assert {name for _, origin, name in taken if origin == "owm_outbox"} <= set(owm_outbox.__all__)
    testing = {module for module, origin, _ in taken if origin == "owm_outbox.testing"}
    assert testing
    assert all(module.endswith("scratch") for module in testing)


def test_backends_do_not_know_each_other() -> None:
    """No backend imports another: each is a module, or a package, of its own. Only what the kit needs knows two."""
    backends = {_backend(module) for module in MODULES if module.startswith("owm_outbox_backends.")}
    assert len(backends - {"scratch"}) >= 5
    for module in MODULES:
        if module.startswith("owm_outbox_backends.") and module != "owm_outbox_backends.scratch":
            imported = {_backend(origin) for origin, _ in _imports(module) if origin.startswith("owm_outbox_backends")}
            assert imported <= {_backend(module)}, module


def _backend(module: str) -> str:
    return module.split(".")[1]


def test_only_the_edge_reads_the_environment() -> None:
    """Behind the commands nothing looks at environment variables; only the kit, to see whether a job does."""
    readers = {
        module
        for module in MODULES
        for node in ast.walk(_tree(module))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv")
    }
    assert {reader for reader in readers if not reader.startswith("owm_outbox.cli.")} == {
        "owm_outbox.testing.job_surroundings"
    }


@pytest.mark.parametrize("module", sorted(MODULES))
def test_public_names_are_sorted_and_exist(module: str) -> None:
    """``__all__`` has each name once, constants first, then classes, then functions; a module without is empty."""
    names = _public(module)
    if names is None:
        assert [type(node) for node in _tree(module).body] == [ast.Expr], "more than a docstring, but no __all__"
        return
    assert names == sorted(set(names), key=lambda name: (not name.isupper(), not name[:1].isupper(), name))
    assert set(names) <= set(_defined(module))


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_take_only_public_names_of_each_other(module: str) -> None:
    """What one of our modules imports from another is in that one's ``__all__``, or a module itself."""
    for origin, name in _imports(module):
        if origin in MODULES and name is not None and f"{origin}.{name}" not in MODULES:
            assert name in (_public(origin) or ()), f"{origin}.{name}"


@pytest.mark.parametrize(
    ("package", "file"),
    [
        ("owm_outbox", "py.typed"),
        ("owm_outbox_backends", "py.typed"),
        ("owm_outbox_backends.redis_stream", "send.lua"),
        ("owm_outbox.operations", "page.html.in"),
    ],
)
def test_what_is_no_code_is_shipped_too(package: str, file: str) -> None:
    """Both packages say that they are typed, and the script lies beside its sink, wherever they are installed."""
    assert importlib.resources.files(package).joinpath(file).is_file()


def test_no_import_goes_in_a_circle() -> None:
    """What a module imports, also for annotations only, never leads back to it."""
    arrows = {
        module: {
            name
            for origin, taken in _imports(module)
            for name in (origin, f"{origin}.{taken}")
            if name in MODULES and name != module and MODULES[name].name != "__init__.py"
        }
        for module in MODULES
    }

    def reachable(module: str) -> set[str]:
        found: set[str] = set()
        todo = [module]
        while todo:
            new = arrows[todo.pop()] - found
            found |= new
            todo += new
        return found

    assert not [module for module in MODULES if module in reachable(module)]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_file_is_too_long_to_read_in_one_sitting(module: str) -> None:
    """Some 300 lines for a part of the engine, 400 for a backend."""
    limit = 410 if module.startswith("owm_outbox_backends") else 310
    assert len(MODULES[module].read_text("utf-8").splitlines()) <= limit


def test_the_lowest_versions_are_those_that_are_declared() -> None:
    """What ``tox -e lowest`` installs is exactly what setup.cfg names as the minimum of each dependency."""
    root = Path(__file__).parent.parent.parent
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    declared = {line.replace("[hiredis]", "") for line in config["options"]["install_requires"].split()}
    extras = config["options.extras_require"]
    for extra in ("metrics", "nats", "otel", "postgresql"):
        declared |= set(extras[extra].split())
    # The SDK of the tests has to have the version of the API.
    declared |= {line for line in extras["test"].split() if line.startswith("opentelemetry")}
    lines = (root / "tests" / "lowest.txt").read_text("utf-8").splitlines()
    tested = [line.partition("==") for line in lines if not line.startswith("#")]
    padded = {name: version.removesuffix(".0") if version.count(".") > 1 else version for name, _, version in tested}
    assert {f"{name}>={version}" for name, version in padded.items()} == declared
