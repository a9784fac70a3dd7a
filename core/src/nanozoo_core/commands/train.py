"""The `train` command: flags and Hydra overrides in, one run (or a sweep of runs) out."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanozoo_core import __version__, registry
from nanozoo_core.commands import completion
from nanozoo_core.commands.train_output import FLAGS, Output, muted, print_end, print_row
from nanozoo_core.config import compose, resolve
from nanozoo_core.config.foreign import refuse_hydra_settings
from nanozoo_core.config.overrides import parse_override, quoted
from nanozoo_core.errors import ConfigError, NanozooError
from nanozoo_core.machine.terminal import concealed, out, reported_errors, warn, write
from nanozoo_core.python.training import run_to_continue, train_resolved
from nanozoo_core.training.claim import RUNS, make_folder
from nanozoo_core.training.initial_weights import model_of, with_weights
from nanozoo_core.training.run_folder import RunFolder, parse_resume

USAGE = """\
usage: train --model NAME [key=value ...]           train a model on the default data
       train --config PATH [key=value ...]          train by a recipe (also --hydra_model_cfg)
       train resume=RUN[@STEP] [key=value ...]      continue a run
       train init_from=RUN[@STEP] [key=value ...]   begin a new run with given weights
       train --model NAME resume=auto               continue the newest unfinished one
       train -m model=A,B seed=1,2 [key=value ...]  a sweep: one run for every combination; with
                                                    resume=auto it goes on where it stopped
       torchrun --nproc-per-node N -m nanozoo_core.train --model NAME ...

Where the output is no terminal, progress is told in lines. --quiet prints the result alone;
--json a JSON object for each row of metrics.jsonl, and the result as the last one.

installed models: {models}

The settings, with their defaults before the model's own YAML changes them:
{settings}
A model's own settings are under model_cfg; `nanozoo show NAME` lists them.
All other flags are Hydra's: --cfg job prints the composed config, --hydra-help tells of the rest.
"""


@dataclass
class CommandLine:
    """What `train` was asked for, before Hydra sees it."""

    flags: list[str]
    overrides: list[str]
    recipe: Path | None = None
    output: Output = "words"

    @property
    def is_sweep(self) -> bool:
        return "-m" in self.flags or "--multirun" in self.flags

    @property
    def is_completion(self) -> bool:
        """Whether a shell asks: how to complete words, or for the words themselves."""
        return "-sc" in self.flags or "--shell-completion" in self.flags

    def value(self, key: str) -> str | None:
        """The value of the last plain override of `key`."""
        for override in reversed(self.overrides):
            name, _, value = override.lstrip("+").partition("=")
            if name == key:
                is_quoted = value.startswith(("'", '"'))
                return str(parse_override(override).value) if is_quoted else value
        return None

    def without(self, *keys: str) -> list[str]:
        return [o for o in self.overrides if o.lstrip("+").partition("=")[0] not in keys]


OWN_FLAGS = ("--model", "--config", "--hydra_model_cfg")
HYDRA_FLAGS_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--info", "-i", "--config-path", "-cp",
                          "--config-name", "-cn", "--config-dir", "-cd")  # fmt: skip


def parse(argv: Sequence[str]) -> CommandLine:
    """Splits the arguments into our flags, Hydra's flags and overrides.

    Raises: ConfigError for a flag without its value, two recipes, or two ways of output.
    """
    line = CommandLine([], [])
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if flag in OWN_FLAGS:
            if not equals:
                if not rest:
                    raise ConfigError(f"{flag} needs a value")
                value = rest.pop(0)
            if flag == "--model":
                line.overrides.append(f"model={value}")
            elif line.recipe is not None:
                raise ConfigError(f"two recipes are given, {line.recipe} and {value}; give one")
            else:
                line.recipe = Path(value)
        elif word in FLAGS:
            if line.output not in ("words", FLAGS[word]):
                raise ConfigError("--quiet and --json exclude each other; give one")
            line.output = FLAGS[word]
        elif word.startswith("-"):
            line.flags.append(word)
            if word in HYDRA_FLAGS_WITH_VALUE and rest:
                line.flags.append(rest.pop(0))
        else:
            line.overrides.append(word)
    return line


def main() -> None:
    """Entry point of `train` and of `python -m nanozoo_core.train`."""
    completion.answer(completion.train_parser)
    with reported_errors():
        line = parse(sys.argv[1:])
        if "--version" in line.flags:  # of ours, not Hydra's
            out(f"nanozoo-core {__version__}")
            return
        if "--help" in line.flags or "-h" in line.flags:
            write(help_text())
            return
        try:
            with hydra_arguments(line) as arguments:
                run_hydra(arguments, line.output)
        except KeyboardInterrupt:  # while the run was being prepared; later it is handled there
            warn("stopped by Ctrl-C before the first step")
            sys.exit(128 + signal.SIGINT)


@contextmanager
def hydra_arguments(line: CommandLine) -> Iterator[list[str]]:
    """The arguments for Hydra, with the files that it needs for as long as it runs."""
    if line.is_completion:
        yield [*line.flags, *line.overrides]
    elif line.is_sweep:
        with ExitStack() as stack:
            if (line.value("hydra/launcher") or "").startswith("submitit"):
                folder = line.value("hydra.sweep.dir") or str(make_folder(RUNS / "sweeps"))
                warn(f"what the jobs of this sweep print is in {folder}/.submitit/JOB/")
            else:  # Hydra notes the sweep in a file there, which nobody reads
                folder = stack.enter_context(tempfile.TemporaryDirectory())
            quiet = [*compose.QUIET, f"hydra.sweep.dir={quoted(folder)}"]
            yield stack.enter_context(_prepared(line, quiet))
    else:
        with _prepared(line, compose.QUIET) as words:
            yield words


@contextmanager
def _prepared(line: CommandLine, quiet: Sequence[str]) -> Iterator[list[str]]:
    """The defaults first that keep Hydra quiet, then what the user wrote.

    Raises: ConfigError, CheckpointError for what can be judged before composing.
    """
    resume = line.value("resume")
    overrides = line.overrides
    source: list[str] = []
    if resume not in (None, "", "null") and not (line.is_sweep and resume == "auto"):
        if line.is_sweep:
            raise ConfigError(
                "resume=RUN works on one run: leave out -m; resume=auto goes on with a whole sweep"
            )
        name = run_to_continue(str(resume), model=line.value("model"), recipe=line.recipe)
        if name is not None:
            run = parse_resume(name)[0]
            refuse_hydra_settings(run.config_path, run.path.resolve(), "config")
            source = ["--config-dir", str(run.path.resolve()), "--config-name", "config"]
            overrides = [*line.without("resume", "model"), f"resume={quoted(name)}"]
        else:
            overrides = [*line.without("resume", "resume_data", "resume_files"), "resume=null"]
    normalised = [compose.normalise_override(o) for o in overrides]
    compose.check_overrides(normalised)
    if not source and line.recipe is not None:
        with compose.recipe_source(line.recipe) as (folder, name, more):
            refuse_hydra_settings(line.recipe, folder, name, more)
            source = ["--config-dir", str(folder), "--config-name", name]
            yield [*line.flags, *source, *quiet, *more, *normalised]
        return
    if not source and line.value("model") is None and "--hydra-help" not in line.flags:
        normalised.append(f"model={model_of(line.value('init_from'))}")
    yield [*line.flags, *source, *quiet, *normalised]


def run_hydra(arguments: list[str], output: Output) -> None:
    """Hands over to Hydra, which composes and calls `run` once per job."""
    import hydra

    user_wants_tracebacks = os.environ.get("HYDRA_FULL_ERROR")
    # Hydra prints and exits by itself unless this is set; we want its exceptions.
    os.environ["HYDRA_FULL_ERROR"] = "1"

    failures: list[NanozooError] = []
    here = os.getpid()
    started = False

    def job(composed: Any) -> float | None:
        nonlocal started
        started = True
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import open_dict

        with open_dict(composed):
            composed.hydra = {"runtime": {"choices": HydraConfig.get().runtime.choices}}
        try:
            overrides = list(HydraConfig.get().overrides.task)
            return run(compose.plain(composed), overrides, output)
        except NanozooError as error:  # Hydra would print more about it; a sweep goes on
            if os.getpid() != here:  # of a launcher, which brings back one error alone
                warn(f"error: {concealed(str(error))}")
                raise
            failures.append(error)
            return None

    argv, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        hydra.main(
            version_base=None, config_path="pkg://nanozoo_core.config", config_name="training"
        )(job)()
    except NanozooError:
        raise
    except Exception as error:
        if user_wants_tracebacks == "1" or (started and not is_composition_error(error)):
            raise
        raise compose.as_config_error(error) from error
    finally:
        sys.argv = argv
        del os.environ["HYDRA_FULL_ERROR"]
        if user_wants_tracebacks is not None:
            os.environ["HYDRA_FULL_ERROR"] = user_wants_tracebacks
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise NanozooError("\n".join(str(error) for error in failures))


def is_composition_error(error: BaseException) -> bool:
    """Whether an exception came out of composing the config, not out of the run itself."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    return isinstance(error, HydraException | OmegaConfBaseException | YAMLError)


