"""`nanozoo new`: a model package that trains and passes its tests as it is written.

Inside a uv workspace that holds nanozoo-core the package becomes a member of it; anywhere else it
stands alone and depends on the released core. `--undo` removes what was written.
"""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path, PurePath
from string import Template
from typing import TYPE_CHECKING, Any

from nanozoo_core import registry
from nanozoo_core.commands.run_arguments import Commands
from nanozoo_core.config.compose import SETTINGS
from nanozoo_core.errors import ConfigError
from nanozoo_core.files import write_text
from nanozoo_core.machine.paths import path_argument
from nanozoo_core.machine.terminal import out

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

SUFFIX = ".template"
LONGEST_NAME = 30  # longer ones would break the lines of the templates
# Names whose module or class is core's own.
RESERVED = {"core", "control"}
CACHES = {"__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache"}  # of tools: nobody's work


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "new",
        help="write a new model's package, ready to train and to change",
        description="Writes a model package: in this repository's packages/ with a recipe and its "
        "lines in pyproject.toml, elsewhere one that stands alone.",
    )
    parser.add_argument("--undo", action="store_true", help="remove what `new` wrote for the name")
    parser.add_argument(
        "--force", action="store_true", help="with --undo: files that were changed too"
    )
    parser.add_argument("name", help="the model's name, such as my_idea")
    parser.add_argument(
        "--folder", type=path_argument, help="where to put it (packages/ of the workspace, or here)"
    )
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.force and not arguments.undo:
        raise ConfigError("--force belongs to --undo; `nanozoo new` never writes over a file")
    if arguments.undo:
        removed = undo_model(arguments.name, folder=arguments.folder, force=arguments.force)
        out(removed.describe())
    else:
        out(new_model(arguments.name, folder=arguments.folder).describe())


@dataclass(frozen=True)
class NewPackage:
    """Where the package was written and what the user may do with it."""

    folder: Path
    files: tuple[Path, ...]  # written or, in a workspace, changed
    next_commands: tuple[str, ...]

    def describe(self) -> str:
        lines = ["written:", *(f"  {path}" for path in self.files)]
        lines += ["next:", *(f"  {command}" for command in self.next_commands)]
        return "\n".join(lines)


@dataclass(frozen=True)
class RemovedPackage:
    """What was taken away, what was left, and how the environment follows."""

    removed: tuple[Path, ...]
    changed: Path | None  # the workspace's pyproject.toml
    kept: tuple[Path, ...]
    next_command: str

    def describe(self) -> str:
        lines = ["removed:", *(f"  {path}" for path in self.removed)]
        if self.changed is not None:
            lines += ["its lines taken out of:", f"  {self.changed}"]
        if self.kept:
            lines += ["left, as `nanozoo new` did not write them:"]
            lines += [f"  {path}" for path in self.kept]
        return "\n".join([*lines, "next:", f"  {self.next_command}"])


def new_model(name: str, *, folder: Path | None = None) -> NewPackage:
    """Writes the package of model `name` under `folder`.

    Args: folder: None is `packages` of the workspace, and the current folder outside of one.

    Raises: ConfigError for a name that cannot be used, or a place that cannot be written; nothing
        is then written.
    """
    _check_form(name)
    target = _place(name, folder)
    if target.exists():
        raise ConfigError(f"{target} exists already; choose another name or another --folder")
    _check_free(name)
    workspace = _workspace_of(target)
    files = dict(_render_package(target, _values(name, in_workspace=workspace is not None)))
    if workspace is not None:
        files |= _beside_package(workspace, target, name)
        for path in files:
            if path.exists():
                raise ConfigError(f"{path} exists already; choose another name")
        project = _shown(workspace / "pyproject.toml")
        text = project.read_text(encoding="utf-8")
        for heading, line in _workspace_lines(workspace, target, name):
            text = _insert(text, heading, line, project)
        files[project] = text
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror or error}") from error
    return NewPackage(target, tuple(files), _next_commands(name, target, workspace))


