"""`nanozoo evaluate`: a run scored again, in bits per byte, on tasks or on corrupted text."""

from __future__ import annotations

import argparse
from typing import Any

from nanozoo_core.commands.run_arguments import Commands, add_run_arguments, load, split_moved_data
from nanozoo_core.files import null_if_not_finite, to_json
from nanozoo_core.machine.paths import path_argument
from nanozoo_core.machine.terminal import out


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("evaluate", help="score a run again, in bits per byte")
    add_run_arguments(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--tasks",
        metavar="A,B",
        help="score the run on these tasks of lm-evaluation-harness instead (it comes with "
        "nanozoo-core[tasks])",
    )
    what.add_argument(
        "--corrupted",
        action="store_true",
        help="ask it to continue corrupted validation text instead, among four continuations",
    )
    parser.add_argument("--num-fewshot", type=int, help="examples shown before each question")
    parser.add_argument(
        "--limit", type=int, help="how many questions of each task are asked (of --corrupted 1000)"
    )
    parser.add_argument(
        "--include-path", type=path_argument, help="a folder with task files of your own"
    )
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> None:
    from nanozoo_core.config.overrides import section_values, split_model_values
    from nanozoo_core.python.run import Run

    changes, others = split_model_values(arguments.overrides)
    moved, others = split_moved_data(others)
    settings = section_values(others, section="eval")
    loaded = Run(load(arguments, changes, moved))
    found: dict[str, Any]
    if arguments.corrupted:
        found = loaded.evaluate_corrupted(limit=arguments.limit, **settings)
    elif arguments.tasks is None:
        found = loaded.evaluate(**settings).values
    else:
        found = loaded.evaluate_tasks(
            arguments.tasks.split(","),
            num_fewshot=arguments.num_fewshot,
            limit=arguments.limit,
            include_path=arguments.include_path,
        )
    out(to_json(null_if_not_finite(found), "the score", indent=2))
