"""FlashAttention-4 (flash-attn-4, CuTe DSL) beside our kernel, on the same masks; prints a table.

    python tests/bench/gpu/beside_flash4.py [--lengths 32768,131072]

Needs flash-attn-4, nvidia-cutlass-dsl with its libraries, quack-kernels, apache-tvm-ffi, torch-c-dlpack-ext and einops.
"""
import argparse

import cutlass.cute as cute
import torch
from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch
from flash_attn.cute.interface import _flash_attn_fwd

import bench
import driver


@cute.jit
def causal(batch, head, query, key, info, aux):
    return key <= query


def blocks(mask):
    """Of bool [heads, nb, nb]: the diagonal needs the mask, the rest is whole."""
    diagonal = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
    lists = []
    for m in (mask & diagonal, mask & ~diagonal):
        count = m.sum(-1, dtype=torch.int32)[None]
        index = torch.stack([x.to(torch.int8).argsort(dim=-1, descending=True, stable=True).int() for x in m])[None]
        lists += [count, index]
    return BlockSparseTensorsTorch(*lists, block_size=(bench.TILE, bench.TILE))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", default="32768,131072")
    attend = driver.Attend()
    for n in [int(x) for x in parser.parse_args().lengths.split(",")]:
        q, k, v = bench.make(n)
        out, lse, nb = torch.empty_like(q), torch.empty(1, bench.H, n, device="cuda"), n // bench.TILE
        rows = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
        theirs = torch.empty_like(rows[0])
        for density in (0, .10, .05, .02):
            m, options, tiles = None, dict(causal=True), bench.H * nb * (nb + 1) // 2
            if density:
                mask, m = bench.synthetic(n, density)
                options = dict(mask_mod=causal, block_sparse_tensors=blocks(mask.repeat_interleave(bench.H // bench.HKV, 0)))
                tiles = m[1].numel()
            ours = attend.prepare(q, k, v, out, lse, m)
            peer = lambda: _flash_attn_fwd(*rows, out=theirs, **options)
            ours(), peer()
            difference = ((theirs.transpose(1, 2).float() - out.float()).norm() / out.float().norm()).item()
            row = dict(what="beside flash-attn-4", n=n, density=density or 1.0, difference=difference)
            for name, f in (("ours", ours), ("theirs", peer)):
                row[name + "_burst_tflops"], row[name + "_sustained_tflops"] = (bench.tflops(tiles, t) for t in (bench.burst(f), bench.sustained(f)))
            row["their_time_in_turn"] = bench.ratios(ours, [peer], 80, 8)[0]
            bench.note(**row)


if __name__ == "__main__":
    main()
