"""Settings that no one should give, and some that look odd and are right."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from attempts import TOY, Attempt, Count, at_once

VALUES = (
    *("inf", "-inf", "nan", "-1", "0", "1e9", "1e12", "1e300", "1" + "0" * 30, "1e-300", "0.5"),
    *("null", "true", "abc", "[]", "{}", "[1,2]", "{a:1}", "'x y'", "", "²", "*a", "&a", "!x", "#"),
    *("[", "{", "'", '"', "a=b", "a;b", "${seed}", "${nothing}", "${oc.env:NOWHERE}", "${"),
)
WORDS = (
    *("=1", "+=1", "~", "~train", "~train.max_steps", "~nothing", "hydra=null", "hydra=5", "-"),
    *("--resolve", "--cfg=job", "--info", "-x", "--", "a", "model=null", "model={}", "foo/bar=1"),
    *("data=null", "data=5", "data=[]", "optim.muon=null", "model_cfg=null", "model_cfg=5"),
    *("run_dir=café", "run_dir=日本/x", "run_dir=a=b", "run_dir=a'b", 'run_dir=a"b', "run_dir=a#b"),
    *("run_dir=~nobody-here", f"run_dir={'x' * 256}", f"run_dir={'x/' * 3000}", "run_dir='a\0b'"),
    *("data.path=~nobody-here", f"data.path={'x' * 256}", "data.path=a***b", "data.path=['']"),
    *("resume=²", "resume=x@²", "resume=@1", f"resume={'x' * 300}", "resume=[a]", "resume=5"),
    *("data.seq_len=1", "data.seq_len=1e9", "model_cfg.model_dim=1e9", "model_cfg.mlp_ratio=1e30"),
    *("model_cfg.num_layers=100000", "train.batch_tokens=1e12", "train.batch_tokens=1e18"),
    *("hydra/launcher=nowhere", "hydra.callbacks=5", "seed=foo(1)", "seed=choice(1,2)", "seed=1,2"),
)
COMMANDS = (
    ("evaluate", "RUN", "eval.bytes={}"),
    ("evaluate", "RUN", "--checkpoint={}"),
    ("generate", "RUN", "model_cfg.mlp_ratio={}", "--max-tokens=2"),
    ("generate", "RUN", "--temperature={}", "--max-tokens=2"),
    ("show", "toy", "model_cfg.num_layers={}"),
    ("show", "{}"),
    ("prepare", "CORPUS", "val_fraction={}"),
    ("prepare", "{}"),
    ("compare", "models={}"),
    ("compare", "runs={}"),
    ("compare", "models=", "folder={}"),
    ("compare", "models=nothing", "budget={}", "seeds={}"),
    ("bench", "models=nothing", "seconds={}", "rounds={}"),
    ("export", "RUN", "--output={}"),
    ("new", "{}"),
)
TOO_LONG = {"compile=true"}  # right, and half a minute of compiling


def setting_names(values: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from setting_names(value, f"{path}{key}.")
        else:
            yield path + key


def cases(number: int, seed: int, corpus: Path, run: Path) -> Iterator[tuple[str, list[str]]]:
    """The program and its words: all of WORDS, and as many others as make up the number."""
    from nanozoo_core.config.defaults import training_defaults

    draw = random.Random(seed)
    start = [*TOY, f"data.path='{corpus}'", "train.stop_after=1"]
    for word in WORDS[:number]:
        yield "train", [*start, word]
    names = [name for name in setting_names(training_defaults()) if name != "model_cfg"]
    names += [f"model_cfg.{name}" for name in ("num_layers", "model_dim", "num_heads", "seq_len")]
    singles = [(name, value) for name in names for value in VALUES]
    others = [(command, value) for command in COMMANDS for value in VALUES]
    left = max(0, number - len(WORDS))
    for name, value in draw.sample(singles, left - left // 3):
        if f"{name}={value}" not in TOO_LONG:
            yield "train", [*start, f"{name}={value}"]
    places = {"RUN": str(run), "CORPUS": str(corpus)}
    for command, value in draw.sample(others, left // 3):
        yield "nanozoo", [places.get(word, word.replace("{}", value)) for word in command]


def attack(count: Count, number: int, seed: int, corpus: Path, run: Path, work: Path) -> None:
    starts = (
        (words, partial(Attempt, words, work, program=program))
        for program, words in cases(number, seed, corpus, run)
    )
    for words, outcome in at_once(starts):
        count.note(words[-2:], outcome.wrong())
