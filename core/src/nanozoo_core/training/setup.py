"""What a training needs before it has an optimiser: data, adapter, plan and a fresh model.

Training, timing and decoding start from it alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nanozoo_core.config import ResolvedConfig, TrainingConfig, schema
from nanozoo_core.contract import Batch, Step
from nanozoo_core.data.loader import TrainLoader, ValidationSet
from nanozoo_core.data.prepare import AnyData, prepare
from nanozoo_core.data.tokenizers import Tokenizer
from nanozoo_core.default_model_adapter import DefaultModelAdapter, load_adapter
from nanozoo_core.errors import ConfigError
from nanozoo_core.machine import device as devices
from nanozoo_core.machine.attention_form import AttentionForm
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.machine.terminal import say
from nanozoo_core.optim.freezing import describe_frozen, freeze
from nanozoo_core.training import cpu_precision, memory
from nanozoo_core.training.filling import begin_with
from nanozoo_core.training.initial_weights import InitialWeights, check_model_cfg, find_weights
from nanozoo_core.training.plan import RunPlan, plan_run
from nanozoo_core.training.run_data import check_same_data, own_vocabulary, told_where_to_look
from nanozoo_core.training.run_folder import parse_resume

STATISTICS_BATCHES = 32  # training batches shown to prepare_model and finalize


@dataclass(frozen=True)
class Setup:
    """One process's part of a run, ready for the first batch."""

    config: TrainingConfig
    model_cfg: Any
    ranks: Ranks
    device: torch.device
    dtype: torch.dtype
    data: AnyData
    adapter: DefaultModelAdapter
    plan: RunPlan
    loader: TrainLoader
    validation: ValidationSet
    model: nn.Module
    notes: tuple[str, ...] = ()
    """Lines for the terminal: where the weights came from, and which of them do not train."""
    precision: cpu_precision.Choice | None = None
    """What was measured to choose the types and forms of a CPU, if it was."""

    @property
    def attention_form(self) -> AttentionForm:
        form = self.config.attention_form
        return "kernel" if form == "auto" else form

    def statistics_batches(self, step: int) -> Iterator[Batch]:
        """The first micro-batch of some steps, the same on every rank."""
        return _statistics_batches(self.loader, self.plan, self.device, step)


def set_up(resolved: ResolvedConfig, ranks: Ranks) -> Setup:
    """Prepares the data, plans the run and builds the model, with the same weights on every rank.

    Raises: NanozooError for whatever the user can mend, before anything is written.
    """
    config = resolved.training
    device = devices.resolve_device(config.device, ranks.local_rank)
    dtype = devices.resolve_dtype(config.dtype, device)
    adapter = load_adapter(config.model)
    weights = _initial_weights(resolved)
    is_theirs = weights is not None and config.data.tokenizer == weights.data.get("tokenizer")
    data = _prepare_data(config, ranks, weights.vocabulary if weights and is_theirs else None)
    if config.resume is not None:
        run, _ = parse_resume(config.resume)
        check_same_data(run, data, accept=config.resume_data == "accept")
    model_cfg = resolved.with_vocabulary(data.vocabulary.size).model_cfg
    memory.require_room_for_model(adapter, config.model, model_cfg, device, each=memory.TRAINED)
    plan = plan_run(
        config,
        adapter,
        model_cfg,
        bytes_per_token=data.bytes_per_token,
        world_size=ranks.world_size,
    )
    lookahead = adapter.lookahead(model_cfg)
    loader = TrainLoader(
        data, plan.stages, lookahead=lookahead, seed=config.seed, align=config.data.packing
    )
    validation = ValidationSet(
        data,
        seq_len=config.data.seq_len,
        lookahead=lookahead,
        num_bytes=config.eval.bytes,
        split=config.eval.split,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = adapter.build(model_cfg, data.vocabulary)
    memory.require_room_for_batch(config, plan, model, device)
    precision = None
    if device.type == "cpu":
        losses = partial(_short_step, config, model_cfg, adapter, data, loader, plan)
        config, precision = cpu_precision.choose(config, model_cfg, losses, ranks=ranks)
        dtype = devices.resolve_dtype(config.dtype, device)
    model = model.to(device)
    adapter.prepare_model(model, _statistics_batches(loader, plan, device, 0))
    notes = []
    if weights is not None:
        digest, note = begin_with(
            weights, adapter, model, model_cfg, data.vocabulary, digest=config.init_digest
        )
        config = replace(config, init_digest=digest)
        notes.append(note)
    patterns = config.train.freeze or []
    if patterns:
        patterns = [patterns] if isinstance(patterns, str) else patterns
        frozen = freeze(model, adapter.parameter_roles(model), patterns)
        notes.append(describe_frozen(model, frozen))
    return Setup(
        config=config,
        model_cfg=model_cfg,
        ranks=ranks,
        device=device,
        dtype=dtype,
        data=data,
        adapter=adapter,
        plan=plan,
        loader=loader,
        validation=validation,
        model=model,
        notes=tuple(notes),
        precision=precision,
    )


def _short_step(
    config: TrainingConfig,
    model_cfg: Any,
    adapter: DefaultModelAdapter,
    data: AnyData,
    loader: TrainLoader,
    plan: RunPlan,
) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """Another model of the run's shape, and its loss on the first windows of the text."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = adapter.build(model_cfg, data.vocabulary).train()
    stage = plan.stages[0]
    windows = min(plan.micro_windows(stage), max(1, cpu_precision.MOST_TOKENS // stage.seq_len))
    batch = loader.batch(0, 0, windows)
    step = Step(number=0, progress=0.0, seed=config.seed)
    adapter.before_step(model, step)
    return model, lambda model: adapter.training_loss(model, batch, step).value


def _initial_weights(resolved: ResolvedConfig) -> InitialWeights | None:
    """What `init_from` names; None in a run that goes on, which has its own.

    Raises: ConfigError when the model is another, as where settings did not come by
        `initial_weights.with_weights`.
    """
    config = resolved.training
    if config.init_from is None or config.resume is not None:
        return None
    weights = find_weights(config.init_from, config.model)
    problems = check_model_cfg(weights, schema.to_dict(resolved.model_cfg))
    if problems:
        raise ConfigError(problems)
    return weights


def _prepare_data(config: TrainingConfig, ranks: Ranks, of_weights: Tokenizer | None) -> AnyData:
    """Rank 0 prepares, the others then find it done. A run that goes on keeps its tokenizer, and
    one that begins with given weights theirs; shards in a vocabulary of their own may add to it."""
    own: Tokenizer | None = None
    place: AbstractContextManager[None] = nullcontext()
    if config.resume is not None:
        run, _ = parse_resume(config.resume)
        own, place = own_vocabulary(run, config), told_where_to_look(run)
    elif of_weights is not None and of_weights.name == "bpe" and config.data.corpus != "bin":
        own = of_weights
    if ranks.is_main:
        with place:
            data = prepare(config.data, vocabulary=own, progress=say)
    ranks.barrier()
    return data if ranks.is_main else prepare(config.data, vocabulary=own)


def _statistics_batches(
    loader: TrainLoader, plan: RunPlan, device: torch.device, step: int
) -> Iterator[Batch]:
    for number in range(step, step + STATISTICS_BATCHES):
        yield loader.batch(number, 0, plan.micro_windows(plan.stages[0])).to(device)
