"""libnvrtc and libcuda through ctypes: compiles the kernels of hardware/cuda/src and launches them on torch tensors."""
import ctypes as C
import glob
import math
import os
import time

import torch

SRC = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "hardware", "cuda", "src")


def _open(names, folders=()):
    for folder in ("",) + tuple(folders):
        for name in names:
            for path in sorted(glob.glob(os.path.join(folder, name))) if folder else [name]:
                try:
                    return C.CDLL(path)
                except OSError:
                    pass
    raise OSError("none of %s found" % (names,))


def _site_folders():
    root = os.path.dirname(os.path.dirname(torch.__file__))
    return glob.glob(os.path.join(root, "nvidia", "*", "lib"))


_nvrtc = _open([os.environ.get("TRIVIUM_NVRTC") or "libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"], _site_folders())
_cuda = None


def cuda():
    global _cuda
    if _cuda is None:
        _cuda = C.CDLL("libcuda.so.1")
        torch.cuda.init()
        torch.zeros(1, device="cuda")
    return _cuda


def check(rc, what):
    if rc:
        text = C.c_char_p()
        cuda().cuGetErrorString(rc, C.byref(text))
        raise RuntimeError("%s: %s (%d)" % (what, text.value.decode() if text.value else "?", rc))


_compiled = {}


def compile(name, defines=(), arch="sm_90a", options=()):
    """The cubin of src/<name>, with the compiler's log and the seconds it took; once for each way.

    CUBINS names a folder that keeps them for other processes of the same checkout."""
    key = (name, tuple(sorted(defines)), arch, tuple(options))
    folder = os.environ.get("CUBINS")
    path = folder and os.path.join(folder, "_".join((name, arch) + key[1]).replace("=", "") + ".cubin")
    if key not in _compiled and path and os.path.exists(path):
        _compiled[key] = open(path, "rb").read(), "", 0.0
    if key not in _compiled:
        _compiled[key] = _compile(name, defines, arch, options)
        if path:
            os.makedirs(folder, exist_ok=True)
            with open(path + ".%d" % os.getpid(), "wb") as f:
                f.write(_compiled[key][0])
            os.rename(path + ".%d" % os.getpid(), path)
    return _compiled[key]


def warm(specs):
    """Compiles (name, defines, arch) on all cores."""
    from concurrent.futures import ThreadPoolExecutor
    t = time.time()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda s: compile(*s), specs))
    return time.time() - t


def variants(full=True):
    """What the checks need: (name, defines, arch)."""
    specs = [("flexindex_select.cu", x, "sm_90a") for x in ([], ["FP16"], ["FLOAT_INPUT"])] + [("flexindex_scores_plain.cu", x, "sm_90a") for x in ([], ["FP16"], ["FLOAT_INPUT"])]
    specs += [("select_mask.cu", [], "sm_90a"), ("table.cu", [], "sm_90a"), ("rotate.cu", [], "sm_90a"), ("rotate.cu", ["FP16"], "sm_90a")]
    every = [[], ["BANDS"], ["WINDOW"], ["SOFTCAP"], ["SINKS"], ["BANDS", "WINDOW"], ["BANDS", "WINDOW", "SOFTCAP", "SINKS"]]
    turns = {64: (0, 1, 2), 128: (0, 2, 3, 4)}
    for half in ([], ["FP16"]):
        specs += [(x, ["STRIDE=%d" % s] + half, "sm_90a") for s in (8, 16) for x in ("xattention.cu", "xattention_sm90.cu")]
        for d in (64, 128):
            base = ["HEAD_DIM=%d" % d] + half
            specs += [("flexindex_scores_sm90.cu", half + ["HEAD_DIM=%d" % d], "sm_90a"), ("flashprefill.cu", base, "sm_90a"), ("flashprefill_sm90.cu", base, "sm_90a")]
            specs += [("attend_sm90.cu", base + f + ["TURN=%d" % x], "sm_90a") for f in ([["BANDS"], ["BANDS", "WINDOW"]] if full else []) for x in turns[d]]
            for f in every if full else [[]]:
                on = ["HEAD_DIM=%d" % d] + half + f
                specs += [("attend_sm90.cu", on, "sm_90a"), ("attend_sm80.cu", on, "sm_90a"), ("decode.cu", on, "sm_90a")]
                if not half:
                    specs += [("decode.cu", on + ["PROBE"], "sm_90a")]
    return specs


