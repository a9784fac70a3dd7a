"""The words of `nanozoo probe`, for its help and for completion. Nothing here imports torch."""

from __future__ import annotations

from nanozoo_core.comparing.options import SETTING, Option

NAMES = (
    *("parity", "words", "copying", "copying_mamba", "memorization", "induction"),
    *("recall", "recall_noisy", "recall_fuzzy", "mqar", "needle", "star", "bridge"),
    *("polynomials", "hops", "pointer", "restore"),
)
"""Of the tasks, in the order of the matrix."""
OPTIONS = (
    Option("models", "A,B|all", "models, recipe files, or variants NAME:MODEL; all are installed"),
    Option("tasks", "A,B|all", f"of {', '.join(NAMES)} (parity)"),
    Option("seeds", "N", "how many seeds (1)"),
    Option("control", "NAME", "the model that stands beside all others (vanilla, if installed)"),
    Option("rates", "X,Y", "learning rates that all models try (1e-3,3e-3)"),
    Option("decays", "X,Y", "weight decays that they try with each rate (0.1)"),
    Option("tokens", "N", "tokens of each training (0.8e6; long 12e6)"),
    Option("seconds", "N", "after which the clock ends a training (60; long 900)"),
    Option("coding", "NAME", "plain, or spell: a pseudo-word for each symbol (plain)"),
    Option("loss", "NAME", "answers, or all: what training scores (answers)"),
    Option("samples", "N", "of the test (1280)"),
    Option("jobs", "N", "how many trainings run at the same time (1)"),
    Option("folder", "PATH", "where results are kept (runs/probe, or runs/probe_long)"),
)
OTHERS = (
    SETTING,
    Option("TASK.knob", "N", "a size or form of a task, such as parity.longest=16"),
)
RESERVED = {
    "model": "the models are those of models=",
    "seed": "the seeds are those of seeds=",
    "resume": "a probe finds its own trainings; give the same command again",
    "init_from": "a probe trains every model from its start",
    "run_dir": "the results lie under folder=",
    "data": "the data are those of tasks=",
    "train": "the length of a training is that of tokens= and seconds=",
    "optim": "all models have one optimiser, whose rates= and decays= are tried",
}
