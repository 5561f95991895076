"""The FlashPrefill and XAttention selection kernels on torch tensors, and float32 references of the CPU strategies."""
import ctypes as C

import torch

import driver

class SelectArgs(C.Structure):
    _fields_ = ([(n, C.c_void_p) for n in ("q", "k", "pooled", "scores", "bits", "row_ptr", "cols", "counter")]
                + [(n, C.c_longlong) for n in ("q_batch", "q_head", "q_row", "k_batch", "k_head", "k_row")]
                + [(n, C.c_int) for n in ("batch", "q_heads", "kv_heads", "q_len", "k_len", "q_offset", "head_dim", "first_block", "q_blocks",
                                          "k_blocks", "words", "chunk", "window", "sinks", "near", "last", "fewest")]
                + [("scale", C.c_float), ("softcap", C.c_float), ("parameter", C.c_float * 256)])


class Selector:
    """What both selections share."""

    def __init__(self):
        mask = driver.Module("select_mask.cu", arch="sm_90a")
        self.prefix, self.fill = mask.function("select_prefix"), mask.function("select_fill")
        self.counter = torch.zeros(2, dtype=torch.int32, device="cuda")
        self.sms = torch.cuda.get_device_properties(0).multi_processor_count

    def arguments(self, q, k, offset, window, scale, parameter, **numbers):
        b, h, n, d = q.shape
        m = k.shape[2]
        first, kb = offset // 128, -(-m // 128)
        qb = -(-(offset % 128 + n) // 128)
        words = -(-kb // 32)
        new = lambda *s: torch.full(s, -1, dtype=torch.int32, device="cuda")
        w = dict(bits=new(b * h * qb, words), row_ptr=new(b * h * qb + 1), cols=new(b * h * sum(min(first + i + 1, kb) for i in range(qb))))
        a = SelectArgs(q=q.data_ptr(), k=k.data_ptr(), counter=self.counter.data_ptr(), q_batch=q.stride(0), q_head=q.stride(1), q_row=q.stride(2),
                       k_batch=k.stride(0), k_head=k.stride(1), k_row=k.stride(2), batch=b, q_heads=h, kv_heads=k.shape[1], q_len=n, k_len=m,
                       q_offset=offset, head_dim=d, first_block=first, q_blocks=qb, k_blocks=kb, words=words, window=window, scale=scale,
                       parameter=(C.c_float * 256)(*[parameter] * h), **numbers, **{x: t.data_ptr() for x, t in w.items()})
        return a, w

    def mask_of(self, a):
        rows = a.batch * a.q_heads * a.q_blocks
        driver.launch(self.prefix, (1,), 1024, 0, [a])
        driver.launch(self.fill, (-(-rows // 32),), 1024, 0, [a])


class FlashPrefill(Selector):
    launches = 5

    def __init__(self, head_dim=128, fp16=False, plain=False):
        super().__init__()
        self.dim = driver.compiled_dim(head_dim)
        defines = ["HEAD_DIM=%d" % self.dim] + (["FP16"] if fp16 else [])
        m = driver.Module("flashprefill.cu", defines)
        self.pool, self.rows = m.function("flashprefill_pool"), m.function("flashprefill_rows")
        self.plain, self.threads, self.shared = plain, 256 if plain else 384, 2 * 128 * self.dim * 2 if plain else 1024 + 4 * 128 * self.dim * 2 + 64
        scoring = m if plain else driver.Module("flashprefill_sm90.cu", defines)
        self.scores = scoring.function("flashprefill_scores", self.shared)
        self.keep = [m, scoring]

    def prepare(self, q, k, alpha, offset=0, window=0, sinks=2, near=4, last=2, fewest=0, scale=None, softcap=0.0):
        a, w = self.arguments(q, k, offset, window, q.shape[3] ** -0.5 if scale is None else scale, alpha, sinks=sinks, near=near, last=last, fewest=fewest,
                              softcap=softcap)
        kv, padded, heads = a.batch * a.kv_heads, -(-a.k_blocks // 128) * 128, a.batch * a.q_heads
        w["pooled"] = torch.full((2, kv, padded, self.dim), float("nan"), dtype=q.dtype, device="cuda")
        w["scores"] = torch.full((heads, a.q_blocks, a.k_blocks), float("nan"), device="cuda")
        a.pooled, a.scores = w["pooled"].data_ptr(), w["scores"].data_ptr()
        columns = padded // 128
        maps = [] if self.plain else [driver.tensor_map(q, 128)]
        a.chunk = max(1, a.q_blocks * columns * kv // (4 * self.sms))

        def go(_hold=(q, k, w)):
            driver.launch(self.pool, (padded, kv), 256, 0, [a])
            driver.launch(self.scores, (-(-a.q_blocks // a.chunk), columns, kv), self.threads, self.shared, maps + [a])
            driver.launch(self.rows, (-(-heads * a.q_blocks // 8),), 256, 0, [a])
            self.mask_of(a)
        return go, w


class XAttention(Selector):
    launches = 3

    def __init__(self, stride=16, fp16=False, plain=False):
        super().__init__()
        self.stride, self.shared = stride, 3 * 2 * 128 * 64 * 2 if plain else 1024 + 4 * (128 + 256) * 64 * 2
        self.module = driver.Module("xattention.cu" if plain else "xattention_sm90.cu", ["STRIDE=%d" % stride] + (["FP16"] if fp16 else []))
        self.f = self.module.function("xattention", self.shared)

    def prepare(self, q, k, threshold, offset=0, window=0, norm=1.0, scale=None):
        scale = q.shape[3] ** -0.5 if scale is None else scale
        a, w = self.arguments(q, k, offset, window, scale / (self.stride * norm), threshold)
        grid = min(self.sms, a.batch * a.q_heads * -(-a.q_blocks // self.stride))
        w["scores"] = torch.full((grid, 128, a.k_blocks), float("nan"), device="cuda")
        a.scores = w["scores"].data_ptr()

        def go(_hold=(q, k, w)):
            driver.launch(self.f, (grid,), 256, self.shared, [a])
            self.mask_of(a)
        return go, w


def dense_mask(w, heads, q_blocks, k_blocks):
    """The CSR result as bool [heads, q_blocks, k_blocks]."""
    rows, cols = w["row_ptr"].long(), w["cols"].long()
    total = int(rows[-1])
    at = torch.repeat_interleave(torch.arange(heads * q_blocks, device=cols.device), rows[1:] - rows[:-1])
    out = torch.zeros(heads * q_blocks, k_blocks, dtype=torch.bool, device=cols.device)
    out[at, cols[:total]] = True
    assert int(out.sum()) == total, "duplicate columns"
    return out.view(heads, q_blocks, k_blocks)


def _grid(n, m, offset, window, device):
    first, kb, qb = offset // 128, -(-m // 128), -(-(offset % 128 + n) // 128)
    i, j = torch.arange(qb, device=device)[:, None] + first, torch.arange(kb, device=device)[None]
    low = ((i * 128 - window + 1).clamp(min=0) // 128) if window else torch.zeros_like(i)
    return first, kb, qb, i, j, (j >= low) & (j <= i)


def flashprefill_reference(q, k, alpha, offset=0, window=0, sinks=2, near=4, last=2, fewest=0, scale=None, softcap=0.0):
    """q [heads, n, d], k [kv heads, m, d] of one sequence."""
    h, n, d = q.shape
    m, dev = k.shape[1], q.device
    first, kb, qb, i, j, see = _grid(n, m, offset, window, dev)
    scale = d ** -0.5 if scale is None else scale
    out = torch.zeros(h, qb, kb, dtype=torch.bool, device=dev)
    block = (torch.arange(n, device=dev) + offset) // 128 - first
    counts = torch.bincount(torch.arange(m, device=dev) // 128, minlength=kb).float()
    past = see & (j < i)
    for x in range(h):
        kf = k[x * k.shape[0] // h].float()
        means = torch.zeros(kb, d, device=dev).index_add_(0, torch.arange(m, device=dev) // 128, kf) / counts[:, None]
        logits = scale * (q[x].float() @ means.T)
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        padded = torch.full((qb * 128, kb), float("-inf"), device=dev)
        padded[torch.arange(n, device=dev) + offset % 128] = logits
        score = padded.view(qb, 128, kb).double().logsumexp(1).masked_fill(~past, float("-inf"))
        best = score.max(1, keepdim=True).values
        kept = past & (score.exp() >= alpha * best.exp()) if alpha == 0 else past & (score >= best + torch.tensor(alpha).double().log())
        if fewest:
            order = score.argsort(dim=1, descending=True, stable=True)[:, :fewest]
            kept |= torch.zeros_like(kept).scatter_(1, order, True) & past
        kept |= (j < sinks) | (j > i - near) | (i - first >= qb - last)
        out[x] = kept & see
    return out


def xattention_reference(q, k, threshold, stride=16, offset=0, window=0, norm=1.0, scale=None):
    h, n, d = q.shape
    m, dev = k.shape[1], q.device
    first, kb, qb, i, j, see = _grid(n, m, offset, window, dev)
    scale = (d ** -0.5 if scale is None else scale) / (stride * norm)
    per, rows, squares = 128 // stride, qb * 128 // stride, -(-m // stride)
    out = torch.zeros(h, qb, kb, dtype=torch.bool, device=dev)
    r = torch.arange(rows, device=dev)[:, None] + first * per
    c = torch.arange(squares, device=dev)[None]
    visible = (c <= r) & (((r - c) * stride - stride + 1 < window) if window else True)  # with a window: squares with a visible pair
    found = (r[:, 0] * stride + stride > offset) & (r[:, 0] * stride < offset + n)
    for x in range(h):
        qq = torch.zeros(qb * 128, d, device=dev)
        qq[torch.arange(n, device=dev) + offset % 128] = q[x].float()
        kk = torch.zeros(squares * stride, d, device=dev)
        kk[:m] = k[x * k.shape[0] // h].float()
        s = scale * (qq.view(rows, stride, d).flip(1).reshape(rows, -1) @ kk.view(squares, -1).T)
        p = s.masked_fill(~visible, float("-inf")).softmax(1).nan_to_num(0.0) * found[:, None]
        full = torch.zeros(rows, kb * per, device=dev)
        full[:, :squares] = p
        score = full.view(qb, per, kb, per).double().sum((1, 3))
        forced = ((j == 0) | (j == i)) & see
        wanted = threshold * score.sum(1, keepdim=True) - (score * forced).sum(1, keepdim=True)
        rest = score.masked_fill(forced | ~see, -1.0)
        value, order = rest.sort(dim=1, descending=True, stable=True)
        before = value.clamp(min=0).cumsum(1) - value.clamp(min=0)
        take = (before < wanted) & (value >= 0)
        out[x] = (forced | torch.zeros_like(forced).scatter_(1, order, take)) & see
    return out