def _compile(name, defines, arch, options):
    headers = sorted(glob.glob(os.path.join(SRC, "*.cuh")) + glob.glob(os.path.join(SRC, "*.h")))
    source = open(os.path.join(SRC, name), "rb").read()
    bodies = (C.c_char_p * len(headers))(*[open(h, "rb").read() for h in headers])
    names = (C.c_char_p * len(headers))(*[os.path.basename(h).encode() for h in headers])
    prog = C.c_void_p()
    _nvrtc.nvrtcCreateProgram(C.byref(prog), source, name.encode(), len(headers), bodies, names)
    opts = ["--gpu-architecture=" + arch, "--std=c++17", "-lineinfo", "--ptxas-options=-v"]
    opts += ["-D" + d for d in defines] + list(options)
    t = time.time()
    rc = _nvrtc.nvrtcCompileProgram(prog, len(opts), (C.c_char_p * len(opts))(*[o.encode() for o in opts]))
    t = time.time() - t
    n = C.c_size_t()
    _nvrtc.nvrtcGetProgramLogSize(prog, C.byref(n))
    log = C.create_string_buffer(n.value)
    _nvrtc.nvrtcGetProgramLog(prog, log)
    if rc:
        raise RuntimeError("nvrtc: " + log.value.decode())
    _nvrtc.nvrtcGetCUBINSize(prog, C.byref(n))
    cubin = C.create_string_buffer(n.value)
    _nvrtc.nvrtcGetCUBIN(prog, cubin)
    return cubin.raw, log.value.decode(), t


class Module:
    def __init__(self, name, defines=(), arch="sm_90a", cubin=None):
        if cubin is None:
            cubin, self.log, self.seconds = compile(name, defines, arch)
        self.module = C.c_void_p()
        check(cuda().cuModuleLoadData(C.byref(self.module), cubin), "cuModuleLoadData")

    def function(self, name, shared=0):
        f = C.c_void_p()
        check(cuda().cuModuleGetFunction(C.byref(f), self.module, name.encode()), name)
        if shared:
            check(cuda().cuFuncSetAttribute(f, 8, shared), "cuFuncSetAttribute")
            check(cuda().cuFuncSetAttribute(f, 9, 100), "cuFuncSetAttribute")  # all of L1 as shared memory
        return f


def launch(f, grid, block, shared, args):
    """args: ctypes values and structures, passed in order."""
    ptrs = (C.c_void_p * len(args))(*[C.cast(C.pointer(a), C.c_void_p) for a in args])
    stream = C.c_void_p(torch.cuda.current_stream().cuda_stream)
    g = tuple(grid) + (1,) * (3 - len(grid))
    check(cuda().cuLaunchKernel(f, *g, block, 1, 1, shared, stream, ptrs, None), "cuLaunchKernel")


class TensorMap(C.Structure):
    _fields_ = [("opaque", C.c_uint64 * 16)]


def _aligned(cls, alignment=64):
    buf = C.create_string_buffer(C.sizeof(cls) + alignment)
    a = (C.addressof(buf) + alignment - 1) // alignment * alignment
    x = cls.from_address(a)
    x._keep = buf
    return x


def tensor_map(x, rows):
    """Map of x [batch, heads, n, head_dim] (any strides, head_dim contiguous): boxes of rows x 64, 128-byte swizzle."""
    b, h, n, d = x.shape
    assert x.stride(3) == 1 and x.data_ptr() % 16 == 0
    m = _aligned(TensorMap)
    dims = (C.c_uint64 * 4)(d, n, h, b)
    e = x.element_size()
    strides = (C.c_uint64 * 3)(*[max(16, s * e) for s in (x.stride(2), x.stride(1), x.stride(0))])
    box = (C.c_uint32 * 4)(64, rows, 1, 1)
    ones = (C.c_uint32 * 4)(1, 1, 1, 1)
    dtype = 9 if x.dtype == torch.bfloat16 else 6
    check(cuda().cuTensorMapEncodeTiled(C.byref(m), dtype, 4, C.c_void_p(x.data_ptr()), dims, strides, box, ones,
                                        0, 3, 2, 0), "cuTensorMapEncodeTiled")
    return m


class AttendArgs(C.Structure):
    _fields_ = ([("out", C.c_void_p), ("lse", C.c_void_p), ("row_ptr", C.c_void_p), ("cols", C.c_void_p),
                 ("sequences", C.c_void_p), ("sinks", C.c_void_p), ("counter", C.c_void_p)]
                + [(n, C.c_longlong) for n in ("out_batch", "out_head", "out_row", "lse_batch", "lse_head")]
                + [(n, C.c_int) for n in ("batch", "q_heads", "kv_heads", "q_blocks", "q_len", "k_len", "q_offset", "skip", "head_dim", "k_rows", "band", "window")]
                + [("scale", C.c_float), ("softcap", C.c_float)])


