"""The `nanozoo` command. Subcommands import what they need: `models` answers at once."""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanozoo_core.commands.generate import CONTINUATION_TOKENS, MIDDLE_TOKENS
from nanozoo_core.errors import ConfigError, suggest
from nanozoo_core.machine.terminal import reported_errors
from nanozoo_core.training.run_folder import RunFolder

if TYPE_CHECKING:
    from nanozoo_core.training.runs import LoadedRun

COMPARE_HELP = """\
models=A,B       models, recipe files, or variants NAME:MODEL with settings NAME.key=value
budget=UNIT:N    training in bytes (2e6), tokens, flops, steps or seconds; own: each model's own
seeds=N          how many seeds (2), or a list of them as in seeds=3,4,5
jobs=N           how many runs train at the same time (1) and share the CPU's threads
folder=PATH      where the runs and the report are written (runs/compare/UNIT_N)
match=A|N        scale the widths until all have the parameters of model A, or N parameters
runs=RUN,RUN     finished runs that the report includes as well
key=value        a setting of every model, MODEL.key=value of one
hydra/launcher=X start the runs through a Hydra launcher, such as submitit_slurm"""
BENCH_HELP = """\
models=A,B       models, recipe files, run folders, or variants NAME:MODEL
what=LIST        tasks: train,decode (both), or one of them
seconds=N        seconds of work per model and task (10), rounded to whole steps and texts
rounds=N         blocks into which that work is divided (5)
decode_tokens=N  length of a text (128)
peak_flops=N     FLOPs per second of the device, for MFU where core does not know them
folder=PATH      where bench.json and the traces are written (runs/bench/TIME)
key=value        a setting of every model, MODEL.key=value of one"""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `nanozoo`."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest:  # settings may also stand behind flags
        if not hasattr(arguments, "overrides") or any(r.startswith("-") for r in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        arguments.overrides += rest
    with reported_errors():
        arguments.handler(arguments)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nanozoo", description="Small language-model architectures under one trainer."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    models = commands.add_parser("models", help="list the installed models")
    models.set_defaults(handler=list_models)

    show = commands.add_parser(
        "show", help="describe a model (settings, size, cost) or a finished run"
    )
    show.add_argument("target", nargs="?", metavar="MODEL|RUN")
    show.add_argument("overrides", nargs="*", metavar="key=value")
    show.add_argument("--config", type=Path, help="a recipe instead of a model's defaults")
    show.add_argument(
        "--activations",
        action="store_true",
        help="for a model: also measure what a micro-batch keeps in memory (a window is computed)",
    )
    show.add_argument("--text", help="for a run: text on which to show what the model learned")
    show.set_defaults(handler=show_target)

    prepare = commands.add_parser("prepare", help="download or tokenize a corpus before training")
    prepare.add_argument(
        "corpus", metavar="CORPUS|PATH", help="stdlib, fineweb10B, fineweb100B, or a path to text"
    )
    prepare.add_argument("overrides", nargs="*", metavar="key=value")
    prepare.add_argument("--shards", type=int, help="how many fineweb training shards to fetch")
    prepare.set_defaults(handler=prepare_corpus)

    evaluate = commands.add_parser("evaluate", help="score a run again, in bits per byte")
    _add_run_arguments(evaluate)
    evaluate.add_argument(
        "--tasks",
        metavar="A,B",
        help="score it on these tasks of lm-evaluation-harness instead (nanozoo-core[tasks])",
    )
    evaluate.add_argument("--num-fewshot", type=int, help="examples before each question")
    evaluate.add_argument("--limit", type=int, help="questions of each task")
    evaluate.add_argument("--include-path", type=Path, help="a folder with task files of your own")
    evaluate.set_defaults(handler=evaluate_run)

    inspect = commands.add_parser(
        "inspect", help="plot model-specific diagnostics of a run (expert loads, depth, routing)"
    )
    _add_run_arguments(inspect)
    inspect.add_argument("--text", help="text to mark, where the model can (hnet shows its chunks)")
    inspect.set_defaults(handler=inspect_run)

    export = commands.add_parser("export", help="write a run in another project's format")
    _add_run_arguments(export)
    export.add_argument("--to", choices=["hf"], default="hf", help="hf: a folder for transformers")
    export.add_argument("--output", type=Path, help="where to write it; RUN/hf")
    export.set_defaults(handler=export_run)

    compare = commands.add_parser(
        "compare",
        help="train several models on equal terms and report on them",
        description="Trains models, each over several seeds and within one budget, and writes "
        "report.html, report.md, results.csv and plots. The same command again goes on where it "
        "was stopped.",
        epilog=COMPARE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("overrides", nargs="*", metavar="key=value")
    compare.set_defaults(handler=compare_models)

    bench = commands.add_parser(
        "bench",
        help="time training and decoding of several models side by side",
        description="Models take turns, a block of work each round, in processes of their own. "
        "Prints tables and writes bench.json: tokens/s and bytes/s as the median over rounds with "
        "the least and the most, the ratio to the first model round by round, memory and MFU.",
        epilog=BENCH_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.add_argument("overrides", nargs="*", metavar="key=value")
    bench.add_argument(
        "--profile", action="store_true", help="also write a Chrome trace of each model"
    )
    bench.set_defaults(handler=bench_models)

    new = commands.add_parser(
        "new",
        help="write a new model's package, ready to train and to change",
        description="Writes a model package: in this repository's packages/ with a recipe and its "
        "lines in pyproject.toml, elsewhere one that stands alone.",
    )
    new.add_argument("name", help="the model's name, such as my_idea")
    new.add_argument(
        "--folder", type=Path, help="where to put it (packages/ of the workspace, or here)"
    )
    new.set_defaults(handler=write_new_model)

    generate = commands.add_parser("generate", help="generate text from a run")
    _add_run_arguments(generate)
    generate.add_argument("--prompt", default="", help="text to continue; empty starts a document")
    generate.add_argument(
        "--suffix", default="", help="text that follows: fill the middle (diffusion models)"
    )
    generate.add_argument(
        "--max-tokens",
        type=int,
        help=f"the most new tokens ({CONTINUATION_TOKENS}), or with --suffix their exact number "
        f"({MIDDLE_TOKENS})",
    )
    generate.add_argument("--temperature", type=float, default=0.8, help="0 is greedy")
    generate.add_argument("--top-k", type=int, default=0, help="0 switches it off")
    generate.add_argument("--top-p", type=float, default=1.0)
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--num-samples", type=int, default=1)
    generate.add_argument(
        "--num-steps",
        type=int,
        help="denoising steps of diffusion models, iterations of recurrent ones",
    )
    generate.add_argument(
        "--trace",
        type=Path,
        metavar="FILE.html",
        help="show the steps in a page (diffusion models)",
    )
    generate.add_argument(
        "--no-cache", action="store_true", help="recompute everything for every token (slow)"
    )
    generate.add_argument(
        "--speculative",
        action="store_true",
        help="check several tokens at once, where the model can propose them; sampled text keeps "
        "its distribution, and greedy text stays the same",
    )
    generate.set_defaults(handler=generate_text)
    return parser


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run folder, runs/MODEL/TIME")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings to change, model_cfg.* among them where the weights allow it",
    )
    parser.add_argument("--checkpoint", default="latest", help="latest, best or a step number")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])


