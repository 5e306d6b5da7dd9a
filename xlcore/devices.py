"""What depends on the machine: the device, the dtype it is fast in, and how memory is given back.

Below everything that loads or trains a model; no number that is reported is made here.
"""

import ctypes
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from xlcore.errors import InputError, choose

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(device: str = "auto") -> torch.device:
    """Return the device asked for, or the first there is of cuda, mps, cpu."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    kind = choose("device", str(device).split(":")[0], ["auto", *there])
    if kind == "auto":
        return torch.device(next(k for k, v in there.items() if v))
    if not there[kind]:
        have = ", ".join(k for k, v in there.items() if v)
        raise InputError(f"device {device!r} is not available here; available: {have}")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r} is not a device; allowed: {kind}, {kind}:0") from error


def choose_dtype(dtype: str, device: torch.device) -> str:
    """Return the dtype asked for, or bfloat16 where the device multiplies it natively."""
    if choose("dtype", dtype, ["auto", *DTYPES]) != "auto":
        return dtype
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        fast = device.type == "cpu" and units
    return "bfloat16" if fast else "float32"


@contextmanager
def mixed_precision(device: torch.device, enabled: bool) -> Iterator[None]:
    """Multiply in bfloat16 within the block if enabled; weights stay as they are.

    Each step needs a block of its own: the block keeps its bfloat16 copies of the weights until it
    ends. On a CPU, attention that will be differentiated leaves out the fused kernel, whose
    backward pass in bfloat16 is ten times as slow for narrow heads.
    """
    plain = enabled and device.type == "cpu" and torch.is_grad_enabled()
    kernel = sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled), kernel:
        yield


def return_large_buffers(moved: Iterable[Tensor]) -> None:
    """Where a tensor above 64 MiB is to move, let glibc give large buffers back from now on.

    Several dense gradients a step, of word embeddings, break a heap into pieces never used again if
    it must keep all buffers: 20 GB after 100 steps instead of 3.4. The Makefile asks for that
    (MALLOC_MMAP_MAX_=0), as it halves a step of a tuned decoder. Without glibc nothing is done.
    """
    large = any(p.numel() * p.element_size() > 64 << 20 for p in moved)
    if large and sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-4, 65536)  # M_MMAP_MAX, how many buffers may stand outside the heap
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, from which size on they do
