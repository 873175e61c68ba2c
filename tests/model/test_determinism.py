"""Which kernels may be taken where; on GPUs alone, so the modes are looked at here."""

import os

import pytest
import torch

from pipelines.model import determinism

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def mode():
    """(deterministic, with warnings only)"""
    return (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())


@pytest.fixture(autouse=True)
def _restored():
    before, fill = mode(), torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.utils.deterministic.fill_uninitialized_memory = fill


def test_an_update_is_strict_and_vllm_is_free():
    determinism.warning()
    assert mode() == (True, True)
    with determinism.strict(CUDA):
        assert mode() == (True, False)
        with determinism.free(CUDA):
            assert mode() == (False, False)
        assert mode() == (True, False)
    assert mode() == (True, True)


def test_a_failure_inside_leaves_the_mode_as_it_was():
    determinism.warning()
    with pytest.raises(ZeroDivisionError), determinism.strict(CUDA):
        raise ZeroDivisionError
    assert mode() == (True, True)


def test_nothing_is_switched_on_a_cpu():
    determinism.warning()
    for how in (determinism.strict, determinism.free):
        with how(CPU):
            assert mode() == (True, True)


def test_a_device_is_settled_before_the_first_work(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    determinism.settle(CPU)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    cudnn, matmul = torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.matmul
    reduced = matmul.allow_bf16_reduced_precision_reduction
    try:
        determinism.settle(CUDA)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert not matmul.allow_bf16_reduced_precision_reduction
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        determinism.settle(CUDA)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # one's own choice stays
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        matmul.allow_bf16_reduced_precision_reduction = reduced