class AttendTurnArgs(C.Structure):
    _fields_ = [("a", AttendArgs), ("turn", C.c_float * 2 * 64)]


def turn_args(a, angles):
    """With a turn of each pair of columns by its angle."""
    x = AttendTurnArgs(a=a)
    for i in range(64):
        angle = angles[i] if i < len(angles) else 0.0
        x.turn[i][0], x.turn[i][1] = math.cos(angle), math.sin(angle)
    return x


def turn_steps(pairs, interleaved):
    """The kernel's TURN."""
    assert interleaved or pairs % 16 == 0
    return 0 if interleaved else pairs // 16


def compiled_dim(d):
    return 64 if d <= 64 else 128


def aligned(sequences, step=128):
    """Rows (q_row, q_len, k_row, k_len, q_offset, box) as the kernels take them: blocks on multiples of step in position."""
    rows = [(q - o % step, n + o % step, k, m, o - o % step, o % step, box, 0) for q, n, k, m, o, box in sequences]
    return torch.tensor(rows, dtype=torch.int32, device="cuda")


class Attend:
    """One compiled variant of attend_sm90.cu; turn: its TURN."""

    def __init__(self, head_dim=128, fp16=False, bands=False, window=False, softcap=False, sinks=False, turn=None):
        on = [("FP16", fp16), ("BANDS", bands), ("WINDOW", window), ("SOFTCAP", softcap), ("SINKS", sinks), ("TURN=%s" % turn, turn is not None)]
        head_dim = compiled_dim(head_dim)
        self.module = Module("attend_sm90.cu", ["HEAD_DIM=%d" % head_dim] + [n for n, x in on if x])
        self.shared = (6 + bands) * 128 * head_dim * 2 + 1024 + 1024 * (1 if turn is None else 2)
        self.f = self.module.function("attend", self.shared)
        self.counter = torch.zeros(2, dtype=torch.int32, device="cuda")
        self.sms = torch.cuda.get_device_properties(0).multi_processor_count

    align = 128

    def arguments(self, q, k, v, out, lse, mask=None, sequences=None, sinks=None, q_offset=0, band=0, window=0, softcap=0.0, scale=None):
        b, hq, n, d = q.shape
        p = lambda t: 0 if t is None else t.data_ptr()
        skip, batch = q_offset % self.align, b
        n, q_offset = n + skip, q_offset - skip
        nb = (n + 127) // 128
        if sequences is not None:
            batch = sequences.shape[0]
            nb = (int(sequences[:, 1].max()) + 127) // 128
        if mask is not None:
            assert mask[0].numel() == batch * hq * nb + 1
        return AttendArgs(out=p(out), lse=p(lse), row_ptr=p(mask and mask[0]), cols=p(mask and mask[1]), sequences=p(sequences),
                       sinks=p(sinks), counter=p(self.counter), out_batch=out.stride(0), out_head=out.stride(1),
                       out_row=out.stride(2), lse_batch=lse.stride(0), lse_head=lse.stride(1), batch=batch, q_heads=hq,
                       kv_heads=k.shape[1], q_blocks=nb, q_len=n, k_len=k.shape[2], q_offset=q_offset, skip=skip, head_dim=d, k_rows=k.shape[2],
                       band=band, window=window, scale=d ** -0.5 if scale is None else scale, softcap=softcap)

    def prepare(self, q, k, v, out, lse, mask=None, q2=None, sequences=None, sinks=None, angles=None, **numbers):
        """q, k, v, out as [batch, heads, n, head_dim]; mask = (row_ptr, cols); with bands q2, or the angles that turn q into it.
        Returns a function that launches."""
        a = self.arguments(q, k, v, out, lse, mask, sequences, sinks, **numbers)
        maps = [tensor_map(q, 128), tensor_map(q if q2 is None else q2, 128), tensor_map(k, 128), tensor_map(v, 128), tensor_map(out, 16)]
        grid = (min(self.sms, a.batch * a.q_heads * a.q_blocks),)
        tensors = dict(q=q, q2=q if q2 is None else q2, k=k, v=v)
        hold = (out, lse, mask, sequences, sinks)
        args = a if angles is None else turn_args(a, angles)
        return lambda _hold=hold: self.start(grid, maps, args, tensors)

    def start(self, grid, maps, a, tensors):
        launch(self.f, grid, 384, self.shared, maps + [a])


