"""The chunked loop and its Triton twin against the recurrence; kernels run in the interpreter."""

import itertools

import pytest
import torch
from scan_cases import assert_close, doubles, make_segments, values_and_gradients

from nanozoo_core.ops.linear_recurrence import (
    NARROW,
    linear_recurrence,
    linear_recurrence_reference,
)
from nanozoo_core.testing.kernels import compile_for_sm_90, compiled, interpreted, run_interpreted

each_decay = pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])


def make_inputs(batch, length, channels, *, shared, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, length) if shared else (batch, length, channels)
    inputs = {
        "decay": torch.rand(shape, generator=generator, dtype=torch.float64),
        "inputs": torch.randn(batch, length, channels, generator=generator, dtype=torch.float64),
        "initial_state": torch.randn(batch, channels, generator=generator, dtype=torch.float64),
    }
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in inputs.items()}


@each_decay
@pytest.mark.parametrize("with_segments", [False, True], ids=["whole", "segments"])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 100, 1000])
@pytest.mark.parametrize("channels", [3, NARROW], ids=["narrow", "wide"])
def test_equals_the_recurrence_in_float64(channels, length, with_segments, shared):
    length = min(length, 65) if channels == NARROW else length
    inputs = make_inputs(1 if channels == NARROW else 2, length, channels, shared=shared)
    batch = inputs["inputs"].shape[0]
    options = {"segments": make_segments(batch, length)} if with_segments else {}
    expected = values_and_gradients(linear_recurrence_reference, inputs, **options)
    assert_close(values_and_gradients(linear_recurrence, inputs, **options), expected, 1e-10)


@each_decay
def test_gradients_agree_with_finite_differences(shared):
    inputs = make_inputs(1, 66, 1, shared=shared)

    def run(*tensors):
        return linear_recurrence(**dict(zip(inputs, tensors, strict=True)))

    assert torch.autograd.gradcheck(run, tuple(inputs.values()))


def test_float32_is_exact_to_rounding():
    inputs = make_inputs(2, 500, 8, shared=False, dtype=torch.float32)
    expected = values_and_gradients(linear_recurrence_reference, doubles(inputs))
    assert_close(values_and_gradients(linear_recurrence, inputs), expected, 1e-6)


def test_without_decay_it_is_a_cumulative_sum():
    inputs = make_inputs(2, 200, 3, shared=True)
    states, _ = linear_recurrence(torch.ones(2, 200).double(), inputs["inputs"])
    torch.testing.assert_close(states, inputs["inputs"].cumsum(1), atol=1e-10, rtol=1e-10)


def test_constant_decay_gives_the_geometric_sum():
    ones = torch.ones(1, 300, 1, dtype=torch.float64)
    states, _ = linear_recurrence(0.9 * ones, ones)
    t = torch.arange(1, 301, dtype=torch.float64)
    torch.testing.assert_close(states.flatten(), (1 - 0.9**t) / 0.1, atol=1e-10, rtol=1e-10)


