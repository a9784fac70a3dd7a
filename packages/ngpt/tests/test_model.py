"""Laws of the model. B batch, T sequence, D model_dim, H heads, K head_dim, V vocabulary."""

import math

import pytest
import torch
import torch.nn.functional as F
from ngpt_models import make_config

from nanozoo_core.config import OptimConfig, from_defaults
from nanozoo_core.contract import Step
from nanozoo_core.nn.accounting import count_parameters
from nanozoo_core.nn.rotary import rotary_angles
from nanozoo_core.optim.build import build_optimizers
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary
from nanozoo_ngpt.adapter import Adapter
from nanozoo_ngpt.config import NGPTConfig
from nanozoo_ngpt.model import NGPT, Scale, UnitEmbedding, UnitLinear, project_, scaled_linear

VOCAB, LENGTH = 61, 24
SMALL = {"vocab_size": VOCAB, "seq_len": LENGTH, "num_layers": 2, "model_dim": 32, "num_heads": 4}
ADAPTER = Adapter(NGPTConfig, NGPT)


def build(**changes):
    torch.manual_seed(0)
    return NGPT(make_config(**(SMALL | changes)))


@torch.no_grad()
def build_scaled(**changes):
    """Scales far enough from their start, and alphas large enough, that each of them matters."""
    model = build(**changes)
    for name, parameter in model.named_parameters():
        if "stored" in name:
            parameter.mul_(1 + 0.3 * torch.randn(parameter.shape))
        if "alpha" in name:
            parameter.mul_(6)
    return model


def tokens(batch=2, length=LENGTH, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (batch, length), generator=generator)


# The axis along which vectors are of unit length, by the paper: rows where the matrix reads the
# stream, columns where it writes to it.
AXES = {"embedding": 1, "head": 1, "qkv": 1, "up": 1, "out": 0, "down": 0}


def unit_weights(model):
    return {
        name: (module.weight, AXES[name.split(".")[-1]])
        for name, module in model.named_modules()
        if isinstance(module, UnitLinear | UnitEmbedding)
    }


def assert_on_sphere(model, tolerance=1e-6):
    for name, (weight, axis) in unit_weights(model).items():
        norms = torch.linalg.vector_norm(weight.double(), dim=axis)
        assert (norms - 1).abs().max() <= tolerance, name


def train(model, optim, num_steps=5):
    groups = ADAPTER.optimizer_groups(model, optim)
    device = torch.device("cpu")
    optimizers = build_optimizers(groups, optim, total_steps=num_steps, device=device)
    for number in range(num_steps):
        step = Step(number=number, progress=number / num_steps, seed=0)
        optimizers.set_schedule(number, step.progress)
        ADAPTER.before_step(model, step)
        ADAPTER.training_loss(model, batch_of(tokens(4, LENGTH + 1, number)), step).value.backward()
        optimizers.step()
        optimizers.zero_grad()
        with torch.no_grad():
            ADAPTER.after_step(model, step, optimizers.optimizers)
        yield model


# -- the sphere -----------------------------------------------------------------------------------


def test_the_axis_that_faces_the_stream_is_normalised():
    """W_o is square here: its axis is told by moving it off the sphere and back."""
    model = build()
    dim, hidden = model.config.model_dim, model.config.mlp_dim
    assert {name.split(".")[-1] for name in unit_weights(model)} == set(AXES)
    assert {weight.shape[axis] for weight, axis in unit_weights(model).values()} == {dim}
    assert hidden != dim
    generator = torch.Generator().manual_seed(4)
    expected = {}
    for name, (weight, axis) in unit_weights(model).items():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
        wide = weight.detach().double()
        expected[name] = wide / torch.linalg.vector_norm(wide, dim=axis, keepdim=True)
    model.project()
    for name, (weight, _) in unit_weights(model).items():
        torch.testing.assert_close(weight.double(), expected[name], rtol=1e-6, atol=1e-7)


