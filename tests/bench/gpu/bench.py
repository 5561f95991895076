"""Builds, checks and times the CUDA kernels in one call, prints a table and writes JSON.

    python tests/bench/gpu/bench.py [--json FILE] [--quick] [--no-peers] [--released CHECKOUT]

Needs a Hopper GPU, torch and libnvrtc. TFLOP/s count 4 * 128 * 128 * head_dim operations for every kept causal tile of
128 x 128, whole diagonal tiles included. Every figure is a median; `burst` starts from half a second of rest, `sustained`
is the last third of about a second of back-to-back runs, when the card is at its power limit.
"""
import argparse
import json
import os
import time

import torch

import check_attend
import check_index
import check_selectors
import driver
import flexindex
import inputs
import released
import selections

H, HKV, D, TILE = 32, 8, 128, 128
GOALS = {(8192, .9): .6, (16384, .9): 1.5, (32768, .9): 3.2, (65536, .9): 13, (131072, .9): 18.6, (131072, .95): 41, (262144, .9): 97}
CASES = [(n, gamma) for n in (8192, 16384, 32768, 65536, 131072, 262144) for gamma in (.9, .95)]
INDEX_GOALS = {8192: .2, 131072: 1.0, 262144: 2.5}
results = []


def note(**row):
    results.append(row)
    print("  ".join("%s %s" % (k, "%.4g" % v if isinstance(v, float) else v) for k, v in row.items()), flush=True)


def burst(f, repeat=10):
    torch.cuda.synchronize()
    time.sleep(.5)
    return driver.median_ms(f, repeat, 2)


