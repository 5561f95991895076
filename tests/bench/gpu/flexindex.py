"""The FlexPrefill index kernels on torch tensors, a float32 reference of the released rule, and their comparison."""
import ctypes as C
import math

import torch

import driver


class IndexArgs(C.Structure):
    _fields_ = ([(n, C.c_void_p) for n in (
        "q", "k", "q2", "partial", "scores", "vertical", "slash", "k_mean", "estimate_part", "v_part", "v_pool", "s_pool", "estimate", "js", "aware", "block_p",
        "hist_count", "hist_low", "state", "done", "v_bits", "s_bits", "row_ptr", "cols")]
        + [(n, C.c_longlong) for n in ("q_batch", "q_head", "q_row", "q2_batch", "q2_head", "q2_row", "k_batch", "k_head", "k_row")]
        + [(n, C.c_int) for n in ("batch", "q_heads", "kv_heads", "n", "d", "block", "blocks", "splits", "tiles_per_split",
                                  "words", "min_blocks", "max_blocks", "q_offset", "first_block", "q_blocks", "rule", "interleave", "band", "window")]
        + [("scale", C.c_float), ("softcap", C.c_float), ("gamma", C.c_float * 256), ("tau", C.c_float * 256)])


class Index:
    """Kernels for one input type; plain = float32 arithmetic without tensor cores; bands = for a second rotation of q."""

    def __init__(self, dtype=torch.bfloat16, head_dim=128, plain=False, bands=False):
        define = {torch.bfloat16: [], torch.float16: ["FP16"], torch.float32: ["FLOAT_INPUT"]}[dtype]
        self.plain, self.bands = plain, bands
        select = driver.Module("flexindex_select.cu", define)
        self.f = {n: select.function("flexindex_" + n) for n in ("pool", "level0", "level1", "level2", "choose", "count", "fill")}
        self.f["blocks"] = select.function("flexindex_blocks", 200 * 1024)
        if plain:
            m = driver.Module("flexindex_scores_plain.cu", define)
            self.f["plain_rows"], self.f["plain_sums"] = m.function("flexindex_plain_rows"), m.function("flexindex_plain_sums")
        else:
            m = driver.Module("flexindex_scores_sm90.cu", define + ["HEAD_DIM=%d" % head_dim] + (["BANDS"] if bands else []))
            tile = 128 * head_dim * 2
            self.shared = 1024 + 2 * tile + 8 * 8 * 136 * 4 + 40 + 8 * 128 * 4 + 8 * 144 * 4
            self.f["rows"], self.f["sums"] = m.function("flexindex_rows", self.shared), m.function("flexindex_sums", self.shared)
        self.keep = [select, m]

    def prepare(self, q, k, gamma, tau=0.1, min_budget=None, max_budget=None, block=128, rule=0, interleave=0, poison=False,
                q2=None, band=0, window=0, softcap=0.0):
        """gamma and tau: a number, or one for each query head. The queries are the last of the keys; q2: for distances from band on."""
        b, hq, rows, d = q.shape
        n = k.shape[2]
        hk, heads, N, first = k.shape[1], b * hq, (n + block - 1) // block, (n - rows) // block
        Q, tiles = N - first, sum(range(first + 1, N + 1))
        each = lambda x: (C.c_float * 256)(*(x if isinstance(x, (list, tuple)) else [x] * hq))
        dev = q.device
        new = (lambda *s, dtype=torch.float32: torch.full(s, float("nan") if dtype.is_floating_point else -1, dtype=dtype, device=dev)) \
            if poison else (lambda *s, dtype=torch.float32: torch.empty(s, dtype=dtype, device=dev))
        i32, i64 = torch.int32, torch.int64
        tps = tiles_per_split(N, heads, (1 if self.bands else 2) * torch.cuda.get_device_properties(dev).multi_processor_count)
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
                      rule=rule, interleave=int(interleave), gamma=each(gamma), tau=each(tau), scale=d ** -0.5, q_offset=n - rows, band=band, window=window, softcap=softcap,
                      first_block=first, q_blocks=Q,
                      **{name: t.data_ptr() for name, t in w.items()})
        if q2 is not None:
            a.q2, a.q2_batch, a.q2_head, a.q2_row = q2.data_ptr(), q2.stride(0), q2.stride(1), q2.stride(2)
        f = self.f
        maps = [] if self.plain else [driver.tensor_map(x, 128) for x in ([q, k, q2] if self.bands else [q, k])]
        chunks = -(-max(n, tiles) // 4096)
        row_grid = (-(-heads * Q // 32),)
        steps = [("pool", (N, b * hk), 256, 0, [a])]
        if self.plain:
            steps += [("plain_rows", (block, heads), 256, (2 * d + 34) * 4, [a]),
                      ("plain_sums", (-(-n // 256), heads), 256, (2 * d + 34) * 4, [a])]
        else:
            steps += [("rows", (splits, heads), 256, self.shared, maps + [a]), ("sums", (splits, heads), 256, self.shared, maps + [a])]
        steps += [("blocks", (-(-Q // 16), heads), 256, (16 * (d * (1 + (q2 is not None)) + N) + 64 * (d + 4)) * 4, [a])]
        steps += [("level%d" % i, (chunks, 2 * heads), 256, 0, [a]) for i in range(3)]
        steps += [("choose", (2, heads), 1024, N * 4, [a]), ("count", row_grid, 1024, 0, [a]), ("fill", row_grid, 1024, 0, [a])]
        self.steps = steps

        def go(_hold=(q, k, q2, w)):
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


def reference(q, k, gamma, tau=0.1, min_budget=None, max_budget=None, block=128, interleave=False, q2=None, band=0, window=0, softcap=0.0):
    """The released rule from float32 scores, cumulative sums in float64. q, k: [heads, n, d] of one sequence; q may be its last rows."""
    hq, rows, d = q.shape
    n, dev = k.shape[1], q.device
    hk, N, first = k.shape[0], -(-n // block), (n - rows) // block
    lo = -(-(1 if min_budget is None else min_budget) // block)
    hi = min(N, 2 ** 31 - 1 if max_budget is None else -(-max_budget // block))
    out = torch.zeros(hq, N - first, N, dtype=torch.bool, device=dev)
    js = torch.zeros(hq)
    pad = N * block - n
    lens = torch.full((N, 1), float(block), device=dev)
    lens[-1] = block - pad
    pool = lambda x: torch.nn.functional.pad(x.float(), (0, 0, 0, pad)).view(N, block, d).sum(1) / lens
    blocks_of = lambda x: torch.nn.functional.pad(x, (0, pad)).view(N, block).sum(-1)
    at = torch.arange(N, device=dev)
    seen = (at[None] <= at[first:, None]) & ((at[None] >= ((at[first:, None] * block - window + 1).clamp(min=0) // block)) if window else True)
    owner = (torch.arange(rows, device=dev) + n - rows) // block - first
    q_pool = lambda x: torch.zeros(N - first, d, device=dev).index_add_(0, owner, x.float()) / torch.bincount(owner)[:, None]
    middle = lambda begin: ((at * block).clamp(min=begin) + ((at + 1) * block).clamp(max=n) - 1) // 2
    cap = lambda x: softcap * torch.tanh(x / softcap) if softcap else x
    far = lambda distance, near, other: torch.where(distance >= band, other, near) if q2 is not None else near
    second = q if q2 is None else q2
    for h in range(hq):
        kh = k[h % hk if interleave else h * hk // hq]
        km = pool(kh)
        last, last2 = (x[h, -block:].float() / math.sqrt(d) for x in (q, second))
        distance = torch.arange(n - block, n, device=dev)[:, None] - torch.arange(n, device=dev)[None]
        s = cap(far(distance, last @ kh.float().T, last2 @ kh.float().T))
        s.masked_fill_((distance < 0) | ((distance >= window) if window else False), float("-inf"))
        p = s.softmax(-1)
        flipped = torch.zeros(n + block, device=dev)
        r = torch.arange(block, device=dev)[:, None]
        m = torch.arange(n, device=dev)[None] + block - 1 - r  # slash index of (r, key)
        flipped.scatter_add_(0, m[m < n], p[m < n])
        slash, vertical = flipped[:n] / block, p.mean(0)
        needed = lambda x: int((x.double().sort(descending=True).values.cumsum(0) <= torch.tensor(gamma, dtype=torch.float32).item()).sum()) + 1
        nv, ns = [min(max(needed(x) // 128 + 1, lo), hi) for x in (vertical, slash)]
        v, sl = blocks_of(vertical), blocks_of(slash)
        est = cap(far((2 * n - block - 1) // 2 - middle(0), last.mean(0) @ km.T, last2.mean(0) @ km.T)).masked_fill(~seen[-1], float("-inf")).softmax(-1)
        mid = (est + v) / 2
        kl = lambda x: (x * torch.log(x / mid)).sum()  # NaN at a zero, as released: not below tau
        js[h] = (0.5 * kl(est) + 0.5 * kl(v)).clamp(min=0).sqrt()
        aware = js[h] < tau
        if aware:
            nv = ns = lo
        v[0], sl[-1] = float("inf"), float("inf")
        mask = torch.zeros(N - first, N, dtype=torch.bool, device=dev)
        mask[:, v.topk(min(nv, N)).indices] = True
        offsets = N - 1 - sl.topk(min(ns, N)).indices
        mask |= torch.isin(at[first:, None] - at[None], offsets)
        if aware:
            score = cap(far(middle(n - rows)[first:, None] - middle(0)[None], q_pool(q[h]) @ km.T / math.sqrt(d), q_pool(second[h]) @ km.T / math.sqrt(d)))
            p = score.masked_fill(~seen, float("-inf")).softmax(-1).flatten()
            x, idx = p.sort(descending=True)
            keep = idx[x.double().cumsum(0) <= gamma * (N - first)]
            mask.view(-1)[keep] = True
        out[h] = mask & seen
    return out, js


def jaccard(a, b):
    return ((a & b).sum().double() / (a | b).sum().double()).item()
