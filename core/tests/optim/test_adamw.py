import pytest
import torch
from torch import nn

from nanozoo_core.optim.adamw import AdamW

SETTINGS = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-10}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def adamw(parameter, **changes):
    group = {"params": [parameter], "decay": 0.0, "cautious": False, "wd_power": 1, **SETTINGS}
    return AdamW([group | changes])


def step(optimizer, parameter, grad):
    parameter.grad = grad.clone()
    optimizer.step()


def reference(weight, grads, *, decay, cautious, wd_power):
    """Adam written out, with the decay of the paper's algorithm."""
    lr, (beta1, beta2), eps = SETTINGS["lr"], SETTINGS["betas"], SETTINGS["eps"]
    m, v = torch.zeros_like(weight), torch.zeros_like(weight)
    for t, g in enumerate(grads, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        update = lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps)
        mask = (update * weight > 0) if cautious else torch.ones_like(weight)
        weight = weight - update - lr**wd_power * decay * mask * weight
    return weight


@pytest.mark.parametrize("cautious", [True, False])
@pytest.mark.parametrize("wd_power", [1, 2])
def test_follows_the_written_algorithm(cautious, wd_power):
    parameter = nn.Parameter(normal(20, 30).double())
    start = parameter.detach().clone()
    options = {"decay": 0.3, "cautious": cautious, "wd_power": wd_power}
    optimizer = adamw(parameter, **options)
    grads = [normal(20, 30, seed=1 + i).double() for i in range(5)]
    for grad in grads:
        step(optimizer, parameter, grad)
    torch.testing.assert_close(parameter.detach(), reference(start, grads, **options))


def test_the_plain_form_is_torchs_bit_for_bit():
    ours, theirs = nn.Parameter(normal(20, 30)), nn.Parameter(normal(20, 30))
    one = adamw(ours, decay=0.3)
    two = torch.optim.AdamW([theirs], weight_decay=0.3, **SETTINGS)
    for i in range(5):
        step(one, ours, normal(20, 30, seed=1 + i))
        step(two, theirs, normal(20, 30, seed=1 + i))
    assert torch.equal(ours, theirs)


def test_entries_never_seen_do_not_decay():
    parameter = nn.Parameter(torch.ones(4, 3))
    grad = torch.zeros(4, 3)
    grad[1] = 1.0
    step(adamw(parameter, decay=0.5, cautious=True), parameter, grad)
    assert torch.equal(parameter[0], torch.ones(3))
    torch.testing.assert_close(parameter[1], torch.full((3,), 1 - 0.1 * 0.5 - 0.1))
