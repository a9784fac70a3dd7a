"""The contract kit: the tests every model package runs, ours or a third party's.

from nanozoo_core.testing import ModelContract

class TestContract(ModelContract):
    model = "gpt2"
    tiny = {"num_layers": 2, "model_dim": 32, "num_heads": 2}

    def num_parameters(self, config): ...
"""

import pytest

pytest.register_assert_rewrite("nanozoo_core.testing.contract_kit")
pytest.register_assert_rewrite("nanozoo_core.testing.chunking")
pytest.register_assert_rewrite("nanozoo_core.testing.chunking_reference")
pytest.register_assert_rewrite("nanozoo_core.testing.starts")
pytest.register_assert_rewrite("nanozoo_core.testing.decoding")
pytest.register_assert_rewrite("nanozoo_core.testing.multi_token")
pytest.register_assert_rewrite("nanozoo_core.testing.speculation")
pytest.register_assert_rewrite("nanozoo_core.testing.diffusion")

from nanozoo_core.testing.contract_kit import ModelContract  # noqa: E402
from nanozoo_core.testing.sources import MarkovSource  # noqa: E402
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary  # noqa: E402

__all__ = ["MarkovSource", "ModelContract", "ToyVocabulary"]
