"""GPT-2 on a rung of `nanozoo scale`."""

from nanozoo_core.comparing.scale.ladder import at_rung, rung_of
from nanozoo_core.comparing.scale.request import parse

REQUEST = parse(["models=gpt2", "control=gpt2"])


def counts(*words):
    rung = rung_of("0.1")

    def resolve(more):
        return REQUEST.resolve(REQUEST.control, [*words, *more])

    return at_rung(resolve, rung, match="body", target=rung.body).counts


def test_a_tied_head_multiplies_a_token_as_an_untied_one_does():
    tied, untied = (counts(f"model_cfg.tie_embeddings={flag}") for flag in ("true", "false"))
    assert tied.n == untied.n
    assert tied.flops_per_token == untied.flops_per_token
    assert tied.body == untied.body
    assert untied.total - tied.total == 1024 * 64
