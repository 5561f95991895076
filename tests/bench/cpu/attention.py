"""Attention kernels against PyTorch, in one process on the same threads.

Each round runs the peer and every operation once, in turn, so that what else
the machine does meets all alike; the medians over the rounds are compared.
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


def rounds(count, operations):
    """Median seconds of each operation, run in turn; one round warms up."""
    times = {name: [] for name in operations}
    for r in range(count + 1):
        for name, run in operations.items():
            start = time.perf_counter()
            run()
            if r:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


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
    a = parser.parse_args()
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
    check(lib.OpenProblem(a.isa.encode(), *pointers, *shape))
    times = rounds(a.rounds, operations)
    check(lib.Prepare())
    times |= rounds(a.rounds, {
        "representative": lambda: check(lib.Representative(BLOCK)),
        "row_mass_32": lambda: check(lib.RowMass(32, BLOCK)),
        "pool": lambda: (check(lib.Pool(0, BLOCK)), check(lib.Pool(1, BLOCK))),
    })
    lib.Close()
    peak = 2 * 2048**3 / times["gemm"]
    work = 2.0 * a.heads * a.dim * (a.n * a.n if rows == a.n else 2 * rows * a.n)
    result = {"n": a.n, "rows": rows, "dim": a.dim, "heads": [a.heads, a.kv_heads], "dtype": a.dtype, "isa": a.isa or "best", "threads": a.threads,
              "density": round(density, 4), "ms": {name: round(t * 1e3, 3) for name, t in times.items()}, "errors": errors,
              "gemm_gflops": round(peak / 1e9, 1), "sdpa_frac": round(work / times["sdpa"] / peak, 3),
              "dense_frac": round(work / times["dense"] / peak, 3), "dense_over_sdpa": round(times["sdpa"] / times["dense"], 2)}
    if "sparse" in times:
        result["sparse_over_sdpa"] = round(times["sdpa"] / times["sparse"], 2)
        result["sparse_frac"] = round(work * density / times["sparse"] / peak, 3)
    result["index_percent_of_dense"] = {name: round(100 * times[name] / times["dense"], 2) for name in ("representative", "row_mass_32", "pool")}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
