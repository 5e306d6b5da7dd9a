"""Show that memory stays bounded: 701 training texts on a model of XGLM-564M's shape.

    python -m benchmarks.memory [MAX_MIB]

The weights are random; only sizes matter. Prints what the texts' keys and values would take, what
the cache keeps of them, and the process's peak before and after every text was asked for twice.
"""

import resource
import sys

import torch
from transformers import AutoConfig

from xlcore.backbones import family_of, pad
from xlcore.checkpoints import Checkpoint, tiny_tokenizer
from xlcore.training import TextCache

TEXTS, TOKENS = 701, (15, 65)  # SIB-200's English training split, about


def peak_mib() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def main(max_mib: int = 1024) -> None:
    config = AutoConfig.for_model("xglm")  # its defaults are XGLM-564M
    backbone = Checkpoint("xglm-564M-shape", config, tiny_tokenizer(), family_of("xglm")).load()
    g = torch.Generator().manual_seed(0)
    sizes = torch.randint(*TOKENS, (TEXTS,), generator=g).tolist()
    ids = [torch.randint(5, backbone.words, (n,), generator=g).tolist() for n in sizes]
    a_token = 2 * config.num_layers * config.d_model * backbone.dtype.itemsize
    before = peak_mib()
    cache = TextCache(backbone, [pad(ids, backbone.device)], max_mib * 2**20)
    for rows in 2 * list(torch.arange(TEXTS).split(8)):
        cache.batch(rows.tolist())
    held = sum(kept.nbytes for kept in cache.kept.values()) / 2**20
    print(
        f"{backbone.name}, {backbone.dtype}: keys and values of {TEXTS} texts would take "
        f"{sum(sizes) * a_token / 2**20:.0f} MiB; allowed {max_mib}, kept {held:.0f}; "
        f"peak {before:.0f} MiB before, {peak_mib():.0f} after"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