def undo_model(name: str, *, folder: Path | None = None, force: bool = False) -> RemovedPackage:
    """Removes what `new_model` wrote with the same arguments; other files stay where they are.

    Args: force: also files that were changed since.

    Raises: ConfigError where the package is not there, or differs from what was written and is not
        forced; nothing is then removed.
    """
    _check_form(name)
    target = _place(name, folder)
    if not (target / "pyproject.toml").is_file():
        raise ConfigError(f"{target} holds no package to remove; --folder names where it lies")
    workspace = _workspace_of(target)
    files = dict(_render_package(target, _values(name, in_workspace=workspace is not None)))
    if workspace is not None:
        files |= _beside_package(workspace, target, name)
    there = {path: text for path, text in files.items() if path.is_file()}
    changed = [path for path, text in there.items() if path.read_bytes() != text.encode("utf-8")]
    if changed and not force:
        names = ", ".join(str(path) for path in changed)
        raise ConfigError(
            f"{names} changed since `nanozoo new` wrote {name}; add --force to remove changed "
            "files too"
        )
    project = None
    if workspace is not None:
        project = _shown(workspace / "pyproject.toml")
        lines = {line for _, line in _workspace_lines(workspace, target, name)}
        kept_lines = project.read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(project, "".join(x for x in kept_lines if x.rstrip("\r\n") not in lines))
    for path in there:
        path.unlink()
    kept = _swept(target)
    dist = _values(name, in_workspace=True)["dist"]
    next_command = f"uv pip uninstall {dist}   # from where it was installed"
    if workspace is not None:
        next_command = "uv sync --all-packages --all-groups   # the lock and the environment follow"
    return RemovedPackage(tuple(there), project, kept, next_command)


