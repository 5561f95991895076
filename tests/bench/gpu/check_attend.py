"""The attention kernels against float32 on random inputs; every output is poisoned before the run, and so is all padding."""
import math
import random

import torch

import driver

POISON = float("nan")


def reference(q, k, v, keep, scale, softcap=0.0, sinks=None, q2=None, far=None):
    """keep, far: bool [batch, heads, q, k]. Returns out, lse in float32."""
    g = q.shape[1] // k.shape[1]
    kf, vf = k.float().repeat_interleave(g, 1), v.float().repeat_interleave(g, 1)
    s = q.float() @ kf.transpose(-1, -2) * scale
    if q2 is not None:
        s = torch.where(far, q2.float() @ kf.transpose(-1, -2) * scale, s)
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    s = s.masked_fill(~keep, float("-inf"))
    lse = s.logsumexp(-1)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks[None, :, None].expand_as(lse))
    p = torch.where(torch.isinf(lse)[..., None], torch.zeros_like(s), torch.exp(s - lse[..., None]))
    return p @ vf, lse


def turned(q, angles, interleaved):
    """q with each pair of columns turned by its angle, as the kernel rounds it."""
    pairs, x = len(angles), q.float()
    c, s = (torch.tensor([f(a) for a in angles], device="cuda") for f in (math.cos, math.sin))
    a, b = (x[..., 0:2 * pairs:2], x[..., 1:2 * pairs:2]) if interleaved else (x[..., :pairs], x[..., pairs:2 * pairs])
    u, w = a * c - b * s, a * s + b * c
    return torch.cat([torch.stack([u, w], -1).flatten(-2) if interleaved else torch.cat([u, w], -1), x[..., 2 * pairs:]], -1).to(q.dtype)


