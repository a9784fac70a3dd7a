"""From a command line to composed values, by way of Hydra.

Hydra composes; resolved.py judges. So that every mistake is reported in one form, plain overrides
`a.b=c` are handed to Hydra as `++a.b=c`, and unknown keys are refused afterwards, by name.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from nanozoo_core import registry
from nanozoo_core.config.overrides import quoted, resolved_values, unreadable, with_quoted_path
from nanozoo_core.config.resolved import no_model_message
from nanozoo_core.config.settings import TrainingConfig
from nanozoo_core.errors import ConfigError, suggest
from nanozoo_core.machine.paths import checked_path

SETTINGS = {field.name for field in fields(TrainingConfig)}
QUIET = [
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra.output_subdir=null",
    "hydra.run.dir=.",
    "hydra.sweep.dir=.",
    "hydra.sweep.subdir=.",
]
_OVERRIDE = re.compile(r"^(\+\+|\+)?([^=~/]+)=(.*)$", re.DOTALL)


def normalise_override(override: str) -> str:
    """Rewrites an override of a setting so that Hydra accepts it and resolved.py can judge it."""
    match = _OVERRIDE.match(override)
    if match is None or override.startswith(("hydra.", "+hydra.", "++hydra.")):
        return override
    prefix, key, value = match.groups()
    if key == "model":
        return f"model={value}"
    if "." in key or key in SETTINGS:
        return with_quoted_path(f"++{key}={value}")
    return f"{prefix or '+'}{key}={value}"


def compose_config(overrides: Sequence[str] = (), *, recipe: Path | None = None) -> dict[str, Any]:
    """Composes training.yaml (or a recipe file) with overrides into a plain dictionary.

    Raises: ConfigError when Hydra refuses, in one sentence.
    """
    from hydra import compose, initialize_config_dir, initialize_config_module

    normalised = [normalise_override(o) for o in overrides]
    check_overrides(normalised)
    with ExitStack() as stack:
        stack.enter_context(fresh_hydra())
        if recipe is not None:
            folder, name, more = stack.enter_context(recipe_source(recipe))
            normalised = [*more, *normalised]
            context: Any = initialize_config_dir(str(folder), version_base=None)
        else:
            context = initialize_config_module("nanozoo_core.config", version_base=None)
            name = "training"
        try:
            with context:
                composed = compose(name, normalised, return_hydra_config=True)
        except Exception as error:
            raise as_config_error(error) from error
        return plain(composed)


@contextmanager
def fresh_hydra() -> Iterator[None]:
    """Inside it Hydra composes as if nothing else in this process used it; what did, such as a
    program that calls nanozoo from Python, finds it as it was."""
    from hydra.core.global_hydra import GlobalHydra

    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = before  # of another instance: composing replaces it


@contextmanager
def recipe_source(path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """The folder and the name under which Hydra finds a recipe, and overrides that go with them.

    Hydra reads files in .yaml alone and would take x.yaml for x.yml, so that one is copied.

    Raises: ConfigError unless `path` is a YAML file.
    """
    check_recipe(path)
    folder = path.parent.resolve()
    if path.suffix == ".yaml":
        yield folder, path.stem, []
        return
    with tempfile.TemporaryDirectory() as copies:
        shutil.copyfile(path, Path(copies, f"{path.stem}.yaml"))
        beside = quoted(f"file://{folder}")  # for recipes that build on others in their folder
        yield Path(copies), path.stem, [f"hydra.searchpath=[{beside}]"]


def plain(composed: Any) -> dict[str, Any]:
    """The composed settings as a dictionary, interpolations resolved, with the model's name.

    Args: composed: Hydra's config, its own node `hydra` included.
    """
    from omegaconf import open_dict
    from omegaconf.errors import OmegaConfBaseException

    choice = composed.hydra.runtime.choices.get("model")
    with open_dict(composed):
        settings = composed.copy()
        del settings["hydra"]
    try:
        data = resolved_values(settings)
    except OmegaConfBaseException as error:
        raise as_config_error(error) from error
    assert isinstance(data, dict)
    result = {str(key): value for key, value in data.items()}
    if choice is not None:
        result["model"] = choice
    return result


def check_recipe(path: Path) -> None:
    """Raises: ConfigError unless `path` is a readable YAML file."""
    checked_path(str(path), "--config")
    if not path.is_file():
        near = suggest(path.name, [p.name for p in path.parent.glob("*.y*ml")])
        raise ConfigError(f"--config={path} is not a file{near}")
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--config={path} must be a YAML file")


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises: ConfigError for a model that is not installed or text that is no override."""
    for override in overrides:
        key, equals, _ = override.lstrip("+~").partition("=")
        if key in ("", "hydra") and (equals or override.startswith("~")):
            what = "names no setting" if not key else "is no setting; write hydra.key=value"
            raise ConfigError(f"'{override}' {what}")
        if override.startswith("model="):
            for name in override.removeprefix("model=").split(","):
                registry.check_model_name(name.strip())
        elif "=" not in override and not override.startswith("~"):
            raise ConfigError(
                f"'{override}' is neither a flag nor an override; write key=value, "
                f"for example train.max_steps=100, or --model NAME"
            )


def as_config_error(error: BaseException) -> ConfigError:
    """One sentence from an exception of Hydra, OmegaConf or YAML."""
    from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError

    if isinstance(error, ConfigError):
        return error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    drop = (
        "See https://",
        "Set the environment variable",
        "Config search path",
        "provider=",
        "Available options",
        "full_key:",
        "object_type=",
        "To append to your config",
        "reference_type=",
        "Append + to",
        "ref_type",
    )
    kept = [line for line in lines if not line.startswith(drop)]
    cause = error.__cause__
    if cause is not None and str(cause) and str(cause).splitlines()[0] not in " ".join(kept):
        kept.append(str(cause).splitlines()[0])
    missing = re.search(r"Could not find 'model/([^']+)'", " ".join(kept))
    if missing:
        try:
            registry.check_model_name(missing.group(1))
        except ConfigError as unknown:
            return unknown
    launcher = re.search(r"Could not find 'hydra/launcher/([^']+)'", " ".join(kept))
    if launcher:
        return ConfigError(
            f"hydra/launcher={launcher[1]} is not installed; nanozoo-core[submitit] brings "
            f"submitit_slurm and submitit_local, and other plugins of Hydra bring others"
        )
    if "model=<OPTION>" in str(error) or "You must specify 'model'" in str(error):
        return ConfigError(no_model_message())
    sentence = "; ".join(kept[:3]) or type(error).__name__
    override = getattr(error, "override", None)  # of Hydra's OverrideParseException
    if override is not None:
        return unreadable(override.lstrip("+"))
    section = re.search(r"Error merging override \+*([\w.]+)=(.*)", str(error))
    if section:
        return ConfigError(f"{section[1]}={section[2]} must be a section with keys of its own")
    if isinstance(error, InterpolationResolutionError | InterpolationKeyError):
        return _reference_error(error)
    return ConfigError(sentence)


def _reference_error(error: Any) -> ConfigError:
    """Of a `${...}` whose value is not there; `full_key` is the setting that holds it."""
    where = f"{error.full_key} " if error.full_key else "a setting "
    variable = re.search(r"Environment variable '([^']*)' not found", str(error))
    if variable:
        return ConfigError(
            f"{where}refers to the environment variable {variable[1]}, which is not set"
        )
    name = re.search(r"'([^']*)'", str(error))
    what = f"'{name[1]}', which is not there" if name else "what is not there"
    return ConfigError(f"{where}refers to {what}; a text with ${{ in it goes in quotes, as \\${{")