def test_reparametrised_weights_are_of_unit_length_along_the_same_axes():
    model = build(weight_norm="reparam")
    for name, module in model.named_modules():
        if isinstance(module, UnitLinear | UnitEmbedding):
            module.weight.data += 0.1 * torch.randn(module.weight.shape)
            norms = torch.linalg.vector_norm(module.unit_weight(), dim=AXES[name.split(".")[-1]])
            torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, {"alpha": 32**-0.5, "sqk": 32**-0.5, "suv": 1.0, "sz": 32**-0.5}),
        (
            {"alpha_scale": 0.3, "sqk_scale": 0.4, "sz_scale": 0.5},
            {"alpha": 0.3, "sqk": 0.4, "suv": 1.0, "sz": 0.5},
        ),
    ],
    ids=["published", "set"],
)
def test_scales_are_stored_at_their_sizes_and_start_at_their_values(changes, sizes):
    """The size is a factor on the rate: Adam moves what is stored by the rate alike."""
    model = build(alpha_init=0.07, **changes)
    seen = set()
    for name, module in model.named_modules():
        if not isinstance(module, Scale):
            continue
        kind = name.split(".")[-1].split("_")[0]
        seen.add(kind)
        value = 0.07 if kind == "alpha" else 1.0
        for found, expected in ((module.stored, sizes[kind]), (module(), value)):
            torch.testing.assert_close(found, torch.full_like(found, expected))
    assert seen == set(sizes)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weights_are_unit_vectors_after_init_and_every_step(name):
    model = build()
    assert_on_sphere(model)
    before = {name: weight.clone() for name, (weight, _) in unit_weights(model).items()}
    for _ in train(model, from_defaults(OptimConfig, name=name, lr=1e-2)):
        assert_on_sphere(model)
    for name, (weight, _) in unit_weights(model).items():
        assert (weight - before[name]).abs().max() > 1e-3


def test_bfloat16_weights_are_unit_vectors_to_their_precision():
    model = build().bfloat16()
    model.project()
    assert_on_sphere(model, 4e-3)


def test_reparametrised_weights_move_off_the_sphere_and_act_as_if_on_it():
    model = build(weight_norm="reparam")
    for _ in train(model, from_defaults(OptimConfig, name="adamw", lr=1e-2)):
        pass
    with pytest.raises(AssertionError):
        assert_on_sphere(model)
    before = model(tokens())
    model.project()
    torch.testing.assert_close(model(tokens()), before, rtol=1e-5, atol=1e-5)


def test_the_two_weight_norms_are_one_function():
    plain, reparam = build_scaled(), build(weight_norm="reparam")
    reparam.load_state_dict(plain.state_dict())
    torch.testing.assert_close(reparam(tokens()), plain(tokens()), rtol=1e-5, atol=1e-5)


def test_projecting_again_changes_no_bit():
    for dim in (3, 32, 128, 1000):
        for axis in (0, 1):
            weight = torch.randn(dim, dim + 1, generator=torch.Generator().manual_seed(dim))
            project_(weight, axis)
            once = weight.clone()
            project_(weight, axis)
            assert torch.equal(weight, once)


def test_length_before_the_projection_does_not_matter():
    model = build_scaled()
    before = model(tokens())
    for weight, _ in unit_weights(model).values():
        weight.data.mul_(2)
    model.project()
    torch.testing.assert_close(model(tokens()), before, rtol=1e-5, atol=1e-5)


def test_a_loaded_model_is_projected_before_its_first_step():
    model = build()
    for weight, _ in unit_weights(model).values():
        weight.data.mul_(3)
    ADAPTER.before_step(model, Step(number=7, progress=0.5, seed=0))
    assert_on_sphere(model)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_hidden_states_are_unit_vectors(dtype, tolerance):
    model = build_scaled().to(dtype)
    model.project()
    states = []
    for module in (model.embedding, *model.blocks):
        module.register_forward_hook(lambda _module, _inputs, output: states.append(output))
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda _module, inputs, _output: states.append(inputs[0]))
    model(tokens())
    assert len(states) == 1 + 2 * len(model.blocks)
    for state in states:
        norms = torch.linalg.vector_norm(state.double(), dim=-1)
        assert (norms - 1).abs().max() <= tolerance


# -- known answers --------------------------------------------------------------------------------


