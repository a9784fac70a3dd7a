import math

import pytest
import torch
import torch.nn.functional as F

from nanozoo_core.config import OptimConfig, from_defaults, model_config
from nanozoo_core.config.control import ControlConfig
from nanozoo_core.contract import Step
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.nn.control import ControlModel
from nanozoo_core.optim.build import build_optimizers
from nanozoo_core.testing.sources import batch_of
from nanozoo_moe.adapter import MoEAdapter
from nanozoo_moe.config import MoEConfig
from nanozoo_moe.model import MixtureOfExperts, MoE

VOCAB, LENGTH = 50, 32
SHAPE = {"vocab_size": VOCAB, "seq_len": LENGTH, "num_layers": 3, "model_dim": 32, "num_heads": 2}
CPU = torch.device("cpu")


def make_model(seed=0, *, scale=0.1, **settings):
    """A model with nothing at zero."""
    torch.manual_seed(seed)
    model = MoE(model_config("moe", SHAPE | settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn_like(parameter)
        for _, router in model.routers():
            if router.choice_bias is not None:
                router.choice_bias += 0.05 * torch.randn_like(router.choice_bias)
    return model


def make_control(mlp_ratio=4.0):
    torch.manual_seed(1)
    return ControlModel(ControlConfig(**SHAPE, mlp_ratio=mlp_ratio))


def take_weights(model, control):
    """Gives every expert of `model` the control's MLP, and all else its weights."""
    dense = dict(control.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("mlp.router.weight"):
                continue
            parameter.copy_(dense[name if name in dense else f"{name}.weight"])


def tokens(batch=4, length=LENGTH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (batch, length), generator=generator)


# -- degenerate cases that are the control --------------------------------------------------------


def test_one_expert_trains_as_the_control_to_the_bit():
    control = make_control()
    torch.manual_seed(1)
    model = MoE(model_config("moe", SHAPE | {"num_experts": 1}))
    optim = from_defaults(OptimConfig)
    losses = []
    for contestant in (model, control):
        adapter = MoEAdapter(MoEConfig, MoE)
        if contestant is control:
            adapter = DefaultModelAdapter(MoEConfig, ControlModel)
        groups = adapter.optimizer_groups(contestant, optim)
        optimizers = build_optimizers(groups, optim, total_steps=5, device=CPU)
        mine = []
        for number in range(5):
            step = Step(number=number, progress=number / 5, seed=0)
            optimizers.set_schedule(number, step.progress)
            batch = batch_of(tokens(length=LENGTH + 1, seed=number))
            loss = adapter.training_loss(contestant, batch, step).value
            loss.backward()
            optimizers.clip(1.0)
            optimizers.step()
            optimizers.zero_grad()
            adapter.after_step(contestant, step, optimizers.optimizers)
            mine.append(loss.detach())
        losses.append(torch.stack(mine))
    assert losses[0].unique().numel() == 5
    assert torch.equal(losses[0], losses[1])
    for name, parameter in model.named_parameters():
        dense = dict(control.named_parameters())
        dense = dense[name if name in dense else f"{name}.weight"]
        assert torch.equal(parameter.view_as(dense), dense), name


@pytest.mark.parametrize("implementation", ["auto", "loop", "dense"])
@torch.no_grad()
def test_equal_experts_are_the_dense_model_for_any_routing(implementation):
    control = make_control()
    for parameter in control.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model = make_model(
        num_shared_experts=0,
        moe_hidden=4 * SHAPE["model_dim"],
        routed_scaling_factor=1.0,
        experts_impl=implementation,
    )
    take_weights(model, control)
    expected = control(tokens())
    torch.testing.assert_close(model(tokens()), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_without_routed_output_the_shared_experts_are_a_dense_mlp():
    control = make_control(mlp_ratio=3.0)
    for parameter in control.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model = make_model(
        first_k_dense=0, num_shared_experts=2, moe_hidden=48, routed_scaling_factor=0.0
    )
    dense = dict(control.named_parameters())
    for name, parameter in model.named_parameters():
        source = dense.get(name.replace("mlp.shared.", "mlp."))
        if source is not None:
            parameter.copy_(source)
    assert torch.equal(model(tokens()), control(tokens()))


@torch.no_grad()
def test_all_layers_dense_is_the_control():
    control = make_control()
    model = MoE(model_config("moe", SHAPE | {"first_k_dense": 3}))
    take_weights(model, control)
    assert list(model.routers()) == []
    assert torch.equal(model(tokens()), control(tokens()))


# -- laws -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_later_token_changes_nothing_earlier():
    model = make_model(experts_impl="dense").eval()
    changed = tokens()
    changed[:, 20] = (changed[:, 20] + 1) % VOCAB
    before, after = model(tokens()), model(changed)
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.equal(before[:, 20:], after[:, 20:])


@pytest.mark.parametrize("preset", [None, "moe_mixtral", "moe_olmoe"])
@torch.no_grad()
def test_a_sequence_does_not_notice_the_rest_of_its_batch(preset):
    model = make_model(preset=preset).eval()
    batch = tokens(batch=6)
    whole = model(batch)
    for row in range(6):
        alone = model(batch[row : row + 1])
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-5, atol=1e-5)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(model(batch[order]), whole[order], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_crowded_expert_drops_nothing():
    model = make_model().eval()
    batch = tokens()
    for _, router in model.routers():
        router.choice_bias[2] = 100.0  # every token's first choice
    _, routings = model.encode(batch)
    for routing in routings:
        assert routing.counts.sum() == 2 * batch.numel()
        assert routing.counts[2] == batch.numel()
    whole = model(batch)
    torch.testing.assert_close(model(batch[:1])[0], whole[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["grouped_mm", "loop"])
def test_implementations_agree_on_the_whole_model(implementation):
    gradients = []
    for name in (implementation, "dense"):
        model = make_model(experts_impl=name)
        F.cross_entropy(model(tokens()).flatten(0, 1), tokens(seed=1).flatten()).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for found, expected in zip(*gradients, strict=True):
        assert (found - expected).norm() <= 1e-5 * expected.norm()


# -- initial weights ------------------------------------------------------------------------------


def test_what_the_control_has_too_starts_as_the_controls():
    control = dict(make_control().named_parameters())
    torch.manual_seed(1)
    model = MoE(model_config("moe", SHAPE))
    shared = {name for name, _ in model.named_parameters() if ".mlp." not in name}
    shared |= {"blocks.0.mlp.up.weight", "blocks.0.mlp.down.weight"}
    assert len(shared) == 2 + 2 * 3 + 2
    for name in shared:
        assert torch.equal(model.get_parameter(name), control[name]), name


def test_each_expert_starts_with_its_own_fan_in():
    torch.manual_seed(0)
    mixture = MixtureOfExperts(model_config("moe", {"model_dim": 256, "num_heads": 4}))
    for expert in mixture.up:
        assert expert.std().item() * math.sqrt(256) == pytest.approx(0.5, rel=0.02)
    assert not mixture.down.any()
    assert (mixture.up[0] - mixture.up[1]).abs().max() > 0.01
    h = torch.randn(1, 2000, 256, generator=torch.Generator().manual_seed(0))
    assert mixture.router(h).logits.std().item() == pytest.approx(0.5, rel=0.1)


def test_fresh_model_predicts_the_uniform_distribution():
    torch.manual_seed(0)
    model = MoE(model_config("moe", SHAPE))
    logits = model(tokens())
    loss = F.cross_entropy(logits.flatten(0, 1), tokens(seed=1).flatten())
    assert abs((loss - math.log(VOCAB) - logits.var(-1).mean() / 2).item()) < 0.1


# -- decoding -------------------------------------------------------------------------------------


@torch.no_grad()
def test_decoding_by_gathered_experts_equals_the_full_forward_pass():
    model = make_model(num_experts=16, top_k=2).eval()
    ids = tokens(batch=2, length=16)
    full = model(ids)
    cache = model.init_cache(2, 16)
    parts = [model(ids[:, t : t + 1], cache) for t in range(16)]  # 4 rows for 16 experts
    torch.testing.assert_close(torch.cat(parts, 1), full, rtol=1e-5, atol=1e-5)
