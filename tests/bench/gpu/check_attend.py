"""Correctness of attend_sm90.cu and attend_sm80.cu against float32 on random inputs; every output is poisoned before the run."""
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
        c["d"] = r.choice([128, 128, 64])
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
    key = (d, c["fp16"]) + tuple(x in e for x in ("bands", "window", "softcap", "sinks"))
    if key not in kernels:
        kernels[key] = kind(d, c["fp16"], *key[2:])
    band = max(1, m // 3) if "bands" in e else 0
    window = max(1, m // 2) if "window" in e else 0
    q2 = make(h, n, c["gain"]) if "bands" in e else None
    softcap = 3.0 if "softcap" in e else 0.0
    sinks = torch.randn(h, device="cuda") if "sinks" in e else None
    qpos = torch.arange(n, device="cuda")[:, None] + c["offset"]
    kpos = torch.arange(m, device="cuda")[None]
    keep = (kpos <= qpos)[None, None].expand(b, h, n, m)
    if window:
        keep = keep & (kpos > qpos - window)
    far = (qpos - kpos >= band).expand(b, h, n, m) if band else None
    mask = None
    nq, nk = (n + 127) // 128, (m + 127) // 128
    if c["masked"]:
        tiles = torch.rand(b, h, nq, nk, device="cuda") < c["density"]
        last = (c["offset"] + torch.minimum((torch.arange(nq, device="cuda") + 1) * 128, torch.tensor(n)) - 1) // 128
        causal = torch.arange(nk, device="cuda")[None] <= last[:, None]
        tiles &= causal
        if c["density"] > 0:  # at density 0 some rows keep no tile at all: zeros and -inf are expected
            tiles |= torch.arange(nk, device="cuda")[None] == last[:, None]
        mask = driver.csr(tiles)
        keep = keep & tiles.repeat_interleave(128, 2)[:, :, :n].repeat_interleave(128, 3)[..., :m]
    out = make(h, n)
    out.fill_(POISON)
    lse = torch.full((b, h, n), POISON, device="cuda")
    kernels[key].prepare(q, k, v, out, lse, mask, q2=q2, sinks=sinks, q_offset=c["offset"], band=band, window=window, softcap=softcap)()
    torch.cuda.synchronize()
    ref, ref_lse = reference(q, k, v, keep, d ** -0.5, softcap, sinks, q2, far)
    norm = ref.norm()
    err = ((out.float() - ref).norm() / norm).item() if norm > 0 else out.float().abs().max().item()
    rounding = ((ref.to(dt).float() - ref).norm() / norm).item() if norm > 0 else 0.0
    dl = (lse - ref_lse)[torch.isfinite(ref_lse)].abs().max().item() if torch.isfinite(ref_lse).any() else 0.0
    same_inf = bool((torch.isinf(lse) == torch.isinf(ref_lse)).all())
    finite = bool(torch.isfinite(out).all())
    return err, rounding, dl, finite and same_inf


def packed(kernels, kind=driver.Attend):
    """Three sequences of different lengths in one packed batch, dense."""
    torch.manual_seed(1)
    lens = [(200, 200, 0), (131, 640, 509), (1, 77, 76)]
    h, hkv, d = 8, 2, 128
    tq, tk = sum(x[0] for x in lens), sum(x[1] for x in lens)
    q = torch.randn(1, h, tq, d, device="cuda").bfloat16()
    k, v = (torch.randn(1, hkv, tk, d, device="cuda").bfloat16() for _ in range(2))
    out, lse = torch.full_like(q, POISON), torch.full((1, h, tq), POISON, device="cuda")
    rows, qs, ks = [], 0, 0
    for nq, nk, off in lens:
        rows.append((qs, nq, ks, nk, off))
        qs, ks = qs + nq, ks + nk
    key = (128, False, False, False, False, False)
    if key not in kernels:
        kernels[key] = kind(128)
    kernels[key].prepare(q, k, v, out, lse, sequences=torch.tensor(rows, dtype=torch.int32, device="cuda"))()
    worst = 0.0
    for qs, nq, ks, nk, off in rows:
        keep = (torch.arange(nk, device="cuda")[None] <= torch.arange(nq, device="cuda")[:, None] + off)[None, None]
        ref, _ = reference(q[:, :, qs:qs + nq], k[:, :, ks:ks + nk], v[:, :, ks:ks + nk], keep, d ** -0.5)
        worst = max(worst, ((out[:, :, qs:qs + nq].float() - ref).norm() / ref.norm()).item())
    return worst


def main(count=64, kind=driver.Attend):
    kernels, bad, worst, worst_fp16, excess = {}, 0, 0.0, 0.0, 0.0
    for c in cases(count):
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
    p = packed(kernels, kind)
    print(kind.__name__ + ": %d cases, %d failed; worst relative error bf16 %.2e fp16 %.2e (%.2f of output rounding); packed %.2e"
          % (count, bad, worst, worst_fp16, excess, p), flush=True)
    return bad == 0 and p < 4e-3


if __name__ == "__main__":
    raise SystemExit(0 if main() and main(kind=driver.AttendPlain) else 1)
