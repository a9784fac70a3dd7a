"""The layout of the authors' weights, without the weights: nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_core.config import model_config
from nanozoo_core.errors import CheckpointError
from nanozoo_core.testing.laws import assert_same_tensors
from nanozoo_hnet.model import HNet
from nanozoo_hnet.released import from_released, load_released, released_config, to_released

# Layers, widths, hidden widths and parameters of the released models.
RELEASED: dict[str, tuple[list[Any], list[int], list[int], float]] = {
    "hnet_1stage_L": (["m4", ["T22"], "m4"], [1024, 1536], [0, 4096], 679.4),
    "hnet_1stage_XL": (["m4", ["T24"], "m4"], [1024, 2048], [0, 5504], 1270.8),
    "hnet_2stage_L": (
        ["m4", ["T1m4", ["T26"], "m4T1"], "m4"], [1024, 1024, 1536], [0, 2816, 4096], 874.3
    ),
    "hnet_2stage_XL": (
        ["m4", ["T1m4", ["T27"], "m4T1"], "m4"], [1024, 1536, 2048], [0, 4096, 5504], 1603.5
    ),
}  # fmt: skip
SMALL: dict[str, Any] = {
    "arch_layout": ["m1", ["T1", ["t1"], "m1"], "M1"],
    "d_model": [32, 64, 96],
    "d_intermediate": [100, 128, 0],
    "vocab_size": 11,
    "ssm_cfg": {"chunk_size": 8, "d_conv": 4, "d_state": 6, "expand": 2},
    "attn_cfg": {"num_heads": [2, 2, 2], "rotary_emb_dim": [8, 8, 8], "window_size": [7, 5, -1]},
    "tie_embeddings": False,
}


def their_config(name: str) -> dict[str, Any]:
    layout, widths, hidden, _ = RELEASED[name]
    rotary = {1024: 32, 1536: 48, 2048: 64}
    return {
        "arch_layout": layout,
        "d_model": widths,
        "d_intermediate": hidden,
        "vocab_size": 256,
        "ssm_cfg": {"chunk_size": 256, "d_conv": 4, "d_state": 128, "expand": 2},
        "attn_cfg": {
            "num_heads": [16] * len(widths),
            "rotary_emb_dim": [rotary[width] for width in widths],
            "window_size": [*[1023] * (len(widths) - 1), -1],
        },
        "tie_embeddings": False,
    }


@pytest.mark.parametrize("name", RELEASED)
def test_presets_are_the_released_sizes(name: str) -> None:
    config = model_config("hnet", {"preset": name, "vocab_size": 256})
    for key in ("arch_layout", "model_dim", "mlp_dim", "num_heads", "rotary_emb_dim",
                "window_size", "ssm_cfg"):  # fmt: skip
        assert getattr(config, key) == getattr(released_config(their_config(name)), key)
    with torch.device("meta"):
        model = HNet(config)
    count = sum(p.numel() for p in model.parameters())
    assert round(count / 1e6, 1) == RELEASED[name][3]


def mixer_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Of Mamba-2 with one group, six states and heads of 64 channels, in mamba_ssm's names."""
    inner, heads = 2 * width, 2 * width // 64
    return {
        f"{name}.A_log": (heads,),
        f"{name}.D": (heads,),
        f"{name}.dt_bias": (heads,),
        f"{name}.conv1d.weight": (inner + 12, 1, 4),
        f"{name}.conv1d.bias": (inner + 12,),
        f"{name}.in_proj.weight": (2 * inner + 12 + heads, width),
        f"{name}.norm.weight": (inner,),
        f"{name}.out_proj.weight": (width, inner),
    }


