"""What the trainer asks of a model, answered for any next-token model.

A package whose model fits these defaults writes no adapter. Others subclass and override only the
methods that differ. Shapes: B batch, T sequence, K new tokens, D model_dim, V vocabulary.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core import registry
from nanozoo_core.config import OptimConfig, TrainingConfig
from nanozoo_core.contract import (
    Batch,
    DataPlan,
    DataStage,
    Drafter,
    Draw,
    GGUFModel,
    Inspection,
    Likelihood,
    Loss,
    Nll,
    PartialText,
    SamplingSettings,
    Step,
    Vocabulary,
)
from nanozoo_core.errors import ConfigError
from nanozoo_core.machine.precision import in_float64
from nanozoo_core.nn.accounting import cache_growth, count_parameters, counted_flops_per_token
from nanozoo_core.ops.linear_cross_entropy import linear_cross_entropy
from nanozoo_core.optim.groups import ParameterGroup, default_roles, make_groups


class NextTokenModel(Protocol):
    """All that core reads of a model that predicts the next token.

    Only `config`, `__call__` and `max_context` must be there. `features`, `logits` and
    `output_weight` go together: with them the loss never builds the logits whole, and decoding
    scores the last position alone. `output_bias` and `logit_softcap` then say what else turns
    features into logits. `reads_lengths` says that `features` also takes `lengths` (B,) of
    right-padded rows, which a recurrent state needs: it cannot forget padding that it has read, as
    `crop` makes a cache of keys do. `init_cache` is for cached decoding; without it `cache` is
    never given.
    """

    config: Any
    """The model's settings."""
    max_context: int | None
    """The longest sequence that it can read; None where there is no longest."""
    output_weight: Tensor
    """(V, D): its product with the features is the logits."""
    output_bias: Tensor | None
    """(V,): added to that product; absent or None for no bias."""
    logit_softcap: float | None
    """c where the logits are c * tanh(x / c) of that sum x; absent or None for no cap."""

    def features(self, tokens: Tensor, cache: Any = None) -> Tensor:
        """(B, T, D) for tokens (B, T); advances `cache`."""
        ...

    def logits(self, features: Tensor) -> Tensor:
        """(..., V) from features (..., D), with bias and cap."""
        ...

    def init_cache(self, batch_size: int, max_length: int) -> Any:
        """A decoding state with `lengths` (B,), which every forward pass that is given it advances,
        and `crop(lengths)`; with `num_bytes` its memory is counted."""
        ...

    def __call__(self, tokens: Tensor, cache: Any = None) -> Tensor:
        """Logits (B, T, V); advances `cache`."""
        ...


class DenoisingModel(Protocol):
    """All that core reads of a model that fills holes from both sides, beside its adapter's
    `denoise`."""

    max_context: int
    """The longest window, its first token included, which is context."""
    chunk_size: int
    """By how many tokens a full window slides on to continue a text."""


