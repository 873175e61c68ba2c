"""Checks of the emulated GPU itself (tests/tools/fake_gpu.py); gpu_story.py imports it."""

import os
import sys

import fake_gpu
import torch
from fake_gpu_tensors import Counts, Gpu, MixedDevices


def refused(work, error=MixedDevices):
    try:
        work()
    except error as found:
        return str(found)
    raise AssertionError("allowed")


with fake_gpu.emulated() as gpu:
    x, cpu = torch.arange(6.0, device="cuda").view(2, 3), torch.ones(2, 3)
    assert (x.is_cuda, x.device, cpu.is_cuda) == (True, torch.device("cuda:0"), False)
    said, line = refused(lambda: x + cpu), sys._getframe().f_lineno
    text = "aten.add.Tensor takes tensors of cuda:0 (2, 3) and of cpu (2, 3)"
    assert said == f"{text} at {__file__}:{line}", said
    for work in (
        lambda: torch.cat([x, cpu]),
        lambda: x @ cpu.T,
        lambda: x.index_select(0, torch.tensor([0])),
        lambda: x.gather(1, torch.tensor([[0]])),
        lambda: cpu[torch.tensor([0], device="cuda")],
        lambda: torch.where(cpu > 0, x, x),
        lambda: x.masked_fill(cpu > 0, 0.0),
        lambda: torch.nn.functional.scaled_dot_product_attention(x[None], cpu[None], x[None]),
        lambda: x.__setitem__(torch.tensor([0]), torch.ones(1, 3)),
        lambda: torch.nn.functional.embedding(torch.tensor([0]), x),
    ):
        refused(work)
    refused(lambda: x.numpy(), TypeError)
    with torch.device("meta"):
        assert torch.tensor([1.0]).device.type == "meta"
    refused(lambda: x.clone().resize_(3), NotImplementedError)

    # A number on the host, an index there, and copies are taken, as on CUDA.
    before = gpu.counts
    assert ((x * torch.tensor(2.0)).cpu() == torch.arange(6.0).view(2, 3) * 2).all()
    assert gpu.counts - before == Counts(launches=2, down=1, waits=1)
    before = gpu.counts
    assert x[torch.tensor([1])].tolist() == [[3.0, 4.0, 5.0]]
    assert gpu.counts - before == Counts(launches=1, up=1, down=1, waits=1)
    before = gpu.counts
    x[0, 0] = torch.tensor(7.0)
    x.view(-1)[1:3].transpose(0, 0)  # views launch nothing
    assert x[0, 0].item() == 7.0
    assert gpu.counts - before == Counts(launches=2, up=1, waits=1)
    before = gpu.counts
    x[x > 6]
    assert gpu.counts - before == Counts(launches=2, waits=1)
    assert sum(gpu.waited.values()) == gpu.counts.waits

    # Autograd, and autocast as on CUDA: float32 in, bfloat16 out.
    layer = torch.nn.Linear(3, 2).to("cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert (type(layer.weight.grad), layer.weight.grad.dtype) == (Gpu, torch.float32)
    assert (layer.bias.grad.cpu() == 2).all()
    product = torch.mm(x.bfloat16(), x.bfloat16().T, out_dtype=torch.float32)
    assert product.dtype == torch.float32

    # Fused AdamW: its state has to be where the weights are.
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    optimizer.step()
    for state in optimizer.state.values():
        state["step"] = state["step"].cpu()
    assert "_fused_adamw_" in refused(optimizer.step)

    # Strict determinism.
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    torch.use_deterministic_algorithms(True)
    assert "no deterministic" in refused(lambda: x.cumsum(0), RuntimeError)
    assert x.long().cumsum(0).tolist()[1][1] == 5
    assert "CUBLAS_WORKSPACE_CONFIG" in refused(lambda: x @ x.T, RuntimeError)
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    x @ x.T
    q = torch.ones(1, 2, 4, 8, device="cuda", requires_grad=True)
    for loose in (0, 1):
        torch.use_deterministic_algorithms(True, warn_only=bool(loose))
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
        assert gpu.loose == loose
torch.use_deterministic_algorithms(False)
assert not torch.cuda.is_available()