def turn(d, seed):
    """Angles for a turn that the kernel makes itself, and the kernel's TURN: of half or all columns, halves apart or neighbours."""
    halves = [p for p in (d // 2, d // 4) if p % 16 == 0]
    interleaved = seed % 4 == 1 or not halves
    pairs = (d // 2, d // 4 - 1)[seed % 2] if interleaved else halves[seed % len(halves)]
    return [-300.0 * 10000.0 ** (-i / pairs) for i in range(pairs)], driver.turn_steps(pairs, interleaved)


def cases(count=64, seed=7):
    r = random.Random(seed)
    fixed = [dict(n=128, m=128), dict(n=1, m=1), dict(n=129, m=129), dict(n=127, m=127), dict(n=2048, m=2048),
             dict(n=1000, m=1000, batch=3), dict(n=130, m=1000, offset=870), dict(n=300, m=811, offset=511)]
    for i in range(count):
        c = dict(fixed[i]) if i < len(fixed) else {}
        if "n" not in c:
            c["n"] = r.choice([r.randint(1, 400), r.randint(400, 1500), 128 * r.randint(1, 12), 128 * r.randint(1, 10) + 1])
            c["offset"] = r.choice([0, 0, r.randint(0, 700)])
            c["m"] = c["n"] + c["offset"]
            c["batch"] = r.choice([1, 1, 2])
        c.setdefault("offset", 0)
        c.setdefault("batch", 1)
        c["hkv"], c["g"] = r.choice([(1, 1), (2, 1), (1, 4), (2, 4), (1, 8), (3, 2)])
        c["d"] = r.choice([128, 128, 64, 96, 80, 40])
        c["fp16"] = r.random() < 0.25
        c["masked"] = r.random() < 0.6
        c["density"] = r.choice([0.0, 0.1, 0.3, 0.7])
        c["layout"] = r.choice(["bhnd", "bnhd"])
        c["extra"] = r.choice(["", "", "", "bands", "window", "softcap", "sinks", "bands window"])
        c["gain"] = r.choice([1.0, 1.0, 4.0])
        c["seed"] = i
        yield c


def run_case(c, kernels, kind=driver.Attend):
    torch.manual_seed(c["seed"])
    dt = torch.float16 if c["fp16"] else torch.bfloat16
    b, n, m, d, hkv = c["batch"], c["n"], c["m"], c["d"], c["hkv"]
    h = hkv * c["g"]

    def make(heads, rows, gain=1.0):
        x = torch.randn(b, heads, rows, d, device="cuda") * gain
        return x.to(dt) if c["layout"] == "bhnd" else x.transpose(1, 2).contiguous().to(dt).transpose(1, 2)

    q, k, v = make(h, n, c["gain"]), make(hkv, m), make(hkv, m)
    e = set(c["extra"].split())
    key = (driver.compiled_dim(d), c["fp16"]) + tuple(x in e for x in ("bands", "window", "softcap", "sinks"))
    q2, angles, steps = make(h, n, c["gain"]) if "bands" in e else None, None, None
    if q2 is not None and kind is driver.Attend and c["seed"] % 3:
        angles, steps = turn(d, c["seed"])
        key += (steps,)
    if key not in kernels:
        kernels[key] = kind(d, c["fp16"], *key[2:])
    band = c.get("band", max(1, m // 3)) if "bands" in e else 0
    window = max(1, m // 2) if "window" in e else 0
    second = {} if q2 is None else dict(q2=q2)
    if angles:
        q2, second = turned(q, angles, steps == 0), dict(angles=angles)
    softcap = 3.0 if "softcap" in e else 0.0
    sinks = torch.randn(h, device="cuda") if "sinks" in e else None
    qpos = torch.arange(n, device="cuda")[:, None] + c["offset"]
    kpos = torch.arange(m, device="cuda")[None]
    keep = (kpos <= qpos)[None, None].expand(b, h, n, m)
    if window:
        keep = keep & (kpos > qpos - window)
    far = (qpos - kpos >= band).expand(b, h, n, m) if band else None
    mask = None
    skip = c["offset"] % 128  # blocks lie on multiples of 128 in position
    nq, nk = (n + skip + 127) // 128, (m + 127) // 128
    if c["masked"]:
        tiles = torch.rand(b, h, nq, nk, device="cuda") < c["density"]
        last = (c["offset"] - skip) // 128 + torch.arange(nq, device="cuda")
        last = torch.minimum(last, torch.tensor(nk - 1, device="cuda"))
        causal = torch.arange(nk, device="cuda")[None] <= last[:, None]
        tiles &= causal
        if c["density"] > 0:  # at density 0 some rows keep no tile at all: zeros and -inf are expected
            tiles |= torch.arange(nk, device="cuda")[None] == last[:, None]
        mask = driver.csr(tiles)
        keep = keep & tiles.repeat_interleave(128, 2)[:, :, skip:skip + n].repeat_interleave(128, 3)[..., :m]
    out = make(h, n)
    out.fill_(POISON)
    lse = torch.full((b, h, n), POISON, device="cuda")
    kernels[key].prepare(q, k, v, out, lse, mask, sinks=sinks, q_offset=c["offset"], band=band, window=window, softcap=softcap, **second)()
    torch.cuda.synchronize()
    ref, ref_lse = reference(q, k, v, keep, d ** -0.5, softcap, sinks, q2, far)
    norm = ref.norm()
    err = ((out.float() - ref).norm() / norm).item() if norm > 0 else out.float().abs().max().item()
    rounding = ((ref.to(dt).float() - ref).norm() / norm).item() if norm > 0 else 0.0
    dl = (lse - ref_lse)[torch.isfinite(ref_lse)].abs().max().item() if torch.isfinite(ref_lse).any() else 0.0
    same_inf = bool((torch.isinf(lse) == torch.isinf(ref_lse)).all())
    finite = bool(torch.isfinite(out).all())
    return err, rounding, dl, finite and same_inf


def border_cases():
    """Borders about where the lists of an item's columns are cut, every 32 columns, and in the first tile of an item."""
    for i, band in enumerate((128 * 30 + 5, 128 * 31, 128 * 31 + 1, 128 * 32, 128 * 32 + 127, 128 * 63 + 64, 128 * 64, 1, 100, 128, 200)):
        yield dict(n=8500 + 100 * i, m=8500 + 100 * i, offset=0, batch=1, hkv=1, g=2, d=128, fp16=False, masked=i % 3 == 2, density=0.8,
                   layout="bhnd", extra="bands", gain=1.0, seed=i, band=band)


def decode_cases(count=64, seed=11):
    r = random.Random(seed)
    for i in range(count):
        hkv, g = r.choice([(1, 1), (2, 1), (8, 4), (2, 4), (1, 8), (3, 2), (1, 32)])
        n = r.choice([1, 1, 1, 2, 5, 16])
        n = min(n, 64 // g)
        m = n + r.choice([0, r.randint(0, 200), r.randint(200, 3000), r.randint(3000, 9000), 128 * r.randint(1, 40)])
        yield dict(n=n, m=m, offset=m - n if r.random() < 0.8 else r.randint(0, m - n), batch=r.choice([1, 1, 2, 5]), hkv=hkv, g=g,
                   d=r.choice([128, 128, 64, 96, 72, 32]), fp16=r.random() < 0.25, masked=False, density=0, layout=r.choice(["bhnd", "bnhd"]),
                   extra=r.choice(["", "", "bands", "window", "softcap", "sinks", "bands window softcap sinks"]), gain=r.choice([1.0, 1.0, 4.0]), seed=i)


UNTOUCHED = 512.0


def batched(seed, kernels, kind=driver.Attend):
    """Sequences of different lengths, packed or padded, masked or dense; everything that belongs to none is NaN."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    few = kind is driver.Decode
    padded, masked, bands = r.random() < 0.5, not few and r.random() < 0.5, r.random() < 0.3
    lens = []
    for _ in range(r.randint(2, 70 if few else 5)):
        nq = r.randint(0, 6) if few else r.choice([1, r.randint(1, 300), r.randint(1, 700)])
        nk = nq + r.choice([0, r.randint(0, 500)])
        lens.append((nq, nk, r.randint(0, max(0, nk - nq))))
    h, hkv, d = 8, 2, r.choice([128, 64, 96])
    gap = lambda: r.choice([0, 3, 130])
    rows, qs, ks, sizes = [], 0, 0, []
    for i, (nq, nk, off) in enumerate(lens):
        if padded:
            qs, ks = gap(), gap()
        else:
            qs, ks = qs + gap(), ks + gap()
        rows.append((qs, nq, ks, nk, off, i if padded else 0))
        qs, ks = qs + nq, ks + nk
        sizes.append((qs, ks))
    tq, tk, b = max(x[0] for x in sizes) + gap() + 1, max(x[1] for x in sizes) + gap(), len(lens) if padded else 1
    tk = max(tk, 1)
    q, q2 = (torch.full((b, h, tq, d), POISON, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    k, v = (torch.full((b, hkv, tk, d), POISON, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for qs, nq, ks, nk, off, box in rows:
        for x, s, n in ((q, qs, nq), (q2, qs, nq), (k, ks, nk), (v, ks, nk)):
            x[box, :, s:s + n] = torch.randn(x.shape[1], n, d, device="cuda").bfloat16()
    second, steps = dict(q2=q2 if bands else None), None
    if bands and kind is driver.Attend and seed // 4 % 2:
        angles, steps = turn(d, seed)
        q2, second = turned(q, angles, steps == 0), dict(angles=angles)
    out, lse = torch.full_like(q, UNTOUCHED), torch.full((b, h, tq), UNTOUCHED, device="cuda")
    table = driver.aligned(rows, kind.align)
    stored = driver.store_table(table.tolist())
    same = bool((stored == table).all())
    band = 100 if bands else 0
    mask, kept = None, {}
    if masked:
        blocks = (int(table[:, 1].max()) + 127) // 128
        nkb = max(-(-x[3] // 128) for x in rows)
        tiles = torch.zeros(len(rows), h, blocks, nkb, dtype=torch.bool, device="cuda")
        for i, (qs, nq, ks, nk, off, box) in enumerate(rows):
            mine = -(-(off % 128 + nq) // 128)
            for x in range(mine):
                last = min(off // 128 + x, -(-nk // 128) - 1)
                tiles[i, :, x, :last + 1] = torch.rand(h, last + 1, device="cuda") < 0.5
                tiles[i, :, x, last] = True
            kept[i] = tiles[i].repeat_interleave(128, 1)[:, off % 128:off % 128 + nq].repeat_interleave(128, 2)[:, :, :nk]
        mask = driver.csr(tiles)
    key = (driver.compiled_dim(d), False, bands, False, False, False) + (() if steps is None else (steps,))
    if key not in kernels:
        kernels[key] = kind(*key)
    kernels[key].prepare(q, k, v, out, lse, mask, sequences=stored, band=band, **second)()
    torch.cuda.synchronize()
    worst, owned = 0.0, torch.zeros(b, tq, dtype=torch.bool, device="cuda")
    for i, (qs, nq, ks, nk, off, box) in enumerate(rows):
        owned[box, qs:qs + nq] = True
        if nq == 0:
            continue
        distance = torch.arange(nq, device="cuda")[:, None] + off - torch.arange(nk, device="cuda")[None]
        keep = (distance >= 0)[None, None].expand(1, h, nq, nk)
        if masked:
            keep = keep & kept[i][None]
        at = lambda x, s, n: x[box:box + 1, :, s:s + n]
        ref, ref_lse = reference(at(q, qs, nq), at(k, ks, nk), at(v, ks, nk), keep, d ** -0.5, q2=at(q2, qs, nq) if bands else None,
                                 far=(distance >= band).expand(1, h, nq, nk))
        e = ((at(out, qs, nq).float() - ref).norm() / ref.norm()).item()
        dl = (lse[box:box + 1, :, qs:qs + nq] - ref_lse).abs().max().item()
        worst = max(worst, e if e == e else 9e9, dl)
    foreign = ~owned[:, None].expand(b, h, tq)
    untouched = bool((out.float()[foreign] == UNTOUCHED).all()) and bool((lse[foreign] == UNTOUCHED).all())
    if not (worst < 4e-3 and untouched and same):
        print("FAIL batched", kind.__name__, dict(seed=seed, padded=padded, masked=masked, bands=bands, d=d, lens=lens[:6]),
              "worst %.2e untouched %s table %s" % (worst, untouched, same), flush=True)
    return worst if untouched and same else 9e9


def probe(seed, kernels, probes):
    """The kept mass of sampled rows, from the LSE of a masked call, against the sums of the float32 softmax."""
    r = random.Random(seed)
    extra = set(r.choice(["", "", "bands", "window", "softcap", "sinks", "bands window softcap sinks"]).split())
    n, hkv, g, d, b = r.randint(200, 1500), 2, r.choice([1, 4]), r.choice([128, 64, 96]), r.choice([1, 2])
    h, offset, count = hkv * g, r.choice([0, r.randint(0, 600)]), r.choice([1, 16, 64, 100])
    m, skip = n + offset, offset % 128
    torch.manual_seed(seed)
    make = lambda heads, rows: torch.randn(b, heads, rows, d, device="cuda").bfloat16()
    q, k, v = make(h, n), make(hkv, m), make(hkv, m)
    q2, band = (make(h, n), m // 3) if "bands" in extra else (None, 0)
    window, softcap = m // 2 if "window" in extra else 0, 3.0 if "softcap" in extra else 0.0
    sinks = torch.randn(h, device="cuda") if "sinks" in extra else None
    nq, nk = -(-(n + skip) // 128), -(-m // 128)
    tiles = torch.rand(b, h, nq, nk, device="cuda") < 0.4
    distance = torch.arange(n, device="cuda")[:, None] + offset - torch.arange(m, device="cuda")[None]
    visible = (distance >= 0) & ((distance < window) if window else True)
    visible = visible[None, None].expand(b, h, n, m)
    keep = visible & tiles.repeat_interleave(128, 2)[:, :, skip:skip + n].repeat_interleave(128, 3)[..., :m]
    out, lse = torch.full_like(q, POISON), torch.full((b, h, n), POISON, device="cuda")
    key = (driver.compiled_dim(d), False) + tuple(x in extra for x in ("bands", "window", "softcap", "sinks"))
    if key not in kernels:
        kernels[key] = driver.Attend(d, False, *key[2:])
    if key not in probes:
        probes[key] = driver.Decode(d, False, *key[2:], probe=True)
    numbers = dict(q_offset=offset, band=band, window=window, softcap=softcap)
    kernels[key].prepare(q, k, v, out, lse, driver.csr(tiles), q2=q2, sinks=sinks, **numbers)()
    rows = torch.stack([torch.randint(0, n, (count,), device="cuda").sort().values for _ in range(b * h)]).view(b, h, count).int()
    if count > 1:
        rows[0, 0, count // 2] = -1
    go, dense, kept = probes[key].probe(q, k, lse, rows, q2=q2, sinks=sinks, **numbers)
    go()
    torch.cuda.synchronize()
    far = (distance >= band).expand(b, h, n, m) if band else None
    _, all_lse = reference(q, k, v, visible, d ** -0.5, softcap, None, q2, far)
    _, kept_lse = reference(q, k, v, keep, d ** -0.5, softcap, None, q2, far)
    at = rows.clamp(min=0).long()
    want_dense, want = all_lse.gather(2, at), torch.exp(kept_lse - all_lse).gather(2, at)
    want = torch.where(rows < 0, torch.ones_like(want), want)
    real = rows >= 0
    e, ed = (kept - want).abs().max().item(), (dense - want_dense)[real].abs().max().item()
    good = e < 2e-3 and ed < 2e-3
    if not good:
        print("FAIL probe", dict(seed=seed, n=n, offset=offset, d=d, b=b, extra=extra, count=count), "kept %.2e dense %.2e" % (e, ed), flush=True)
    return max(e, ed) if good else 9e9


def rotation(seed, kernels):
    """Extra rotations of rotated queries against float64."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    d, interleaved, fp16 = r.choice([128, 64, 96]), r.random() < 0.3, r.random() < 0.3
    pairs = r.choice([d // 2, d // 4])
    n, offset = r.randint(1, 500), r.choice([0, 70000])
    rule = r.choice([dict(offset=-40000.0), dict(scale=0.0, offset=1024.0), dict(group=4, scale=1.0, offset=300.0), dict(modulo=512, limit=300.0)])
    applied = [10000.0 ** (-i / pairs) for i in range(pairs)]
    wanted = [x / 4 for x in applied]
    q = torch.randn(2, 3, n, d, device="cuda").to(torch.float16 if fp16 else torch.bfloat16)
    out = torch.full_like(q, POISON)
    start = r.choice([0, offset + n // 2])
    if fp16 not in kernels:
        kernels[fp16] = driver.Rotate(fp16)
    kernels[fp16].prepare(q, out, applied, wanted, q_offset=offset, interleaved=interleaved, start=start, **rule)()
    torch.cuda.synchronize()
    p = torch.arange(n, device="cuda", dtype=torch.float64) + offset
    f = p % rule["modulo"] if rule.get("modulo") else p
    f = (f / rule.get("group", 1)).floor() * rule.get("scale", 1.0) + rule.get("offset", 0.0)
    if rule.get("limit"):
        f = f.clamp(max=rule["limit"])
    as_tensor = lambda x: torch.tensor(x, device="cuda", dtype=torch.float64)
    angle = f[:, None] * as_tensor(wanted) - p[:, None] * as_tensor(applied)
    c, s = angle.cos(), angle.sin()
    x = q.double()
    a, b = (x[..., 0:2 * pairs:2], x[..., 1:2 * pairs:2]) if interleaved else (x[..., :pairs], x[..., pairs:2 * pairs])
    u, w = a * c - b * s, a * s + b * c
    want = x.clone()
    want[..., :2 * pairs] = torch.stack([u, w], -1).flatten(-2) if interleaved else torch.cat([u, w], -1)
    rows = p >= start
    e = ((out.double() - want)[:, :, rows].norm() / want[:, :, rows].norm()).item()
    e /= 2 ** -2 if not fp16 else 2 ** -5  # in units of 8 and 11 bits: at most about .0069
    if not e < 8e-3:
        print("FAIL rotation", dict(seed=seed, d=d, n=n, rule=rule, interleaved=interleaved, fp16=fp16), "%.2e" % e, flush=True)
    return e if e < 8e-3 else 9e9


def main(count=64, kind=driver.Attend, batches=12):
    kernels, bad, worst, worst_fp16, excess = {}, 0, 0.0, 0.0, 0.0
    for c in decode_cases(count) if kind is driver.Decode else list(cases(count)) + (list(border_cases()) if kind is driver.Attend else []):
        err, rounding, dl, ok = run_case(c, kernels, kind)
        # Two independent roundings to 16 bits (P and the output) bound the error: sqrt(2) of one, with room for few keys.
        good = ok and err <= 1.75 * max(rounding, 2e-4) and dl <= (2e-3 if not c["extra"] else 3e-3)
        bad += not good
        if c["fp16"]:
            worst_fp16 = max(worst_fp16, err)
        else:
            worst = max(worst, err)
        excess = max(excess, err / max(rounding, 1e-9))
        if not good:
            print("FAIL", c, "err %.2e rounding %.2e lse %.2e finite %s" % (err, rounding, dl, ok), flush=True)
    b = max(batched(100 + i, kernels, kind) for i in range(batches))
    print(kind.__name__ + ": %d cases, %d failed; worst relative error bf16 %.2e fp16 %.2e (%.2f of output rounding); %d batches, worst %.2e"
          % (count, bad, worst, worst_fp16, excess, batches, b), flush=True)
    return bad == 0 and b < 4e-3


def rest(count=24):
    kernels, probes, rotations = {}, {}, {}
    p = max(probe(200 + i, kernels, probes) for i in range(count))
    r = max(rotation(300 + i, rotations) for i in range(count))
    print("certificate: %d cases, worst error of mass or LSE %.2e; rotation: %d cases, worst %.2e units" % (count, p, count, r), flush=True)
    return p < 2e-3 and r < 8e-3


if __name__ == "__main__":
    raise SystemExit(0 if main() and main(kind=driver.AttendPlain) and main(kind=driver.Decode) and rest() else 1)
