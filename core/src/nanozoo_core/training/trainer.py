"""The training loop: one for every model.

`train` sets a run up, `Trainer.run` is the loop, and the rest of the class is what the loop says.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nanozoo_core.config import ResolvedConfig, schema
from nanozoo_core.contract import Batch, Inspection, SamplingSettings, Step
from nanozoo_core.data.loader import Stage, TrainLoader, ValidationSet, compression_baselines
from nanozoo_core.data.prepare import PreparedData, prepare
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.errors import CheckpointError, ConfigError, NonFiniteError
from nanozoo_core.evaluation import inspection
from nanozoo_core.evaluation.score import Score, evaluate
from nanozoo_core.generation.text import generate_tokens
from nanozoo_core.machine import device as devices
from nanozoo_core.machine.process import tune_process
from nanozoo_core.machine.ranks import Ranks, process_group
from nanozoo_core.machine.terminal import say
from nanozoo_core.optim.build import build_optimizers
from nanozoo_core.optim.groups import describe
from nanozoo_core.optim.sharding import gather_whole
from nanozoo_core.training import checkpoint, records
from nanozoo_core.training.batches import mean_per_step, plan_batches
from nanozoo_core.training.budget import Budget, plan_budget
from nanozoo_core.training.distributed import LossModule, parallelize, reshard, set_gradient_sync
from nanozoo_core.training.run_folder import (
    RunFolder,
    Sample,
    Samples,
    TrainState,
    new_run_folder,
    read_state,
)

STATISTICS_BATCHES = 32  # training batches shown to prepare_model and finalize


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended: `signal` is set when it was interrupted, and then there is no score."""

    folder: Path
    val_bpb: float | None = None
    signal: int | None = None


def train(config: ResolvedConfig) -> Result:
    """Runs one training from start, or from its last checkpoint, to its budget.

    Raises: NanozooError for whatever the user can mend, before anything is written.
    """
    tune_process()
    with process_group(config.training.device) as ranks:
        trainer = Trainer(config, ranks)
        with catch_signals() as interrupts:
            return trainer.run(interrupts)