def _swept(target: Path) -> tuple[Path, ...]:
    """Removes the caches of tools and every folder that is then empty; the files that are left."""
    for path in [p for p in target.rglob("*") if p.name in CACHES or p.suffix == ".egg-info"]:
        shutil.rmtree(path, ignore_errors=True)
    for path in sorted((p for p in target.rglob("*") if p.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()
    kept = tuple(sorted(path for path in target.rglob("*") if not path.is_dir()))
    if not kept:
        target.rmdir()
    return kept


def _place(name: str, folder: Path | None) -> Path:
    """The package's folder: of the workspace around here, or here."""
    if folder is None:
        root = _workspace_around(Path.cwd())
        folder = Path() if root is None else _shown(root / "packages")
    return folder / name


def _check_form(name: str) -> None:
    """Raises: ConfigError unless `name` can be a model, a module and a label."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or len(name) > LONGEST_NAME:
        plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).lstrip("0123456789_")
        plain = plain[:LONGEST_NAME].rstrip("_")
        hint = f", such as {plain}" if plain else ""
        raise ConfigError(
            f"'{name}' cannot name a model; use lower-case letters, digits and underscores, "
            f"beginning with a letter, {LONGEST_NAME} at most{hint}"
        )
    if keyword.iskeyword(name):
        raise ConfigError(f"'{name}' is a word of Python's own; use another, such as my_{name}")
    if name in SETTINGS or name in RESERVED:
        raise ConfigError(f"'{name}' has a meaning in nanozoo; use another, such as my_{name}")


def _check_free(name: str) -> None:
    """Raises: ConfigError for the name of a module, a distribution or a model that is there."""
    if name in sys.stdlib_module_names or name in ("test", "tests", "setup", "conftest"):
        raise ConfigError(
            f"'{name}' is a module of Python or of its tools; use another, such as my_{name}"
        )
    if name in registry.model_modules() or importlib.util.find_spec(f"nanozoo_{name}"):
        raise ConfigError(f"'{name}' is taken by an installed model; `nanozoo models` lists them")
    if _is_installed(name):
        raise ConfigError(
            f"'{name}' is an installed package of Python; use another, such as my_{name}"
        )


def _is_installed(name: str) -> bool:
    """Whether a module can be imported by this name, or a distribution has it; a folder that lies
    here is neither."""
    if name in metadata.packages_distributions():
        return True
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        spec = importlib.util.find_spec(name)
        return spec is not None and spec.origin is not None
    return True


def _values(name: str, *, in_workspace: bool) -> dict[str, str]:
    return {
        "name": name,
        "dist": f"nanozoo-{name.replace('_', '-')}",
        "Class": "".join(part.capitalize() for part in name.split("_")),
        "core_version": metadata.version("nanozoo-core"),
        "run": "uv run " if in_workspace else "",
        "kind": "workspace" if in_workspace else "standalone",
    }


# -- rendering ------------------------------------------------------------------------------------


def _render_package(target: Path, values: dict[str, str]) -> Iterator[tuple[Path, str]]:
    templates = resources.files("nanozoo_core.commands") / "templates"
    project = templates / f"pyproject.{values['kind']}.toml{SUFFIX}"
    yield target / "pyproject.toml", _render(project, values)
    for parts, template in _walk(templates / "package"):
        path = target.joinpath(*(part.replace("NAME", values["name"]) for part in parts))
        yield path, _render(template, values)


def _walk(folder: Traversable) -> Iterator[tuple[tuple[str, ...], Traversable]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from (((entry.name, *parts), template) for parts, template in _walk(entry))
        elif entry.name.endswith(SUFFIX):
            yield (entry.name.removesuffix(SUFFIX),), entry


def _render(template: Traversable, values: dict[str, str]) -> str:
    text = Template(template.read_text(encoding="utf-8")).substitute(values)
    return _with_sorted_imports(text)


def _with_sorted_imports(text: str) -> str:
    """The name decides whether the package's own modules come before core's."""
    block = re.compile(r"(?:^from nanozoo_.*\n)+", re.MULTILINE)
    return block.sub(lambda found: "".join(sorted(found[0].splitlines(keepends=True))), text)


# -- the workspace --------------------------------------------------------------------------------


def _workspace_around(place: Path) -> Path | None:
    """The root of the workspace with nanozoo-core that `place` lies in."""
    for parent in (place, *place.parents):
        if _members(parent) is not None:
            return parent
    return None


def _workspace_of(target: Path) -> Path | None:
    """The root of the workspace that would have `target` as a member."""
    absolute = target.absolute()
    root = _workspace_around(absolute.parent)
    if root is None:
        return None
    relative = absolute.relative_to(root)
    patterns = [PurePath(pattern) for pattern in _members(root) or []]
    fits = (len(p.parts) == len(relative.parts) and relative.match(str(p)) for p in patterns)
    return root if any(fits) else None


def _members(root: Path) -> list[str] | None:
    """The member patterns of a workspace that holds nanozoo-core; None where there is none."""
    path = root / "pyproject.toml"
    if not path.is_file() or not (root / "core" / "pyproject.toml").is_file():
        return None
    try:
        tool: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {})
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    uv = tool.get("uv", {})
    if "workspace" not in uv or "nanozoo-core" not in uv.get("sources", {}):
        return None
    return list(uv["workspace"].get("members", []))


def _beside_package(root: Path, target: Path, name: str) -> dict[Path, str]:
    """What a workspace adds to the package: the recipe, and the licence."""
    template = resources.files("nanozoo_core.commands") / "templates" / f"recipe.yaml{SUFFIX}"
    recipe = _shown(root / "configs" / f"{name}.yaml")
    files = {recipe: _render(template, _values(name, in_workspace=True))}
    license_text = root / "LICENSE"
    if license_text.is_file():  # every wheel holds the licence
        files[target / "LICENSE"] = license_text.read_text(encoding="utf-8")
    return files


def _workspace_lines(root: Path, target: Path, name: str) -> list[tuple[str, str]]:
    """The package's lines in the workspace's pyproject.toml, each with the heading above it."""
    dist = _values(name, in_workspace=True)["dist"]
    source = target.absolute().relative_to(root) / "src"
    return [
        ("dependencies = [", f'    "{dist}",'),
        ("[tool.uv.sources]", f"{dist} = {{ workspace = true }}"),
        ("mypy_path = [", f'    "{source.as_posix()}",'),
    ]


def _insert(text: str, heading: str, line: str, project: Path) -> str:
    """`text` with `line` in its place among the sorted lines under `heading`."""
    lines = text.splitlines()
    if heading not in lines:
        raise ConfigError(f"{project} has no line '{heading}' to put the new package under")
    place = lines.index(heading) + 1
    while place < len(lines) and lines[place] not in ("", "]") and lines[place] < line:
        place += 1
    return "\n".join([*lines[:place], line, *lines[place:]]) + "\n"


def _shown(path: Path) -> Path:
    """The path as one would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _next_commands(name: str, target: Path, workspace: Path | None) -> tuple[str, ...]:
    if workspace is None:
        return (
            f"uv pip install -e '{target}[test]'   # into the environment that nanozoo is in",
            f"train --model {name}",
            f"pytest {target}",
        )
    return (
        f"uv run train --model {name}   # installs the package, locks it and trains",
        f"uv run nox -s test-{name}",
    )
