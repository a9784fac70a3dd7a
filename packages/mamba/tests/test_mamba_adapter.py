import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nanozoo_core.config import OptimConfig, from_defaults, model_config
from nanozoo_core.contract import Batch, Draw, Step
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.laws import assert_document_is_scored_as_if_alone, perturb
from nanozoo_core.testing.sources import MarkovSource, batch_of
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary
from nanozoo_core.testing.training import train_on_batches
from nanozoo_mamba.adapter import MambaAdapter
from nanozoo_mamba.config import MambaConfig
from nanozoo_mamba.model import Mamba

ADAPTER = MambaAdapter(MambaConfig, Mamba)
MAMBA2 = {"variant": "mamba2", "d_state": 16, "head_dim": 16, "chunk_size": 16}


def build(**settings):
    torch.manual_seed(0)
    shape = {"vocab_size": 29, "seq_len": 32, "num_layers": 2, "model_dim": 64}
    return ADAPTER.build(model_config("mamba", shape | settings), ToyVocabulary(29))


def group_of(model):
    """Optimiser and decay of every parameter, by name."""
    optim = from_defaults(OptimConfig, name="muon", weight_decay=0.1)
    groups = ADAPTER.optimizer_groups(model, optim)
    return {name: (g.optimizer, g.weight_decay) for g in groups for name in g.names}


def test_what_sets_the_scan_of_mamba1_is_adamws():
    found = group_of(build(mlp_dim=96))
    prefix = "blocks.0.mixer."
    for name in ("in_proj.weight", "out_proj.weight"):
        assert found[prefix + name][0] == "muon"
    assert found["blocks.0.mlp.gate_up.weight"][0] == "muon"
    for name in ("conv.weight", "x_proj.weight", "dt_proj.weight"):
        assert found[prefix + name] == ("adamw", 0.1)
    for name in ("A_log", "skip", "dt_proj.bias", "conv.bias"):
        assert found[prefix + name] == ("adamw", 0)
    assert found["embedding.weight"] == ("adamw", 0)
    assert found["blocks.0.norm.weight"] == ("adamw", 0)


def test_what_sets_the_scan_of_mamba2_is_adamws():
    found = group_of(build(**MAMBA2))
    prefix = "blocks.0.mixer."
    for name in ("in_proj.weight", "out_proj.weight"):
        assert found[prefix + name][0] == "muon"
    for name in ("conv.weight", "dt_proj.weight"):
        assert found[prefix + name] == ("adamw", 0.1)
    for name in ("A_log", "skip", "dt_bias", "conv.bias", "norm.weight"):
        assert found[prefix + name] == ("adamw", 0)


@pytest.mark.parametrize("settings", [{}, MAMBA2], ids=["mamba1", "mamba2"])
def test_muon_orthogonalises_the_blocks_of_the_projection_apart(settings):
    weight = build(**settings).blocks[0].mixer.in_proj.weight
    blocks = {0: (128, 128), 1: (128, 128, 16, 16)}[bool(settings)]
    assert weight.muon_split == blocks


@pytest.mark.parametrize("reset", [False, True])
def test_a_score_keeps_documents_apart_when_asked(reset):
    model = build(reset_at_documents=reset).eval()
    tokens = torch.randint(29, (2, 33), generator=torch.Generator().manual_seed(0))
    documents = (torch.arange(33) >= 20).int().expand(2, -1)
    other = tokens.clone()
    other[:, :15] = 3
    step = Step(number=0, progress=0.0, seed=0)

    def scores(tokens):
        scored = (torch.arange(32) >= 20).expand(2, -1)  # of the second document alone
        batch = Batch(tokens, documents, torch.arange(2), 2, scored=scored)
        with torch.no_grad():
            loss = ADAPTER.training_loss(model, batch, step).value
            return float(loss), float(ADAPTER.nll(model, batch, Draw(0)).nats.sum())

    (loss, nats), (other_loss, other_nats) = scores(tokens), scores(other)
    assert loss == pytest.approx(nats / 24, rel=1e-5)
    assert (abs(loss - other_loss) < 1e-6) == reset
    assert (abs(nats - other_nats) < 1e-5) == reset


def test_a_document_is_scored_as_if_alone():
    tokens = torch.randint(29, (2, 33), generator=torch.Generator().manual_seed(0))
    model = perturb(build(reset_at_documents=True))
    assert_document_is_scored_as_if_alone(ADAPTER, model, tokens, cut=20)


def test_flops_are_those_of_the_products_and_nine_per_state():
    model = build()
    tokens = torch.zeros(1, 32, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    counts = counter.get_flop_counts()["Global"]
    products = sum(counts[op] for op in (torch.ops.aten.mm, torch.ops.aten.addmm) if op in counts)
    scans = 2 * (9 * 128 * 16 + 2 * 128 * 4)
    assert ADAPTER.flops_per_token(model.config, 32) == 3 * (products / 32 + scans)


def test_the_report_has_the_state_of_decoding():
    report = ADAPTER.report(build())
    assert report["cache_bytes_per_token"] == 0
    assert report["state_bytes"] == 2 * 128 * (16 + 3) * 4


def test_the_published_size_has_its_number_of_parameters():
    published = {"preset": "130m", "vocab_size": 50257}
    with torch.device("meta"):
        model = Mamba(model_config("mamba", published))
        second = Mamba(model_config("mamba", published | {"variant": "mamba2"}))
    layer = 3 * 768 * 1536 + 1536 * (48 + 32) + 1536 * 49 + 1536 * 5 + 1536 * 16 + 1536 + 768
    assert sum(p.numel() for p in model.parameters()) == 24 * layer + 768 + 50257 * 768
    layer = 768 * (2 * 1536 + 256 + 24) + 1536 * 768 + (1536 + 256) * 5 + 3 * 24 + 1536 + 768
    assert sum(p.numel() for p in second.parameters()) == 24 * layer + 768 + 50257 * 768


def test_kernels_without_a_gpu_are_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model = build(scan_backend="triton")  # always made on the CPU, then moved
    with pytest.raises(ConfigError, match=r"scan_backend=triton needs a GPU"):
        ADAPTER.prepare_model(model, [])


@pytest.mark.parametrize("settings", [{}, MAMBA2], ids=["mamba1", "mamba2"])
def test_a_wider_model_is_legal(settings):
    config = build(**settings).config
    shape = {"vocab_size": 29, "num_layers": 2} | settings
    for factor in (0.6, 1.7, 3.1):
        wider = model_config("mamba", shape | ADAPTER.at_width(config, factor))
        assert wider.model_dim == pytest.approx(factor * config.model_dim, rel=0.35)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, MAMBA2], ids=["mamba1", "mamba2"])
def test_a_markov_source_is_learned_to_a_few_hundredths(settings):
    """64 windows of 48 tokens in each of 150 steps: within 0.03 nats of the entropy."""
    source = MarkovSource(8)
    model = build(vocab_size=29, seq_len=48, num_layers=4, **settings)
    train_on_batches(
        ADAPTER, model, [batch_of(source.sample(64, 49, seed)) for seed in range(150)], lr=3e-3
    )
    fresh = source.sample(256, 49, seed=10_000)
    with torch.no_grad():
        nats = ADAPTER.nll(model, batch_of(fresh), Draw(0)).nats
    excess = (nats - source.nats(fresh)) / 48
    error = float(excess.std()) / math.sqrt(256)
    assert -3 * error < float(excess.mean()) < 0.03
