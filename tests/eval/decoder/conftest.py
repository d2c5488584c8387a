"""Settings for each kind of tokenizer."""

from __future__ import annotations

import pytest

from tests.decoder_tokenizers import TINY
from tests.eval.decoder.settings import Models


@pytest.fixture(scope="session", params=TINY)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(request.param, tmp_path_factory.mktemp(request.param))
