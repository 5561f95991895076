"""Attention kernels against PyTorch, in one process on the same threads.

Each round runs the peer and every operation once, in turn, so that what else
the machine does meets all alike; the medians over the rounds are compared. With
--processor the least processor time is compared instead, which other programs do
not count into: for one thread, since threads that wait for others count too.
Prints a line of JSON for each shape. Build the library first:

    go build -buildmode=c-shared -o build/bench/libshared.so ./tests/bench/cpu/shared
    python tests/bench/cpu/attention.py build/bench/libshared.so --n 8192 --dim 128
"""

import argparse
import ctypes
import json
import statistics
import time

import numpy as np
import torch

BLOCK = 128
INDEX = ("representative", "row_mass_32", "pool", "squares_16", "squares_8", "mean_scores")
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


def rounds(count, operations):
    """Seconds of each operation, run in turn, as medians by the wall clock and as the least
    processor time; one round warms up."""
    walls, processor = {name: [] for name in operations}, {name: [] for name in operations}
    for r in range(count + 1):
        for name, run in operations.items():
            start, before = time.perf_counter(), time.process_time()
            run()
            if r:
                walls[name].append(time.perf_counter() - start)
                processor[name].append(time.process_time() - before)
    return {name: statistics.median(t) for name, t in walls.items()}, {name: min(t) for name, t in processor.items()}


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
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processor", action="store_true", help="compare processor time; for one thread")
    parser.add_argument("--flex", action="store_true", help="also compiled flex_attention, on the same mask (needs a C++ compiler)")
    a = parser.parse_args()
    if a.processor and a.threads != 1:
        parser.error("--processor is for --threads 1")
    rows = a.rows or a.n
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    lib = ctypes.CDLL(a.library)
    dtype, number = DTYPES[a.dtype]
    q = torch.randn(a.heads, rows, a.dim).to(dtype)
    k, v = (torch.randn(a.kv_heads, a.n, a.dim).to(dtype) for _ in range(2))
    out = torch.empty_like(q)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (q, k, v, out)]
    shape = (a.heads, a.kv_heads, rows, a.n, a.dim, number, a.threads)
    rowptr, columns, density = random_mask(np.random.default_rng(0), a.heads, a.n, a.density)
    mask = (BLOCK, rowptr.ctypes.data_as(ctypes.c_void_p), columns.ctypes.data_as(ctypes.c_void_p))

    def check(status):
        if status:
            raise SystemExit("the library refused: see its code")

    check(lib.OpenProblem(a.isa.encode(), *pointers, *shape))

    def prepared(*call):
        check(lib.Prepare())
        check(lib.Attend(*call))
        lib.Close()

    group = a.heads // a.kv_heads
    sample = sorted({0, rows // 3, rows - 1})
    budget = 2e-5 if dtype == torch.float32 else 2e-2
    errors = {}
    for name, call, m in (("dense", (0, None, None), None), ("sparse", mask, (rowptr, columns))):
        if name == "sparse" and rows != a.n:
            continue
        prepared(*call)
        errors[name] = max((out[h, sample].double() - explicit(q, k, v, h, sample, group, m)).abs().max().item() for h in (0, a.heads - 1))
        if errors[name] > budget:
            raise SystemExit(f"{name} is off by {errors[name]}")

    wide = [t[None] for t in (q, k, v)]
    x, y = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    causal = {"is_causal": True} if rows == a.n else {"is_causal": False}
    operations = {
        "gemm": lambda: x @ y,
        "sdpa": lambda: torch.nn.functional.scaled_dot_product_attention(*wide, **causal, enable_gqa=group > 1),
        "dense": lambda: prepared(0, None, None),
        "prepare": lambda: (check(lib.Prepare()), lib.Close()),
    }
    if rows == a.n:
        operations["sparse"] = lambda: prepared(*mask)
    if a.flex:
        operations["flex_sparse"], operations["flex_dense"] = compiled_flex(*wide, rowptr, columns)
        difference = (operations["flex_sparse"]()[0].float() - out.float()).abs().max().item()
        if difference > 10 * budget:  # out is that of our own sparse call
            raise SystemExit(f"flex_attention differs by {difference}: it has another mask")
        errors["flex_sparse"] = difference
    check(lib.OpenProblem(a.isa.encode(), *pointers, *shape))
    walls, processor = rounds(a.rounds, operations)
    check(lib.Prepare())
    index = rounds(a.rounds, {
        "representative": lambda: check(lib.Representative(BLOCK)),
        "row_mass_32": lambda: check(lib.RowMass(32, BLOCK)),
        "pool": lambda: (check(lib.Pool(0, BLOCK)), check(lib.Pool(1, BLOCK))),
        "squares_16": lambda: check(lib.SquareMass(16, BLOCK)),
        "squares_8": lambda: check(lib.SquareMass(8, BLOCK)),
        "mean_scores": lambda: check(lib.MeanScores(BLOCK)),
    })
    lib.Close()
    times = {**processor, **index[1]} if a.processor else {**walls, **index[0]}
    peak = 2 * 2048**3 / times["gemm"]
    work = 2.0 * a.heads * a.dim * (a.n * a.n if rows == a.n else 2 * rows * a.n)
    result = {"n": a.n, "rows": rows, "dim": a.dim, "heads": [a.heads, a.kv_heads], "dtype": a.dtype, "isa": a.isa or "best", "threads": a.threads, "clock": "processor" if a.processor else "wall",
              "density": round(density, 4), "ms": {name: round(t * 1e3, 3) for name, t in times.items()}, "errors": errors,
              "gemm_gflops": round(peak / 1e9, 1), "sdpa_frac": round(work / times["sdpa"] / peak, 3),
              "dense_frac": round(work / times["dense"] / peak, 3), "dense_over_sdpa": round(times["sdpa"] / times["dense"], 2)}
    if "sparse" in times:
        result["sparse_over_sdpa"] = round(times["sdpa"] / times["sparse"], 2)
        if a.flex:
            result["sparse_over_flex"] = round(times["flex_sparse"] / times["sparse"], 2)
            result["dense_over_flex"] = round(times["flex_dense"] / times["dense"], 2)
        result["sparse_frac"] = round(work * density / times["sparse"] / peak, 3)
    result["index_percent_of_dense"] = {name: round(100 * times[name] / times["dense"], 2) for name in INDEX}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