def sustained(f, seconds=1.0, card=None):
    """Milliseconds; card, a dict, gets the clock and the power of the timed third, where NVML is there."""
    one = driver.median_ms(f, 3, 1)
    n = max(9, int(seconds * 1000 / one))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(n + 1)]
    marks[0].record()
    for m in marks[1:]:
        f()
        m.record()
    seen = []
    while card is not None and not marks[-1].query():
        if marks[2 * n // 3].query():
            seen.append((torch.cuda.clock_rate(), torch.cuda.power_draw() / 1000))
        time.sleep(.01)
    torch.cuda.synchronize()
    if seen:
        card["sustained_mhz"], card["sustained_watt"] = (sorted(column)[len(seen) // 2] for column in zip(*seen))
    times = [a.elapsed_time(b) for a, b in zip(marks, marks[1:])][2 * n // 3:]
    return sorted(times)[len(times) // 2]


def ratios(base, calls, block_ms=12, rounds=20):
    """Times of calls over that of base, which runs right before and after each, in blocks that share a clock; medians."""
    count, out = max(2, int(block_ms / driver.median_ms(base, 3, 1))), [[] for _ in calls]

    def block(f):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        f()
        begin.record()
        for _ in range(count):
            f()
        end.record()
        return begin, end
    for _ in range(rounds):
        marks = [block(base)]
        for f in calls:
            marks += [block(f), block(base)]
        torch.cuda.synchronize()
        ms = [a.elapsed_time(b) for a, b in marks]
        for i, x in enumerate(out):
            x.append(2 * ms[2 * i + 1] / (ms[2 * i] + ms[2 * i + 2]))
    return [sorted(x[2:])[len(x) // 2 - 1] for x in out]  # the first rounds warm the card


def string_costs(string, q, k, v, out, lse, mask, plain):
    """What a second rotation, which the kernel makes, costs it; `aligned`: with the border on a multiple of 128."""
    n = q.shape[2]
    borders = (n // 3, n // 3 // TILE * TILE)
    angles = [(TILE - n // 3) * 500000.0 ** (-i / 64) for i in range(64)]
    cost = ratios(plain, [string.prepare(q, k, v, out, lse, mask, angles=angles, band=b) for b in borders], rounds=10 if n > 32768 else 20)
    return dict(string_cost=cost[0] - 1, string_cost_aligned=cost[1] - 1)


def tflops(tiles, ms, d=D):
    return tiles * 4 * TILE * TILE * d / ms / 1e9


def captured(f):
    f()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        f()
    return graph.replay


def make(n, d=D, hq=H):
    if d == D:
        return [x.transpose(1, 2) for x in inputs.make_qkv(n)]
    return [torch.randn(1, h, n, d, device="cuda").bfloat16() for h in (hq, HKV, HKV)]


def synthetic(n, density):
    mask = inputs.synthetic_mask(n, density)
    return mask, driver.csr(mask.repeat_interleave(H // HKV, 0)[None])


def dense_peers(n, q, k, v, names=("cudnn", "fa2")):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    out = {}
    g = H // HKV
    for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("fa2", SDPBackend.FLASH_ATTENTION)):
        if name not in names or name == "fa2" and n > 32768:
            continue
        try:
            kk, vv = (k, v) if n > 65536 else (k.repeat_interleave(g, 1), v.repeat_interleave(g, 1))
            with sdpa_kernel(backend):
                f = lambda: torch.nn.functional.scaled_dot_product_attention(q, kk, vv, is_causal=True, enable_gqa=n > 65536)
                out[name] = (burst(f, 5), sustained(f))
        except RuntimeError as e:
            print("peer %s at %d: %s" % (name, n, str(e).splitlines()[0]), flush=True)
    return out


def flex_peer(q, k, v, mask):
    from torch.nn.attention.flex_attention import BlockMask, flex_attention
    heads, nb = H, mask.shape[-1]
    m = mask.repeat_interleave(H // HKV, 0)[None]
    diagonal = torch.eye(nb, dtype=torch.bool, device="cuda")[None, None]

    def blocks(x):
        return x.sum(-1).to(torch.int32), x.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    part, full = blocks((m & diagonal).expand(1, heads, nb, nb)), blocks(m & ~diagonal)
    bm = BlockMask.from_kv_blocks(*part, *full, BLOCK_SIZE=TILE, mask_mod=lambda b, h, i, j: i >= j)
    global compiled
    compiled = globals().get("compiled") or torch.compile(flex_attention, dynamic=False)
    f = lambda: compiled(q, k, v, block_mask=bm, enable_gqa=True)
    f()
    return burst(f), sustained(f)


def kernels(quick, peers):
    attend, string = driver.Attend(), driver.Attend(bands=True, turn=4)
    for n in (8192, 32768) if quick else (8192, 32768, 131072):
        q, k, v = make(n)
        out, lse, nb = torch.empty_like(q), torch.empty(1, H, n, device="cuda"), n // TILE
        f = attend.prepare(q, k, v, out, lse)
        tiles = H * nb * (nb + 1) // 2
        card = {}
        b, s = burst(f), sustained(f, card=card)
        row = dict(what="dense", n=n, ms=b, burst_tflops=tflops(tiles, b), sustained_tflops=tflops(tiles, s), **card)
        for name, (pb, ps) in dense_peers(n, q, k, v).items() if peers else ():
            row["%s_tflops" % name] = tflops(tiles, pb)
            row["over_%s" % name], row["over_%s_sustained" % name] = pb / b, ps / s
        note(**row)
        for density in (.02, .05, .10):
            mask, m = synthetic(n, density)
            tiles = m[1].numel()
            f = attend.prepare(q, k, v, out, lse, m)
            card = {}
            b, s = burst(f, 20), sustained(f, card=card)
            row = dict(what="mask", n=n, density=tiles / (H * nb * (nb + 1) / 2), ms=b, burst_tflops=tflops(tiles, b),
                       sustained_tflops=tflops(tiles, s), **card)
            if density == .10:
                row.update(string_costs(string, q, k, v, out, lse, m, f))
                if peers and n > 8192:
                    fb, fs = flex_peer(q, k, v, mask)
                    row.update(flex_ms=fb, over_flex=fb / b, over_flex_sustained=fs / s)
            note(**row)
        note(what="string dense", n=n, **string_costs(string, q, k, v, out, lse, None, attend.prepare(q, k, v, out, lse)))
    n = 32768
    q, k, v = make(n)
    out, lse, nb = torch.empty_like(q), torch.empty(1, H, n, device="cuda"), n // TILE
    m = synthetic(n, .1)[1]
    b = burst(driver.AttendPlain().prepare(q, k, v, out, lse, m))
    note(what="attend_sm80 mask", n=n, ms=b, burst_tflops=tflops(m[1].numel(), b))
    q, k, v = make(n, 64)
    out, lse, nb = torch.empty_like(q), torch.empty(1, H, n, device="cuda"), n // TILE
    a64 = driver.Attend(head_dim=64)
    for name, m in (("dense", None), ("mask .1", synthetic(n, .1)[1])):
        tiles = H * nb * (nb + 1) // 2 if m is None else m[1].numel()
        f = a64.prepare(q, k, v, out, lse, m)
        b, s = burst(f), sustained(f)
        note(what="head_dim 64 " + name, n=n, ms=b, burst_tflops=tflops(tiles, b, 64), sustained_tflops=tflops(tiles, s, 64))


def beside_released(row, peer, qkv, gamma):
    """Times the released code, and puts our times in the row over it."""
    n = qkv[0].shape[1]
    options = dict(tau=.1, min_budget=1024)
    go = lambda: peer(*qkv, gamma, **options)
    row["released_ms"], row["released_sustained_ms"] = burst(go, 5), sustained(go)
    row["over_released"], row["over_released_sustained"] = row["released_ms"] / row["total_ms"], row["released_sustained_ms"] / row["sustained_ms"]
    # It gives the share of the square.
    row["released_density"] = peer(*qkv, gamma, **options, return_computational_ratio=True)[1] * 2 * n / (n + TILE)


def end_to_end(quick, peers, checkout):
    index, attend, whole = flexindex.Index(), driver.Attend(), {}
    peer = released.load(checkout) if checkout else None
    for n, gamma in ((8192, .9), (16384, .9), (32768, .9)) if quick else CASES:
        q, k, v = make(n)
        out, lse, nb = torch.empty_like(q), torch.empty(1, H, n, device="cuda"), n // TILE
        select, w = index.prepare(q, k, gamma, min_budget=1024)
        a = attend.prepare(q, k, v, out, lse, (w["row_ptr"], w["cols"]))

        def both():
            select()
            a()
        both()
        torch.cuda.synchronize()
        tiles = int(w["row_ptr"][-1])
        ix, at, total = burst(captured(select), 20), burst(a), burst(captured(both))
        if n not in whole:
            whole[n] = burst(attend.prepare(q, k, v, out, lse), 5), dense_peers(n, q, k, v, ("cudnn",)) if peers else {}
        dense, others = whole[n]
        row = dict(what="end to end", n=n, gamma=gamma, density=tiles / (H * nb * (nb + 1) / 2), aware=int(w["aware"].sum()), index_ms=ix,
                   attend_ms=at, attend_tflops=tflops(tiles, at), total_ms=total, sustained_ms=sustained(captured(both)),
                   over_own_dense=dense / total, launches=len(index.steps) + 1)
        if (n, gamma) in GOALS:
            row["goal_ms"] = GOALS[n, gamma]
        for name, (pb, ps) in others.items():
            row["%s_dense_ms" % name], row["over_%s" % name], row["over_%s_sustained" % name] = pb, pb / total, ps / row["sustained_ms"]
        if peer:
            try:
                beside_released(row, peer, [x.transpose(1, 2) for x in (q, k, v)], gamma)
            except Exception as e:  # a peer that does not run here is no reason to stop
                print("peer released at %d: %s: %s" % (n, type(e).__name__, str(e).splitlines()[0]), flush=True)
        if n in INDEX_GOALS:
            row["index_goal_ms"] = INDEX_GOALS[n]
        if n <= 131072:
            want, _ = flexindex.reference(q[0], k[0], gamma, min_budget=1024)
            row["jaccard"] = flexindex.jaccard(flexindex.masks(w, H, nb), want)
        rows = inputs.sample_rows(n, 64)
        full, mass = inputs.reference_rows(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), rows, tile=TILE)
        m = flexindex.masks(w, H, nb)[:, rows // TILE]
        row["coverage"] = (mass * m).sum(-1).mean().item()
        kept, _ = inputs.reference_rows(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), rows,
                                        keep=lambda h: m[h].repeat_interleave(2, 1))
        row["error"] = ((out[0][:, rows].float() - kept).norm() / kept.norm()).item()
        note(**row)


def errors(peers):
    """Relative error on random inputs, and the peers on the same inputs. Beside it that of float32 arithmetic which rounds
    the output alone, P alone relative to the maximum of its row, and both."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    for dt in (torch.bfloat16, torch.float16):
        q, k, v = (torch.randn(1, 8, 4096, D, device="cuda").to(dt) for _ in range(3))
        out, lse = torch.empty_like(q), torch.empty(1, 8, 4096, device="cuda")
        keep = torch.ones(4096, 4096, dtype=torch.bool, device="cuda").tril()[None, None].expand(1, 8, -1, -1)
        want, want_lse = check_attend.reference(q, k, v, keep, D ** -0.5)
        e = lambda x: ((x.float() - want).norm() / want.norm()).item()
        driver.Attend(fp16=dt == torch.float16).prepare(q, k, v, out, lse)()
        row = dict(what="error", dtype=str(dt), ours=e(out), lse=(lse - want_lse).abs().max().item(), output_rounding=e(want.to(dt)))
        scores = (q.float() @ k.float().transpose(-1, -2) * D ** -0.5).masked_fill(~keep, float("-inf"))
        p = torch.exp(scores - scores.amax(-1, keepdim=True))
        rounded = p.to(dt).float() @ v.float() / p.sum(-1, keepdim=True)
        row.update(p_rounding=e(rounded), both_roundings=e(rounded.to(dt)))
        del scores, p, rounded
        for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)) if peers else ():
            with sdpa_kernel(backend):
                row[name] = e(torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        note(**row)


def rotating(calls):
    """Milliseconds of one of several calls on inputs of their own, replayed as one graph: caches do not help."""
    return burst(captured(lambda: [f() for f in calls]), 20) / len(calls)


def decode(peers):
    """Few queries over a long cache: the floor is reading K and V once."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    a, b = torch.empty(1 << 29, device="cuda", dtype=torch.uint8), torch.empty(1 << 29, device="cuda", dtype=torch.uint8)
    copy = 2 * a.numel() / burst(lambda: b.copy_(a)) / 1e6
    note(what="copy", gb_s=copy)
    del a, b
    one, string = driver.Decode(), driver.Decode(bands=True)
    for n, batch, rows in ((4096, 1, 1), (8192, 1, 1), (32768, 1, 1), (131072, 1, 1), (8192, 16, 1), (32768, 1, 4), (32768, 1, 16)):
        size = 2 * batch * HKV * n * D * 2
        sets = max(2, min(16, (160 << 20) // size + 1))
        make_set = lambda: [torch.randn(batch, h, x, D, device="cuda").bfloat16() for h, x in ((H, rows), (HKV, n), (HKV, n))]
        data = [make_set() for _ in range(sets)]
        outs = [(torch.empty_like(q), torch.empty(batch, H, rows, device="cuda")) for q, _, _ in data]
        numbers = dict(q_offset=n - rows)
        ms = rotating([one.prepare(q, k, v, o, l, **numbers) for (q, k, v), (o, l) in zip(data, outs)])
        ms2 = rotating([string.prepare(q, k, v, o, l, q2=q, band=n // 3, **numbers) for (q, k, v), (o, l) in zip(data, outs)])
        row = dict(what="decode", n=n, batch=batch, rows=rows, us=1000 * ms, gb_s=size / ms / 1e6, of_copy=size / ms / 1e6 / copy, string_cost=ms2 / ms - 1)
        q, k, v = data[0]
        one.prepare(q, k, v, *outs[0], **numbers)()
        keep = torch.arange(n, device="cuda")[None] <= torch.arange(rows, device="cuda")[:, None] + n - rows
        want, _ = check_attend.reference(q[:1], k[:1], v[:1], keep[None, None].expand(1, H, rows, n), D ** -0.5)
        row["error"] = ((outs[0][0][:1].float() - want).norm() / want.norm()).item()
        for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)) if peers and rows == 1 else ():
            try:
                with sdpa_kernel(backend):
                    sdpa = lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
                    row["over_" + name] = rotating([lambda x=x: sdpa(*x) for x in data]) / ms
            except RuntimeError as e:
                print("peer %s decode at %d: %s" % (name, n, str(e).splitlines()[0]), flush=True)
        if peers and n == 32768 and rows == 1:
            from torch.nn.attention.flex_attention import flex_attention
            flex = torch.compile(flex_attention, dynamic=False)
            row["over_flex"] = rotating([lambda x=x: flex(*x, enable_gqa=True) for x in data]) / ms
        note(**row)
        del data, outs


def choosing(quick):
    """FlashPrefill's and XAttention's selections, and the certificate."""
    flash, stride, attend, probe, turn = selections.FlashPrefill(), selections.XAttention(16), driver.Attend(), driver.Decode(probe=True), driver.Rotate()
    for n in (8192, 32768) if quick else (8192, 32768, 131072):
        q, k, v = make(n)
        nb = n // TILE
        for name, kernel, arg, reference in (("flashprefill", flash, .12, selections.flashprefill_reference), ("xattention", stride, .9, selections.xattention_reference)):
            go, w = kernel.prepare(q, k, arg)
            go()
            row = dict(what=name, n=n, ms=burst(captured(go)), launches=kernel.launches, density=int(w["row_ptr"][-1]) / (H * nb * (nb + 1) / 2))
            if n <= 32768:
                row["jaccard"] = flexindex.jaccard(selections.dense_mask(w, H, nb, nb), reference(q[0], k[0], arg))
            note(**row)
        out, lse = torch.empty_like(q), torch.empty(1, H, n, device="cuda")
        m = synthetic(n, .1)[1]
        f = attend.prepare(q, k, v, out, lse, m)
        f()
        rows = (torch.arange(64, device="cuda") * n // 64 + torch.randint(0, n // 64, (1, H, 64), device="cuda")).int()
        go, dense, kept = probe.probe(q, k, lse, rows)
        out2 = torch.empty_like(q)
        freq = [500000.0 ** (-i / 64) for i in range(64)]
        r = turn.prepare(q, out2, freq, freq, offset=128.0 - n // 3, start=n // 3)
        note(what="certificate, 64 rows a head", n=n, ms=burst(captured(go)), attend_ms=burst(f), kept=kept.mean().item(), rotate_ms=burst(captured(r)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", default="")
    parser.add_argument("--parts", default="checks,matmul,errors,end,kernels,decode,choosing")
    parser.add_argument("--masks", default="", help="folder of masks that CPU strategies chose")
    parser.add_argument("--released", default="", help="checkout of the released FlexPrefill, to time beside ours")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-peers", action="store_true")
    args = parser.parse_args()
    p = torch.cuda.get_device_properties(0)
    note(what="machine", gpu=p.name, processors=p.multi_processor_count, torch=torch.__version__, cuda=torch.version.cuda)
    golden = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "golden", "flexprefill")
    ok, parts, peers = True, args.parts.split(","), not args.no_peers
    note(what="compile", seconds=driver.warm(driver.variants("checks" in parts)))
    if "checks" in parts:
        ok &= check_attend.main(32 if args.quick else 96)
        ok &= check_attend.main(32 if args.quick else 64, driver.AttendPlain)
        ok &= check_attend.main(64 if args.quick else 96, driver.Decode)
        ok &= check_attend.rest()
        ok &= check_selectors.random_cases()
        if args.masks:
            ok &= check_selectors.strategies(args.masks)
        ok &= check_index.main(golden)
        note(what="checks", passed=str(ok))
    a = torch.randn(8192, 8192, device="cuda").bfloat16()
    f = lambda: a @ a
    run = dict(matmul=lambda: note(what="matmul 8192", burst_tflops=2 * 8192 ** 3 / burst(f) / 1e9, sustained_tflops=2 * 8192 ** 3 / sustained(f) / 1e9),
               errors=lambda: errors(peers), end=lambda: end_to_end(args.quick, peers, args.released), kernels=lambda: kernels(args.quick, peers), decode=lambda: decode(peers), choosing=lambda: choosing(args.quick))
    for part in parts:
        if part in run:
            run[part]()
        if args.json:  # what is there, should the rest fail
            json.dump(results, open(args.json, "w"), indent=1)
    return ok


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
