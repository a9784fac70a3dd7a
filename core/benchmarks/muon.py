"""Muon's step against torch.optim.Muon's: `python core/benchmarks/muon.py [--json FILE]`.

Both run in one process, alternating, on one thread; times are the process's own CPU seconds, so
that other jobs on the machine count little. On a GPU they are wall seconds.
"""

import torch
from torch import nn

from nanozoo_core.optim.muon import Muon
from nanozoo_core.testing.timing import begin, end, flags, take_turns

# The matrices of so many transformer blocks of that width: q, k, v, o, and an MLP of ratio 4.
BLOCKS = {"4 x width 128": (4, 128), "4 x width 256": (4, 256), "1 x width 768": (1, 768)}
VARIANTS = {
    "ns5": {"orth": "ns5", "beta2": None, "cautious": False},
    "polar_express": {"beta2": None, "cautious": False},
    "polar_express + NorMuon + cautious decay": {},
}
WEIGHT_DECAY = 0.1


def weights(num_blocks: int, width: int, device: torch.device) -> list[nn.Parameter]:
    shapes = [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape in shapes * num_blocks:
        parameter = nn.Parameter(torch.randn(shape, generator=generator).to(device))
        parameter.grad = torch.randn(shape, generator=generator).to(device)
        found.append(parameter)
    return found


def compare(blocks: tuple[int, int], device: torch.device, rounds: int) -> dict:
    """Median milliseconds per step, and the median over rounds of torch's time over ours."""
    oracle = torch.optim.Muon(weights(*blocks, device), weight_decay=WEIGHT_DECAY)
    steps = {"torch.optim.Muon": oracle.step}
    for name, options in VARIANTS.items():
        ours = Muon(weights(*blocks, device), weight_decay=WEIGHT_DECAY, **options)
        steps[name] = ours.step
    times = take_turns(steps, device, rounds=rounds)
    return {
        name: {
            "milliseconds": 1e3 * times.median(name),
            "ratio": times.speed(name, than="torch.optim.Muon").median,
        }
        for name in steps
    }


def main() -> None:
    arguments = begin(flags(__doc__, rounds=3))
    results = {}
    print(f"{'blocks':<16}{'optimiser':<44}{'ms/step':>10}{'ratio':>8}")
    for blocks in BLOCKS:
        results[blocks] = compare(BLOCKS[blocks], arguments.device, arguments.rounds)
        for name, row in results[blocks].items():
            print(f"{blocks:<16}{name:<44}{row['milliseconds']:>10.2f}{row['ratio']:>8.2f}")
    end(arguments, results)


if __name__ == "__main__":
    main()
