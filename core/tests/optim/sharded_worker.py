"""The sharded runs of test_sharded.py: `python sharded_worker.py FOLDER`.

Four ranks make process groups of 1, 2, 3 and 4, so that one start serves all sizes. They are forked
where the system can, from a process that has imported torch and done nothing else with it.
"""

import multiprocessing
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from nanozoo_core.config import OptimConfig, from_defaults
from nanozoo_core.optim.build import build_optimizers
from nanozoo_core.optim.groups import default_roles, make_groups
from nanozoo_core.optim.sharding import gather_whole, keep_marks, shard_like
from nanozoo_core.testing.training import make_muon

WORLDS = (1, 2, 3, 4)


def make(process_group, dtype=torch.float32):
    """Seven matrices of one shape, a fused one, a bank and a tall one."""
    shapes = [(20, 36)] * 7 + [(40, 20), (3, 18, 20), (48, 16)]
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]
    parameters[7].muon_split = (20, 12, 8)
    named = [(f"w{i}", p) for i, p in enumerate(parameters)]
    return parameters, make_muon(named, weight_decay=0.1, process_group=process_group)


def train(parameters, muon, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(1000 + step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        muon.step()


def snapshot(parameters, muon):
    return [p.detach() for p in parameters], muon.full_state()


def train_fsdp(shard):
    """Three steps of a small model on the same batch everywhere, then a state round trip and one
    more; `shard` wraps the model."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(40, 24), nn.Linear(24, 50), nn.Linear(50, 40))
    model[1].weight.muon_split = (20, 30)
    with keep_marks(model):
        shard(model)
    optim = from_defaults(OptimConfig, muon={"weight_decay": 0.1}, weight_decay=0.1)

    def build():
        groups = make_groups(model, default_roles(model), optim)
        return build_optimizers(groups, optim, total_steps=4, device=torch.device("cpu"))

    def step(optimizers, number):
        optimizers.set_schedule(number, number / 4)
        tokens = torch.arange(64).reshape(2, 32) % 40
        model(tokens).square().mean().backward()
        norm = optimizers.clip(0.01)
        optimizers.step()
        optimizers.zero_grad()
        return norm

    optimizers = build()
    norms = [step(optimizers, number) for number in range(3)]
    state = optimizers.full_state()
    optimizers = build()
    optimizers.load_full_state(state)
    norms.append(step(optimizers, 3))
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return [p.detach() for p in whole], optimizers.full_state(), norms


def train_matrices(shard):
    """Four steps of Muon alone on given gradients; `shard` wraps the model. The last matrix has
    rows that do not divide over the ranks, and two parts."""
    torch.manual_seed(0)
    shapes = [(20, 36)] * 7 + [(41, 20)]
    model = nn.Sequential(*(nn.Linear(n, m, bias=False) for m, n in shapes))
    model[7].weight.muon_split = (20, 21)
    with keep_marks(model):
        shard(model)
    muon = make_muon(model.named_parameters(), weight_decay=0.1)
    for number in range(4):
        generator = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = shard_like(gradient, parameter)
        muon.step()
    return [gather_whole(p.detach()) for p in model.parameters()], muon.full_state()


def main(rank, folder):
    torch.set_num_threads(1)
    if rank == 0:
        for dtype in (torch.float32, torch.bfloat16):
            parameters, muon = make(None, dtype)
            train(parameters, muon, range(6))
            torch.save(snapshot(parameters, muon), folder / f"alone_{dtype}.pt")
        torch.save(train_fsdp(lambda model: None), folder / "alone_fsdp.pt")
        torch.save(train_matrices(lambda model: None), folder / "alone_matrices.pt")

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
    groups = {world: dist.new_group(list(range(world))) for world in WORLDS}
    for world in WORLDS:
        if rank < world:
            for dtype in (torch.float32, torch.bfloat16):
                parameters, muon = make(groups[world], dtype)
                train(parameters, muon, range(6))
                torch.save(snapshot(parameters, muon), folder / f"{dtype}_{world}_{rank}.pt")
            owned = sum(len(bucket.owned) for bucket in muon._buckets)
            kept = sum(t.nbytes for bucket in muon._buckets for t in bucket.state.values())
            torch.save((owned, kept), folder / f"owned_{world}_{rank}.pt")

    if rank < 2:
        parameters, muon = make(groups[2])
        train(parameters, muon, range(3))
        torch.save(snapshot(parameters, muon), folder / f"middle_{rank}.pt")
    dist.barrier()
    for world in (1, 4):
        if rank < world:
            weights, state = torch.load(folder / "middle_0.pt")
            parameters, muon = make(groups[world])
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter.data.copy_(weight)
            muon.load_full_state(state)
            train(parameters, muon, range(3, 6))
            torch.save(snapshot(parameters, muon), folder / f"resumed_{world}_{rank}.pt")

    mesh = init_device_mesh("cpu", (4,))
    torch.save(train_fsdp(lambda model: fully_shard(model, mesh=mesh)), folder / f"fsdp_{rank}.pt")
    found = train_matrices(lambda model: fully_shard(model, mesh=mesh))
    torch.save(found, folder / f"matrices_{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    torch.optim.SGD([torch.zeros(1)])  # imports, once for all ranks, what optimisers need
    torch.multiprocessing.start_processes(main, (Path(sys.argv[1]),), nprocs=4, start_method=method)
