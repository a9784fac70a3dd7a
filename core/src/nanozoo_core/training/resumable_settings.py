"""Which settings a run may change when it is resumed.

`RULES` names every setting, a * standing for a name of the user's. Those that are KEPT decide what
the stored weights, the optimiser's state, the order of the windows or the scores so far mean: a
resumed run that changes one is refused. Those that are FREE hold from the resumed step on. Those of
the START belong to one start of the run and are not stored.
"""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatch
from typing import Any

from nanozoo_core.errors import CheckpointError, show_value
from nanozoo_core.training.run_folder import RunFolder

KEPT, FREE, START = "kept", "free", "start"

RULES = {
    "model": KEPT,
    "model_cfg": KEPT,  # with all that is in it
    "seed": KEPT,
    "device": FREE,
    "dtype": FREE,
    "attention_form": FREE,
    "compile": FREE,
    "resume": START,
    "resume_data": START,
    "resume_files": START,
    "run_dir": START,
    "init_from": KEPT,
    "init_digest": KEPT,
    "data.corpus": KEPT,
    "data.path": FREE,  # what is found there is compared with what the run began with
    "data.text_key": FREE,  # so is what it finds
    "data.sources.*.corpus": KEPT,
    "data.sources.*.path": FREE,
    "data.sources.*.text_key": FREE,
    "data.sources.*.weight": KEPT,
    "data.tokenizer": KEPT,
    "data.vocab_size": KEPT,
    "data.seq_len": KEPT,
    "data.packing": KEPT,
    "data.val_fraction": KEPT,
    "train.batch_tokens": KEPT,
    "train.micro_batch_tokens": FREE,
    "train.max_steps": FREE,
    "train.max_tokens": FREE,
    "train.max_bytes": FREE,
    "train.max_flops": FREE,
    "train.max_seconds": FREE,
    "train.stop_after": START,
    "train.grad_clip": FREE,
    "train.ema": KEPT,
    "train.log_every": FREE,
    "train.freeze": KEPT,  # what is frozen has no optimiser state
    "optim.name": KEPT,
    "optim.lr": FREE,
    "optim.weight_decay": FREE,
    "optim.schedule": FREE,
    "optim.warmup": FREE,
    "optim.decay_fraction": FREE,
    "optim.hold_fraction": FREE,
    "optim.final_lr_fraction": FREE,
    "optim.adamw.beta1": FREE,
    "optim.adamw.beta2": FREE,
    "optim.adamw.eps": FREE,
    "optim.adamw.embedding_lr": FREE,
    "optim.adamw.head_lr": FREE,
    "optim.adamw.vector_lr": FREE,
    "optim.adamw.cautious": FREE,
    "optim.adamw.wd_power": FREE,
    "optim.adamw.every": KEPT,  # between two steps a gradient waits in the checkpoint
    "optim.muon.lr": FREE,
    "optim.muon.momentum": FREE,
    "optim.muon.momentum_min": FREE,
    "optim.muon.warmup_steps": FREE,
    "optim.muon.cooldown_steps": FREE,
    "optim.muon.nesterov": FREE,
    "optim.muon.orth": FREE,
    "optim.muon.orth_dtype": FREE,
    "optim.muon.beta2": KEPT,  # it decides whether there is a second moment
    "optim.muon.neuron_axis": KEPT,  # and of which shape
    "optim.muon.lr_scale": FREE,
    "optim.muon.weight_decay": FREE,
    "optim.muon.cautious": FREE,
    "optim.muon.wd_power": FREE,
    "optim.muon.eps": FREE,
    "optim.muon.impl": KEPT,
    "eval.every": FREE,
    "eval.bytes": KEPT,  # the best checkpoint is the best on the same text
    "eval.split": KEPT,  # as well
    "eval.draws": FREE,
    "eval.batch_tokens": FREE,
    "checkpoint.every": FREE,
    "checkpoint.keep": FREE,
    "checkpoint.sharded": FREE,
    "distributed.strategy": FREE,
    "distributed.timeout_seconds": FREE,
    "log.tensorboard": FREE,
    "log.wandb": FREE,
    "log.wandb_project": KEPT,  # the run on Weights & Biases lies there
    "log.wandb_entity": FREE,  # another than that of a run which is there already is refused
    "log.wandb_group": FREE,
    "tune.keys.*.key": FREE,
    "tune.keys.*.low": FREE,
    "tune.keys.*.high": FREE,
    "tune.keys.*.log": FREE,
    "tune.keys.*.whole": FREE,
    "tune.keys.*.choices": FREE,
    "tune.keys.*.default": FREE,
    "tune.ranges.*.low": FREE,
    "tune.ranges.*.high": FREE,
    "tune.prune": FREE,
}


def check_settings(folder: RunFolder, settings: dict[str, Any]) -> None:
    """Compares what a resumed run is asked for with what it began with.

    Raises: CheckpointError for a setting that is kept and differs, or is missing on one side.
    """
    now, then = _leaves(settings), _leaves(folder.read_config())
    for key in sorted(now.keys() | then.keys()):
        if RULES[_ruled(key)] != KEPT or (key in now and key in then and now[key] == then[key]):
            continue
        if key not in now or key not in then:
            raise CheckpointError(
                f"{key} is a setting of {'the run in' if key in then else 'nanozoo, but not of'} "
                f"{folder}{' that nanozoo does not know' if key in then else ''}; go on with the "
                f"version that began the run, or start a new one"
            )
        raise CheckpointError(
            f"{key}={show_value(now[key])} differs from the run in {folder}, which has "
            f"{show_value(then[key])}; a resumed run keeps it: leave it out, or start a new run"
        )


def kept_digest(stored: dict[str, Any]) -> str:
    """The sha256 of the settings that are kept. Args: stored: what config.yaml holds."""
    kept = {key: value for key, value in _leaves(stored).items() if RULES[_ruled(key)] == KEPT}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _ruled(key: str) -> str:
    """The entry of RULES that a key belongs to; unknown keys are those of another version."""
    fitting = [rule for rule in RULES if fnmatch(key, rule) or key.startswith(f"{rule}.")]
    return max(fitting, key=len, default="model_cfg")


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