def _model_overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """Raises: ConfigError for settings of anything but the model."""
    from nanozoo_core.config import compose

    overrides, others = compose.split_overrides(arguments.overrides)
    if others:
        raise ConfigError(f"'{others[0]}' does not apply here; only model_cfg.key=value does")
    return overrides


def _load(arguments: argparse.Namespace, model_overrides: dict[str, Any]) -> LoadedRun:
    from nanozoo_core.training import runs

    return runs.load_run(
        arguments.run,
        checkpoint=arguments.checkpoint,
        device=arguments.device,
        model_overrides=model_overrides,
    )


def out(text: str) -> None:
    sys.stdout.write(text + "\n")


def list_models(_arguments: argparse.Namespace) -> None:
    from nanozoo_core.registry import model_summaries

    summaries = model_summaries()
    if not summaries:
        raise ConfigError("no model is installed; install one, for example nanozoo-gpt2")
    width = max(map(len, summaries))
    for name, summary in summaries.items():
        out(f"{name:<{width}}  {summary}")


def show_target(arguments: argparse.Namespace) -> None:
    from nanozoo_core.commands import show

    if arguments.target is None and arguments.config is None:
        raise ConfigError("nothing to show: give a model, a run folder or --config PATH")
    target = arguments.target
    if target is not None and RunFolder(Path(target)).is_run:
        out(show.describe_run(Path(target), text=arguments.text))
        return
    overrides = list(arguments.overrides)
    if target is not None:
        overrides.insert(0, target if "=" in target else f"model={target}")
    out(show.describe_model(overrides, recipe=arguments.config, activations=arguments.activations))