def paper_logits(model, ids):
    """The equations of arXiv 2410.01131, sections 2.2 to 2.5, one by one, in plain torch."""
    config = model.config
    heads, width, dim = config.num_heads, config.head_dim, config.model_dim

    def norm(z):
        return z / z.norm(dim=-1, keepdim=True)

    def scale(module):  # s = p * init / scale
        return module.stored * module.init / module.size

    def turn(z):  # complex rotation of the pairs (i, i + K/2) by t * base^(-2i/K)
        half = width // 2
        pairs = torch.complex(z[..., :half], z[..., half:])
        rates = config.rope_base ** (-torch.arange(half, dtype=z.dtype) * 2 / width)
        angles = torch.arange(z.shape[-2], dtype=z.dtype)[:, None] * rates
        turned = pairs * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([turned.real, turned.imag], dim=-1)

    h = model.embedding.weight[ids]
    future = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
    for block in model.blocks:
        q, k, v = (h @ w.T for w in block.attention.qkv.weight.chunk(3))
        q, k, v = (z.unflatten(-1, (heads, width)).transpose(1, 2) for z in (q, k, v))
        s_qk = scale(block.attention.sqk).view(heads, 1, width)
        q, k = norm(turn(q)) * s_qk, norm(turn(k)) * s_qk
        scores = (math.sqrt(width) * q @ k.mT).masked_fill(future, -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        h_a = norm(mixed @ block.attention.out.weight.T)
        h = norm(h + scale(block.alpha_attention).abs() * (h_a - h))
        w_u, w_v = block.mlp.up.weight.chunk(2)
        s_u, s_v = scale(block.mlp.suv).chunk(2)
        u, w = s_u * (h @ w_u.T), math.sqrt(dim) * s_v * (h @ w_v.T)
        h_m = norm((u * F.silu(w)) @ block.mlp.down.weight.T)
        h = norm(h + scale(block.alpha_mlp).abs() * (h_m - h))
    return scale(model.sz) * (h @ model.head.weight.T)


def test_logits_are_the_papers():
    model, ids = build_scaled(), tokens()
    torch.testing.assert_close(model(ids), paper_logits(model, ids), rtol=1e-5, atol=1e-5)
    model = model.double()
    torch.testing.assert_close(model(ids), paper_logits(model, ids), rtol=0, atol=1e-6)


def test_gradients_are_the_papers():
    model, ids = build_scaled(), tokens(2, LENGTH + 1)
    loss = ADAPTER.training_loss(model, batch_of(ids), Step(number=0, progress=0.0, seed=0)).value
    found = torch.autograd.grad(loss, list(model.parameters()))
    logits = paper_logits(model, ids[:, :-1])
    expected = torch.autograd.grad(
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()), list(model.parameters())
    )
    for (name, _), a, b in zip(model.named_parameters(), found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_parameter_count_at_124m():
    with torch.device("meta"):
        model = NGPT(
            make_config(
                vocab_size=50257, pad_vocab_to=64, num_layers=12, model_dim=768, num_heads=12
            )
        )
    assert count_parameters(model, ADAPTER.parameter_roles(model))["params"] == 162_328_704


def test_training_flops_are_the_formula():
    config = make_config(**SMALL)
    dim, hidden = config.model_dim, config.mlp_dim
    weights = config.num_layers * (4 * dim**2 + 3 * dim * hidden) + VOCAB * dim
    attention = 12 * config.num_layers * dim * LENGTH
    assert ADAPTER.flops_per_token(config, LENGTH) == 6 * weights + attention


def test_first_loss_is_ln_v():
    model = build(vocab_size=256, model_dim=128, num_heads=4)
    ids = torch.randint(256, (8, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    loss = ADAPTER.training_loss(model, batch_of(ids), Step(number=0, progress=0.0, seed=0)).value
    assert abs(float(loss.detach()) - math.log(256)) < 0.02


def test_alpha_zero_leaves_the_embedding():
    model, ids = build(), tokens()
    for block in model.blocks:
        block.alpha_attention.stored.data.zero_()
        block.alpha_mlp.stored.data.zero_()
    bigram = model.sz() * (model.embedding.weight[ids] @ model.head.weight.T)
    torch.testing.assert_close(model(ids), bigram, rtol=1e-6, atol=1e-6)


def test_alpha_one_goes_all_the_way():
    model, ids = build(num_layers=1, alpha_init=1.0), tokens()
    (block,) = model.blocks
    block.alpha_mlp.stored.data.zero_()
    x = model.embedding(ids)
    angles = rotary_angles(torch.arange(LENGTH), model.config.head_dim)
    proposal = F.normalize(block.attention(x, angles, None, 0), dim=-1)
    torch.testing.assert_close(model.features(ids), proposal, rtol=1e-6, atol=1e-6)


# -- laws -----------------------------------------------------------------------------------------


def test_logits_are_bounded_by_their_scale():
    model = build_scaled()
    assert (model(tokens()).abs() <= model.sz().abs() + 1e-6).all()


def test_attention_scores_are_bounded_by_their_scale():
    model = build_scaled()
    attention = model.blocks[0].attention
    angles = rotary_angles(torch.arange(LENGTH), attention.head_dim)
    # Queries and keys that all point one way come closest to the bound.
    heads = torch.ones(1, 2 * model.config.num_heads, LENGTH, attention.head_dim)
    q, k = attention.directions(heads, angles).chunk(2, dim=1)
    scores = q @ k.mT / math.sqrt(attention.head_dim)
    bound = math.sqrt(attention.head_dim) * float(attention.sqk().abs().max()) ** 2
    assert 0.2 * bound < float(scores.abs().max()) <= bound * (1 + 1e-6)


@pytest.mark.parametrize("name", ["attention.out.weight", "mlp.down.weight", "mlp.suv.stored"])
def test_scaling_a_proposal_changes_nothing(name):
    model = build_scaled()
    before = model(tokens())
    parameter = model.blocks[0].get_parameter(name)
    half = len(parameter) // 2 if "suv" in name else len(parameter)  # s_u is the first half
    parameter.data[:half] *= 3.7
    torch.testing.assert_close(model(tokens()), before, rtol=1e-5, atol=1e-5)


def test_the_sign_of_alpha_does_not_matter():
    model = build_scaled()
    before = model(tokens())
    model.blocks[0].alpha_mlp.stored.data.neg_()
    assert torch.equal(model(tokens()), before)


def scores_of_one_direction(model):
    """sqrt(K) q_t . k_s (H, T, T) where every token has the same query and key."""
    attention = model.blocks[0].attention
    angles = rotary_angles(torch.arange(LENGTH), attention.head_dim)
    generator = torch.Generator().manual_seed(3)
    heads = torch.randn(1, 2 * model.config.num_heads, 1, attention.head_dim, generator=generator)
    q, k = attention.directions(heads.expand(-1, -1, LENGTH, -1), angles).chunk(2, dim=1)
    return (q @ k.mT / math.sqrt(attention.head_dim))[0]


def spread_along_diagonals(scores):
    diagonals = [scores.diagonal(offset, 1, 2) for offset in range(-LENGTH + 2, LENGTH - 1)]
    return max(float((d.amax(-1) - d.amin(-1)).max()) for d in diagonals)


@pytest.mark.parametrize("qk_scale", ["after_rope", "before_rope", "none"])
def test_scores_depend_on_distance_alone_where_scales_are_constant(qk_scale):
    scores = scores_of_one_direction(build(qk_scale=qk_scale))
    assert spread_along_diagonals(scores) < 1e-5
    assert float(scores.std()) > 0.1


def test_only_scaling_before_the_rotation_keeps_that_for_any_scale():
    assert spread_along_diagonals(scores_of_one_direction(build_scaled())) > 0.05
    scores = scores_of_one_direction(build_scaled(qk_scale="before_rope"))
    assert spread_along_diagonals(scores) < 1e-5


@pytest.mark.parametrize("num_rows", [1, 40])
def test_scaled_linear_is_one_function_in_both_forms(num_rows):
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(num_rows, 16, generator=generator),
        torch.randn(24, 16, generator=generator),
    )
    scale = torch.randn(24, generator=generator)
    expected = scale * (x @ weight.T)
    torch.testing.assert_close(scaled_linear(x, weight, scale), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"qk_scale": "before_rope"}, {"qk_scale": "none"}, {"weight_norm": "reparam"},
     {"tie_embeddings": True}, {"pad_vocab_to": 64}],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_every_option_decodes_as_it_reads(changes):
    model, ids = build_scaled(**changes), tokens()
    full = model(ids)
    assert full.shape == (2, LENGTH, VOCAB)
    cache = ADAPTER.init_cache(model, 2, LENGTH)
    with torch.no_grad():
        steps = [model(ids[:, t : t + 1], cache=cache) for t in range(LENGTH)]
    torch.testing.assert_close(torch.cat(steps, 1), full, rtol=1e-5, atol=1e-5)


def test_padding_rows_take_no_probability():
    plain, padded = build(), build(pad_vocab_to=64)
    state = {name: t.clone() for name, t in padded.state_dict().items()}
    for name, tensor in plain.state_dict().items():
        state[name] = tensor if state[name].shape == tensor.shape else state[name]
        state[name][: len(tensor)] = tensor
    padded.load_state_dict(state)
    batch, step = batch_of(tokens(2, LENGTH + 1)), Step(number=0, progress=0.0, seed=0)
    found, expected = (ADAPTER.training_loss(m, batch, step).value for m in (padded, plain))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_inspection_reports_steps_and_scales():
    model = build()
    found = ADAPTER.inspect(model.eval(), [batch_of(tokens())], ToyVocabulary(VOCAB))
    assert found.metrics["block1_alpha_mlp"] == pytest.approx(0.05)
    assert found.metrics["sz_mean"] == pytest.approx(1)
    assert found.metrics["block0_sqk"] == pytest.approx(1)
    assert found.metrics["norm_error"] < 1e-6
    assert [len(points) for points in found.pictures[0].series.values()] == [2, 2]
