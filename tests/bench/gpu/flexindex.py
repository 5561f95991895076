"""The FlexPrefill index kernels on torch tensors, a float32 reference of the released rule, and their comparison."""
import ctypes as C
import math

import torch

import driver


class IndexArgs(C.Structure):
    _fields_ = ([(n, C.c_void_p) for n in (
        "q", "k", "partial", "scores", "vertical", "slash", "k_mean", "estimate_part", "v_part", "v_pool", "s_pool", "estimate", "js", "aware", "block_p",
        "hist_count", "hist_low", "state", "done", "v_bits", "s_bits", "row_ptr", "cols")]
        + [(n, C.c_longlong) for n in ("q_batch", "q_head", "q_row", "k_batch", "k_head", "k_row")]
        + [(n, C.c_int) for n in ("batch", "q_heads", "kv_heads", "n", "d", "block", "blocks", "splits", "tiles_per_split",
                                  "words", "min_blocks", "max_blocks", "q_offset", "first_block", "q_blocks", "rule", "interleave")]
        + [("scale", C.c_float), ("gamma", C.c_float * 256), ("tau", C.c_float * 256)])


class Index:
    """Kernels for one input type; plain = float32 arithmetic without tensor cores."""

    def __init__(self, dtype=torch.bfloat16, head_dim=128, plain=False):
        define = {torch.bfloat16: [], torch.float16: ["FP16"], torch.float32: ["FLOAT_INPUT"]}[dtype]
        self.plain = plain
        select = driver.Module("flexindex_select.cu", define)
        self.f = {n: select.function("flexindex_" + n) for n in ("pool", "level0", "level1", "level2", "choose", "count", "fill")}
        self.f["blocks"] = select.function("flexindex_blocks", 200 * 1024)
        if plain:
            m = driver.Module("flexindex_scores_plain.cu", define)
            self.f["plain_rows"], self.f["plain_sums"] = m.function("flexindex_plain_rows"), m.function("flexindex_plain_sums")
        else:
            m = driver.Module("flexindex_scores_sm90.cu", define + ["HEAD_DIM=%d" % head_dim])
            tile = 128 * head_dim * 2
            self.shared = 1024 + 2 * tile + 8 * 8 * 136 * 4 + 40 + 8 * 128 * 4 + 8 * 144 * 4
            self.f["rows"], self.f["sums"] = m.function("flexindex_rows", self.shared), m.function("flexindex_sums", self.shared)
        self.keep = [select, m]

    def prepare(self, q, k, gamma, tau=0.1, min_budget=None, max_budget=None, block=128, rule=0, interleave=0, poison=False):
        """gamma and tau: a number, or one for each query head. The queries are the last of the keys."""
        b, hq, rows, d = q.shape
        n = k.shape[2]
        hk, heads, N, first = k.shape[1], b * hq, (n + block - 1) // block, (n - rows) // block
        Q, tiles = N - first, sum(range(first + 1, N + 1))
        each = lambda x: (C.c_float * 256)(*(x if isinstance(x, (list, tuple)) else [x] * hq))
        dev = q.device
        new = (lambda *s, dtype=torch.float32: torch.full(s, float("nan") if dtype.is_floating_point else -1, dtype=dtype, device=dev)) \
            if poison else (lambda *s, dtype=torch.float32: torch.empty(s, dtype=dtype, device=dev))
        i32, i64 = torch.int32, torch.int64
        tps = tiles_per_split(N, heads, 2 * torch.cuda.get_device_properties(dev).multi_processor_count)
        splits, words = -(-N // tps), -(-N // 32)
        w = dict(partial=new(heads, splits, block, 2), vertical=new(heads, n), slash=new(heads, n), k_mean=new(b * hk, N, d),
                 estimate_part=new(heads, N, 8), v_part=new(heads, N, 8), v_pool=new(heads, N), s_pool=new(heads, N), estimate=new(heads, N), js=new(heads), aware=new(heads, dtype=i32),
                 block_p=new(heads, tiles), hist_count=new(3, 2 * heads, 2048, dtype=i32),
                 hist_low=new(3, 2 * heads, 2048, dtype=i64), state=new(2 * heads, 3, dtype=i64), v_bits=new(heads, words, dtype=i32),
                 s_bits=new(heads, words + 1, dtype=i32), row_ptr=new(heads * Q + 1, dtype=i32),
                 cols=new(heads * tiles, dtype=i32))
        if not hasattr(self, "done") or self.done.numel() < heads + 1:
            self.done = torch.zeros(heads + 1, dtype=i32, device=dev)  # the kernels leave it zero
        w["done"] = self.done
        if self.plain:
            w["scores"] = new(heads, block, n)
        a = IndexArgs(q=q.data_ptr(), k=k.data_ptr(), q_batch=q.stride(0), q_head=q.stride(1), q_row=q.stride(2),
                      k_batch=k.stride(0), k_head=k.stride(1), k_row=k.stride(2), batch=b, q_heads=hq, kv_heads=hk, n=n, d=d,
                      block=block, blocks=N, splits=splits, tiles_per_split=tps, words=words,
                      min_blocks=-(-(1 if min_budget is None else min_budget) // block),
                      max_blocks=min(N, 2 ** 31 - 1 if max_budget is None else -(-max_budget // block)),
                      rule=rule, interleave=int(interleave), gamma=each(gamma), tau=each(tau), scale=d ** -0.5, q_offset=n - rows,
                      first_block=first, q_blocks=Q,
                      **{name: t.data_ptr() for name, t in w.items()})
        f = self.f
        maps = [] if self.plain else [driver.tensor_map(q, 128), driver.tensor_map(k, 128)]
        chunks = -(-max(n, tiles) // 4096)
        row_grid = (-(-heads * Q // 32),)
        steps = [("pool", (N, b * hk), 256, 0, [a])]
        if self.plain:
            steps += [("plain_rows", (block, heads), 256, (d + 34) * 4, [a]),
                      ("plain_sums", (-(-n // 256), heads), 256, (d + 34) * 4, [a])]
        else:
            steps += [("rows", (splits, heads), 256, self.shared, maps + [a]), ("sums", (splits, heads), 256, self.shared, maps + [a])]
        steps += [("blocks", (-(-Q // 16), heads), 256, (16 * (d + N) + 64 * (d + 4)) * 4, [a])]
        steps += [("level%d" % i, (chunks, 2 * heads), 256, 0, [a]) for i in range(3)]
        steps += [("choose", (2, heads), 1024, N * 4, [a]), ("count", row_grid, 1024, 0, [a]), ("fill", row_grid, 1024, 0, [a])]
        self.steps = steps

        def go(_hold=(q, k, w)):
            for name, grid, block_, shared, args in steps:
                driver.launch(f[name], grid, block_, shared, args)
        return go, w


def tiles_per_split(blocks, heads, slots):
    """Key tiles of one block of the score kernels: the least waves of work, a block's start counted as 1.5 tiles."""
    cost = lambda t: -(-heads * -(-blocks // t) // slots) * (t + 1.5)
    return min(range(1, blocks + 1), key=cost)


def masks(w, heads, blocks, first=0):
    """The CSR result as bool [heads, blocks - first, blocks]."""
    row_ptr, cols = w["row_ptr"].long(), w["cols"].long()
    total = int(row_ptr[-1])
    rows = torch.repeat_interleave(torch.arange(heads * (blocks - first), device=cols.device), row_ptr[1:] - row_ptr[:-1])
    out = torch.zeros(heads * (blocks - first), blocks, dtype=torch.bool, device=cols.device)
    out[rows, cols[:total]] = True
    assert int(out.sum()) == total, "duplicate columns"
    return out.view(heads, blocks - first, blocks)


def reference(q, k, gamma, tau=0.1, min_budget=None, max_budget=None, block=128, interleave=False):
    """The released rule from float32 scores, cumulative sums in float64. q, k: [heads, n, d] of one sequence; q may be its last rows."""
    hq, rows, d = q.shape
    n = k.shape[1]
    hk, N, first = k.shape[0], -(-n // block), (n - rows) // block
    lo = -(-(1 if min_budget is None else min_budget) // block)
    hi = min(N, 2 ** 31 - 1 if max_budget is None else -(-max_budget // block))
    out = torch.zeros(hq, N - first, N, dtype=torch.bool, device=q.device)
    js = torch.zeros(hq)
    pad = N * block - n
    lens = torch.full((N, 1), float(block), device=q.device)
    lens[-1] = block - pad
    pool = lambda x: torch.nn.functional.pad(x.float(), (0, 0, 0, pad)).view(N, block, d).sum(1) / lens
    blocks_of = lambda x: torch.nn.functional.pad(x, (0, pad)).view(N, block).sum(-1)
    causal = torch.tril(torch.ones(N, N, dtype=torch.bool, device=q.device))[first:]
    owner = (torch.arange(rows, device=q.device) + n - rows) // block - first
    q_pool = lambda x: torch.zeros(N - first, d, device=q.device).index_add_(0, owner, x.float()) / torch.bincount(owner)[:, None]
    for h in range(hq):
        kh = k[h % hk if interleave else h * hk // hq]
        last = q[h, -block:].float() / math.sqrt(d)
        s = last @ kh.float().T
        s[:, -block:].masked_fill_(~torch.tril(torch.ones(block, block, dtype=torch.bool, device=q.device)), float("-inf"))
        p = s.softmax(-1)
        flipped = torch.zeros(n + block, device=q.device)
        r = torch.arange(block, device=q.device)[:, None]
        m = torch.arange(n, device=q.device)[None] + block - 1 - r  # slash index of (r, key)
        flipped.scatter_add_(0, m[m < n], p[m < n])
        slash, vertical = flipped[:n] / block, p.mean(0)
        needed = lambda x: int((x.double().sort(descending=True).values.cumsum(0) <= torch.tensor(gamma, dtype=torch.float32).item()).sum()) + 1
        nv, ns = [min(max(needed(x) // 128 + 1, lo), hi) for x in (vertical, slash)]
        v, sl, km = blocks_of(vertical), blocks_of(slash), pool(kh)
        est = (last.mean(0) @ km.T).softmax(-1)
        mid = (est + v) / 2
        kl = lambda x: (x * torch.log(x / mid)).sum()  # NaN at a zero, as released: not below tau
        js[h] = (0.5 * kl(est) + 0.5 * kl(v)).clamp(min=0).sqrt()
        aware = js[h] < tau
        if aware:
            nv = ns = lo
        v[0], sl[-1] = float("inf"), float("inf")
        mask = torch.zeros(N - first, N, dtype=torch.bool, device=q.device)
        mask[:, v.topk(min(nv, N)).indices] = True
        offsets = N - 1 - sl.topk(min(ns, N)).indices
        i = torch.arange(N, device=q.device)
        mask |= torch.isin(i[first:, None] - i[None], offsets)
        mask &= causal
        if aware:
            p = ((q_pool(q[h]) / math.sqrt(d)) @ km.T).masked_fill(~causal, float("-inf")).softmax(-1).flatten()
            x, idx = p.sort(descending=True)
            keep = idx[x.double().cumsum(0) <= gamma * (N - first)]
            mask.view(-1)[keep] = True
        out[h] = mask
    return out, js


def jaccard(a, b):
    return ((a & b).sum().double() / (a | b).sum().double()).item()
