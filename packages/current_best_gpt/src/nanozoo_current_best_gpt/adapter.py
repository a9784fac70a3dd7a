"""How the speedrun model trains: its loss, its optimiser groups, and head and embedding as one
until they part.

B batch, T sequence, M targets of a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nanozoo_core.config import OptimConfig, TrainingConfig
from nanozoo_core.contract import (
    Batch,
    Curves,
    DataPlan,
    DataStage,
    Inspection,
    Loss,
    Step,
    Vocabulary,
)
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.errors import ConfigError
from nanozoo_core.ops.linear_cross_entropy import multi_target_cross_entropy
from nanozoo_core.optim.groups import Own, ParameterGroup, make_groups
from nanozoo_current_best_gpt import schedule
from nanozoo_current_best_gpt.coefficients import Named
from nanozoo_current_best_gpt.config import CurrentBestConfig
from nanozoo_current_best_gpt.model import CurrentBestGPT
from nanozoo_current_best_gpt.prefix import prefix_table

SLOW, STEADY = (0.9, 0.99), (0.9, 0.95)
# The record's rates, relative to those of the role, its betas, and its decay relative to
# optim.weight_decay, by the end of the parameter's name; the first that fits holds.
SETTINGS: dict[str, Own] = {
    "mlp.down.weight": Own(lr_mult=4.0),  # stored transposed there, which its rate rule favours
    "embedding.weight": Own(betas=(0.5, 0.95), decay_mult=150),
    "head.weight": Own(betas=(0.5, 0.95), decay_mult=150),
    "bigram.table.weight": Own(betas=(0.75, 0.95), decay_mult=5),
    "gains": Own(lr_mult=5.0, betas=SLOW),
    "smear_scale": Own(lr_mult=5.0, betas=SLOW),
    "skip": Own(lr_mult=5.0, betas=SLOW),
    "backout": Own(lr_mult=5.0, betas=SLOW),
    "keep": Own(lr_mult=5.0, betas=STEADY),
    "add": Own(betas=STEADY),
    "smear_gate": Own(lr_mult=0.01, betas=SLOW),
    "value_gate": Own(betas=SLOW, decay_mult=1),
    "mix.bias": Own(lr_mult=0.25, betas=SLOW),
    "mix.w1": Own(lr_mult=0.25, betas=SLOW, decay_mult=1),
    "mix.w2": Own(lr_mult=0.25, betas=SLOW, decay_mult=1),
    "gates.bias": Own(lr_mult=0.1, betas=SLOW),
    "gates.w1": Own(lr_mult=0.1, betas=SLOW, decay_mult=1),
    "gates.w2": Own(lr_mult=0.1, betas=SLOW, decay_mult=1),
    "gate_scale": Own(lr_mult=0.1, betas=SLOW),
}
TABLE = Own(betas=(0.75, 0.95), decay_mult=5)


class CurrentBestAdapter(DefaultModelAdapter):
    cache_lengths = (8192, 16384)  # beyond all windows

    def build(self, config: CurrentBestConfig, vocabulary: Vocabulary) -> nn.Module:
        """Adds what the model needs to know of the tokens: where documents begin, and prefixes."""
        model = super().build(config, vocabulary)
        assert isinstance(model, CurrentBestGPT)
        model.separator = vocabulary.separator
        if config.has_prefix_loss:
            texts = [vocabulary.decode_bytes([token]) for token in range(vocabulary.size)]
            table = torch.tensor(prefix_table(texts))
            model.register_buffer("prefixes", table, persistent=False)
        return model

    def lookahead(self, config: CurrentBestConfig) -> int:
        return config.num_targets

    def data_plan(self, config: CurrentBestConfig, training: TrainingConfig) -> DataPlan:
        lengths = config.seq_lens or (training.data.seq_len,)
        tokens = training.train.batch_tokens
        stages: list[DataStage] = []
        for number, start in enumerate(config.stage_starts):
            scale = schedule.of_stage(config.batch_scale, number)
            stage = DataStage(start, round(tokens * scale), schedule.of_stage(lengths, number))
            last = stages[-1] if stages else None
            if last is None or (last.batch_tokens, last.seq_len) != stage_shape(stage):
                stages.append(stage)
        return DataPlan(tuple(stages))

    # -- loss -----------------------------------------------------------------------------------

    def training_loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        """The weighed cross-entropies of the next tokens, and of the next one's prefix, on the same
        logits; the weights are not normalised. `nll` is that of the next token alone."""
        assert isinstance(model, CurrentBestGPT)
        config = model.config
        stage = schedule.stage_at(config, step.progress)
        features = model.features(batch.inputs, stage=stage)
        weights = schedule.mtp_weights(config, step.progress)
        prefix = schedule.prefix_weight(config, step.progress)
        if weights[0] == 1 and not any(weights[1:]) and prefix == 0:
            nll = self._cross_entropy(model, batch, "mean", features)
            return Loss(nll, {"nll": nll.detach()})
        targets, token_weights = self._targets(model, batch, weights, prefix)
        loss, losses = multi_target_cross_entropy(
            features.flatten(0, 1),
            model.output_weight,
            targets.flatten(0, 1),
            token_weights.flatten(0, 1),
            bias=model.output_bias,
            softcap=model.logit_softcap,
        )
        scored = torch.ones_like(batch.targets) if batch.scored is None else batch.scored
        count = scored.sum()
        nll = (losses[:, 0] * scored.flatten()).sum() / count
        return Loss(loss / count, {"nll": nll})

    def _targets(
        self, model: CurrentBestGPT, batch: Batch, weights: list[float], prefix: float
    ) -> tuple[Tensor, Tensor]:
        """Targets (B, T, M) and their weights."""
        length = batch.inputs.shape[1]
        targets = [batch.tokens[:, 1 + k : 1 + k + length] for k in range(len(weights))]
        shares = [torch.full(batch.targets.shape, w, device=batch.tokens.device) for w in weights]
        if prefix > 0:
            prefixes = model.get_buffer("prefixes")[batch.targets]
            targets.append(prefixes.clamp(min=0))
            shares.append(prefix * (prefixes >= 0))
        stacked = torch.stack(shares, dim=-1)
        if batch.scored is not None:
            stacked = stacked * batch.scored[..., None]
        return torch.stack(targets, dim=-1), stacked

    # -- optimisation ---------------------------------------------------------------------------

    def parameter_roles(self, model: nn.Module) -> dict[str, str]:
        """Matrices are those of attention and MLPs alone; the coefficients' are too thin."""
        roles = {}
        for name, _ in model.named_parameters():
            if name in ("embedding.weight", "head.weight"):
                roles[name] = "head"
            elif name.startswith(("tables.", "bigram.")):
                roles[name] = "embedding"
            else:
                is_matrix = name.endswith(("qkv.weight", "out.weight", "up.weight", "down.weight"))
                roles[name] = "matrix" if is_matrix else "vector"
        return roles

    def optimizer_groups(self, model: nn.Module, optim: OptimConfig) -> list[ParameterGroup]:
        assert isinstance(model, CurrentBestGPT)
        head = model.head
        if head is not None and model.embedding.weight.requires_grad != head.weight.requires_grad:
            raise ConfigError(
                "train.freeze takes one of embedding.weight and head.weight, which are one until "
                "model_cfg.untie_at; freeze both or neither"
            )
        roles = self.parameter_roles(model)
        own = {name: _settings(name) for name in roles}
        if optim.name != "muon":  # the factor corrects Muon's rate rule
            own |= {name: Own() for name, role in roles.items() if role == "matrix"}
        return make_groups(model, roles, optim, own=own)

    def lr_peak(self, config: CurrentBestConfig, progress: float) -> float:
        return schedule.lr_peak(config, progress)

    def before_step(self, model: nn.Module, step: Step) -> None:
        assert isinstance(model, CurrentBestGPT)
        model.set_stage(schedule.stage_at(model.config, step.progress))

    def before_update(
        self, model: nn.Module, step: Step, optimizers: Sequence[torch.optim.Optimizer]
    ) -> None:
        """While they are one, the head takes the embedding's gradient too; when they part, the
        embedding takes over the head's moments."""
        assert isinstance(model, CurrentBestGPT)
        if model.head is None:
            return
        embedding, head = model.embedding.weight, model.head.weight
        if schedule.is_tied(model.config, step.progress):
            if embedding.grad is not None:
                assert head.grad is not None
                head.grad += embedding.grad
                embedding.grad = None
            return
        for optimizer in optimizers:
            if head in optimizer.state and embedding not in optimizer.state:
                moments = optimizer.state[head]
                optimizer.state[embedding] = {kind: x.clone() for kind, x in moments.items()}

    def after_step(
        self, model: nn.Module, step: Step, optimizers: Sequence[torch.optim.Optimizer]
    ) -> None:
        assert isinstance(model, CurrentBestGPT)
        if model.head is not None and schedule.is_tied(model.config, step.progress):
            model.embedding.weight.copy_(model.head.weight)

    def finalize(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        """From now on the windows of scores and text hold."""
        assert isinstance(model, CurrentBestGPT)
        model.set_stage(model.config.num_stages)

    # -- decoding -------------------------------------------------------------------------------

    def prefill(self, model: nn.Module, tokens: Tensor, lengths: Tensor, cache: Any) -> Tensor:
        """The rings keep each row's own end, so they must know its length before."""
        assert isinstance(model, CurrentBestGPT)
        cache.expect(lengths)
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        return model.logits(model.features(tokens, cache)[rows, lengths - 1])

    def is_branchable(self, model_cfg: CurrentBestConfig) -> bool:
        """Its stages are shares of the run."""
        return False

    # -- accounting -----------------------------------------------------------------------------

    def flops_per_token(self, config: CurrentBestConfig, seq_len: int) -> float:
        """Training FLOPs per token: 6 per weight that multiplies it, and attention by what its
        windows reach, the mean over the stages."""
        with torch.device("meta"):
            model = self.model_class(config)
        looked_up = ("embedding.", "tables.", "bigram.", "head.")
        weights = sum(
            p.numel()
            for name, p in model.named_parameters()
            if p.ndim == 2 and not name.startswith(looked_up)
        )
        weights += config.vocab_size * config.model_dim
        bounds = [*config.stage_starts, 1.0]
        reach = 0.0
        for stage in range(config.num_stages):
            span = bounds[stage + 1] - bounds[stage]
            reach += span * _keys_per_token(config, seq_len, stage)
        return 6.0 * weights + 12 * config.model_dim * reach

    def report(self, model: nn.Module) -> dict[str, float]:
        """Counts the tables, of which a token reads one row each, apart; a head that is the
        embedding counts among them."""
        assert isinstance(model, CurrentBestGPT)
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        tables = sum(n for name, n in sizes.items() if name.startswith(("tables.", "bigram.")))
        total = sum(sizes.values())
        return {
            "params": total,
            "params_non_embedding": total - tables - model.embedding.weight.numel(),
            "params_tables": tables,
            **self.count_cache(model),
        }

    def inspect(
        self, model: nn.Module, batches: Sequence[Batch], vocabulary: Vocabulary
    ) -> Inspection | None:
        """What the coefficients have become: their means by layer."""
        assert isinstance(model, CurrentBestGPT)
        gates: dict[int, Named] = {}
        means: dict[str, list[float]] = {}
        for batch in batches:
            gates, mixes = model.coefficients(batch.inputs)
            named = {f"block{n}_{name}": x for n, own in gates.items() for name, x in own.items()}
            for key, value in (named | mixes).items():
                means.setdefault(key, []).append(float(value.mean()))
        metrics = {key: sum(values) / len(values) for key, values in means.items()}
        series: dict[str, list[tuple[float, float]]] = {}
        for layer in sorted(gates):
            for name in gates[layer]:
                point = (float(layer), metrics[f"block{layer}_{name}"])
                series.setdefault(name, []).append(point)
        picture = Curves("Mean coefficient of each block", "block", "coefficient", series)
        return Inspection(metrics, (picture,) if series else ())


def stage_shape(stage: DataStage) -> tuple[int, int]:
    return stage.batch_tokens, stage.seq_len


def _settings(name: str) -> Own:
    if name.startswith("tables."):
        return TABLE
    return next((own for end, own in SETTINGS.items() if name.endswith(end)), Own())


def _keys_per_token(config: CurrentBestConfig, seq_len: int, stage: int) -> float:
    """Keys that a token reads, summed over layers; the mix over heads scores and reads again."""
    short, long = schedule.windows(config, stage)
    keys = 0
    for layer in filter(config.attends, range(config.num_layers)):
        keys += min(seq_len, long if config.window_pattern[layer] == "L" else short)
        if layer in config.dc_layers:
            keys += min(seq_len, config.dc_window)
    return keys


Adapter = CurrentBestAdapter
