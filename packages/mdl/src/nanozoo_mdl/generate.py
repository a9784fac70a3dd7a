"""Sampling: from windows with holes to texts, all at once or block by block.

B windows, S positions, C tokens of a block, N gathered rows, V data tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from nanozoo_core.contract import SamplingSettings
from nanozoo_core.diffusion.unmasking import (
    Holes,
    Predictor,
    ancestral,
    first_hitting,
    most_confident,
    remasking,
)
from nanozoo_core.errors import ConfigError
from nanozoo_core.ops.sampling import probabilities
from nanozoo_mdl.blocks import Memory, MemoryView
from nanozoo_mdl.model import MDLM

Read = Callable[[Tensor, Tensor], Tensor]
"""Features (B, S, D) of windows (B, S) with masks, or of a block, at time (B,) in [0, 1]."""


def predictor(model: MDLM, read: Read, settings: SamplingSettings) -> Predictor:
    """The network's prediction, after temperature and cuts; the time runs over [0, 1]."""

    def predict(tokens: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        features = read(tokens, time).flatten(0, 1)[rows]
        return probabilities(model.net.logits(features), settings)

    return predict


def unmask(model: MDLM, holes: Holes) -> Iterator[Tensor]:
    """The windows (B, S) after every step, their holes being drawn given all else, before and
    after: exact conditioning, whatever the pattern. With blocks, see `unmask_blocks`.

    Raises: ConfigError for a number of steps that the sampler does not take.
    """
    if model.config.block_size is not None:
        return unmask_blocks(model, holes)

    def read(tokens: Tensor, time: Tensor) -> Tensor:
        return model.net.features(tokens, told(model, time, tokens.device))

    return fill(model, holes, holes.x, read)


def told(model: MDLM, time: Tensor, device: torch.device) -> Tensor:
    """What the network reads of the time, (B,)."""
    return model.time_input(time).float().to(device)


def fill(model: MDLM, holes: Holes, x: Tensor, read: Read) -> Iterator[Tensor]:
    """The windows or blocks `x` (B, S) after every step of the sampler that the settings name.

    Raises: ConfigError for a number of steps that the sampler does not take.
    """
    config, settings, generator = model.config, holes.settings, holes.generator
    predict = predictor(model, read, settings)
    if config.sampler == "first_hitting":
        if settings.num_steps is not None:
            raise ConfigError(
                f"num_steps={settings.num_steps} has no effect with model_cfg.sampler="
                "first_hitting, which draws one token in each step; use ancestral_cache"
            )
        return first_hitting(
            predict, x, mask_id=model.mask_id, schedule=model.schedule, generator=generator
        )
    num_steps = settings.num_steps or config.num_sampling_steps
    times = 1 - torch.arange(num_steps + 1, dtype=torch.float64, device="cpu") / num_steps
    noise = model.schedule.noise(times)
    noise[0] = 1.0  # a cosine of pi / 2 is not quite 0
    grid = {"times": times.tolist(), "noise": noise.tolist()}
    if config.sampler == "confidence":
        return most_confident(
            predictor(model, read, SamplingSettings()),
            x,
            mask_id=model.mask_id,
            generator=generator,
            sharpen=lambda probs: probabilities(probs.log(), settings),
            **grid,
        )
    if config.sampler == "remask":
        return remasking(
            predict,
            x,
            mask_id=model.mask_id,
            cap=config.remask_cap,
            generator=generator,
            **grid,
        )
    return ancestral(
        predict,
        x,
        mask_id=model.mask_id,
        generator=generator,
        reuse=settings.use_cache and config.sampler == "ancestral_cache",
        **grid,
    )


# -- block by block -------------------------------------------------------------------------------


def unmask_blocks(model: MDLM, holes: Holes) -> Iterator[Tensor]:
    """The windows (B, S) after every step, block by block, each given all before it and what is
    known of itself. Keys and values of finished blocks are kept (`use_cache`), and read anew
    otherwise. A block that the windows cut short is drawn as the whole that training knows, until
    the windows are full.

    Raises: ConfigError for a gap whose text goes on in a later block, which no block before can
    see, or a number of steps that the sampler does not take.
    Reference: arXiv 2503.09573, algorithm 2.
    """
    refuse_gaps(model, holes.known)
    length, blocks = holes.x.shape[1], model.blocks
    of_positions = blocks.of(torch.arange(length, device="cpu"))
    first = int(of_positions[(~holes.known).any(0).cpu()].min())
    last = int(of_positions[-1])
    room = min(blocks.span(last)[1], model.max_context)
    x = torch.nn.functional.pad(holes.x, (0, room - length), value=model.mask_id)
    can_end = model.config.sampler != "remask"  # which may take back what is drawn
    memory = Memory(model.net, len(x), room) if holes.settings.use_cache else None
    if memory is not None and first > 0:
        remember(model, memory, x[:, : blocks.span(first)[0]])
    for block in range(first, last + 1):
        start, end = blocks.span(block)
        end = min(end, room)
        read = partial(read_block, model, x[:, :start], memory)
        for state in fill(model, holes, x[:, start:end], read):
            before, x = x, torch.cat([x[:, :start], state, x[:, end:]], dim=1)
            if block < last or not torch.equal(x[:, :length], before[:, :length]):
                yield x[:, :length]
            if can_end and block == last and not bool((x[:, :length] == model.mask_id).any()):
                return
        if memory is not None and block < last:
            remember(model, memory, x[:, start:end])


def refuse_gaps(model: MDLM, known: Tensor) -> None:
    """Raises: ConfigError for a hole before a known token of a later block, by known (B, S)."""
    block = model.blocks.of(torch.arange(known.shape[1], device=known.device))
    holes = block.expand_as(known).masked_fill(known, known.shape[1]).amin(1)  # the first's block
    text = block.expand_as(known).masked_fill(~known, -1).amax(1)  # the last known token's
    if bool((text > holes).any()):
        raise ConfigError(
            f"model_cfg.block_size={model.config.block_size} writes block by block and sees no "
            "text behind a block, so that it cannot fill a gap before a suffix; use a model with "
            "model_cfg.block_size=null"
        )


def remember(model: MDLM, memory: Memory, tokens: Tensor) -> None:
    """Reads clean tokens (B, S) that follow what is remembered: whole blocks, and several only as
    the first."""
    start, end = memory.length, memory.length + tokens.shape[1]
    positions = torch.arange(end, device=tokens.device)
    if start == 0:
        bias: Tensor | None = model.blocks.causal_view(end, tokens.device).bias
    else:
        bias = model.blocks.nearness(positions[start:], positions)
    view = MemoryView(positions[start:], memory, bias)
    model.net.features(tokens, torch.zeros(len(tokens), device=tokens.device), view=view)
    memory.length = end


def read_block(
    model: MDLM, before: Tensor, memory: Memory | None, tokens: Tensor, time: Tensor
) -> Tensor:
    """Features (B, C, D) of a block with masks at time (B,), behind the text `before` (B, S)."""
    start, end = before.shape[1], before.shape[1] + tokens.shape[1]
    noise = told(model, time, tokens.device)
    if memory is not None:
        positions = torch.arange(end, device=tokens.device)
        near = model.blocks.nearness(positions[start:], positions)
        view = MemoryView(positions[start:], memory, near)
        return model.net.features(tokens, noise, view=view)
    by_token = torch.cat([noise.new_zeros(before.shape), noise[:, None].expand_as(tokens)], dim=1)
    whole = torch.cat([before, tokens], dim=1)
    causal = model.blocks.causal_view(end, tokens.device)
    return model.net.features(whole, by_token, view=causal)[:, start:]