def run(
    settings: dict[str, Any], overrides: Sequence[str] = (), output: Output = "words"
) -> float | None:
    """Trains one composed run; returns its validation bits per byte (for Hydra's sweepers).

    Args: overrides: those that it was composed with.
    """
    settings = with_weights(settings, overrides)
    if settings["resume"] == "auto":  # one of a sweep
        from nanozoo_core.commands.sweep import earlier_run

        earlier = earlier_run(settings)
        if earlier is not None and earlier.is_finished:
            if output == "words":
                out(f"{earlier} is finished already")
            print_end(output, earlier)
            return float(earlier.read_result()["val_bpb"])
        settings = settings | {"resume": None if earlier is None else str(earlier)}
    with muted(output):
        result = train_resolved(resolve(settings), on_row=print_row if output == "json" else None)
    print_end(output, RunFolder(result.folder), result.signal)
    if result.signal is not None:
        sys.exit(128 + result.signal)
    return result.val_bpb


def help_text() -> str:
    from dataclasses import fields, is_dataclass
    from typing import get_type_hints

    from nanozoo_core.config import TrainingConfig
    from nanozoo_core.config.defaults import training_defaults
    from nanozoo_core.config.schema import field_help
    from nanozoo_core.errors import show_value

    def rows(cls: type, values: dict[str, Any], prefix: str) -> list[str]:
        texts, hints = field_help(cls), get_type_hints(cls)
        lines = []
        for field in fields(cls):
            if is_dataclass(hints[field.name]):
                lines += rows(hints[field.name], values[field.name], f"{prefix}{field.name}.")
            elif field.name in texts:
                default = show_value(values[field.name])
                lines.append(f"  {prefix}{field.name}={default}\n      {texts[field.name]}")
        return lines

    models = ", ".join(registry.model_modules())
    return USAGE.format(
        models=models, settings="\n".join(rows(TrainingConfig, training_defaults(), ""))
    )


if __name__ == "__main__":
    main()
