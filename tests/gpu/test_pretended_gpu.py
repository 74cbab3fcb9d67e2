"""Check that the pretended GPU refuses what a GPU refuses, and leaves nothing behind."""

from collections.abc import Callable

import pytest
import torch
from pretended_gpu import Cuda, pretend_cuda, to_plain
from torch import Tensor

MIXED = "Expected all tensors to be on the same device"


@pytest.mark.parametrize(
    ("mistake", "error", "message"),
    [
        (lambda x: x + torch.ones(2, 3), RuntimeError, MIXED),
        (lambda x: x @ torch.ones(3, 3), RuntimeError, MIXED),
        (lambda x: torch.cat([x, torch.ones(2, 3)]), RuntimeError, MIXED),
        (lambda x: torch.where(x > 0, x, torch.zeros(2, 3)), RuntimeError, MIXED),
        (lambda x: x.masked_fill(torch.ones(2, 3) > 0, 0.0), RuntimeError, MIXED),
        (lambda x: torch.ones(5)[x.long()], RuntimeError, MIXED),
        (lambda x: x.numpy(), TypeError, "can't convert cuda:0"),
        (lambda x: x.detach().numpy(), TypeError, "can't convert cuda:0"),
        (lambda x: x.pin_memory(), RuntimeError, "only dense CPU tensors can be pinned"),
        (
            lambda x: torch.nn.functional.scaled_dot_product_attention(
                x[None, None], x[None, None], x[None, None], torch.ones(2, 2) > 0
            ),
            RuntimeError,
            "on the same device",
        ),
        (
            lambda x: torch.nn.functional.cross_entropy(x, torch.tensor([0, 1])),
            RuntimeError,
            MIXED,
        ),
    ],
)
def test_mistakes_are_refused(
    mistake: Callable[[Tensor], object], error: type[Exception], message: str
):
    with pretend_cuda():
        x = torch.ones(2, 3, device="cuda")
        with pytest.raises(error, match=message):
            mistake(x)


@pytest.mark.parametrize(
    "allowed",
    [
        lambda x: x + torch.tensor(2.0),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x[:, [2, 1]],
        lambda x: torch.ones(2, 3).copy_(x),
        lambda x: x.cpu().numpy(),
        lambda x: x + torch.ones(2, 3).to(x.device),
    ],
)
def test_what_cuda_allows_is_allowed(allowed: Callable[[Tensor], object]):
    with pretend_cuda():
        allowed(torch.ones(2, 3, device="cuda"))


@pytest.mark.parametrize(
    ("work", "kind"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool((x > 0).all()), "_local_scalar_dense"),
        (lambda x: x.cpu(), "copy to the host"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index by a mask (nonzero)"),
        (lambda x: x[:, [2, 1, 0]], "index from the host"),
        (lambda x: torch.ones(3).to("cuda"), "copy from the host, pageable, non_blocking=False"),
    ],
)
def test_waits_of_the_host_are_counted(work: Callable[[Tensor], object], kind: str):
    with pretend_cuda() as gpu:
        x = torch.ones(2, 3, device="cuda")
        x.flip(1).softmax(-1).masked_fill(x > 1, 0.0)
        torch.ones(3).pin_memory().to("cuda", non_blocking=True)
        assert not gpu.waits
        work(x)
        assert {found for found, _ in gpu.waits} == {kind}
        assert all("test_pretended_gpu.py" in place for _, place in gpu.waits)


def test_autocast_follows_cudas_lists():
    with pretend_cuda() as gpu:
        weight = torch.ones(8, 8).to("cuda").requires_grad_()
        with torch.autocast("cuda", torch.float16):
            y = torch.ones(2, 8, device="cuda") @ weight
            assert y.dtype == torch.float16
            assert y.softmax(-1).dtype == torch.float32
            assert torch.nn.functional.layer_norm(y, (8,)).dtype == torch.float32
            x = y[None, None]
            mixed = torch.nn.functional.scaled_dot_product_attention(x, x, x)
            assert mixed.dtype == torch.float16
        y.float().sum().backward()
    assert isinstance(weight.grad, Cuda)
    assert to_plain(weight.grad).eq(2).all()
    assert [kernel for kernel, _ in gpu.kernels] == ["memory-efficient"]


def test_memory_is_counted_and_runs_out():
    with pretend_cuda(limit=3000) as gpu:
        x = torch.ones(256, device="cuda")
        y = x.view(2, 128) * 1
        assert gpu.allocated == torch.cuda.memory_allocated() == 2048
        with pytest.raises(torch.OutOfMemoryError):
            torch.cat([x, x])
        del y
        torch.cuda.empty_cache()
        assert gpu.allocated == 1024
        assert gpu.failures == 1


def test_nothing_is_left_behind():
    move = torch.nn.Module.to
    with pretend_cuda():
        assert torch.cuda.is_available()
        assert torch.cuda.get_device_capability() == (7, 5)
    assert torch.nn.Module.to is move
    assert not torch.cuda.is_available()
    assert type(torch.ones(2) + 1) is Tensor
    with pytest.raises((RuntimeError, AssertionError)):
        torch.ones(2, device="cuda")
