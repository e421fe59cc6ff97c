"""The examples in the docstrings of the data path hold."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "module",
    ["drops", "recorder", "run", "sidecar.backoff", "sidecar.client", "wire.names", "wire.numbers", "wire.verdict"],
)
def test_the_examples_hold(module: str) -> None:
    found = doctest.testmod(importlib.import_module(f"lossguard.{module}"))
    assert found.attempted
    assert not found.failed
