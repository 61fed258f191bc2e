"""Lets diffusers' own test suite, from a checkout at `$DIFFUSERS_REPO`, run on our classes."""

import pytest

# Marks that diffusers' suite puts on its mixins; its own conftest, which registers them, does not run here.
MARKS = (
    "attention",
    "autoround",
    "big_accelerator",
    "bitsandbytes",
    "cache",
    "compile",
    "context_parallel",
    "cpu_offload",
    "gguf",
    "group_offload",
    "ip_adapter",
    "lora",
    "memory",
    "modelopt",
    "nightly",
    "quantization",
    "quanto",
    "sdnq",
    "single_file",
    "tensor_parallel",
    "torchao",
    "training",
)


def pytest_configure(config: pytest.Config) -> None:
    for mark in MARKS:
        config.addinivalue_line("markers", f"{mark}: of diffusers' suite")
