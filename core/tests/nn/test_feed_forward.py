import pytest
import torch
import torch.nn.functional as F

from nanozoo_core.nn.feed_forward import GeGLU, ReluSquared, SwiGLU, relu_squared


def test_squared_relu_and_its_gradient():
    x = torch.tensor([-2.0, 0.5, 3.0], requires_grad=True)
    relu_squared(x).sum().backward()
    assert relu_squared(x).tolist() == [0.0, 0.25, 9.0]
    assert x.grad.tolist() == [0.0, 1.0, 6.0]


@pytest.mark.parametrize(("layer_class", "activate"), [(SwiGLU, F.silu), (GeGLU, F.gelu)])
def test_a_gated_layer_is_its_equation(layer_class, activate):
    torch.manual_seed(0)
    layer = layer_class(8, 12)
    x = torch.randn(2, 3, 8)
    gate, up = layer.gate_up.weight.split(layer.gate_up.weight.muon_split)
    expected = (activate(x @ gate.T) * (x @ up.T)) @ layer.down.weight.T
    torch.testing.assert_close(layer(x), expected)


def test_relu_squared_layer_is_its_equation():
    torch.manual_seed(0)
    layer = ReluSquared(8, 12)
    x = torch.randn(2, 3, 8)
    expected = (x @ layer.up.weight.T).clamp(min=0) ** 2 @ layer.down.weight.T
    torch.testing.assert_close(layer(x), expected)
