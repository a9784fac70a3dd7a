"""The convolution and its Triton twin against the plain sum; kernels run in the interpreter."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from nanozoo_core.ops.causal_conv import causal_conv1d, causal_conv1d_reference, causal_conv1d_step
from nanozoo_core.testing.kernels import compile_for_sm_90, compiled, interpreted, run_interpreted


def make_inputs(batch, length, channels, width, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    x, weight, bias = normal(batch, length, channels), normal(channels, width), normal(channels)
    return x, weight, bias, normal(batch, channels, width - 1)


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 3, 65])
def test_equals_a_padded_grouped_convolution(length, width):
    x, weight, bias, state = make_inputs(2, length, 6, width, torch.float64)
    padded = torch.cat([state, x.mT], dim=-1)
    expected = F.silu(F.conv1d(padded, weight[:, None], bias, groups=6)).mT
    actual = causal_conv1d(x, weight, bias, initial_state=state)
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("with_state", [False, True], ids=["fresh", "state"])
@pytest.mark.parametrize("with_segments", [False, True], ids=["whole", "segments"])
def test_gradients_agree_with_finite_differences(with_segments, with_state, activation):
    x, weight, bias, state = make_inputs(2, 6, 3, 4, torch.float64)
    segments = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1]]) if with_segments else None

    def run(x, weight, bias, state):
        return causal_conv1d(
            x,
            weight,
            bias,
            activation=activation,
            initial_state=state if with_state else None,
            segments=segments,
        )

    tensors = [tensor.requires_grad_() for tensor in (x, weight, bias, state)]
    if not with_state:
        tensors[3].requires_grad_(False)
    assert torch.autograd.gradcheck(run, tuple(tensors))


def assert_equal_to_reference(function, length, channels, with_segments, device="cpu"):
    """Values and all gradients of `function`, within 1e-5 of each result's largest value."""
    tensors = [tensor.to(device).requires_grad_() for tensor in make_inputs(2, length, channels, 4)]
    x, weight, bias, state = tensors
    segments = None
    if with_segments:
        segments = (torch.arange(length, device=device) // 13 % 2).expand(2, -1)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).to(device)
    results = []
    for run in (function, causal_conv1d_reference):
        y = run(x, weight, bias, initial_state=state, segments=segments)
        results.append((y, *torch.autograd.grad(y, tensors, grad)))
    for actual, expected in zip(*results, strict=True):
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("with_segments", [False, True], ids=["whole", "segments"])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 200])
def test_blocks_equal_the_reference(length, with_segments):
    assert_equal_to_reference(causal_conv1d, length, 1024, with_segments)


def test_wrong_shape_is_named():
    x, weight, bias, state = make_inputs(2, 5, 4, 3)
    with pytest.raises(ValueError, match=r"bias has shape \(3,\); want \(4,\)"):
        causal_conv1d(x, weight, bias[1:], initial_state=state)


def test_segments_equal_separate_sequences():
    x, weight, bias, state = make_inputs(1, 12, 5, 4)
    cuts = [0, 2, 3, 9, 12]
    segments = torch.tensor([[7, 7, 3, 7, 7, 7, 7, 7, 7, 1, 1, 1]])
    y = causal_conv1d(x, weight, bias, initial_state=state, segments=segments)
    for start, end in itertools.pairwise(cuts):
        before = state if start == 0 else None
        alone = causal_conv1d(x[:, start:end], weight, bias, initial_state=before)
        torch.testing.assert_close(y[:, start:end], alone)


def test_steps_equal_the_whole_sequence():
    x, weight, bias, state = make_inputs(2, 9, 5, 4)
    y = causal_conv1d(x, weight, bias, initial_state=state)
    for t in range(9):
        y_t, state = causal_conv1d_step(state, x[:, t], weight, bias)
        torch.testing.assert_close(y_t, y[:, t])
    assert torch.equal(state, x[:, -3:].mT)


def test_without_bias_and_activation_it_is_linear():
    x, weight, _, state = make_inputs(1, 10, 3, 4, torch.float64)

    def run(scale):
        return causal_conv1d(scale * x, weight, activation=None, initial_state=scale * state)

    torch.testing.assert_close(run(3.0), 3 * run(1.0), atol=1e-10, rtol=1e-10)


def test_bfloat16_input_is_summed_in_float32():
    x, weight, bias, _ = make_inputs(1, 50, 8, 4)
    low = x.bfloat16()
    y = causal_conv1d(low, weight, bias)
    assert y.dtype == torch.bfloat16
    # The only rounding is that of y itself: 8 significant bits.
    torch.testing.assert_close(
        y.float(), causal_conv1d(low.float(), weight, bias), atol=1e-6, rtol=2**-8
    )


@compiled
def test_kernels_agree_with_the_reference_in_a_child_process():
    run_interpreted(__file__, num_tests=5)


@interpreted
@pytest.mark.parametrize("with_segments", [False, True], ids=["whole", "segments"])
@pytest.mark.parametrize(("length", "channels"), [(1, 64), (130, 70)])
def test_interpreted_kernels_equal_the_reference(length, channels, with_segments):
    from nanozoo_core.ops.causal_conv_triton import causal_conv1d_triton

    assert_equal_to_reference(causal_conv1d_triton, length, channels, with_segments)


@interpreted
def test_interpreted_kernels_take_views_without_bias_and_activation():
    from nanozoo_core.ops.causal_conv_triton import causal_conv1d_triton

    wide, weight, _, _ = make_inputs(2, 20, 40, 3)
    x, weight = wide[..., 7:], weight[7:]
    expected = causal_conv1d_reference(x, weight, activation=None)
    actual = causal_conv1d_triton(x, weight, silu=False)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@compiled
@pytest.mark.parametrize("kernel", ["_convolve", "_gradients"])
def test_kernel_compiles_for_sm_90(kernel):
    from nanozoo_core.ops import causal_conv_triton

    constants = {"C": 1280, "K": 4, "TILE_T": 64, "TILE_C": 64, "REVERSE": False, "SILU": True}
    function = getattr(causal_conv_triton, kernel)
    kinds = {}
    for name in (parameter.name for parameter in function.params):
        if name in ("length", "x_batch", "x_time"):
            kinds[name] = "i32"
        elif name == "runs":
            kinds[name] = "*i32"
        else:
            kinds[name] = "*bf16" if name in ("x", "y", "grad_y") else "*fp32"
    compile_for_sm_90(function, kinds, constants, num_warps=8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("with_segments", [False, True], ids=["whole", "segments"])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000])
def test_gpu_kernels_equal_the_reference(length, with_segments):
    assert_equal_to_reference(causal_conv1d, length, 320, with_segments, "cuda")
