"""Device, dtype and memory: what is chosen on a machine, and what it changes in a step.

References: the same layer in float32, and glibc's own count of its buffers.
"""

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from xlcore.devices import choose_device, choose_dtype, mixed_precision

# --- device and dtype -----------------------------------------------------------------------------


def test_auto_device_is_the_first_there_is(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for there, wanted in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device("auto").type == wanted


@pytest.mark.parametrize("there, wanted", [(True, "bfloat16"), (False, "float32")])
def test_auto_dtype_is_bfloat16_where_the_processor_has_it(monkeypatch, there, wanted):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: there)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert choose_dtype("auto", torch.device("cpu")) == wanted


def test_mps_computes_in_float32_unless_told():
    assert choose_dtype("auto", torch.device("mps")) == "float32"
    assert choose_dtype("bfloat16", torch.device("mps")) == "bfloat16"


# --- a step in bfloat16 ---------------------------------------------------------------------------


def attended(enabled: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """An attention layer's output, and the gradient of its sum at the layer's input weights."""
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(64, 2, batch_first=True)
    x = torch.randn(3, 7, 64)
    with mixed_precision(x.device, enabled):
        out, _ = layer(x, x, x, need_weights=False)
        out.float().square().sum().backward()
    return out, layer.in_proj_weight.grad


def test_mixed_precision_multiplies_in_bfloat16_and_keeps_fp32_gradients():
    (plain, slope), (mixed, mixed_slope) = attended(False), attended(True)
    assert (plain.dtype, mixed.dtype, mixed_slope.dtype) == (
        torch.float32, torch.bfloat16, torch.float32
    )  # fmt: skip
    torch.testing.assert_close(mixed.float(), plain, atol=2**-7, rtol=0)  # values below 1
    assert (mixed_slope - slope).norm() < 0.02 * slope.norm()


def test_mixed_precision_that_is_off_changes_no_bit():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 5, 16, requires_grad=True)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    with mixed_precision(q.device, False):
        assert torch.equal(torch.nn.functional.scaled_dot_product_attention(q, k, v), wanted)


# --- memory ---------------------------------------------------------------------------------------


HEAP = """
import ctypes, torch
from xlcore.devices import return_large_buffers
libc = ctypes.CDLL(None)
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena blocks small mapped rest".split()]
    _fields_ += [(f"other_{i}", ctypes.c_size_t) for i in range(5)]
libc.mallinfo2.restype = Info
def outside(mebibytes):
    kept = torch.empty(mebibytes << 20, dtype=torch.uint8)
    return libc.mallinfo2().mapped
edge = 16 << 20  # floats, 64 MiB
for size, floats in ((100, 1), (300, edge), (900, edge + 1)):  # larger than what is free already
    return_large_buffers([torch.empty(floats)])
    print(outside(size), outside(8))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or newer")
def test_large_buffers_leave_the_heap_only_where_a_large_tensor_moves():
    kept = os.environ | dict(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_="100000000000")
    run = [sys.executable, "-c", HEAP]
    shown = subprocess.run(run, env=kept, capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["0", "0", "0", "0", "1", "0"]
