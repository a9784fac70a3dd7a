"""The chunked scan and its Triton twin against the recurrence; kernels run in the interpreter."""

import itertools

import pytest
import torch
from scan_cases import assert_close, doubles, make_segments, values_and_gradients

from nanozoo_core.ops.backend import HAS_TRITON
from nanozoo_core.ops.optional_triton import jit, tl
from nanozoo_core.ops.ssd import ssd, ssd_reference, ssd_step
from nanozoo_core.testing.kernels import compile_launches, compiled, interpreted, run_interpreted

if HAS_TRITON:
    from nanozoo_core.ops.ssd_kernels import halves

GRADIENTS = ("x", "delta", "log_decay", "b", "c", "skip", "initial_state")


def make_inputs(batch, length, heads, channels, state, dtype=torch.float32, seed=0):
    """Inputs as a mixer would make them: decays from 1 down to about exp(-1)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    delta = torch.nn.functional.softplus(normal(batch, length, heads) - 2)
    rate = 0.2 + 4 * torch.rand(heads, generator=generator, dtype=torch.float64)
    inputs = {
        "x": normal(batch, length, heads, channels),
        "delta": delta,
        "log_decay": -rate * delta,
        "b": normal(batch, length, state),
        "c": normal(batch, length, state),
        "skip": normal(heads),
        "initial_state": normal(batch, heads, channels, state),
    }
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in inputs.items()}


@pytest.mark.parametrize("with_segments", [False, True], ids=["whole", "segments"])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 63, 64, 65, 200])
def test_chunked_form_equals_recurrence_in_float64(length, with_segments):
    inputs = make_inputs(2, length, 3, 5, 7, dtype=torch.float64)
    segments = make_segments(2, length) if with_segments else None
    expected = values_and_gradients(ssd_reference, inputs, segments=segments)
    actual = values_and_gradients(ssd, inputs, segments=segments, chunk_size=32)
    assert_close(actual, expected, 1e-10)


@pytest.mark.parametrize("chunk_size", [16, 32, 64])
def test_chunked_form_equals_recurrence_in_float32(chunk_size):
    inputs = make_inputs(2, 250, 4, 32, 16)
    segments = make_segments(2, 250)
    expected = values_and_gradients(ssd_reference, doubles(inputs), segments=segments)
    actual = values_and_gradients(ssd, inputs, segments=segments, chunk_size=chunk_size)
    assert_close(actual, expected, 1e-5)


def test_optional_arguments_default_to_zero():
    inputs = make_inputs(2, 37, 2, 4, 3, dtype=torch.float64)
    zeros = inputs | {
        "skip": torch.zeros(2, dtype=torch.float64),
        "initial_state": torch.zeros(2, 2, 4, 3, dtype=torch.float64),
    }
    expected = values_and_gradients(ssd, zeros, chunk_size=16)
    given = {name: inputs[name] for name in GRADIENTS[:5]}
    for function, options in ((ssd, {"chunk_size": 16}), (ssd_reference, {})):
        actual = values_and_gradients(function, given, **options)
        assert_close(actual, {name: expected[name] for name in actual}, 1e-10)


def test_groups_of_heads_equal_separate_scans():
    """Heads 0 to 2 read the first b and c, heads 3 to 5 the second."""
    inputs = make_inputs(2, 40, 6, 4, 3, dtype=torch.float64)
    other = make_inputs(2, 40, 6, 4, 3, dtype=torch.float64, seed=1)
    options = {"segments": make_segments(2, 40)}
    grouped = inputs | {name: torch.stack([inputs[name], other[name]], 2) for name in ("b", "c")}
    halves = []
    for heads, vectors in ((slice(0, 3), inputs), (slice(3, 6), other)):
        half = {name: inputs[name][:, :, heads] for name in ("x", "delta", "log_decay")}
        half |= {"initial_state": inputs["initial_state"][:, heads], "skip": inputs["skip"][heads]}
        half |= {name: vectors[name] for name in ("b", "c")}
        halves.append(ssd(**half, **options, chunk_size=16))
    y, last = ssd(**grouped, **options, chunk_size=16)
    torch.testing.assert_close(y, torch.cat([half[0] for half in halves], 2))
    torch.testing.assert_close(last, torch.cat([half[1] for half in halves], 1))
    expected = values_and_gradients(ssd_reference, grouped, **options)
    assert_close(values_and_gradients(ssd, grouped, **options, chunk_size=16), expected, 1e-10)


def test_gradients_agree_with_finite_differences():
    inputs = make_inputs(1, 7, 2, 2, 3, dtype=torch.float64)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])

    def run(*tensors):
        return ssd(**dict(zip(GRADIENTS, tensors, strict=True)), segments=segments, chunk_size=4)

    assert torch.autograd.gradcheck(run, tuple(inputs.values()))


def test_segments_equal_separate_sequences():
    inputs = make_inputs(1, 90, 2, 8, 4)
    cuts = [0, 20, 21, 64, 90]
    segments = torch.zeros(1, 90, dtype=torch.int32)
    for cut in cuts[1:-1]:
        segments[:, cut:] += 1
    y, last = ssd(**inputs, segments=segments, chunk_size=32)
    for start, end in itertools.pairwise(cuts):
        part = {name: inputs[name][:, start:end] for name in ("x", "delta", "log_decay", "b", "c")}
        state = inputs["initial_state"] if start == 0 else None
        alone, alone_last = ssd(**part, skip=inputs["skip"], initial_state=state, chunk_size=32)
        torch.testing.assert_close(y[:, start:end], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last, alone_last, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cut", [1, 16, 40, 63])
def test_handing_over_the_state_equals_one_pass(cut):
    inputs = make_inputs(2, 64, 2, 8, 4)
    y, last = ssd(**inputs, chunk_size=16)
    sequences = ("x", "delta", "log_decay", "b", "c")
    skip = inputs["skip"]
    first = {name: inputs[name][:, :cut] for name in sequences}
    second = {name: inputs[name][:, cut:] for name in sequences}
    y1, state = ssd(**first, skip=skip, initial_state=inputs["initial_state"], chunk_size=16)
    y2, state = ssd(**second, skip=skip, initial_state=state, chunk_size=16)
    torch.testing.assert_close(torch.cat([y1, y2], 1), y, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, last, atol=1e-5, rtol=1e-5)


def test_steps_equal_the_whole_sequence():
    inputs = make_inputs(2, 20, 2, 8, 4)
    y, last = ssd(**inputs, chunk_size=8)
    state = inputs["initial_state"]
    for t in range(20):
        at_t = {name: inputs[name][:, t] for name in ("x", "delta", "log_decay", "b", "c")}
        y_t, state = ssd_step(state, **at_t, skip=inputs["skip"])
        torch.testing.assert_close(y_t, y[:, t], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, last, atol=1e-5, rtol=1e-5)


def test_constant_input_gives_the_geometric_sum():
    # delta = s, A = -1, b = c = x = 1: y_t = s (1 - r^(t+1)) / (1 - r) with r = exp(-s).
    length, s = 100, torch.tensor(0.3, dtype=torch.float64)
    ones = torch.ones(1, length, 1, dtype=torch.float64)
    y, _ = ssd(ones[..., None], s * ones, -s * ones, ones, ones, chunk_size=32)
    t = torch.arange(1, length + 1, dtype=torch.float64)
    expected = s * (1 - torch.exp(-s * t)) / (1 - torch.exp(-s))
    torch.testing.assert_close(y.flatten(), expected, atol=1e-10, rtol=1e-10)


def test_zero_step_keeps_the_state():
    inputs = make_inputs(1, 40, 2, 4, 3)
    inputs["delta"] = inputs["log_decay"] = torch.zeros(1, 40, 2)
    _, last = ssd(**inputs, chunk_size=16)
    assert torch.equal(last, inputs["initial_state"])


@pytest.mark.parametrize("delta", [1e-30, 1e-4, 3.0, 30.0, 1e4])
def test_extreme_steps_give_finite_values_and_gradients(delta):
    inputs = make_inputs(1, 256, 2, 4, 3)
    inputs["delta"] = torch.full((1, 256, 2), delta)
    inputs["log_decay"] = -16 * inputs["delta"]
    segments = make_segments(1, 256)
    results = values_and_gradients(ssd, inputs, segments=segments, chunk_size=32)
    for name, tensor in results.items():
        assert torch.isfinite(tensor).all(), name


def test_bfloat16_inputs_keep_a_float32_state():
    inputs = make_inputs(1, 130, 2, 16, 8)
    low = dict(inputs)
    for name in ("x", "b", "c"):
        low[name] = inputs[name].detach().bfloat16()
    rounded = {name: tensor.float() for name, tensor in low.items()}
    y, last = ssd(**low, chunk_size=32)
    expected, expected_last = ssd(**rounded, chunk_size=32)
    assert y.dtype == torch.bfloat16
    assert last.dtype == torch.float32
    torch.testing.assert_close(last, expected_last, atol=1e-5, rtol=1e-5)
    # The only rounding left is that of y itself: 8 significant bits.
    torch.testing.assert_close(y.float(), expected, atol=1e-6, rtol=2**-8)


def test_non_contiguous_inputs_give_the_same_result():
    inputs = make_inputs(2, 40, 2, 8, 4)
    strided = {
        name: tensor.detach().mT.contiguous().mT if tensor.dim() > 1 else tensor
        for name, tensor in inputs.items()
    }
    assert not strided["x"].is_contiguous()
    torch.testing.assert_close(ssd(**strided, chunk_size=16), ssd(**inputs, chunk_size=16))


def test_wrong_shape_is_named():
    inputs = make_inputs(2, 8, 2, 4, 3)
    inputs["c"] = inputs["c"][:, 1:]
    with pytest.raises(ValueError, match=r"c has shape \(2, 7, 3\); want \(2, 8, 3\)"):
        ssd(**inputs)


@compiled
def test_kernels_agree_with_the_recurrence_in_a_child_process():
    run_interpreted(__file__, num_tests=6)


@interpreted
@pytest.mark.parametrize(
    ("batch", "length", "channels", "state", "chunk_size"),
    [(1, 1, 16, 16, 16), (2, 33, 16, 16, 16), (1, 65, 8, 20, 32), (1, 90, 16, 80, 64)],
)
def test_interpreted_kernels_equal_the_recurrence(batch, length, channels, state, chunk_size):
    inputs = make_inputs(batch, length, 2, channels, state)
    segments = make_segments(batch, length)
    expected = values_and_gradients(ssd_reference, doubles(inputs), segments=segments)
    actual = values_and_gradients(
        ssd, inputs, segments=segments, chunk_size=chunk_size, backend="triton"
    )
    assert_close(actual, expected, 1e-5)


@interpreted
def test_interpreted_kernels_take_bfloat16_views_without_segments():
    inputs = make_inputs(1, 20, 2, 16, 16)
    wide = torch.cat([inputs["x"].flatten(2), inputs["b"], inputs["c"]], -1).bfloat16()
    x, b, c = wide.split([32, 16, 16], dim=-1)
    low = inputs | {"x": x.unflatten(-1, (2, 16)), "b": b, "c": c}
    y, last = ssd(**low, chunk_size=16, backend="triton")
    expected, expected_last = ssd_reference(**{k: v.float() for k, v in low.items()})
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(last, expected_last, atol=1e-5, rtol=1e-5)
    # Only y itself is rounded to 8 significant bits, by the interpreter towards zero.
    torch.testing.assert_close(y.float(), expected, atol=1e-6, rtol=2**-7)


@jit
def store_halves(x, parts):  # (64,), (2, 64) out
    i = tl.arange(0, 64)
    high, low = halves(tl.load(x + i))
    tl.store(parts + i, high.to(tl.float32))
    tl.store(parts + 64 + i, low.to(tl.float32))


@interpreted
def test_interpreted_halves_of_float32_leave_little():
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    parts = torch.empty(2, 64)
    store_halves[(1,)](x, parts)
    assert torch.equal(parts.bfloat16().float(), parts)
    # Each has 8 significant bits, and the interpreter rounds towards zero.
    torch.testing.assert_close(parts.sum(0), x, rtol=2**-14, atol=0)


@compiled
@pytest.mark.parametrize(
    ("length", "heads", "dtype"),
    [
        (1, 1, torch.bfloat16),
        pytest.param(300, 2, torch.float16, marks=pytest.mark.slow),
        pytest.param(300, 2, torch.float32, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_kernels_compile_without_spills(length, heads, dtype):
    """Sizes of 1 are constants to Triton."""
    inputs = make_inputs(1, length, heads, 64, 128)
    for name in ("x", "b", "c"):
        inputs[name] = inputs[name].detach().to(dtype)
    found = compile_launches(lambda: values_and_gradients(ssd, inputs, chunk_size=128))
    assert set(found) >= {"chunk_writes", "pair_products", "mix", "pair_sums", "vector_gradients"}
    assert not any(used.spill_bytes for used in found.values()), found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000])
def test_gpu_kernels_equal_the_recurrence(length, dtype):
    inputs = make_inputs(2, length, 4, 64, 128)
    for name in ("x", "b", "c"):
        inputs[name] = inputs[name].detach().to(dtype)
    segments = make_segments(2, length)
    expected = values_and_gradients(ssd_reference, doubles(inputs), segments=segments)
    on_gpu = {name: tensor.detach().cuda() for name, tensor in inputs.items()}
    actual = values_and_gradients(ssd, on_gpu, segments=segments.cuda(), chunk_size=128)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    assert_close({name: tensor.cpu() for name, tensor in actual.items()}, expected, tolerance)
