"""The scans, the causal convolution and the Mamba-2 mixer against their plain forms.

    python core/benchmarks/ssm.py [--only 'selective scan'] [--json FILE]

Forward plus backward. Both forms of a pair run in one process, alternating: CPU seconds of one
thread, which other jobs hardly disturb, or wall seconds on a GPU. The process has the settings that
our trainer makes, or with --untuned torch's own, under which large temporaries cost more.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_core.nn.mamba2 import Mamba2Mixer
from nanozoo_core.ops.causal_conv import causal_conv1d
from nanozoo_core.ops.linear_recurrence import linear_recurrence, linear_recurrence_reference
from nanozoo_core.ops.selective_scan import selective_scan, selective_scan_reference
from nanozoo_core.ops.ssd import ssd, ssd_reference
from nanozoo_core.testing.timing import (
    Run,
    begin,
    differentiated,
    end,
    flags,
    take_turns,
)

# Batch, sequence, heads, channels of a head, state size, chunk.
SCANS = {
    "tiny": (8, 256, 6, 32, 32, 32),
    "tiny, chunk 64": (8, 256, 6, 32, 32, 64),
    "wide": (1, 1024, 16, 64, 128, 64),
}
GPU_SCANS = {"wide": (8, 1024, 16, 64, 128, 128), "wide, chunk 256": (8, 1024, 16, 64, 128, 256)}
# Batch, sequence, channels, state size.
SELECTIVE_SCANS = {"tiny": (16, 256, 256, 16), "wide": (1, 512, 1536, 16)}
GPU_SELECTIVE_SCANS = {"wide": (8, 1024, 1536, 16)}
# Batch, sequence, channels.
RECURRENCES = {"tiny": (8, 256, 96), "long": (1, 8192, 96)}
GPU_RECURRENCES = {"long": (8, 8192, 512)}
# Batch, sequence, channels.
CONVOLUTIONS = {"tiny": (8, 256, 256), "wide": (1, 1024, 1280)}
GPU_CONVOLUTIONS = {"wide": (8, 8192, 1280)}


def scan_forms(shape: tuple[int, ...], device: torch.device) -> dict[str, Run]:
    batch, length, heads, channels, state, chunk_size = shape
    generator = torch.Generator().manual_seed(0)

    def inputs() -> list[Tensor]:
        x = torch.randn(batch, length, heads, channels, generator=generator)
        delta = F.softplus(torch.randn(batch, length, heads, generator=generator) - 3)
        decay = -delta * (1 + 15 * torch.rand(heads, generator=generator))
        b, c = torch.randn(2, batch, length, state, generator=generator)
        return [t.to(device) for t in (x, delta, decay, b, c, torch.ones(heads))]

    def plain(*tensors: Tensor) -> Tensor:
        return ssd_reference(*tensors[:-1], skip=tensors[-1])[0]

    def fast(*tensors: Tensor) -> Tensor:
        return ssd(*tensors[:-1], skip=tensors[-1], chunk_size=chunk_size)[0]

    return {"plain": differentiated(plain, *inputs()), "ours": differentiated(fast, *inputs())}


def indexing_scan(
    x: Tensor, delta: Tensor, rates: Tensor, b: Tensor, c: Tensor, skip: Tensor
) -> Tensor:
    """The selective scan as it is often written: all decays and inputs at once, then a loop that
    indexes them."""
    decays = torch.exp(delta[..., None] * rates)  # (B, L, D, N)
    inputs = (delta * x)[..., None] * b[:, :, None]
    state, ys = torch.zeros_like(decays[:, 0]), []
    for t in range(x.shape[1]):
        state = decays[:, t] * state + inputs[:, t]
        ys.append((state * c[:, t, None]).sum(-1))
    return torch.stack(ys, dim=1) + skip * x


def selective_scan_forms(
    shape: tuple[int, ...], device: torch.device, *, indexing: bool
) -> dict[str, Run]:
    """The loop that indexes positions, or the one over unbound positions, against ours."""
    batch, length, channels, states = shape
    generator = torch.Generator().manual_seed(0)

    def inputs() -> list[Tensor]:
        x = torch.randn(batch, length, channels, generator=generator)
        delta = F.softplus(torch.randn(batch, length, channels, generator=generator) - 4)
        rates = -torch.arange(1.0, states + 1).expand(channels, -1).contiguous()
        b, c = torch.randn(2, batch, length, states, generator=generator)
        return [t.to(device) for t in (x, delta, rates, b, c, torch.ones(channels))]

    def unbound(*tensors: Tensor) -> Tensor:
        return selective_scan_reference(*tensors[:-1], skip=tensors[-1])[0]

    def fast(*tensors: Tensor) -> Tensor:
        return selective_scan(*tensors[:-1], skip=tensors[-1])[0]

    plain = indexing_scan if indexing else unbound
    return {"plain": differentiated(plain, *inputs()), "ours": differentiated(fast, *inputs())}


def recurrence_forms(shape: tuple[int, ...], device: torch.device) -> dict[str, Run]:
    batch, length, channels = shape
    generator = torch.Generator().manual_seed(0)

    def inputs() -> list[Tensor]:
        shapes = (batch, length), (batch, length, channels)
        return [torch.rand(shape, generator=generator).to(device) for shape in shapes]

    def plain(*tensors: Tensor) -> Tensor:
        return linear_recurrence_reference(*tensors)[0]

    def fast(*tensors: Tensor) -> Tensor:
        return linear_recurrence(*tensors)[0]

    return {"plain": differentiated(plain, *inputs()), "ours": differentiated(fast, *inputs())}


def convolution_forms(shape: tuple[int, ...], device: torch.device) -> dict[str, Run]:
    """The grouped convolution of torch, on the transposed input, against ours."""
    batch, length, channels = shape
    generator = torch.Generator().manual_seed(0)

    def inputs() -> list[Tensor]:
        shapes = (batch, length, channels), (channels, 4), (channels,)
        return [torch.randn(shape, generator=generator).to(device) for shape in shapes]

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        padded = F.pad(x.mT, (weight.shape[1] - 1, 0))
        return F.silu(F.conv1d(padded, weight[:, None], bias, groups=channels).mT)

    return {
        "plain": differentiated(plain, *inputs()),
        "ours": differentiated(causal_conv1d, *inputs()),
    }


def mixer_forms(device: torch.device) -> dict[str, Run]:
    """Prefill of 256 positions by single steps, against one forward pass (no gradient)."""
    torch.manual_seed(0)
    mixer = Mamba2Mixer(96, state_dim=32, head_dim=32, chunk_size=32).to(device)
    u = torch.randn(8, 256, 96, device=device)

    @torch.no_grad()
    def plain() -> None:
        state = mixer.init_state(8, device)
        for u_t in u.unbind(1):
            mixer.step(u_t, state)

    @torch.no_grad()
    def ours() -> None:
        mixer(u, mixer.init_state(8, device))

    return {"plain": plain, "ours": ours}


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--only", default="", help="the cases whose name begins so")
    arguments = begin(parser)
    device = arguments.device
    on_gpu = device.type == "cuda"
    cases = {
        f"ssd, {name}: loop over positions": scan_forms(shape, device)
        for name, shape in (GPU_SCANS if on_gpu else SCANS).items()
    }
    for name, shape in (GPU_SELECTIVE_SCANS if on_gpu else SELECTIVE_SCANS).items():
        for loop in ("unbind", "indexing"):
            forms = selective_scan_forms(shape, device, indexing=loop == "indexing")
            cases[f"selective scan, {name}: {loop} loop"] = forms
    for name, shape in (GPU_RECURRENCES if on_gpu else RECURRENCES).items():
        cases[f"recurrence, {name}: loop"] = recurrence_forms(shape, device)
    for name, shape in (GPU_CONVOLUTIONS if on_gpu else CONVOLUTIONS).items():
        cases[f"convolution, {name}: conv1d"] = convolution_forms(shape, device)
    cases["mixer, prefill: steps"] = mixer_forms(device)

    cases = {name: forms for name, forms in cases.items() if name.startswith(arguments.only)}
    results = {}
    print(f"{'against':42}{'plain ms':>10}{'ours ms':>10}{'speed':>8}   range")
    for name, forms in cases.items():
        times = take_turns(forms, device, rounds=arguments.rounds)
        row = results[name] = times.compare("ours", than="plain")
        plain, ours = (1e3 * row[f"{form}_seconds"] for form in forms)
        spread = f"{row['speed_least']:.2f} .. {row['speed_most']:.2f}"
        print(f"{name:42}{plain:10.1f}{ours:10.1f}{row['speed']:8.2f}   {spread}")
    end(arguments, results)


if __name__ == "__main__":
    main()