def their_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state dict of their model with the settings SMALL."""
    outer, middle, main = "backbone", "backbone.main_network", "backbone.main_network.main_network"
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.weight": (11, 32),
        "lm_head.weight": (11, 32),
        f"{middle}.pad_dimension": (32,),
        f"{main}.pad_dimension": (32,),
        f"{middle}.encoder.layers.0.mixer.Wqkv.weight": (192, 64),
        f"{middle}.encoder.layers.0.mixer.out_proj.weight": (64, 64),
        f"{middle}.encoder.layers.0.norm2.weight": (64,),
        f"{middle}.encoder.layers.0.mlp.fc1.weight": (256, 64),
        f"{middle}.encoder.layers.0.mlp.fc2.weight": (64, 128),
        f"{main}.main_network.layers.0.mixer.Wqkv.weight": (288, 96),
        f"{main}.main_network.layers.0.mixer.out_proj.weight": (96, 96),
        # The hidden width of 100 is rounded up to 128.
        f"{outer}.decoder.layers.0.norm2.weight": (32,),
        f"{outer}.decoder.layers.0.mlp.fc1.weight": (256, 32),
        f"{outer}.decoder.layers.0.mlp.fc2.weight": (32, 128),
    }
    for name, width in ((f"{outer}.encoder", 32), (f"{outer}.decoder", 32),
                        (f"{middle}.decoder", 64)):  # fmt: skip
        shapes |= mixer_shapes(f"{name}.layers.0.mixer", width)
    for name, width in ((f"{outer}.encoder", 32), (f"{outer}.decoder", 32),
                        (f"{middle}.encoder", 64), (f"{middle}.decoder", 64),
                        (f"{main}.main_network", 96)):  # fmt: skip
        shapes |= {f"{name}.layers.0.norm1.weight": (width,), f"{name}.rmsnorm.weight": (width,)}
    for name, width in ((outer, 32), (middle, 64)):
        shapes |= {
            f"{name}.routing_module.q_proj_layer.weight": (width, width),
            f"{name}.routing_module.k_proj_layer.weight": (width, width),
            f"{name}.residual_proj.weight": (width, width),
            f"{name}.residual_proj.bias": (width,),
        }
    return shapes


@pytest.fixture
def theirs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(s, generator=generator) for name, s in their_shapes().items()}


def test_weights_survive_the_way_here_and_back(theirs: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(theirs, tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    model = load_released(tmp_path / "model.pt", tmp_path / "config.json")
    assert_same_tensors(to_released(model), theirs)
    assert_same_tensors(from_released(theirs, model), model.state_dict())
    assert model(torch.randint(11, (2, 20))).isfinite().all()


def test_parts_mean_the_same_on_both_sides(theirs: dict[str, Tensor]) -> None:
    model = HNet(released_config(SMALL))
    model.load_state_dict(from_released(theirs, model))
    x = torch.randn(3, 64)
    name = "backbone.main_network.encoder.layers.0"
    value, gate = F.linear(x, theirs[f"{name}.mlp.fc1.weight"]).chunk(2, dim=-1)
    expected = F.linear(F.silu(gate) * value, theirs[f"{name}.mlp.fc2.weight"])
    middle = model.stage.inner
    torch.testing.assert_close(middle.encoder.blocks[0].mlp(x), expected)  # type: ignore[union-attr]

    # Their rows: z and x of 128 channels each, b and c of 6 states each, 2 step sizes.
    rows = theirs["backbone.main_network.decoder.layers.0.mixer.in_proj.weight"]
    mixer = middle.decoder.blocks[0].mixer  # type: ignore[union-attr]
    assert torch.equal(mixer.in_proj.weight, rows[: 2 * 128 + 2 * 6])
    assert torch.equal(mixer.dt_proj.weight, rows[2 * 128 + 2 * 6 :])
    query = theirs["backbone.routing_module.q_proj_layer.weight"]
    assert torch.equal(model.stage.chunker.query.weight, query)


def test_a_tied_head_is_written_for_them_and_read_once(
    theirs: dict[str, Tensor], tmp_path: Path
) -> None:
    theirs["lm_head.weight"] = theirs["embeddings.weight"]
    torch.save(theirs, tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"tie_embeddings": True}))
    model = load_released(tmp_path / "model.pt", tmp_path / "config.json")
    assert model.head.weight is model.embedding.weight
    assert_same_tensors(to_released(model), theirs)


def test_what_does_not_fit_is_named(theirs: dict[str, Tensor], tmp_path: Path) -> None:
    model = HNet(released_config(SMALL))
    del theirs["backbone.residual_proj.bias"]
    with pytest.raises(CheckpointError, match=r"'backbone.residual_proj.bias', which is missing"):
        from_released(theirs, model)
    with pytest.raises(CheckpointError, match="has no 'attn_cfg'"):
        released_config({"arch_layout": ["T1"]})
    with pytest.raises(CheckpointError, match="must not fall"):
        released_config(SMALL | {"d_model": [64, 32, 96]})
    with pytest.raises(CheckpointError, match="there is no file"):
        load_released(tmp_path / "model.pt", tmp_path / "config.json")
