"""The training loop: one for every model."""

from __future__ import annotations

import dataclasses
import logging
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanozoo_core.config import ResolvedConfig
from nanozoo_core.contract import Step
from nanozoo_core.errors import NonFiniteError, WriteError
from nanozoo_core.evaluation.score import Score, evaluate
from nanozoo_core.likelihood import bits_per_byte, target_bytes
from nanozoo_core.machine import device as devices
from nanozoo_core.machine.attention_form import attention_form
from nanozoo_core.machine.precision import casts_kept
from nanozoo_core.machine.process import tune_process
from nanozoo_core.machine.ranks import Ranks, process_group
from nanozoo_core.optim.build import build_optimizers
from nanozoo_core.optim.groups import describe
from nanozoo_core.training import checkpoint, finish, messages, records
from nanozoo_core.training.claim import claim_folder
from nanozoo_core.training.distributed import LossModule, parallelize, reshard, set_gradient_sync
from nanozoo_core.training.divergence import diverged
from nanozoo_core.training.ema import WeightAverage
from nanozoo_core.training.integrity import note_run
from nanozoo_core.training.loss_scale import LossScale
from nanozoo_core.training.parts import Part, seed_dropout, with_totals
from nanozoo_core.training.resume import (
    begun_anew,
    check_resumable,
    config_to_store,
    gather_tensors,
    take_over,
)
from nanozoo_core.training.run_folder import TrainState, parse_resume
from nanozoo_core.training.setup import set_up
from nanozoo_core.training.sharded_save import ShardedSave, all_pieces, is_due, should_shard
from nanozoo_core.training.signals import agreed_signal, catch_signals
from nanozoo_core.training.step_metrics import StepMetrics
from nanozoo_core.training.tracking import import_wandb

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended: `signal` is set when it was interrupted, and then there is no score."""

    folder: Path
    val_bpb: float | None = None
    signal: int | None = None


def train(config: ResolvedConfig, *, on_row: records.OnRow | None = None) -> Result:
    """Runs one training from start, or from its last checkpoint, to its budget.

    Args: on_row: is told each row that is logged, on rank 0.

    Raises: NanozooError for whatever the user can mend, before anything is written.
    """
    tune_process()
    settings = config.training
    waits = settings.distributed.timeout_seconds
    with process_group(settings.device, waits) as ranks, messages.told_out_of_memory(settings):
        trainer = Trainer(config, ranks, on_row=on_row)
        try:
            with catch_signals() as interrupts:
                return trainer.run(interrupts)
        except KeyboardInterrupt:  # the second Ctrl-C
            if ranks.is_main:
                messages.say_aborted(trainer.folder)
            return Result(trainer.folder.path, signal=signal.SIGINT)
        except WriteError as error:
            raise WriteError(f"{error}; {messages.how_to_go_on(trainer.folder)}") from error
        finally:
            trainer.claim.release()


class Trainer:
    """One run: model, data, optimisers, and the state that checkpoints hold."""

    def __init__(
        self, resolved: ResolvedConfig, ranks: Ranks, *, on_row: records.OnRow | None = None
    ) -> None:
        resolved = begun_anew(resolved)
        if resolved.training.resume is not None:
            check_resumable(resolved)
        if resolved.training.log.wandb:
            import_wandb()
        self.setup = setup = set_up(resolved, ranks)
        config = self.config = setup.config
        self.ranks, self.device = ranks, setup.device
        self.adapter, self.model, self.budget = setup.adapter, setup.model, setup.plan.budget
        self.module = LossModule(self.model, self.adapter)
        self.wrapped = parallelize(
            self.module,
            ranks,
            strategy=config.distributed.strategy,
            compiled=devices.should_compile(config.compile, self.device),
            device=self.device,
        )
        groups = self.adapter.optimizer_groups(self.model, config.optim)
        self.group_table = describe(groups)
        self.optimizers = build_optimizers(
            groups, config.optim, total_steps=self.budget.steps, device=self.device
        )
        self.average = WeightAverage(self.model, config.train.ema)
        resumed = None if config.resume is None else parse_resume(config.resume)[0]
        self.claim = claim_folder(resumed, config.run_dir, config.model, ranks)
        self.folder = self.claim.folder
        self.settings = config_to_store(config, setup.model_cfg)
        self.state = TrainState(model=config.model)
        self.saved_step: int | None = None  # of the newest checkpoint
        self.saving: ShardedSave | None = None  # one that is on its way to the disk
        self.is_sharded = should_shard(
            config.checkpoint.sharded, config.distributed.strategy, ranks
        )
        self.is_whole = True  # whether weights and state are those of one step
        if resumed is not None:
            with self.claim.released_on_error():
                self.state = take_over(setup, resumed, self.optimizers, self.average)
            self.saved_step = self.state.step
        self.loss_scale = LossScale(setup.dtype, self.optimizers, self.state)
        self.logged_at = self.state.tokens, self.state.seconds  # of the newest row of metrics
        self.records = records.RunRecords(
            self.folder, config.log, is_main=ranks.is_main, on_row=on_row
        )

    # -- the loop -------------------------------------------------------------------------------

    def run(self, interrupts: list[int]) -> Result:
        """Trains until the budget is spent, a signal arrives or train.stop_after is reached."""
        config, state, budget = self.config, self.state, self.budget
        self.records.open(
            self.settings,
            resumed=state if config.resume else None,
            is_trained=budget.is_spent(state.step, state.seconds),
            data=self.setup.data,
        )
        if self.ranks.is_main:
            note_run(self.folder, state)
            messages.introduce(self.setup, state, self.group_table, self.folder)
        bar = messages.Progress(config.model, budget, state, is_shown=self.ranks.is_main)
        try:
            if self._has_missed_a_validation():
                self._validate(draws=1)
            while not budget.is_spent(state.step, state.seconds):
                row = self.one_step()
                bar.update(row)
                if row is not None:
                    self.records.log(row)
                last = budget.is_spent(state.step, state.seconds)
                interrupted = agreed_signal(interrupts, self.ranks, self.device)
                stopping = interrupted is not None or state.step == config.train.stop_after
                if not last and not stopping and _is_due(state.step, config.eval.every):
                    self._validate(draws=1)
                is_best = state.best_step == state.step
                if stopping or is_best or last or _is_due(state.step, config.checkpoint.every):
                    self._save(beside=not stopping and not last)
                elif self.saving is not None and is_due(self.saving, self.ranks, self.device):
                    self._finish_saving()
                if stopping and not last:
                    bar.close()
                    return self._leave(interrupted)
            bar.close()
            return self._finish(interrupts)
        except NonFiniteError:
            raise
        except Exception:
            self._save_after_an_error()
            raise
        finally:
            bar.close()
            self.records.close()

    def one_step(self) -> dict[str, Any] | None:
        """One optimiser step; returns a row of metrics when one is due."""
        config, state, setup = self.config, self.state, self.setup
        started = time.perf_counter()
        number = setup.loader.stage_number(state.step)
        stage = setup.plan.stages[number]
        micro_windows = setup.plan.micro_windows(stage)
        progress = self.budget.progress(state.step, state.seconds)
        peak = self.adapter.lr_peak(setup.model_cfg, progress)
        self.optimizers.set_schedule(state.step, progress, peak=peak)
        step = Step(
            number=state.step,
            progress=progress,
            seed=config.seed,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            num_micro_steps=stage.num_micro_steps,
        )
        # Until the weights move they are those of the last step, and so is the rest of the state
        # but for gradients that wait for a later step.
        self.is_whole = not self.optimizers.has_waiting
        self._prepare(step)
        parts: list[Part] = []
        for micro_step in range(stage.num_micro_steps):
            first = (micro_step * self.ranks.world_size + self.ranks.rank) * micro_windows
            batch = setup.loader.batch(state.step, first, micro_windows).to(self.device)
            parts.append((batch, dataclasses.replace(step, micro_step=micro_step)))
        parts = with_totals(
            self.adapter, self.wrapped, parts, self.ranks, device=self.device, dtype=setup.dtype
        )
        self.loss_scale.begin()
        measured, grad_norm = self._gradients(step, parts)
        while not measured.check_finite(grad_norm, state, self.folder, self.loss_scale):
            self.loss_scale.fall()
            self._prepare(step)
            measured, grad_norm = self._gradients(step, parts)
        self.loss_scale.count()
        if self.saved_step == state.step:
            state.last_good_step = state.step
        self.is_whole = False
        self.optimizers.step()
        self.optimizers.zero_grad()
        with torch.no_grad():
            whole = self.adapter.after_step(self.model, step, self.optimizers.optimizers)
        measured.add_whole(whole or {})
        self.average.update(state.step)
        elapsed = time.perf_counter() - started
        if config.train.max_seconds is not None:  # every rank must agree on the clock
            elapsed = self.ranks.broadcast(elapsed)
        row = self._count(number, elapsed, measured, grad_norm)
        self.is_whole = True
        return row

    def _prepare(self, step: Step) -> None:
        """Tells the model which step begins, or begins again."""
        seed_dropout(step)
        self.adapter.before_step(self.model, step)

    def _gradients(self, step: Step, parts: Sequence[Part]) -> tuple[StepMetrics, Tensor]:
        """Leaves the clipped gradients of a global batch in the parameters; returns what was
        measured on the way, and their norm before."""
        measured = StepMetrics(self.ranks, self.device, step.num_micro_steps)
        with self._precision():
            for batch, part in parts:
                set_gradient_sync(self.wrapped, part.micro_step == step.num_micro_steps - 1)
                seed_dropout(part)
                with devices.autocast(self.device, self.setup.dtype):
                    loss, metrics = self.wrapped(batch, part)
                with devices.no_autocast(self.device):  # which is not for the backward pass
                    (loss / step.num_micro_steps * self.loss_scale.factor).backward()
                measured.add(loss, metrics, target_bytes(batch, self.setup.data.vocabulary))
        self.loss_scale.unscale()
        with torch.no_grad():
            self.adapter.before_update(self.model, step, self.optimizers.optimizers)
        return measured, self.optimizers.clip(self.config.train.grad_clip)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Of a step's forward passes. Weights that autocast has cast stay so until the last part;
        under FSDP, where they would outlive the whole ones, for one part."""
        with attention_form(self.setup.attention_form):
            if self.config.distributed.strategy == "fsdp":
                yield
            else:
                with devices.autocast(self.device, self.setup.dtype), casts_kept():
                    yield

    def _count(
        self, stage: int, elapsed: float, measured: StepMetrics, grad_norm: Tensor
    ) -> dict[str, Any] | None:
        """Adds the step to what the run has done; returns its row of metrics where one is due."""
        state, plan = self.state, self.setup.plan
        num_tokens = plan.stages[stage].tokens
        state.step += 1
        state.tokens += num_tokens
        state.flops += num_tokens * plan.flops_per_token[stage]
        state.seconds += elapsed
        due = _is_due(state.step, self.config.train.log_every)
        due = due or state.step == 1 or self.budget.is_spent(state.step, state.seconds)
        num_bytes, means = measured.over_ranks(with_means=due)
        state.bytes += num_bytes
        if not due:
            return None
        nats = means.get("nll", means["loss"]) * num_tokens
        tokens, seconds = state.tokens - self.logged_at[0], state.seconds - self.logged_at[1]
        self.logged_at = state.tokens, state.seconds
        return {
            "step": state.step,
            **means,
            "train_bpb": bits_per_byte(nats, num_bytes),
            "grad_norm": float(grad_norm),
            "lr": self.optimizers.current_lr(),
            **state.spent,
            "epoch": self.setup.loader.epochs(state.step),
            "tokens_per_second": tokens / seconds,
        }

    # -- validation, checkpoints, the end ---------------------------------------------------------

    def _has_missed_a_validation(self) -> bool:
        """Whether the run was stopped at a step that is validated: it left without waiting."""
        state = self.state
        is_open = state.step > 0 and not self.budget.is_spent(state.step, state.seconds)
        is_due = is_open and _is_due(state.step, self.config.eval.every)
        return is_due and state.validated_step != state.step

    def _validate(self, *, draws: int) -> Score:
        """Scores the averaged weights, and remembers the best score.

        Raises: NonFiniteError when the run has diverged.
        """
        state, setup = self.state, self.setup
        if self.adapter.likelihood == "exact":
            draws = 1
        num_windows = math.ceil(setup.validation.num_windows / self.ranks.world_size) * draws
        with (
            self.average.lent_to_the_model(),
            messages.validation_bar(num_windows, is_shown=self.ranks.is_main) as bar,
        ):
            try:
                score = evaluate(
                    self.module,
                    setup.validation,
                    self.ranks,
                    likelihood=self.adapter.likelihood,
                    draws=draws,
                    batch_tokens=self.config.eval.batch_tokens,
                    device=self.device,
                    dtype=setup.dtype,
                    on_progress=bar.update,
                )
            except NonFiniteError as error:
                raise diverged(f"{error} at step {state.step}", state, self.folder) from error
            reshard(self.wrapped)
        if state.best_bpb is None or score.bits_per_byte < state.best_bpb:
            state.best_bpb, state.best_step = score.bits_per_byte, state.step
        state.validated_step = state.step
        logged = ("val_bpb", "val_loss", "val_standard_error")
        values = {key: score.values[key] for key in logged}
        values |= {f"val_bpb/{name}": bpb for name, bpb in score.sources.items()}
        self.records.log({"step": state.step} | state.spent | values)
        if self.ranks.is_main:
            messages.say_score(state.step, score)
        return score

    def _save(self, *, beside: bool = False) -> None:
        """Writes a checkpoint. Args: beside: shards may go to the disk while training goes on."""
        self._finish_saving()
        parts = (self.model, self.optimizers, self.average)
        tables = checkpoint.table_names(self.model)
        self.is_whole = False  # for what one attempt cannot save another cannot
        try:
            if self.is_sharded:
                self.saving = ShardedSave(
                    self.claim, self.state, all_pieces(*parts), ranks=self.ranks, tables=tables
                )
            else:
                keep, tensors = self.config.checkpoint.keep, gather_tensors(*parts)
                checkpoint.save_on_main(
                    self.claim, self.state, tensors, keep=keep, ranks=self.ranks, tables=tables
                )
                self.saved_step = self.state.step
        except NonFiniteError as error:
            sentence = f"{error} at step {self.state.step}, which is not saved"
            raise diverged(sentence, self.state, self.folder) from error
        self.is_whole = True
        if not beside:
            self._finish_saving()

    def _finish_saving(self) -> None:
        """Waits for the checkpoint that is on its way to the disk, if there is one."""
        if self.saving is None:
            return
        saving, self.saving, self.is_whole = self.saving, None, False
        saving.finish(keep=self.config.checkpoint.keep)
        self.saved_step, self.is_whole = saving.state.step, True

    def _save_after_an_error(self) -> None:
        """Keeps what was trained since the last checkpoint. On several ranks it does not: a save is
        their common work, and the others do not know of the error."""
        is_new = self.state.step not in (0, self.saved_step)
        if self.ranks.world_size > 1 or not self.is_whole or not is_new:
            return
        try:
            self._save()
        except Exception as error:  # such as that of a full disk, which may have led here
            log.warning("step %d is lost, because it cannot be saved: %s", self.state.step, error)
            return
        messages.say_saved(self.state.step, self.folder)

    def _leave(self, received: int | None) -> Result:
        """Ends an unfinished run, with its checkpoint written."""
        if self.ranks.is_main:
            is_trained = self.budget.is_spent(self.state.step, self.state.seconds)
            messages.say_stopped(self.state.step, received, self.folder, is_trained=is_trained)
            records.plot_if_possible(self.folder)
        return Result(self.folder.path, signal=received)

    def _finish(self, interrupts: list[int]) -> Result:
        """Ends a run at its budget, whose checkpoint is there already: a run that is killed or
        leaves in here finishes when it is resumed."""
        if (received := agreed_signal(interrupts, self.ranks, self.device)) is not None:
            return self._leave(received)
        whole = finish.whole_model(self.setup, self.average, self.folder)
        finish.calibrate(self.setup, whole, self.state.step)
        score = self._validate(draws=self.config.eval.draws)
        self.state.last_good_step = self.state.step
        if self.ranks.is_main:
            self.claim.check_in_place()
            buffers = checkpoint.buffers(self.model)
            checkpoint.renew(self.folder, self.state, buffers, keep=self.config.checkpoint.keep)
        if (received := agreed_signal(interrupts, self.ranks, self.device)) is not None:
            return self._leave(received)
        if self.ranks.is_main:
            end = finish.conclude(self.setup, whole, self.state, score, self.folder)
            self.records.finish(end.result)
            messages.say_farewell(self.config.model, self.state, end, self.folder)
        return Result(self.folder.path, val_bpb=score.bits_per_byte)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
