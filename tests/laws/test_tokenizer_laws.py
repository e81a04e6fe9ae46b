"""The laws of tokenizers, for every YAML."""

from __future__ import annotations

import pytest

from tests.bounds import SAME
from varlab.testing import check_tokenizer

from .conftest import names, small_tokenizer

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("in_float64")]


@pytest.mark.parametrize("name", names("tokenizer"))
def test_every_tokenizer_keeps_the_contract(name: str) -> None:
    check_tokenizer(small_tokenizer(name), atol=SAME)