class DefaultModelAdapter:
    """The contract between a model and the trainer.

    The default serves every `NextTokenModel`.
    """

    likelihood: Likelihood = "exact"
    family = "decoder"
    """What kind of model it is, in a word or two: reports draw a family in one colour."""
    cache_lengths = (1, 2)
    """Tokens between which the decoding state grows evenly, for `report`; a model with windows
    names two beyond them."""

    def __init__(self, config_class: type, model_class: type[nn.Module]) -> None:
        self.config_class = config_class
        self.model_class = model_class

    # -- building -------------------------------------------------------------------------------

    def build(self, config: Any, vocabulary: Vocabulary) -> nn.Module:
        """A fresh model on the current default device; its weights come from torch's global
        generator, which the trainer seeds just before.

        Raises: ConfigError when the model has fewer tokens than the tokenizer.
        """
        size = getattr(config, "vocab_size", vocabulary.size)
        if size < vocabulary.size:
            raise ConfigError(
                f"model_cfg.vocab_size={size} is less than the {vocabulary.size} tokens of the "
                f"{vocabulary.name} tokenizer; use null to follow it"
            )
        return self.make_model(config)

    def make_model(self, config: Any) -> nn.Module:
        """The module of a config; a package whose settings choose between classes overrides it."""
        return self.model_class(config)

    def prepare_model(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        """Called once on a fresh model before the first step, with some training batches, for
        statistics of the data that the model keeps in buffers."""

    def lookahead(self, config: Any) -> int:
        """Tokens a window needs past its inputs."""
        return 1

    def data_plan(self, config: Any, training: TrainingConfig) -> DataPlan:
        """Batch size and window length over the run; constant unless a model schedules them."""
        stage = DataStage(0.0, training.train.batch_tokens, training.data.seq_len)
        return DataPlan((stage,))

    # -- loss and score -------------------------------------------------------------------------

    def batch_totals(self, model: nn.Module, batch: Batch, step: Step) -> Tensor | None:
        """Counts over a batch that the loss needs of the whole global batch, int64 of any shape;
        None where it needs none, as it sums over tokens alone.

        A loss that divides by a number of tokens which differs between batches, or multiplies two
        means, would depend on how the global batch is split over micro-steps and ranks. Where it is
        split, each part is asked for its counts, without gradient, and `training_loss` then finds
        their sum in `step.totals`.
        """
        return None

    @property
    def has_batch_totals(self) -> bool:
        """Whether `batch_totals` is there: without it a split batch is not read twice."""
        return type(self).batch_totals is not DefaultModelAdapter.batch_totals

    def training_loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        """Mean next-token cross-entropy in nats per scored token."""
        return Loss(self._cross_entropy(model, batch, reduction="mean"))

    def nll(self, model: nn.Module, batch: Batch, draw: Draw) -> Nll:
        """Summed nats per window, exact or an upper bound as `likelihood` says; never under
        dropout, never a training loss."""
        return Nll(nats=self.token_nats(model, batch).sum(1), num_tokens=batch.num_scored)

    def token_nats(self, model: nn.Module, batch: Batch) -> Tensor:
        """-log p of every target given what stands before it, float64 (B, T), unscored ones at 0:
        what `nll` sums, unless the model scores a window as a whole."""
        return in_float64(self._cross_entropy(model, batch, reduction="none"))

    @property
    def scores_tokens(self) -> bool:
        """Whether `token_nats` is what `nll` sums: a bound has no such parts."""
        of_windows, of_tokens = type(self).nll, type(self).token_nats
        default = DefaultModelAdapter
        return of_windows is default.nll or of_tokens is not default.token_nats

    def _cross_entropy(
        self,
        model: nn.Module,
        batch: Batch,
        reduction: Literal["mean", "none"],
        features: Tensor | None = None,
    ) -> Tensor:
        """-log p(target) in float32 nats, unscored positions at weight 0: their mean over scored
        tokens, or with reduction="none" all of them, (B, T). A model that computes more than
        `features` (B, T, D) passes them."""
        targets = batch.targets
        decoder = cast(NextTokenModel, model)
        weight = None if batch.scored is None else batch.scored.flatten().float()
        if features is None and hasattr(model, "features"):
            features = decoder.features(batch.inputs)
        if features is not None:
            losses = linear_cross_entropy(
                features.flatten(0, 1),
                decoder.output_weight,
                targets.flatten(),
                bias=getattr(model, "output_bias", None),
                token_weight=weight,
                softcap=getattr(model, "logit_softcap", None),
                reduction=reduction,
            )
        else:
            logits = model(batch.inputs).flatten(0, 1).float()  # (B * T, V)
            losses = F.cross_entropy(logits, targets.flatten(), reduction="none")
            if weight is not None:
                losses = losses * weight
            if reduction == "mean":
                losses = losses.mean() if weight is None else losses.sum() / weight.sum()
        return losses if reduction == "mean" else losses.reshape(targets.shape)

    # -- optimisation ---------------------------------------------------------------------------

    def parameter_roles(self, model: nn.Module) -> dict[str, str]:
        """Role of every parameter by name: matrix, embedding, head or vector."""
        return default_roles(model)

    def optimizer_groups(self, model: nn.Module, optim: OptimConfig) -> list[ParameterGroup]:
        """Parameter groups with their rates; every trainable parameter in exactly one."""
        return make_groups(model, self.parameter_roles(model), optim)

    def lr_peak(self, config: Any, progress: float) -> float:
        """The top of the learning-rate schedule at a point of the run, relative to the rates; a
        model that grows its batches may raise it with them."""
        return 1.0

    def before_step(self, model: nn.Module, step: Step) -> None:
        """Called before the first forward pass of a step, and again where the step is taken anew
        because its gradients left float16's range: what was counted since is to be forgotten."""

    def before_update(
        self, model: nn.Module, step: Step, optimizers: Sequence[torch.optim.Optimizer]
    ) -> None:
        """Called when the gradients of a step are whole, before they are clipped and used, without
        gradient."""

    def after_step(
        self, model: nn.Module, step: Step, optimizers: Sequence[torch.optim.Optimizer]
    ) -> dict[str, Tensor] | None:
        """Called after the weights changed, without gradient (ngpt renormalises here).

        Returns: scalars to log, the same on every rank: what only the whole step knows."""
        return None

    def finalize(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        """Called once after training with some training batches, for calibration. `model` is a
        whole copy in eval mode, also where training shards it; its buffers are kept."""

    # -- decoding -------------------------------------------------------------------------------

    def has_cache(self, model: nn.Module) -> bool:
        """Whether decoding keeps a state; without one every new token reads the whole text again,
        which is right but slow."""
        has_own = type(self).init_cache is not DefaultModelAdapter.init_cache
        return has_own or hasattr(model, "init_cache")

    def init_cache(self, model: nn.Module, batch_size: int, max_length: int) -> Any:
        """An empty decoding state for `batch_size` rows of at most `max_length` tokens."""
        return cast(NextTokenModel, model).init_cache(batch_size, max_length)

    def prefill(self, model: nn.Module, tokens: Tensor, lengths: Tensor, cache: Any) -> Tensor:
        """Reads right-padded prompts (B, T) with `lengths` (B,) into an empty cache.

        Returns: logits (B, V) after each row's last token.
        """
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        if getattr(model, "reads_lengths", False):
            valid = lengths.to(tokens.device)
            features = cast(Any, model).features(tokens, cache=cache, lengths=valid)  # (B, T, D)
            return cast(NextTokenModel, model).logits(features[rows, lengths - 1])
        if hasattr(model, "features") and hasattr(model, "logits"):
            decoder = cast(NextTokenModel, model)
            last = decoder.features(tokens, cache=cache)[rows, lengths - 1]  # (B, D)
            logits = decoder.logits(last)
        else:
            logits = model(tokens, cache=cache)[rows, lengths - 1]
        cache.crop(lengths)
        return logits

    def append(self, model: nn.Module, tokens: Tensor, cache: Any) -> Tensor:
        """Reads K more tokens of every row, (B, K), and returns logits (B, K, V)."""
        logits: Tensor = model(tokens, cache=cache)
        return logits

    @property
    def can_denoise(self) -> bool:
        """Whether `denoise` is there: without it a text can only be continued."""
        return type(self).denoise is not DefaultModelAdapter.denoise

    @property
    def takes_steps(self) -> bool:
        """Whether `settings.num_steps` says how long a token or a window is worked on."""
        return self.can_denoise

    def at_steps(self, model: nn.Module, num_steps: int | None) -> AbstractContextManager[object]:
        """Inside it a model that reads from left to right works `num_steps` on every token; None is
        the config's own number. Models that denoise read it from their settings instead."""
        return nullcontext()

    def denoise(
        self,
        model: nn.Module,
        window: PartialText,
        settings: SamplingSettings,
        generator: torch.Generator,
    ) -> Iterator[list[int | None]]:
        """Fills a window's holes given all its other tokens, those before and those after: yields
        the window after each step that changed it (and the noise it starts from, where that is no
        mask), the last time without holes. Known tokens are the same each time.

        Only for models that see a text from both sides, each a `DenoisingModel`.

        Args: window: at least one token, the first of them known; None marks a hole.
        """
        raise NotImplementedError(f"{type(model).__name__} reads from left to right only")

    def denoised_length(self, model: nn.Module, length: int) -> int:
        """Of the window in which a text of `length` tokens is denoised: the network has learned
        windows of one length, in which a text goes on to the end."""
        return cast(DenoisingModel, model).max_context

    def drafter(self, model: nn.Module) -> Drafter | None:
        """A fresh decoding state that proposes tokens for the model to check, for speculative
        decoding; None where there is nothing to propose with."""
        return None

    # -- accounting -----------------------------------------------------------------------------

    def flops_per_token(self, config: Any, seq_len: int) -> float:
        """Training FLOPs per token: three times a forward pass, whose products torch counts, with
        attention in full."""
        try:
            with torch.device("meta"):
                model = self.make_model(config)
            return counted_flops_per_token(model, seq_len)
        except (NotImplementedError, RuntimeError):  # a forward pass that looks at values
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                model = self.make_model(config)
            return counted_flops_per_token(model, seq_len)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Counts for result.json: params, params_non_embedding, what decoding keeps in memory for
        each token where the cache tells (`num_bytes`), and what the model adds."""
        counts = count_parameters(model, self.parameter_roles(model))
        return counts | self.count_cache(model)

    def count_cache(self, model: nn.Module) -> dict[str, float]:
        """`cache_bytes_per_token`, by which the decoding state grows with every token, and
        `state_bytes`, what it holds from the start, from `cache_lengths`; empty where the cache has
        no `num_bytes`."""
        if not self.has_cache(model):
            return {}
        caches = [self.init_cache(model, 1, length) for length in self.cache_lengths]
        if not all(hasattr(cache, "num_bytes") for cache in caches):
            return {}
        return cache_growth(self.cache_lengths, [cache.num_bytes for cache in caches])

    def at_width(self, model_cfg: Any, factor: float) -> dict[str, object]:
        """Changes to `model_cfg` that make the model `factor` times as wide, to the nearest width
        that its heads divide; for comparing models of equal size. Raises: ConfigError for a model
        that has no one width and does not say how it grows."""
        if not isinstance(getattr(model_cfg, "model_dim", None), int):
            raise ConfigError(f"{type(model_cfg).__name__} has no single model_dim to scale")
        step = 2 * getattr(model_cfg, "num_heads", 1)  # rotary positions need an even head_dim
        return {"model_dim": max(step, round(factor * model_cfg.model_dim / step) * step)}

    def at_depth(self, model_cfg: Any, num_layers: int) -> dict[str, object]:
        """Changes to `model_cfg` that make the model as deep as a plain decoder of `num_layers`;
        none where it has no one depth, and then only its width grows on a ladder of sizes."""
        if not isinstance(getattr(model_cfg, "num_layers", None), int):
            return {}
        return {"num_layers": num_layers}

    def is_branchable(self, model_cfg: Any) -> bool:
        """Whether training does the same at a step whatever the run's length: it reads no
        `step.progress`. Then runs of several lengths can share their beginning."""
        return True

    def to_hf(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The config.json and the weights with which a class of transformers computes the same
        logits; None where there is no such class. Raises: ConfigError for a model whose settings
        that class lacks."""
        return None

    def to_gguf(self, model: nn.Module) -> GGUFModel | None:
        """The model for llama.cpp; None where no architecture there computes the same. Raises:
        ConfigError for a model whose settings that architecture lacks."""
        return None

    def config_from_hf(self, theirs: dict[str, Any]) -> Any | None:
        """The config of this model that computes what the config.json of a folder of transformers
        describes; None where it reads no such folders. Raises: NanozooError for one that it cannot
        be."""
        return None

    def weights_from_hf(
        self, theirs: dict[str, Tensor], config_json: dict[str, Any], config: Any
    ) -> dict[str, Tensor]:
        """The weights of that folder under the names of this model. Args: config: what
        `config_from_hf` made of `config_json`. Raises: NanozooError when they do not fit."""
        raise NotImplementedError(f"{type(self).__name__} reads no folders of transformers")

    def show_sample(self, model: nn.Module, vocabulary: Vocabulary, text: str) -> str | None:
        """What is peculiar to this model on `text`, for samples.txt (hnet marks its chunks)."""
        return None

    def inspect(
        self, model: nn.Module, batches: Sequence[Batch], vocabulary: Vocabulary
    ) -> Inspection | None:
        """Diagnostics that only this model has, as numbers and pictures, from some validation
        batches; never the score."""
        return None


def load_adapter(name: str) -> DefaultModelAdapter:
    """The adapter of an installed model: its own where it has one, else the default."""
    config_class = registry.config_class(name)
    module = registry.model_modules()[name]
    model_class = registry.named_object(name, "model", "Model", "the network")
    adapter_class = DefaultModelAdapter
    if importlib.util.find_spec(f"{module}.adapter") is not None:
        adapter_class = registry.named_object(name, "adapter", "Adapter", "its adapter")
    return adapter_class(config_class, model_class)


def models_that_define(method: str) -> list[str]:
    """The installed models whose adapter has a method of its own; one that cannot be loaded is none
    of them, which a user hears who names it."""
    default, found = getattr(DefaultModelAdapter, method), []
    for name in registry.model_modules():
        with suppress(ConfigError):
            if getattr(type(load_adapter(name)), method) is not default:
                found.append(name)
    return found
