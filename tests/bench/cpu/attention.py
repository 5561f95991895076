"""Attention kernels against PyTorch, in one process on the same threads.

Each round runs the peers and every operation once, in turn, so that what else
the machine does meets all alike. Ratios are taken within a round; they and the
times are given as [median, least, most]. With --processor the least processor
time is compared instead, which other programs do not count into: for one thread,
since threads that wait for others count too.

All sides make a new output in each call, and a pause before each lets the
threads of the operation before fall asleep: OpenMP's spin for a while, on
processors that ours would want. flex_attention is compiled and called before;
it gets the blocks wholly seen as full and those of the diagonal as partial.
Shares are of the matrix product of the same round, and count the pairs that are
seen. "bound_over_flex" is what a kernel at .95 of that product would make.

AMX takes 15 cycles for a product of tiles on some processors of a virtual machine and 55 - 80
on others, seconds later on others again. --quiet names the program of quiet/quiet.c; rounds then run on the
processors that it finds best just before, which tells versions apart that the others hide.
--against takes other builds of the library, measured in the same rounds.

Prints a line of JSON. Build the library first:

    go build -buildmode=c-shared -o build/bench/libshared.so ./tests/bench/cpu/shared
    python tests/bench/cpu/attention.py build/bench/libshared.so --n 8192 --dim 128
"""

import argparse
import ctypes
import json
import os
import pathlib
import statistics
import subprocess
import time

import numpy as np
import torch

BLOCK = 128
PAUSE = 0.01  # seconds
PRECISIONS = {"highest": 0, "high": 1}
DTYPES = {"float32": (torch.float32, 0), "bfloat16": (torch.bfloat16, 1), "float16": (torch.float16, 2)}


def random_mask(rng, heads, n, density):
    """Column 0, the diagonal and others by chance, as (rowptr, columns, density)."""
    blocks = n // BLOCK
    tiles = blocks * (blocks + 1) // 2
    forced = 2 * blocks - 1
    chance = max(0.0, (density * tiles - forced) / (tiles - forced))
    rowptr, columns = [], []
    for _ in range(heads):
        rowptr.append(len(columns))
        for i in range(blocks):
            columns += [j for j in range(i + 1) if j in (0, i) or rng.random() < chance]
            rowptr.append(len(columns))
    return np.array(rowptr, np.int64), np.array(columns, np.int32), len(columns) / (heads * tiles)