class AttendPlainArgs(C.Structure):
    _fields_ = ([("a", AttendArgs)] + [(n, C.c_void_p) for n in ("q", "q2", "k", "v")]
                + [(n, C.c_longlong) for t in ("q", "q2", "k", "v") for n in (t + "_batch", t + "_head", t + "_row")])


class AttendPlain(Attend):
    """One compiled variant of attend_sm80.cu."""

    def __init__(self, head_dim=128, fp16=False, bands=False, window=False, softcap=False, sinks=False, arch="sm_90a"):
        on = [("FP16", fp16), ("BANDS", bands), ("WINDOW", window), ("SOFTCAP", softcap), ("SINKS", sinks)]
        head_dim = compiled_dim(head_dim)
        self.module = Module("attend_sm80.cu", ["HEAD_DIM=%d" % head_dim] + [n for n, x in on if x], arch)
        self.shared = (1 + bands) * 128 * head_dim * 2 + 4 * 64 * head_dim * 2
        self.f = self.module.function("attend_plain", self.shared)
        self.counter = torch.zeros(2, dtype=torch.int32, device="cuda")
        self.sms = 1 << 30

    def start(self, grid, maps, a, tensors):
        launch(self.f, grid, 256, self.shared, [plain_args(a, tensors)])


def plain_args(a, tensors):
    return AttendPlainArgs(a=a, **{n: t.data_ptr() for n, t in tensors.items()},
                           **{"%s_%s" % (n, axis): t.stride(i) for n, t in tensors.items() for i, axis in enumerate(("batch", "head", "row"))})


class DecodeArgs(C.Structure):
    _fields_ = ([("x", AttendPlainArgs)] + [(n, C.c_void_p) for n in ("partial", "partial_rows", "done", "probe_rows", "dense", "kept")]
                + [(n, C.c_int) for n in ("splits", "row_tiles", "probes")])


