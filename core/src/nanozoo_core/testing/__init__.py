"""The contract kit: the tests every model package runs, ours or a third party's.

from nanozoo_core.testing import TINY, ModelContract

class TestContract(ModelContract):
    model = "gpt2"
    tiny = TINY

    def num_parameters(self, config): ...
"""

import pytest

pytest.register_assert_rewrite("nanozoo_core.testing.contract_kit")
pytest.register_assert_rewrite("nanozoo_core.testing.contract_counts")
pytest.register_assert_rewrite("nanozoo_core.testing.contract_decoding")
pytest.register_assert_rewrite("nanozoo_core.testing.contract_flops")
pytest.register_assert_rewrite("nanozoo_core.testing.step_counts")
pytest.register_assert_rewrite("nanozoo_core.testing.contract_keys")
pytest.register_assert_rewrite("nanozoo_core.testing.contract_training")
pytest.register_assert_rewrite("nanozoo_core.testing.chunking")
pytest.register_assert_rewrite("nanozoo_core.testing.chunking_reference")
pytest.register_assert_rewrite("nanozoo_core.testing.starts")
pytest.register_assert_rewrite("nanozoo_core.testing.decoding")
pytest.register_assert_rewrite("nanozoo_core.testing.multi_token")
pytest.register_assert_rewrite("nanozoo_core.testing.speculation")
pytest.register_assert_rewrite("nanozoo_core.testing.diffusion")

from nanozoo_core.testing.contract_kit import TINY, ModelContract  # noqa: E402
from nanozoo_core.testing.sources import MarkovSource  # noqa: E402
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary  # noqa: E402

__all__ = ["TINY", "MarkovSource", "ModelContract", "ToyVocabulary"]