@each_decay
def test_segments_equal_separate_sequences(shared):
    inputs = make_inputs(1, 120, 4, shared=shared)
    cuts = [0, 20, 21, 95, 120]
    segments = torch.zeros(1, 120, dtype=torch.int32)
    for cut in cuts[1:-1]:
        segments[:, cut:] += 1
    states, last = linear_recurrence(**inputs, segments=segments)
    for start, end in itertools.pairwise(cuts):
        alone, alone_last = linear_recurrence(
            inputs["decay"][:, start:end],
            inputs["inputs"][:, start:end],
            initial_state=inputs["initial_state"] if start == 0 else None,
        )
        torch.testing.assert_close(states[:, start:end], alone, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(last, alone_last, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("cut", [1, 30, 99])
def test_handing_over_the_state_equals_one_pass(cut):
    inputs = make_inputs(2, 100, 4, shared=False)
    states, last = linear_recurrence(**inputs)
    decay, added = inputs["decay"], inputs["inputs"]
    first, state = linear_recurrence(
        decay[:, :cut], added[:, :cut], initial_state=inputs["initial_state"]
    )
    second, state = linear_recurrence(decay[:, cut:], added[:, cut:], initial_state=state)
    torch.testing.assert_close(torch.cat([first, second], 1), states, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(state, last, atol=1e-12, rtol=1e-12)


def test_vanishing_decays_give_finite_values_and_gradients():
    inputs = make_inputs(1, 300, 2, shared=False, dtype=torch.float32)
    inputs["decay"] = inputs["decay"].detach() * 1e-20
    for name, tensor in values_and_gradients(linear_recurrence, inputs).items():
        assert torch.isfinite(tensor).all(), name


def test_inputs_are_left_alone():
    inputs = make_inputs(2, 100, 4, shared=False)
    before = {name: tensor.detach().clone() for name, tensor in inputs.items()}
    values_and_gradients(linear_recurrence, inputs)
    for name, tensor in inputs.items():
        assert torch.equal(tensor, before[name]), name


def test_bfloat16_inputs_are_summed_in_float32():
    inputs = make_inputs(2, 100, 4, shared=True, dtype=torch.float32)
    low = inputs["inputs"].detach().bfloat16()
    states, last = linear_recurrence(inputs["decay"], low)
    assert states.dtype == last.dtype == torch.float32
    expected, _ = linear_recurrence(inputs["decay"], low.float())
    assert torch.equal(states, expected)


def test_wrong_shape_is_named():
    inputs = make_inputs(2, 8, 4, shared=False)
    inputs["decay"] = inputs["decay"][:, 1:]
    with pytest.raises(ValueError, match=r"decay has shape \(2, 7, 4\); want \(2, 8, 4\)"):
        linear_recurrence(**inputs)


@compiled
def test_kernels_agree_with_the_recurrence_in_a_child_process():
    run_interpreted(__file__, num_tests=6)


@interpreted
@each_decay
@pytest.mark.parametrize("length", [1, 8, 19])
def test_interpreted_kernels_equal_the_recurrence(length, shared, monkeypatch):
    from nanozoo_core.ops import linear_recurrence_triton as kernels

    monkeypatch.setattr(kernels, "TILE_T", 8)
    monkeypatch.setattr(kernels, "TILE_D", 4)
    inputs = make_inputs(2, length, 6, shared=shared, dtype=torch.float32)
    segments = make_segments(2, length)
    expected = values_and_gradients(linear_recurrence_reference, doubles(inputs), segments=segments)
    actual = values_and_gradients(linear_recurrence, inputs, segments=segments, backend="triton")
    assert_close(actual, expected, 1e-6)


@compiled
@each_decay
@pytest.mark.parametrize("kernel", ["_recur", "_gradients"])
def test_kernel_compiles_for_sm_90(kernel, shared):
    from nanozoo_core.ops import linear_recurrence_triton as kernels

    constants = {"D": 512, "SHARED": shared, "TILE_T": 64, "TILE_D": 32}
    function = getattr(kernels, kernel)
    kinds = {p.name: "i32" if p.name == "length" else "*fp32" for p in function.params}
    compile_for_sm_90(function, kinds, constants, num_warps=4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@each_decay
@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000])
def test_gpu_kernels_equal_the_recurrence(length, shared):
    inputs = make_inputs(2, length, 200, shared=shared, dtype=torch.float32)
    segments = make_segments(2, length)
    expected = values_and_gradients(linear_recurrence_reference, doubles(inputs), segments=segments)
    on_gpu = {name: tensor.detach().cuda() for name, tensor in inputs.items()}
    actual = values_and_gradients(linear_recurrence, on_gpu, segments=segments.cuda())
    assert_close({name: tensor.cpu() for name, tensor in actual.items()}, expected, 1e-5)