class Decode(Attend):
    """One compiled variant of decode.cu."""
    align, rows, tensors = 1, 16, 2

    def __init__(self, head_dim=128, fp16=False, bands=False, window=False, softcap=False, sinks=False, probe=False, arch="sm_90a"):
        on = [("FP16", fp16), ("BANDS", bands), ("WINDOW", window), ("SOFTCAP", softcap), ("SINKS", sinks), ("PROBE", probe)]
        self.dim = compiled_dim(head_dim)
        self.module = Module("decode.cu", ["HEAD_DIM=%d" % self.dim] + [n for n, x in on if x], arch)
        if probe:
            self.rows, self.tensors = 64 // (1 + bands), 1
        self.shared = 8 * 3 * self.tensors * 4096
        self.f = self.module.function("decode", self.shared)
        self.sms = torch.cuda.get_device_properties(0).multi_processor_count
        self.counter = torch.zeros(2, dtype=torch.int32, device="cuda")

    def split(self, a, q, k, v, q2, groups, row_tiles, hold, **more):
        splits = splits_of(groups * row_tiles, -(-k.shape[2] // 128), self.sms)
        parts = groups * row_tiles * splits
        new = lambda *s: torch.full(s, float("nan"), device="cuda")
        partial, partial_rows = new(parts, 16, self.dim if self.tensors == 2 else 0), new(parts, self.rows, 2)
        done = torch.zeros(groups * row_tiles, dtype=torch.int32, device="cuda")
        x = DecodeArgs(x=plain_args(a, dict(q=q, q2=q if q2 is None else q2, k=k, v=v)), partial=partial.data_ptr(),
                       partial_rows=partial_rows.data_ptr(), done=done.data_ptr(), splits=splits, row_tiles=row_tiles, **more)
        hold = (hold, partial, partial_rows, done, q, k, v, q2)
        return lambda _hold=hold: launch(self.f, (row_tiles * splits, groups), 256, self.shared, [x])

    def prepare(self, q, k, v, out, lse, mask=None, q2=None, sequences=None, sinks=None, **numbers):
        a = self.arguments(q, k, v, out, lse, mask, sequences, sinks, **numbers)
        longest = q.shape[2] if sequences is None else int(sequences[:, 1].max())
        return self.split(a, q, k, v, q2, a.batch * k.shape[1], -(-(q.shape[1] // k.shape[1]) * longest // self.rows), (out, lse, sequences, sinks))

    def probe(self, q, k, lse, rows, q2=None, sequences=None, sinks=None, **numbers):
        """rows: int32 [sequences, heads, probes]. Returns a function that launches, and the dense LSE and the kept mass."""
        a = self.arguments(q, k, k, q, lse, None, sequences, sinks, **numbers)
        dense, kept = torch.full(rows.shape, float("nan"), device="cuda"), torch.full(rows.shape, float("nan"), device="cuda")
        go = self.split(a, q, k, k, q2, a.batch * q.shape[1], -(-rows.shape[2] // self.rows), (lse, rows, sequences, sinks, dense, kept),
                        probe_rows=rows.data_ptr(), dense=dense.data_ptr(), kept=kept.data_ptr(), probes=rows.shape[2])
        return go, dense, kept


def splits_of(blocks, tiles, sms):
    """Runs of keys for each block: the fewest waves, a block's start and end counted as two tiles."""
    cost = lambda s: -(-s * blocks // sms) * (-(-tiles // s) + 2)
    return min((s for s in range(1, tiles + 1) if s == 1 or s * blocks <= 4 * sms), key=cost)


class SequenceRow(C.Structure):
    _fields_ = [(n, C.c_int) for n in ("q_row", "q_len", "k_row", "k_len", "q_offset", "skip", "box", "unused")]


class TableArgs(C.Structure):
    _fields_ = [("table", C.c_void_p), ("count", C.c_int), ("rows", SequenceRow * 64)]


def store_table(rows):
    """The rows of aligned() through the kernel that the host code uses."""
    out = torch.full((len(rows), 8), -1, dtype=torch.int32, device="cuda")
    f = Module("table.cu", arch="sm_90a").function("store_table")
    for first in range(0, len(rows), 64):
        part = rows[first:first + 64]
        x = TableArgs(table=out[first:].data_ptr(), count=len(part), rows=(SequenceRow * 64)(*[SequenceRow(*r) for r in part]))
        launch(f, (1,), 64, 0, [x])
    return out


class RotateArgs(C.Structure):
    _fields_ = ([("input", C.c_void_p), ("out", C.c_void_p), ("sequences", C.c_void_p)]
                + [(n, C.c_longlong) for n in ("in_batch", "in_head", "in_row", "out_batch", "out_head", "out_row", "modulo", "group")]
                + [(n, C.c_double) for n in ("scale", "offset", "limit")] + [("applied", C.c_double * 64), ("wanted", C.c_double * 64)]
                + [(n, C.c_int) for n in ("batch", "heads", "rows", "q_offset", "head_dim", "pairs", "interleaved", "start")])


class Rotate:
    def __init__(self, fp16=False):
        self.f = Module("rotate.cu", ["FP16"] if fp16 else []).function("rotate")

    def prepare(self, q, out, applied, wanted, q_offset=0, modulo=0, group=0, scale=1.0, offset=0.0, limit=0.0, interleaved=False, start=0):
        b, h, n, d = q.shape
        a = RotateArgs(input=q.data_ptr(), out=out.data_ptr(), in_batch=q.stride(0), in_head=q.stride(1), in_row=q.stride(2),
                       out_batch=out.stride(0), out_head=out.stride(1), out_row=out.stride(2), modulo=modulo, group=group, scale=scale,
                       offset=offset, limit=limit, applied=(C.c_double * 64)(*applied), wanted=(C.c_double * 64)(*wanted), batch=b, heads=h,
                       rows=n, q_offset=q_offset, head_dim=d, pairs=len(wanted), interleaved=int(interleaved), start=start)
        return lambda _hold=(q, out): launch(self.f, (-(-n // 4), b), 256, 0, [a])


def csr(mask):
    """bool [batch, heads, query blocks, key blocks] -> (row_ptr, cols) int32 on its device."""
    counts = mask.flatten(0, 2).sum(-1)
    row_ptr = torch.zeros(counts.numel() + 1, dtype=torch.int32, device=mask.device)
    row_ptr[1:] = counts.cumsum(0)
    return row_ptr, mask.flatten(0, 2).nonzero()[:, 1].to(torch.int32).contiguous()


def median_ms(f, repeat=10, warm=2):
    for _ in range(warm):
        f()
    times = []
    for _ in range(repeat):
        s, e = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        s.record()
        f()
        e.record()
        e.synchronize()
        times.append(s.elapsed_time(e))
    return sorted(times)[len(times) // 2]