class Trainer:
    """One run: model, data, optimisers, and the state that checkpoints hold."""

    def __init__(self, resolved: ResolvedConfig, ranks: Ranks) -> None:
        config = self.config = resolved.training
        self.ranks = ranks
        self.device = devices.resolve_device(config.device, ranks.local_rank)
        self.dtype = devices.resolve_dtype(config.dtype, self.device)
        self.data = self._prepare_data()
        self.adapter = load_adapter(config.model)
        self.model_cfg = resolved.with_vocabulary(self.data.vocabulary.size).model_cfg
        plan = self.adapter.data_plan(self.model_cfg, config)
        self.shapes = plan_batches(plan, config.train, ranks.world_size)
        self.flops_per_token = [
            self.adapter.flops_per_token(self.model_cfg, shape.seq_len) for shape in self.shapes
        ]
        self.budget = self._plan_budget()
        lookahead = self.adapter.lookahead(self.model_cfg)
        self.loader = TrainLoader(
            self.data,
            seq_len=self.shapes[0].seq_len,
            batch_windows=self.shapes[0].batch_windows,
            lookahead=lookahead,
            seed=config.seed,
            align=plan.align,
            later=self._later_stages(),
        )
        self.validation = ValidationSet(
            self.data,
            seq_len=config.data.seq_len,
            lookahead=lookahead,
            num_bytes=config.eval.bytes,
        )
        self.model = self._build_model()
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
        self.ema = self._start_ema()
        self.state = TrainState(model=config.model)
        self.folder = self._choose_folder()
        self.records = records.RunRecords(self.folder, config.log, is_main=ranks.is_main)
        if config.resume is not None:
            self._load(self.folder.latest_checkpoint())

    # -- setting up -----------------------------------------------------------------------------

    def _prepare_data(self) -> PreparedData:
        """Rank 0 prepares, the others then find it done."""
        if self.ranks.is_main:
            data = prepare(self.config.data, progress=say)
        self.ranks.barrier()
        return data if self.ranks.is_main else prepare(self.config.data)

    def _plan_budget(self) -> Budget:
        tokens = [float(shape.tokens) for shape in self.shapes]
        flops = [t * f for t, f in zip(tokens, self.flops_per_token, strict=True)]
        step_tokens = mean_per_step(self.shapes, tokens)
        budget = plan_budget(
            self.config.train,
            step_tokens=step_tokens,
            step_bytes=step_tokens * self.data.bytes_per_token,
            step_flops=mean_per_step(self.shapes, flops),
        )
        if len(self.shapes) > 1 and (budget.steps is None or budget.seconds is not None):
            raise ConfigError(
                f"{self.config.model} changes its batches with progress, which a budget of "
                f"train.max_seconds leaves undecided; use train.max_steps or train.max_tokens"
            )
        return budget

    def _later_stages(self) -> list[Stage]:
        steps = self.budget.steps or 0
        return [
            Stage(max(1, round(shape.progress * steps)), shape.batch_windows, shape.seq_len)
            for shape in self.shapes[1:]
        ]

    def _stage(self, step: int) -> int:
        """Which of `self.shapes` holds at a step."""
        return self.loader.stages.index(self.loader.stage(step))

    def _build_model(self) -> nn.Module:
        """The same weights on every rank: from torch's generator, seeded here alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            model = self.adapter.build(self.model_cfg, self.data.vocabulary)
        model = model.to(self.device)
        self.adapter.prepare_model(model, self.statistics_batches(0))
        return model

    def statistics_batches(self, step: int) -> Iterator[Batch]:
        """The first micro-batch of some steps, the same on every rank."""
        for number in range(step, step + STATISTICS_BATCHES):
            yield self.loader.batch(number, 0, self.shapes[0].micro_windows).to(self.device)

    def _start_ema(self) -> list[Tensor] | None:
        if self.config.train.ema == 0:
            return None
        return [p.detach().clone() for p in self.model.parameters()]

    def _choose_folder(self) -> RunFolder:
        if self.config.resume is not None:
            return RunFolder(Path(self.config.resume))
        folder = None
        if self.ranks.is_main:
            folder = new_run_folder(self.config.run_dir, self.config.model)
        return self.ranks.broadcast(folder)

    def _load(self, path: Path) -> None:
        """Restores weights, optimisers and counters.

        Raises: CheckpointError, also when the run is already at its budget.
        """
        self._check_same_run()
        self.state = read_state(path)
        if self.state.model != self.config.model:
            raise CheckpointError(
                f"{path} is a checkpoint of model {self.state.model}, not {self.config.model}"
            )
        if self.budget.is_spent(self.state.step, self.state.seconds):
            raise CheckpointError(
                f"{self.folder} has already reached its budget of {self.budget.describe()}; "
                f"raise the budget to train on"
            )
        checkpoint.load_model_tensors(self.model, checkpoint.read_tensors(path, "model"), path)
        self.optimizers.load_full_state(checkpoint.read_tensors(path, "optimizer"))
        if self.ema is not None:
            averaged = checkpoint.read_tensors(path, "ema")
            for (name, _), mean in zip(self.model.named_parameters(), self.ema, strict=True):
                checkpoint.copy_into(mean, averaged[name])

    def _check_same_run(self) -> None:
        """Model, data and seed of a resumed run cannot change. Raises: CheckpointError."""
        stored = self.folder.read_config()
        for key in ("model", "seed", "data", "model_cfg"):
            now, then = self._config_to_store()[key], stored.get(key)
            if now != then:
                inner = ""
                if isinstance(now, dict) and isinstance(then, dict):
                    inner = next(f".{k}" for k in now if now[k] != then.get(k))
                raise CheckpointError(
                    f"{key}{inner} differs from the run in {self.folder}; a resumed run keeps its "
                    f"model, data and seed: start a new run instead"
                )

    # -- the loop -------------------------------------------------------------------------------

    def run(self, interrupts: list[int]) -> Result:
        """Trains until the budget is spent, a signal arrives or train.stop_after is reached."""
        config, state = self.config, self.state
        self.records.open(
            self._config_to_store(),
            resume_step=state.step if config.resume else None,
            tokenizer=self.data.vocabulary,
        )
        self._introduce()
        bar = self._progress_bar()
        interrupted: int | None = None
        try:
            while not self.budget.is_spent(state.step, state.seconds):
                row = self.one_step()
                bar.update(self._bar_position() - bar.n)
                if row is not None:
                    bar.set_postfix_str(
                        f"loss {row['loss']:.3f}, {row['train_bpb']:.3f} bpb, "
                        f"{row['tokens_per_second']:,.0f} tok/s"
                    )
                    self.records.log(row)
                last = self.budget.is_spent(state.step, state.seconds)
                interrupted = self._agree_on_signal(interrupts)
                stopping = interrupted is not None or state.step == config.train.stop_after
                if not last and not stopping and _is_due(state.step, config.eval.every):
                    self._validate(draws=1)
                if not last and (stopping or _is_due(state.step, config.checkpoint.every)):
                    self._save()
                if stopping and not last:
                    bar.close()
                    return self._leave(interrupted)
            bar.close()
            return self._finish()
        finally:
            bar.close()
            self.records.close()

    def one_step(self) -> dict[str, Any] | None:
        """One optimiser step; returns a row of metrics when one is due."""
        config, state = self.config, self.state
        started = time.perf_counter()
        stage = self._stage(state.step)
        shape = self.shapes[stage]
        progress = self.budget.progress(state.step, state.seconds)
        peak = self.adapter.lr_peak(self.model_cfg, progress)
        self.optimizers.set_schedule(state.step, progress, peak=peak)
        step = Step(
            number=state.step,
            progress=progress,
            seed=config.seed,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            num_micro_steps=shape.num_micro_steps,
        )
        # Dropout draws from the global generator: seeded here, a resumed run drops the same.
        torch.manual_seed(step.rank_generator().initial_seed())
        self.adapter.before_step(self.model, step)
        sums: dict[str, Tensor] = {}
        num_bytes = 0
        for micro_step in range(shape.num_micro_steps):
            first = (micro_step * self.ranks.world_size + self.ranks.rank) * shape.micro_windows
            batch = self.loader.batch(state.step, first, shape.micro_windows)
            num_bytes += self.loader.num_bytes(batch)
            set_gradient_sync(self.wrapped, micro_step == shape.num_micro_steps - 1)
            with devices.autocast(self.device, self.dtype):
                loss, metrics = self.wrapped(
                    batch.to(self.device), dataclasses.replace(step, micro_step=micro_step)
                )
            (loss / shape.num_micro_steps).backward()
            for name, value in {"loss": loss.detach(), **metrics}.items():
                sums[name] = sums.get(name, 0.0) + value / shape.num_micro_steps
        with torch.no_grad():
            self.adapter.before_update(self.model, step, self.optimizers.optimizers)
        grad_norm = self.optimizers.clip(config.train.grad_clip)
        self._stop_if_not_finite(sums["loss"], grad_norm)
        self.optimizers.step()
        self.optimizers.zero_grad()
        with torch.no_grad():
            self.adapter.after_step(self.model, step, self.optimizers.optimizers)
            self._update_ema()
        elapsed = time.perf_counter() - started
        if config.train.max_seconds is not None:  # every rank must agree on the clock
            elapsed = self.ranks.broadcast(elapsed)
        state.step += 1
        state.tokens += shape.tokens
        state.flops += shape.tokens * self.flops_per_token[stage]
        state.seconds += elapsed
        return self._row(sums, num_bytes, grad_norm, shape.tokens)

    def _row(
        self, sums: dict[str, Tensor], num_bytes: int, grad_norm: Tensor, num_tokens: int
    ) -> dict[str, Any] | None:
        """Adds the step's bytes, and averages its metrics over ranks where a row is due."""
        state = self.state
        due = _is_due(state.step, self.config.train.log_every)
        due = due or state.step == 1 or self.budget.is_spent(state.step, state.seconds)
        values = torch.tensor([float(num_bytes)], dtype=torch.float64)
        if due:
            metrics = torch.stack([v.double().cpu() for v in sums.values()])
            values = torch.cat([values, metrics / self.ranks.world_size])
        if self.ranks.world_size > 1:
            values = self.ranks.sum(values.to(self.device)).cpu()
        step_bytes = int(values[0])
        state.bytes += step_bytes
        if not due:
            return None
        row: dict[str, Any] = {"step": state.step}
        row |= dict(zip(sums, values[1:].tolist(), strict=True))
        nats = row.get("nll", row["loss"]) * num_tokens
        row["train_bpb"] = nats / (math.log(2) * step_bytes)
        row |= {"grad_norm": float(grad_norm), "lr": self.optimizers.current_lr()}
        row |= {"tokens": state.tokens, "bytes": state.bytes, "flops": state.flops}
        row |= {"seconds": state.seconds, "tokens_per_second": state.tokens / state.seconds}
        return row

    def _stop_if_not_finite(self, loss: Tensor, grad_norm: Tensor) -> None:
        """Raises: NonFiniteError on every rank if any rank has one, before weights change."""
        wrong = torch.stack([~loss.isfinite(), ~grad_norm.isfinite()]).to(torch.float32)
        bad_loss, bad_gradient = self.ranks.max(wrong).tolist()
        if not (bad_loss or bad_gradient):
            return
        what = "loss" if bad_loss else "gradient norm"
        folder = self.folder
        good = folder.latest_checkpoint() if folder.has_checkpoint else "none yet"
        raise NonFiniteError(
            f"the {what} is not finite at step {self.state.step}; the weights were not touched "
            f"and the last good checkpoint is {good}; a lower optim.lr or a longer optim.warmup "
            f"usually helps"
        )

    def _update_ema(self) -> None:
        if self.ema is not None:
            parameters = [p.detach() for p in self.model.parameters()]
            torch._foreach_lerp_(self.ema, parameters, 1 - self.config.train.ema)

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Lends the model its averaged weights, where there are any."""
        if self.ema is None:
            yield
            return
        parameters = [p.data for p in self.model.parameters()]
        held = [p.clone() for p in parameters]
        torch._foreach_copy_(parameters, self.ema)
        try:
            yield
        finally:
            torch._foreach_copy_(parameters, held)

    def _agree_on_signal(self, interrupts: list[int]) -> int | None:
        """The signal any rank has received so far, or None."""
        received = float(interrupts[-1]) if interrupts else 0.0
        if self.ranks.world_size > 1:
            received = float(self.ranks.max(torch.tensor([received], device=self.device)))
        return int(received) or None

    # -- validation, checkpoints, the end ---------------------------------------------------------

    def _validate(self, *, draws: int) -> Score:
        config = self.config
        if self.adapter.likelihood == "exact":
            draws = 1
        with (
            self._averaged_weights(),
            tqdm(
                total=math.ceil(self.validation.num_windows / self.ranks.world_size) * draws,
                desc="validating",
                leave=False,
                bar_format="{desc}: {percentage:3.0f}% |{bar}| {elapsed}",
                disable=not self.ranks.is_main,
            ) as bar,
        ):
            score = evaluate(
                self.module if config.distributed.strategy == "ddp" else self.wrapped,
                self.validation,
                self.ranks,
                likelihood=self.adapter.likelihood,
                draws=draws,
                batch_tokens=config.eval.batch_tokens,
                device=self.device,
                dtype=self.dtype,
                on_progress=bar.update,
            )
            reshard(self.wrapped)
        state = self.state
        if state.best_bpb is None or score.bits_per_byte < state.best_bpb:
            state.best_bpb, state.best_step = score.bits_per_byte, state.step
        self.records.log(
            {
                "step": state.step,
                "tokens": state.tokens,
                "bytes": state.bytes,
                "flops": state.flops,
                "seconds": state.seconds,
                "val_bpb": score.bits_per_byte,
                "val_loss": score.nats_per_token,
                "val_standard_error": score.standard_error,
            }
        )
        if self.ranks.is_main:
            sign = "<= " if score.bound == "upper" else ""
            margin = f" +- {score.standard_error:.4f}" if score.standard_error else ""
            say(
                f"step {state.step}: validation {sign}{score.bits_per_byte:.4f}{margin} "
                f"bits per byte"
            )
        return score

    def _save(self) -> None:
        """Every rank gathers, rank 0 writes; a failure to write stops all ranks."""
        tensors = {"model": checkpoint.model_tensors(self.model)}
        tensors["optimizer"] = self.optimizers.full_state()
        if self.ema is not None:
            names = [name for name, _ in self.model.named_parameters()]
            means = [gather_whole(mean).cpu() for mean in self.ema]
            tensors["ema"] = dict(zip(names, means, strict=True))
        problem = None
        if self.ranks.is_main:
            try:
                keep = self.config.checkpoint.keep
                checkpoint.save(self.folder, self.state, tensors, keep=keep)
            except CheckpointError as error:
                problem = str(error)
        problem = self.ranks.broadcast(problem)
        if problem is not None:
            raise CheckpointError(problem)

    def _leave(self, received: int | None) -> Result:
        """Ends an unfinished run, with its checkpoint written."""
        if self.ranks.is_main:
            why = f"signal {signal.Signals(received).name}" if received else "train.stop_after"
            say(
                f"stopped at step {self.state.step} by {why}; checkpoint written. Continue with:\n"
                f"  train resume={self.folder}"
            )
            records.plot_losses(self.folder)
        return Result(self.folder.path, signal=received)

    def _finish(self) -> Result:
        model = self._whole_model()
        self._calibrate(model)
        score = self._validate(draws=self.config.eval.draws)
        self._save()
        if self.ranks.is_main:
            baselines = compression_baselines(self.validation.documents)
            found = self._inspect(model)
            diagnostics = {} if found is None else {"diagnostics": found.metrics}
            self.records.finish(self._result(score, baselines) | diagnostics)
            self._write_samples(model)
            self._say_farewell(score, baselines, found)
        return Result(self.folder.path, val_bpb=score.bits_per_byte)

    @torch.no_grad()
    def _calibrate(self, model: nn.Module) -> None:
        """Lets the adapter finish a whole copy of the model, and takes over its buffers."""
        model.eval()
        self.adapter.finalize(model, self.statistics_batches(self.state.step))
        for mine, final in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(final)

    def _inspect(self, model: nn.Module) -> Inspection | None:
        found = inspection.inspect_model(
            self.adapter,
            model,
            self.validation,
            self.data.vocabulary,
            batch_tokens=self.config.eval.batch_tokens,
            device=self.device,
        )
        if found is not None:
            inspection.write(
                found, self.folder.inspection_path, self.folder.inspection_picture_path
            )
        return found

    def _result(self, score: Score, baselines: dict[str, float]) -> dict[str, Any]:
        state, config = self.state, self.config
        peak = devices.peak_flops(self.device)
        seconds = state.seconds
        return {
            "model": config.model,
            **self.adapter.report(self.model),
            "val_bpb": score.bits_per_byte,
            "val_bound": score.bound,
            "val_standard_error": score.standard_error,
            "val_loss": score.nats_per_token,
            "val_bytes": score.num_bytes,
            "val_tokens": score.num_tokens,
            "baselines_bpb": baselines,
            "steps": state.step,
            "train_tokens": state.tokens,
            "train_bytes": state.bytes,
            "train_seconds": seconds,
            "tokens_per_second": state.tokens / seconds,
            "train_flops": state.flops,
            "mfu": state.flops / seconds / (peak * self.ranks.world_size) if peak else None,
            "peak_memory_bytes": devices.peak_memory_bytes(self.device),
            "seed": config.seed,
            "tokenizer": self.data.vocabulary.name,
            "data_fingerprint": self.data.fingerprint,
            "device": devices.device_name(self.device),
            "num_processes": self.ranks.world_size,
            "dtype": str(self.dtype).removeprefix("torch."),
            "torch": torch.__version__,
            "git_commit": records.git_commit(),
        }

    # -- what the user sees -----------------------------------------------------------------------

    def _introduce(self) -> None:
        if not self.ranks.is_main:
            return
        report = self.adapter.report(self.model)
        shape = self.shapes[self._stage(self.state.step)]
        processes = f" x {self.ranks.world_size}" if self.ranks.world_size > 1 else ""
        verb = f"continuing at step {self.state.step}" if self.state.step else "writing to"
        say(
            f"{self.config.model}: {report['params'] / 1e6:.2f} M parameters on "
            f"{devices.device_name(self.device)}{processes}, "
            f"{str(self.dtype).removeprefix('torch.')}\n"
            f"{self.data.summary()}\n"
            f"batch: {shape.batch_windows} windows of {shape.seq_len} tokens in "
            f"{shape.num_micro_steps} micro-steps; budget: {self.budget.describe()}\n"
            f"{self.group_table}\n"
            f"{verb} {self.folder}"
        )

    def _progress_bar(self) -> tqdm[Any]:
        total = self.budget.steps if self.budget.seconds is None else 100
        return tqdm(
            total=total,
            initial=self._bar_position(),
            desc=self.config.model,
            unit="step" if self.budget.seconds is None else "%",
            disable=not self.ranks.is_main,
            dynamic_ncols=True,
        )

    def _bar_position(self) -> int:
        if self.budget.seconds is None:
            return self.state.step
        return round(100 * self.budget.progress(self.state.step, self.state.seconds))

    def _write_samples(self, model: nn.Module) -> None:
        """Some generated text: from nothing, and after the first lines of validation documents."""
        vocabulary = self.data.vocabulary
        prompts = [""]
        for document in itertools.islice(self.validation.documents, 2):
            prompts.append(document.decode("utf-8", errors="replace")[:48])
        texts: list[Sample] = []
        for seed, prompt in enumerate(prompts):
            settings = SamplingSettings(max_tokens=SAMPLE_TOKENS, temperature=0.8, seed=seed)
            tokens = generate_tokens(self.adapter, model, vocabulary, prompt, settings)
            text = vocabulary.decode([token for new in tokens for token in new])
            texts.append(Sample(prompt, prompt + text))
        shown = self.adapter.show_sample(model, vocabulary, inspection.SHOWN_TEXT)
        self.folder.write_samples(Samples(tuple(texts), shown))

    def _whole_model(self) -> nn.Module:
        """A copy of the model, averaged weights where there are any, all of them on every rank."""
        model = self.adapter.build(self.model_cfg, self.data.vocabulary).to(self.device)
        with self._averaged_weights():
            tensors = checkpoint.model_tensors(self.model)
            checkpoint.load_model_tensors(model, tensors, self.folder.path)
        return model

    def _say_farewell(
        self, score: Score, baselines: dict[str, float], found: Inspection | None
    ) -> None:
        say("\n" + self.folder.samples_text_path.read_text(encoding="utf-8").strip())
        if found is not None:
            say("\n" + inspection.describe(found))
        others = ", ".join(f"{name} {bpb:.3f}" for name, bpb in baselines.items())
        run = self.folder
        paths = (run.result_path, run.metrics_path, run.loss_picture_path, run.samples_text_path)
        files = ", ".join([path.name for path in paths] + [f"{run.checkpoints_path.name}/"])
        sign = "at most " if score.bound == "upper" else ""
        say(
            f"\n{self.config.model}: {sign}{score.bits_per_byte:.4f} bits per byte on "
            f"{score.num_bytes:,} bytes (the same bytes compressed: {others})\n"
            f"{self.state.tokens:,} tokens in {self.state.seconds:.0f} s, "
            f"{self.state.tokens / self.state.seconds:,.0f} tokens/s\n"
            f"all files are in {self.folder}: {files}\n"
            f"more text: nanozoo generate {self.folder} --prompt 'def '"
        )

    def _config_to_store(self) -> dict[str, Any]:
        """The resolved settings, without those that belong to this start alone."""
        stored = schema.to_dict(self.config)
        stored["model_cfg"] = schema.to_dict(self.model_cfg)
        stored["resume"] = None
        stored["run_dir"] = None
        stored["train"]["stop_after"] = None
        return stored


SAMPLE_TOKENS = 128


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and Ctrl-C instead of dying; a second Ctrl-C interrupts at once."""
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    try:
        previous = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: whoever owns it handles signals
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