def explicit(q, k, v, head, rows, group, mask=None):
    """Output rows of one head in float64; mask: (rowptr, columns)."""
    n = k.shape[1]
    k64, v64 = k[head // group].double(), v[head // group].double()
    position = torch.tensor(rows) + n - q.shape[1]
    scores = q[head, rows].double() @ k64.T / k64.shape[1] ** 0.5
    seen = torch.arange(n)[None] <= position[:, None]
    if mask is not None:
        rowptr, columns = mask
        blocks = n // BLOCK
        for i, p in enumerate(position.tolist()):
            at = head * (blocks + 1) + p // BLOCK
            kept = torch.zeros(blocks, dtype=torch.bool)
            kept[columns[rowptr[at] : rowptr[at + 1]]] = True
            seen[i] &= kept.repeat_interleave(BLOCK)
    return torch.softmax(scores.masked_fill(~seen, -torch.inf), -1) @ v64


def compiled_flex(q, k, v, rowptr, columns):
    """Compiled flex_attention on the mask, and causal throughout: two functions."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    heads, n = q.shape[1], q.shape[2]
    blocks = n // BLOCK
    run = torch.compile(flex_attention, dynamic=False)
    causal = lambda b, h, i, j: i >= j  # noqa: E731

    def masked(rows):
        """rows: for each head and query block, its key blocks; the diagonal is partial."""
        partial_count = torch.ones(1, heads, blocks, dtype=torch.int32)
        partial = torch.arange(blocks, dtype=torch.int32)[None, None, :, None].expand(1, heads, blocks, blocks).contiguous()
        full_count = torch.zeros(1, heads, blocks, dtype=torch.int32)
        full = torch.zeros(1, heads, blocks, blocks, dtype=torch.int32)
        for h in range(heads):
            for i in range(blocks):
                past = [j for j in rows(h, i) if j < i]
                full_count[0, h, i] = len(past)
                full[0, h, i, : len(past)] = torch.tensor(past, dtype=torch.int32)
        return BlockMask.from_kv_blocks(partial_count, partial, full_count, full, BLOCK_SIZE=BLOCK, mask_mod=causal)

    at = lambda h, i: h * (blocks + 1) + i  # noqa: E731
    sparse = masked(lambda h, i: columns[rowptr[at(h, i)] : rowptr[at(h, i) + 1]].tolist())
    dense = masked(lambda h, i: range(i))
    gqa = k.shape[1] != heads
    return (lambda: run(q, k, v, block_mask=sparse, enable_gqa=gqa), lambda: run(q, k, v, block_mask=dense, enable_gqa=gqa))


def pin(quiet, threads):
    """All threads of this process to as many of the quietest processors; quiet: the program of quiet/quiet.c."""
    best = subprocess.run([quiet, str(threads)], stdout=subprocess.PIPE, check=True).stdout.split()
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), map(int, best))


def rounds(count, operations, before_each=lambda: None):
    """Seconds of each operation in each round, run in turn, by the wall clock and of the
    processor; one round warms up."""
    walls, processor = {name: [] for name in operations}, {name: [] for name in operations}
    for r in range(count + 1):
        before_each()
        for name, run in operations.items():
            time.sleep(PAUSE)
            start, before = time.perf_counter(), time.process_time()
            run()
            if r:
                walls[name].append(time.perf_counter() - start)
                processor[name].append(time.process_time() - before)
    return walls, {name: [min(t)] * count for name, t in processor.items()}


def spread(values, digits):
    return [round(f(values), digits) for f in (statistics.median, min, max)]


def seen_pairs(n, rows, heads, mask=None):
    """Pairs of positions that are seen, causal, as far as a mask keeps them."""
    if mask is None:
        return heads * sum(range(n - rows + 1, n + 1))
    return (len(mask[1]) - heads * n // BLOCK) * BLOCK**2 + heads * n // BLOCK * BLOCK * (BLOCK + 1) // 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library")
    parser.add_argument("--isa", default="")
    parser.add_argument("--n", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=0, help="queries at the end; 0: n")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--precision", choices=PRECISIONS, default="highest", help="of products of float32")
    parser.add_argument("--density", type=float, nargs="+", default=[0.1])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processor", action="store_true", help="compare processor time; for one thread")
    parser.add_argument("--flex", action="store_true", help="also compiled flex_attention, on the same masks (needs a C++ compiler)")
    parser.add_argument("--quiet", default="", help="program of quiet/quiet.c: each round runs on the quietest processors")
    parser.add_argument("--against", nargs="+", default=[], help="other builds of the library")
    parser.add_argument("--skip-index", action="store_true", help="attention alone")
    a = parser.parse_args()
    if a.processor and a.threads != 1:
        parser.error("--processor is for --threads 1")
    rows = a.rows or a.n
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    lib = ctypes.CDLL(a.library)
    others = {pathlib.Path(path).name: ctypes.CDLL(path) for path in a.against}
    dtype, number = DTYPES[a.dtype]
    q = torch.randn(a.heads, rows, a.dim).to(dtype)
    k, v = (torch.randn(a.kv_heads, a.n, a.dim).to(dtype) for _ in range(2))
    shape = (a.heads, a.kv_heads, rows, a.n, a.dim, number, a.threads, PRECISIONS[a.precision])
    group = a.heads // a.kv_heads
    masks, densities = {}, {}
    if rows == a.n:
        for density in a.density:
            rowptr, columns, kept = random_mask(np.random.default_rng(0), a.heads, a.n, density)
            name = f"sparse_{density:g}"
            masks[name], densities[name] = (rowptr, columns), round(kept, 4)

    def check(status):
        if status:
            raise SystemExit("the library refused: see its code")

    def opened(lib=lib):
        out = torch.empty_like(q)
        check(lib.OpenProblem(a.isa.encode(), *(ctypes.c_void_p(t.data_ptr()) for t in (q, k, v, out)), *shape))
        return out

    def attended(mask=None, lib=lib):
        out = opened(lib)
        check(lib.Prepare())
        check(lib.Attend(0, None, None) if mask is None else lib.Attend(BLOCK, *(x.ctypes.data_as(ctypes.c_void_p) for x in mask)))
        lib.Close()
        return out

    def prepared():
        out = opened()
        check(lib.Prepare())
        lib.Close()
        return out

    sample = sorted({0, rows // 3, rows - 1})
    budget = 2e-2 if dtype != torch.float32 else 6e-5 if a.precision == "high" else 2e-5
    errors = {}
    for name, mask in {"dense": None, **masks}.items():
        out = attended(mask)
        errors[name] = max((out[h, sample].double() - explicit(q, k, v, h, sample, group, mask)).abs().max().item() for h in (0, a.heads - 1))
        if errors[name] > budget:
            raise SystemExit(f"{name} is off by {errors[name]}")

    wide = [t[None] for t in (q, k, v)]
    x, y = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    causal = {"is_causal": True} if rows == a.n else {"is_causal": False}
    operations = {
        "gemm": lambda: x @ y,
        "sdpa": lambda: torch.nn.functional.scaled_dot_product_attention(*wide, **causal, enable_gqa=group > 1),
        "dense": attended,
        "prepare": prepared,
    }
    for name, mask in masks.items():
        operations[name] = lambda mask=mask: attended(mask)
    for other, its in others.items():
        operations |= {f"{name}@{other}": lambda mask=mask, its=its: attended(mask, its) for name, mask in {"dense": None, **masks}.items()}
    for name, mask in masks.items():
        if not a.flex:
            continue
        operations[name + "_flex"], operations["dense_flex"] = compiled_flex(*wide, *mask)
        difference = (operations[name + "_flex"]()[0].float() - attended(mask).float()).abs().max().item()
        if difference > 10 * budget:
            raise SystemExit(f"flex_attention differs by {difference}: it has another mask")
        errors[name + "_flex"] = difference
    walls, processor = rounds(a.rounds, operations, (lambda: pin(a.quiet, a.threads)) if a.quiet else lambda: None)
    times = processor if a.processor else walls
    pairs = {"sdpa": seen_pairs(a.n, rows, a.heads), "dense": seen_pairs(a.n, rows, a.heads)}
    pairs |= {name: seen_pairs(a.n, rows, a.heads, mask) for name, mask in masks.items()}
    peak = [2 * 2048**3 / t for t in times["gemm"]]
    share = {name: spread([4 * a.dim * pairs[name] / t / p for t, p in zip(times[name], peak, strict=True)], 3) for name in pairs}
    over = lambda name, peer: spread([p / t for p, t in zip(times[peer], times[name], strict=True)], 2)  # noqa: E731
    result = {"n": a.n, "rows": rows, "dim": a.dim, "heads": [a.heads, a.kv_heads], "dtype": a.dtype, "precision": a.precision, "isa": a.isa or "best", "threads": a.threads,
              "rounds": a.rounds, "density": densities, "clock": "processor" if a.processor else "wall", "errors": errors, "gemm_gflops": spread([p / 1e9 for p in peak], 1),
              "ms": {name: spread([1e3 * s for s in t], 3) for name, t in times.items()}, "share_of_gemm": share,
              "over_sdpa": {name: over(name, "sdpa") for name in ("dense", *masks)}}
    if others:
        result["against"] = {name: {other: over(name, f"{name}@{other}") for other in others} for name in ("dense", *masks)}
    if a.flex and masks:
        result["over_flex"] = {name: over(name, name + "_flex") for name in ("dense", *masks)}
        result["bound_over_flex"] = {name: spread([f * p * 0.95 / (4 * a.dim * pairs[name]) for f, p in zip(times[name + "_flex"], peak, strict=True)], 2) for name in masks}
    if not a.skip_index:
        result["index_percent_of_dense"] = index_shares(lib, a, times["dense"], opened, check)
    print(json.dumps(result))


def index_shares(lib, a, dense, opened, check):
    """What the operations of selecting take, in percent of dense attention."""
    out = opened()
    check(lib.Prepare())
    walls, processor = rounds(a.rounds, {
        "representative": lambda: check(lib.Representative(BLOCK)),
        "row_mass_32": lambda: check(lib.RowMass(32, BLOCK)),
        "pool": lambda: (check(lib.Pool(0, BLOCK)), check(lib.Pool(1, BLOCK))),
        "squares_16": lambda: check(lib.SquareMass(16, BLOCK)),
        "squares_8": lambda: check(lib.SquareMass(8, BLOCK)),
        "mean_scores": lambda: check(lib.MeanScores(BLOCK)),
    })
    lib.Close()
    del out  # the library wrote to it until here
    times = processor if a.processor else walls
    return {name: round(100 * statistics.median(t) / statistics.median(dense), 2) for name, t in times.items()}


if __name__ == "__main__":
    main()
