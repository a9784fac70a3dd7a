"""The block form and its Triton twin against the recurrence; kernels run in the interpreter."""

import itertools

import pytest
import torch
from scan_cases import assert_close, doubles, make_segments, values_and_gradients

from nanozoo_core.ops import selective_scan_torch as blocks
from nanozoo_core.ops.backend import is_interpreting
from nanozoo_core.ops.selective_scan import (
    selective_scan,
    selective_scan_reference,
    selective_scan_step,
)
from nanozoo_core.ops.ssd import ssd
from nanozoo_core.testing.kernels import compile_launches, compiled, interpreted, run_interpreted

SEQUENCES = ("x", "delta", "b", "c", "gate")


def make_inputs(batch, length, channels, states, dtype=torch.float32, seed=0):
    """Inputs as a mixer would make them, delta before bias and softplus."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = {
        "x": normal(batch, length, channels),
        "delta": normal(batch, length, channels) - 2,
        "rates": -16 * torch.rand(channels, states, generator=generator, dtype=torch.float64),
        "b": normal(batch, length, states),
        "c": normal(batch, length, states),
        "skip": normal(channels),
        "gate": normal(batch, length, channels),
        "delta_bias": normal(channels),
        "initial_state": normal(batch, channels, states),
    }
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in inputs.items()}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 16 positions and two rows at a time, so that small inputs have several of both."""
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 1)
    monkeypatch.setattr(blocks, "ROW_VALUES", 2 * 6 * 3)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("with_segments", [False, True], ids=["whole", "segments"])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 64, 65])
def test_blocks_equal_the_recurrence_in_float64(length, with_segments):
    inputs = make_inputs(3, length, 6, 3, dtype=torch.float64)
    options = {"delta_softplus": True}
    if with_segments:
        options["segments"] = make_segments(3, length)
    expected = values_and_gradients(selective_scan_reference, inputs, **options)
    assert_close(values_and_gradients(selective_scan, inputs, **options), expected, 1e-10)


@pytest.mark.parametrize("shape", [(2, 45, 8, 4), (2, 1000, 8, 4), (4, 128, 128, 16)])
def test_blocks_equal_the_recurrence_in_float32(shape):
    inputs = make_inputs(*shape)
    expected = values_and_gradients(selective_scan_reference, doubles(inputs), delta_softplus=True)
    actual = values_and_gradients(selective_scan, inputs, delta_softplus=True)
    assert_close(actual, expected, 2e-6)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("delta_softplus", [False, True], ids=["steps", "softplus"])
