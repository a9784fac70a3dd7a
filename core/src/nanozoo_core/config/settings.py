"""Every training setting, as one dataclass per section of `training.yaml`.

The line under a field is its help text. Model parameters (`model_cfg`) belong to the model's own
dataclass. Nothing here imports torch, so that a wrong setting is reported at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from nanozoo_core.config.ranges import (
    Count,
    Decay,
    NotNegative,
    Number,
    Positive,
    Range,
    Share,
)
from nanozoo_core.config.tuning import TuneConfig
from nanozoo_core.errors import Problems, suggest
from nanozoo_core.machine.paths import require_path

TOKENIZERS = ("bytes", "bpe", "gpt2")
"""Those that `data.tokenizer` knows by name."""


MIXTURE = "mixture"
"""The corpus that `data.sources` make up."""


@dataclass(frozen=True)
class SourceConfig:
    """One source of a mixture, as `data.corpus` and `data.path` name it."""

    corpus: str
    """As data.corpus."""
    path: str | list[str] | None = None
    """As data.path."""
    text_key: str | None = None
    """As data.text_key, which null takes."""
    weight: Positive = 1.0
    """How much of it is read beside the others: its share is its weight over the sum of all."""


@dataclass(frozen=True)
class DataConfig:
    corpus: str
    """stdlib, packages, text, huggingface, bin, fineweb10B or fineweb100B, or mixture for
    data.sources."""
    path: str | list[str] | None
    """Files, folders or globs for `text`; the folder or files of shards for `bin`; the name of a
    data set, or NAME:CONFIGURATION, for `huggingface`."""
    text_key: str
    """The key or the column of the text, where the data are JSON lines, tables or a data set."""
    sources: dict[str, SourceConfig]
    """Of a mixture, by names of your own: what each reads, and its weight, such as
    data.sources.code.corpus=stdlib data.sources.code.weight=3."""
    tokenizer: str
    """bytes (vocabulary 258), bpe (trained on the corpus), gpt2 (tiktoken's 50257), or the path of
    a tokenizer.json that nanozoo or Hugging Face's tokenizers wrote (byte-level BPE)."""
    vocab_size: int
    """Size of the trained vocabulary; only for `tokenizer=bpe`."""
    seq_len: Count
    """Scored tokens per window."""
    val_fraction: Annotated[float, Range(above=0, below=1)]
    """Share of the documents held out for validation, chosen by hash."""
    packing: Literal["stream", "documents", "truncate"]
    """How training windows are cut: from the stream of all documents; from each document's start,
    its last window running on into the next ones; or with documents truncated to a window and as
    many of them as fit, all begun at their start and the rest dropped. Scores always read the
    stream."""

    def __post_init__(self) -> None:
        p = Problems()
        for path in [self.path] if isinstance(self.path, str) else self.path or []:
            require_path(p, "data.path", path)
        self._check_sources(p)
        p.require(
            self.tokenizer in TOKENIZERS or self.names_tokenizer_file,
            f"data.tokenizer={self.tokenizer} must be one of {', '.join(TOKENIZERS)}, or a path "
            f"with a / or .json in it{suggest(self.tokenizer, TOKENIZERS)}",
        )
        if self.names_tokenizer_file:
            require_path(p, "data.tokenizer", self.tokenizer)
        p.require(
            self.tokenizer != "bpe" or 257 <= self.vocab_size <= 65536,
            f"data.vocab_size={self.vocab_size} must be between 257 (all bytes and the separator) "
            "and 65536 (what a .bin shard can hold)",
        )
        p.raise_if_any()

    def _check_sources(self, p: Problems) -> None:
        names = ", ".join(self.sources)
        p.require(
            not self.sources or self.corpus == MIXTURE,
            f"data.sources ({names}) has no effect with data.corpus={self.corpus}; use "
            f"data.corpus={MIXTURE}",
        )
        p.require(
            self.corpus != MIXTURE or len(self.sources) > 0,
            f"data.corpus={MIXTURE} needs data.sources, such as data.sources.code.corpus=stdlib",
        )
        p.require(
            self.corpus != MIXTURE or self.path is None,
            f"data.path={self.path} has no effect with data.corpus={MIXTURE}; give each source "
            "its own, as data.sources.NAME.path",
        )
        for name, source in self.sources.items():
            p.require(
                name.isidentifier(),
                f"data.sources.{name}: a source's name must be of letters, digits and _, and not "
                "begin with a digit",
            )
            p.require(
                source.corpus != MIXTURE,
                f"data.sources.{name}.corpus={MIXTURE} would be a mixture in a mixture; name its "
                "sources beside the others",
            )
            for path in [source.path] if isinstance(source.path, str) else source.path or []:
                require_path(p, f"data.sources.{name}.path", path)

    def of_source(self, name: str) -> DataConfig:
        """The settings of one source of a mixture alone."""
        source = self.sources[name]
        text_key = self.text_key if source.text_key is None else source.text_key
        return replace(self, corpus=source.corpus, path=source.path, text_key=text_key, sources={})

    @property
    def names_tokenizer_file(self) -> bool:
        """Whether `tokenizer` is the path of a file."""
        return "/" in self.tokenizer or "\\" in self.tokenizer or ".json" in self.tokenizer


@dataclass(frozen=True)
class TrainConfig:
    batch_tokens: Count
    """Scored tokens per optimiser step, over all ranks and micro-steps."""
    micro_batch_tokens: Count | None
    """Scored tokens per forward pass on one device; null takes a rank's whole share at once."""
    max_steps: Count | None
    """Budget in optimiser steps. The first budget reached ends the run; set at least one."""
    max_tokens: Positive | None
    """Budget in scored training tokens."""
    max_bytes: Positive | None
    """Budget in bytes of training text."""
    max_flops: Positive | None
    """Budget in training FLOPs, counted as the model's sheet says."""
    max_seconds: Positive | None
    """Budget in seconds of training, without validation and checkpoints."""
    stop_after: Count | None
    """Leave cleanly after this step, as on SIGTERM; the schedule still spans the whole budget."""
    grad_clip: NotNegative
    """Largest gradient norm of the AdamW parameters; 0 switches clipping off."""
    ema: Decay
    """Decay of a weight average used for validation and kept in checkpoints; 0 is none. Update n
    (0, 1, ...) decays by at most (1 + n) / (10 + n)."""
    log_every: Count
    """Steps between two rows of metrics.jsonl."""
    freeze: str | list[str] | None
    """Parameters that do not train: roles (matrix, embedding, head, vector) or names, also with *
    and ?, such as [embedding, 'blocks.0']; `blocks.0` is all that is in it."""


@dataclass(frozen=True)
class AdamWConfig:
    beta1: Decay
    """Decay of the first moment."""
    beta2: Decay
    """Decay of the second moment."""
    eps: Positive
    """Added to the root of the second moment."""
    embedding_lr: Positive | None
    """Rate of embeddings; null means optim.lr."""
    head_lr: Positive | None
    """Rate of an untied output head; null means optim.lr."""
    vector_lr: Positive | None
    """Rate of gains, biases and other small parameters; null means optim.lr."""
    cautious: bool
    """Decay only where the update already shrinks the weight."""
    wd_power: Literal[1, 2]
    """2 couples the decay to the square of the rate, as the speedrun does."""
    every: Count
    """Step AdamW's parameters only at each such step, on the gradients summed since the last."""


@dataclass(frozen=True)
class MuonConfig:
    lr: Positive
    """Rate of the matrices; with lr_scale=match_rms_adamw use AdamW's (3e-4 .. 2e-3)."""
    momentum: Decay
    """Decay of the momentum once warm."""
    momentum_min: Decay
    """Momentum at the first step."""
    warmup_steps: Number | None
    """Steps over which momentum rises; null is a fifth of the run, at most 300."""
    cooldown_steps: Number
    """Steps at the end over which momentum falls back to momentum_min."""
    nesterov: bool
    """Look one gradient ahead of the momentum."""
    orth: Literal["polar_express", "ns5", "exact"]
    """How the update is orthogonalised."""
    orth_dtype: Literal["auto", "float32", "bfloat16"]
    """Precision of the iteration; auto is bfloat16 on CUDA (sm80+) and float32 elsewhere."""
    beta2: Annotated[float, Range(above=0, below=1)] | None
    """Decay of NorMuon's per-neuron second moment; null is plain Muon."""
    neuron_axis: Literal["shape", "out"]
    """NorMuon's neurons: the rows of the weight (out), or chosen by its shape as in the record."""
    lr_scale: Literal["spectral", "match_rms_adamw", "spectral_unclamped", "none"]
    """How the rate depends on a matrix's shape."""
    weight_decay: NotNegative
    """Decoupled decay of the matrices; replaces optim.weight_decay for them."""
    cautious: bool
    """Decay only where the update already shrinks the weight."""
    wd_power: Literal[1, 2]
    """2 couples the decay to the square of the rate, as the speedrun does."""
    eps: Positive
    """Added to the Frobenius norm before dividing."""
    impl: Literal["nanozoo", "torch"]
    """torch falls back to torch.optim.Muon: no Polar Express, NorMuon or sharding."""

    def __post_init__(self) -> None:
        p = Problems()
        p.require(
            self.momentum_min <= self.momentum,
            f"optim.muon.momentum_min={self.momentum_min} must be in [0, optim.muon.momentum="
            f"{self.momentum}]",
        )
        p.require(
            self.beta2 is not None or self.neuron_axis == "out",
            f"optim.muon.neuron_axis={self.neuron_axis} has no effect with optim.muon.beta2=null; "
            "leave it at 'out'",
        )
        p.require(
            self.wd_power == 1 or self.weight_decay > 0,
            f"optim.muon.wd_power={self.wd_power} has no effect with optim.muon.weight_decay=0; "
            "leave it at 1",
        )
        if self.impl == "torch":
            fixed = {"orth": "ns5", "beta2": None, "cautious": False, "wd_power": 1}
            for key, value in fixed.items():
                p.require(
                    getattr(self, key) == value,
                    f"optim.muon.{key}={getattr(self, key)} is unknown to optim.muon.impl=torch; "
                    f"use {'null' if value is None else str(value).lower()}",
                )
            p.require(
                self.orth_dtype != "float32",
                "optim.muon.orth_dtype=float32 is unknown to optim.muon.impl=torch, which iterates "
                "in bfloat16",
            )
            p.require(
                self.lr_scale != "none",
                "optim.muon.lr_scale=none is unknown to optim.muon.impl=torch",
            )
        p.raise_if_any()


@dataclass(frozen=True)
class OptimConfig:
    name: Literal["muon", "adamw"]
    """muon: matrices by Muon, the rest by AdamW; adamw: everything by AdamW."""
    lr: Positive
    """Rate of everything that AdamW updates, at the top of the schedule."""
    weight_decay: NotNegative
    """AdamW's decay of matrices and heads; embeddings and vectors never decay."""
    schedule: Literal["wsd", "cosine", "constant", "noam"]
    """Warm-up-stable-decay, cosine, constant after the warm-up, or as the 2017 Transformer: after
    the warm-up falling with the square root of the step."""
    warmup: NotNegative
    """Warm-up: a fraction of the run when below 1, else a number of steps."""
    decay_fraction: Share
    """wsd: the last part of the run, over which the rate falls linearly."""
    hold_fraction: Annotated[float, Range(least=0, below=1)]
    """wsd: the very last part of the run, after the fall, at the final rate."""
    final_lr_fraction: Share
    """The rate at the very end, relative to the top."""
    adamw: AdamWConfig
    muon: MuonConfig

    def __post_init__(self) -> None:
        p = Problems()
        p.require(
            self.hold_fraction == 0 or self.schedule == "wsd",
            f"optim.hold_fraction={self.hold_fraction} has no effect with optim.schedule="
            f"{self.schedule}; leave it out",
        )
        parts = {"warmup": self.warmup if self.warmup < 1 else 0.0}
        parts |= {"decay_fraction": self.decay_fraction, "hold_fraction": self.hold_fraction}
        named = [f"optim.{key}={value}" for key, value in parts.items() if value > 0]
        p.require(
            self.schedule != "wsd" or sum(parts.values()) <= 1,
            f"{' and '.join(named)} overlap; together they must be at most 1",
        )
        p.require(
            self.schedule != "noam" or self.warmup > 0,
            "optim.schedule=noam needs optim.warmup above 0: its rate falls from there",
        )
        p.require(
            self.schedule != "noam" or self.final_lr_fraction == 0,
            f"optim.final_lr_fraction={self.final_lr_fraction} has no effect with "
            f"optim.schedule=noam; leave it out",
        )
        p.raise_if_any()


@dataclass(frozen=True)
class EvalConfig:
    every: Number
    """Steps between validations; 0 validates only at the end."""
    bytes: Count
    """How much of the validation text is scored: its first bytes, the same for every model."""
    split: Literal["all", "tune", "test"]
    """Which validation documents are scored: all of them, or one of two halves: tune for choosing
    settings, test for final tables."""
    draws: Count
    """Random draws of a bound in the final validation (one is taken during training)."""
    batch_tokens: Count
    """Tokens per forward pass of validation on one device."""


@dataclass(frozen=True)
class CheckpointConfig:
    every: Number
    """Steps between checkpoints; 0 writes only the last. A new best validation writes one too."""
    keep: Count
    """How many of the latest to keep, beside the best and the last good one."""
    sharded: Literal["auto", True, False]
    """Every rank writes its own part, while training goes on; auto does so under fsdp."""


@dataclass(frozen=True)
class DistributedConfig:
    strategy: Literal["ddp", "fsdp"]
    """ddp copies the model to every rank; fsdp shards it."""
    timeout_seconds: float
    """How long a process waits for the others before it ends, with a sentence; rank 0 may prepare
    data meanwhile."""

    def __post_init__(self) -> None:
        p = Problems()
        p.require(
            0 < self.timeout_seconds <= 7 * 86400,
            f"distributed.timeout_seconds={self.timeout_seconds} must be positive and at most "
            f"{7 * 86400}, a week",
        )
        p.raise_if_any()


@dataclass(frozen=True)
class LogConfig:
    tensorboard: bool
    """Write TensorBoard event files into the run folder."""
    wandb: bool
    """Log to Weights & Biases (extra `nanozoo-core[wandb]`)."""
    wandb_project: str | None
    """The project there; null is $WANDB_PROJECT, or else nanozoo."""
    wandb_entity: str | None
    """The user or team whose project it is; null is $WANDB_ENTITY, or else one's own."""
    wandb_group: str | None
    """Gathers runs there, such as those of a sweep; null is $WANDB_RUN_GROUP, or else none."""


@dataclass(frozen=True)
class TrainingConfig:
    """One training run. `model` is the name typed after --model; `model_cfg` its own settings."""

    model: str
    model_cfg: dict[str, object]
    seed: Number
    """Decides the data order, the initial weights and all noise."""
    device: Literal["auto", "cpu", "cuda", "mps"]
    """auto takes the best that is there."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    """Autocast precision; auto is bfloat16 on GPUs that are good at it, and on CPUs that a short
    measurement finds 1.2 times as fast in it, else float32. float16, with a loss scale that finds
    itself, is for GPUs older than those."""
    attention_form: Literal["auto", "kernel", "products", "float32"]
    """How bfloat16 attention is computed on a CPU: by torch's kernel, by products that keep their
    probabilities, or by the kernel in float32; auto is what that measurement finds fastest."""
    compile: Literal["auto", True, False]
    """torch.compile; auto compiles on CUDA only."""
    resume: str | None
    """A run folder to continue, RUN@STEP for an earlier checkpoint of it, or auto for the newest
    unfinished run of this model."""
    resume_data: Literal["same", "accept"]
    """same refuses to continue a run whose text has changed; accept goes on with the new text."""
    resume_files: Literal["same", "accept"]
    """same refuses to continue a run whose own files were changed; accept takes them so."""
    run_dir: str | None
    """Where the run is written; null is runs/<model>/<time>."""
    init_from: str | None
    """Weights to begin with: a run (RUN, or RUN@STEP), a folder that nanozoo export wrote, or one
    of transformers. The model's settings and its tokenizer come with them."""
    init_digest: str | None
    """sha256 of those weights, which the run notes; other weights are refused."""
    data: DataConfig
    train: TrainConfig
    optim: OptimConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig
    distributed: DistributedConfig
    log: LogConfig
    tune: TuneConfig

    def __post_init__(self) -> None:
        p = Problems()
        for key in ("resume", "run_dir", "init_from"):
            require_path(p, key, getattr(self, key))
        p.require(
            self.init_digest is None or self.init_from is not None,
            f"init_digest={self.init_digest} has no effect without init_from; leave it out",
        )
        for key in ("resume_data", "resume_files"):
            value = getattr(self, key)
            p.require(
                value == "same" or self.resume is not None,
                f"{key}={value} has no effect without resume=RUN; leave it out",
            )
        p.raise_if_any()