def prepare_corpus(arguments: argparse.Namespace) -> None:
    from nanozoo_core.config import DataConfig, compose, schema
    from nanozoo_core.data.prepare import prepare

    name = arguments.corpus
    known = ("stdlib", "fineweb10B", "fineweb100B")
    settings: dict[str, object] = {"corpus": name}
    if name not in known:
        if not Path(name).exists() and not glob.has_magic(name):
            raise ConfigError(f"'{name}' is neither a corpus nor a path{suggest(name, known)}")
        settings = {"corpus": "text", "path": name}
    elif name != "stdlib":
        settings["tokenizer"] = "gpt2"
    settings |= compose.dotted_overrides(arguments.overrides, section="data")
    data = schema.from_dict(DataConfig, settings, "data")
    if name in known and name != "stdlib":
        from nanozoo_core.data.fineweb import download

        download(name, num_shards=arguments.shards)
    out(prepare(data).summary())


def evaluate_run(arguments: argparse.Namespace) -> None:
    import json

    from nanozoo_core.config import compose
    from nanozoo_core.training import runs

    model_overrides, others = compose.split_overrides(arguments.overrides)
    overrides = compose.dotted_overrides(others, section="eval")
    run = _load(arguments, model_overrides)
    if arguments.tasks is not None:
        out(json.dumps(_evaluate_tasks(run, arguments), indent=2))
        return
    out(json.dumps(runs.score(run, overrides), indent=2))


def _evaluate_tasks(run: LoadedRun, arguments: argparse.Namespace) -> dict[str, Any]:
    try:
        from nanozoo_core.commands.tasks import evaluate_tasks
    except ImportError as error:
        raise ConfigError(
            f"--tasks needs lm-evaluation-harness; install nanozoo-core[tasks] ({error})"
        ) from error
    return evaluate_tasks(
        run,
        arguments.tasks.split(","),
        num_fewshot=arguments.num_fewshot,
        limit=arguments.limit,
        include_path=arguments.include_path,
    )


def inspect_run(arguments: argparse.Namespace) -> None:
    from nanozoo_core.evaluation import inspection
    from nanozoo_core.training import runs

    run = _load(arguments, _model_overrides(arguments))
    found = runs.inspect_run(run)
    text = inspection.SHOWN_TEXT if arguments.text is None else arguments.text
    shown = run.adapter.show_sample(run.model, run.vocabulary, text)
    if found is None and shown is None:
        out(
            f"{run.config.model} has nothing to draw; nanozoo show {arguments.run} tells its result"
        )
    if found is not None:
        out(inspection.describe(found))
        folder = RunFolder(arguments.run)
        files = folder.inspection_path.name
        if found.pictures:
            files += f", {folder.inspection_picture_path.name}"
        out(f"written to {arguments.run}: {files}")
    if shown is not None:
        out(f"shown on a text:\n{shown}")


def export_run(arguments: argparse.Namespace) -> None:
    from nanozoo_core.commands.export import export_hf

    folder = arguments.output or arguments.run / "hf"
    export_hf(_load(arguments, _model_overrides(arguments)), folder)
    out(f"written to {folder}; transformers' AutoModelForCausalLM loads it")


def compare_models(arguments: argparse.Namespace) -> None:
    from nanozoo_core.comparing.compare.command import compare

    compare(arguments.overrides)


def bench_models(arguments: argparse.Namespace) -> None:
    from nanozoo_core.comparing.bench.command import bench

    bench(arguments.overrides, profile=arguments.profile)


def write_new_model(arguments: argparse.Namespace) -> None:
    from nanozoo_core.commands.new import new_model

    out(new_model(arguments.name, folder=arguments.folder).describe())


def generate_text(arguments: argparse.Namespace) -> None:
    from nanozoo_core.commands.generate import write_texts

    write_texts(arguments, lambda: _load(arguments, _model_overrides(arguments)))


if __name__ == "__main__":
    main()