def test_padding_leaves_state_and_gradients_alone(delta_softplus):
    """Rows shorter than the batch give what they give alone, whatever stands behind their end."""
    inputs = make_inputs(3, 40, 6, 3, dtype=torch.float64)
    if not delta_softplus:
        inputs["delta"] = inputs["delta"].detach().abs().requires_grad_()
        del inputs["delta_bias"]
    lengths = torch.tensor([1, 17, 40])
    options = {"delta_softplus": delta_softplus}
    actual = values_and_gradients(selective_scan, inputs, lengths=lengths, **options)
    padding = torch.arange(40) >= lengths[:, None]
    assert actual["delta"][padding].abs().max() == 0
    for row, length in enumerate(lengths.tolist()):
        alone = {
            name: tensor[row : row + 1, :length]
            if name in SEQUENCES
            else (tensor[row : row + 1] if name == "initial_state" else tensor)
            for name, tensor in inputs.items()
        }
        y, last = selective_scan(**alone, **options)
        torch.testing.assert_close(actual["y"][row, :length], y[0], atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(actual["last"][row], last[0], atol=1e-12, rtol=1e-12)
    expected = values_and_gradients(selective_scan_reference, inputs, lengths=lengths, **options)
    assert_close(actual, expected, 1e-10)


def test_optional_arguments_default_to_nothing():
    inputs = make_inputs(2, 21, 4, 3, dtype=torch.float64)
    zeros = inputs | {
        name: torch.zeros_like(inputs[name]) for name in ("skip", "delta_bias", "initial_state")
    }
    del zeros["gate"]
    expected = values_and_gradients(selective_scan_reference, zeros, delta_softplus=True)
    given = {name: inputs[name] for name in ("x", "delta", "rates", "b", "c")}
    for function in (selective_scan, selective_scan_reference):
        actual = values_and_gradients(function, given, delta_softplus=True)
        assert_close(actual, {name: expected[name] for name in actual}, 1e-10)


def test_gradients_agree_with_finite_differences():
    inputs = make_inputs(1, 5, 2, 2, dtype=torch.float64)
    segments = torch.tensor([[0, 0, 0, 1, 1]])

    def run(*tensors):
        named = dict(zip(inputs, tensors, strict=True))
        return selective_scan(**named, delta_softplus=True, segments=segments)

    assert torch.autograd.gradcheck(run, tuple(inputs.values()))


def test_segments_equal_separate_sequences():
    inputs = make_inputs(1, 90, 4, 3)
    cuts = [0, 20, 21, 64, 90]
    segments = torch.zeros(1, 90, dtype=torch.int32)
    for cut in cuts[1:-1]:
        segments[:, cut:] += 1
    y, last = selective_scan(**inputs, delta_softplus=True, segments=segments)
    for start, end in itertools.pairwise(cuts):
        part = {k: v[:, start:end] if k in SEQUENCES else v for k, v in inputs.items()}
        if start > 0:
            del part["initial_state"]
        alone, alone_last = selective_scan(**part, delta_softplus=True)
        torch.testing.assert_close(y[:, start:end], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last, alone_last, atol=1e-5, rtol=1e-5)


def test_handing_over_the_state_equals_one_pass_at_every_cut():
    inputs = make_inputs(2, 20, 4, 3)
    y, last = selective_scan(**inputs, delta_softplus=True)
    for cut in range(1, 20):
        first = {k: v[:, :cut] if k in SEQUENCES else v for k, v in inputs.items()}
        second = {k: v[:, cut:] if k in SEQUENCES else v for k, v in inputs.items()}
        y1, state = selective_scan(**first, delta_softplus=True)
        y2, state = selective_scan(**second | {"initial_state": state}, delta_softplus=True)
        torch.testing.assert_close(torch.cat([y1, y2], 1), y, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(state, last, atol=1e-5, rtol=1e-5)


def test_the_state_carries_gradients():
    inputs = make_inputs(1, 30, 4, 3, dtype=torch.float64)
    x = inputs["x"]

    def part(at, state):
        cut = {k: v[:, at] if k in SEQUENCES else v for k, v in inputs.items()}
        return selective_scan(**cut | {"initial_state": state}, delta_softplus=True)

    (whole,) = torch.autograd.grad(part(slice(None), inputs["initial_state"])[0][:, 12:].sum(), x)
    _, state = part(slice(0, 12), inputs["initial_state"])
    (parts,) = torch.autograd.grad(part(slice(12, 30), state)[0].sum(), x)
    torch.testing.assert_close(parts, whole, atol=1e-12, rtol=1e-12)


def test_steps_equal_the_whole_sequence():
    inputs = make_inputs(2, 20, 4, 3)
    y, last = selective_scan(**inputs, delta_softplus=True)
    state = inputs["initial_state"]
    for t in range(20):
        at_t = {k: v[:, t] if k in SEQUENCES else v for k, v in inputs.items()}
        del at_t["initial_state"]
        y_t, state = selective_scan_step(state, **at_t, delta_softplus=True)
        torch.testing.assert_close(y_t, y[:, t], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, last, atol=1e-5, rtol=1e-5)


# -- closed forms ---------------------------------------------------------------------------------


def constant_inputs(length, step, rate, value=1.0):
    """One channel and state, b = c = 1, no skip."""
    ones = torch.ones(1, length, 1, dtype=torch.float64)
    rates = torch.full((1, 1), rate, dtype=torch.float64)
    return {"x": value * ones, "delta": step * ones, "rates": rates, "b": ones, "c": ones}


def test_constant_input_gives_the_geometric_sum():
    # y_t = s (1 - r^(t+1)) / (1 - r) with r = exp(-s).
    y, _ = selective_scan(**constant_inputs(100, 0.3, -1.0))
    s, t = torch.tensor(0.3, dtype=torch.float64), torch.arange(1, 101, dtype=torch.float64)
    expected = s * (1 - torch.exp(-s * t)) / (1 - torch.exp(-s))
    torch.testing.assert_close(y.flatten(), expected, atol=1e-10, rtol=1e-10)


def test_without_decay_it_is_a_cumulative_sum():
    inputs = make_inputs(2, 50, 4, 3, dtype=torch.float64)
    given = {name: inputs[name] for name in ("x", "delta", "b", "c")}
    y, _ = selective_scan(**given, rates=torch.zeros(4, 3, dtype=torch.float64))
    writes = (given["delta"] * given["x"])[..., None] * given["b"][:, :, None]  # (B, L, D, N)
    expected = (writes.cumsum(1) * given["c"][:, :, None]).sum(-1)
    torch.testing.assert_close(y, expected, atol=1e-10, rtol=1e-10)


def test_a_large_step_forgets_the_state():
    inputs = make_inputs(2, 10, 4, 3, dtype=torch.float64)
    given = {name: inputs[name] for name in ("x", "b", "c", "skip", "initial_state")}
    x, b, c, skip = (given[name] for name in ("x", "b", "c", "skip"))
    steps, rates = torch.full_like(x, 60.0), torch.full((4, 3), -1.0, dtype=torch.float64)
    y, _ = selective_scan(delta=steps, rates=rates, **given)
    expected = 60 * x * (b * c).sum(-1, keepdim=True) + skip * x
    torch.testing.assert_close(y, expected, atol=1e-10, rtol=1e-10)


def test_a_zero_step_keeps_the_state():
    inputs = make_inputs(2, 40, 4, 3)
    given = {name: inputs[name] for name in ("x", "rates", "b", "skip", "initial_state")}
    zeros = torch.zeros(2, 40, 4)
    y, last = selective_scan(delta=zeros, c=torch.zeros(2, 40, 3), **given)
    torch.testing.assert_close(y, inputs["skip"] * inputs["x"])
    assert torch.equal(last, inputs["initial_state"])


def test_equal_rates_give_the_scan_of_mamba_2():
    """One rate for all states of a channel is an SSD head of one channel."""
    inputs = make_inputs(2, 70, 6, 5)
    rates = inputs["rates"][:, :1].expand(-1, 5)
    delta = torch.nn.functional.softplus(inputs["delta"])
    shared = {name: inputs[name] for name in ("b", "c", "skip")}
    y, last = selective_scan(
        inputs["x"], delta, rates, **shared, initial_state=inputs["initial_state"]
    )
    expected, expected_last = ssd(
        inputs["x"][..., None],
        delta,
        delta * rates[:, 0],
        **shared,
        initial_state=inputs["initial_state"][:, :, None],
        chunk_size=16,
    )
    torch.testing.assert_close(y, expected[..., 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last, expected_last[:, :, 0], atol=1e-5, rtol=1e-5)


# -- precision and arguments ----------------------------------------------------------------------


@pytest.mark.parametrize("step", [1e-30, 1e-4, 3.0, 30.0, 1e4])
def test_extreme_steps_give_finite_values_and_gradients(step):
    inputs = make_inputs(1, 256, 4, 3)
    inputs["rates"] = torch.full((4, 3), -16.0)
    inputs["delta"] = torch.full((1, 256, 4), step)
    del inputs["delta_bias"]
    results = values_and_gradients(selective_scan, inputs, segments=make_segments(1, 256))
    for name, tensor in results.items():
        assert torch.isfinite(tensor).all(), name


def test_bfloat16_inputs_keep_a_float32_state():
    inputs = make_inputs(1, 130, 8, 4)
    low = {k: v.detach().bfloat16() if k in SEQUENCES else v for k, v in inputs.items()}
    y, last = selective_scan(**low, delta_softplus=True)
    rounded = {name: tensor.float() for name, tensor in low.items()}
    expected, expected_last = selective_scan(**rounded, delta_softplus=True)
    assert y.dtype == torch.bfloat16
    assert last.dtype == torch.float32
    torch.testing.assert_close(last, expected_last, atol=1e-5, rtol=1e-5)
    # The only rounding left is that of y itself: 8 significant bits.
    torch.testing.assert_close(y.float(), expected, atol=1e-6, rtol=2**-8)


def test_non_contiguous_inputs_give_the_same_result():
    inputs = make_inputs(2, 40, 8, 4)
    strided = {
        name: tensor.detach().mT.contiguous().mT if tensor.dim() > 1 else tensor
        for name, tensor in inputs.items()
    }
    assert not strided["x"].is_contiguous()
    actual = selective_scan(**strided, delta_softplus=True)
    torch.testing.assert_close(actual, selective_scan(**inputs, delta_softplus=True))


def test_wrong_shape_is_named():
    inputs = make_inputs(2, 8, 4, 3)
    inputs["c"] = inputs["c"][:, 1:]
    with pytest.raises(ValueError, match=r"c has shape \(2, 7, 3\); want \(2, 8, 3\)"):
        selective_scan(**inputs)


@pytest.mark.skipif(is_interpreting(), reason="there the kernels do run on a CPU")
def test_triton_on_a_cpu_is_refused():
    inputs = make_inputs(1, 3, 4, 3)
    with pytest.raises(ValueError, match="backend=triton needs"):
        selective_scan(**inputs, backend="triton")


# -- Triton ---------------------------------------------------------------------------------------


@compiled
def test_kernels_agree_with_the_recurrence_in_a_child_process():
    run_interpreted(__file__, num_tests=8)


@interpreted
@pytest.mark.parametrize("length", [1, 7, 8, 17])
def test_interpreted_kernels_equal_the_recurrence(length, monkeypatch):
    from nanozoo_core.ops import selective_scan_triton as kernels

    monkeypatch.setattr(kernels, "_tiles", lambda states: (8, 4))
    inputs = make_inputs(2, length, 6, 3)
    options = {
        "delta_softplus": True,
        "segments": make_segments(2, length),
        "lengths": torch.tensor([length, (length + 1) // 2]),
    }
    expected = values_and_gradients(selective_scan_reference, doubles(inputs), **options)
    actual = values_and_gradients(selective_scan, inputs, backend="triton", **options)
    assert_close(actual, expected, 1e-5)


@interpreted
@pytest.mark.parametrize("programs", [1, 4])
def test_interpreted_gradients_sum_blocks_of_channels(programs, monkeypatch):
    """Three blocks in one program, or two and one in two."""
    from nanozoo_core.ops import selective_scan_triton as kernels

    monkeypatch.setattr(kernels, "_tiles", lambda states: (8, 4))
    monkeypatch.setattr(kernels, "GRADIENT_PROGRAMS", programs)
    inputs = make_inputs(2, 17, 10, 3)
    options = {"delta_softplus": True, "segments": make_segments(2, 17)}
    expected = values_and_gradients(selective_scan_reference, doubles(inputs), **options)
    actual = values_and_gradients(selective_scan, inputs, backend="triton", **options)
    assert_close(actual, expected, 1e-5)


@interpreted
def test_interpreted_kernels_do_without_optional_arguments(monkeypatch):
    from nanozoo_core.ops import selective_scan_triton as kernels

    monkeypatch.setattr(kernels, "_tiles", lambda states: (8, 4))
    inputs = make_inputs(1, 10, 4, 2)
    given = {name: inputs[name] for name in ("x", "delta", "rates", "b", "c")}
    given["delta"] = given["delta"].detach().abs().requires_grad_()
    expected = values_and_gradients(selective_scan_reference, doubles(given))
    assert_close(values_and_gradients(selective_scan, given, backend="triton"), expected, 1e-5)


@interpreted
def test_interpreted_kernels_take_bfloat16_views(monkeypatch):
    from nanozoo_core.ops import selective_scan_triton as kernels

    monkeypatch.setattr(kernels, "_tiles", lambda states: (8, 4))
    inputs = make_inputs(1, 12, 4, 2)
    wide = torch.cat([inputs[name] for name in ("x", "gate", "b", "c")], -1).bfloat16()
    low = dict(zip(("x", "gate", "b", "c"), wide.split([4, 4, 2, 2], -1), strict=True))
    low = inputs | low
    y, last = selective_scan(**low, delta_softplus=True, backend="triton")
    expected, expected_last = selective_scan_reference(
        **{k: v.float() for k, v in low.items()}, delta_softplus=True
    )
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(last, expected_last, atol=1e-5, rtol=1e-5)
    # Only y itself is rounded to 8 significant bits, by the interpreter towards zero.
    torch.testing.assert_close(y.float(), expected, atol=1e-6, rtol=2**-7)


@compiled
@pytest.mark.parametrize("states", [16, pytest.param(64, marks=pytest.mark.slow)])
def test_kernels_compile_without_spills(states):
    inputs = make_inputs(1, 40, 64, states)
    for name in SEQUENCES:
        inputs[name] = inputs[name].detach().bfloat16()
    found = compile_launches(
        lambda: values_and_gradients(selective_scan, inputs, delta_softplus=True)
    )
    assert set(found) == {"scan", "gradients"}
    assert not any(used.spill_bytes for used in found.values()), found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000])
def test_gpu_kernels_equal_the_recurrence(length, dtype):
    inputs = make_inputs(2, length, 96, 16)
    for name in SEQUENCES:
        inputs[name] = inputs[name].detach().to(dtype)
    options = {"delta_softplus": True, "segments": make_segments(2, length)}
    expected = values_and_gradients(selective_scan_reference, doubles(inputs), **options)
    on_gpu = {name: tensor.detach().cuda() for name, tensor in inputs.items()}
    options["segments"] = options["segments"].cuda()
    actual = values_and_gradients(selective_scan, on_gpu, **options)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    assert_close({name: tensor.cpu() for name, tensor in actual.items()}, expected, tolerance)
