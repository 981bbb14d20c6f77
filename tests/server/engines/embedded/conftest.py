"""A tokenizer and what compiles grammars for it."""

import pytest

from guards.model.encoding import TextCodec
from guards.model.folder import load_tokenizer
from server.engines.embedded.grammars import Grammars
from tests.server.engines.embedded.grammars import END, V
from tests.server.engines.vllm.live import MODEL


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec(load_tokenizer(MODEL))


@pytest.fixture(scope="module")
def grammars(codec: TextCodec) -> Grammars:
    return Grammars(codec, V, frozenset({END}))
