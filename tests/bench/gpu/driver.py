"""libnvrtc and libcuda through ctypes: compiles the kernels of hardware/cuda/src and launches them on torch tensors."""
import ctypes as C
import glob
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


def compile(name, defines=(), arch="sm_90a", options=()):
    """The cubin of src/<name>, with the compiler's log and the seconds it took."""
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
                + [(n, C.c_int) for n in ("batch", "q_heads", "kv_heads", "q_blocks", "q_len", "k_len", "q_offset", "band", "window")]
                + [("scale", C.c_float), ("softcap", C.c_float)])


class Attend:
    """One compiled variant of attend_sm90.cu."""

    def __init__(self, head_dim=128, fp16=False, bands=False, window=False, softcap=False, sinks=False, extra=(), cubin=None, source="attend_sm90.cu"):
        on = [("FP16", fp16), ("BANDS", bands), ("WINDOW", window), ("SOFTCAP", softcap), ("SINKS", sinks)]
        self.module = Module(source, ["HEAD_DIM=%d" % head_dim] + [n for n, x in on if x] + list(extra), cubin=cubin)
        self.shared = (6 + bands) * 128 * head_dim * 2 + 1024 + 768
        self.f = self.module.function("attend", self.shared)
        self.counter = torch.zeros(2, dtype=torch.int32, device="cuda")
        self.sms = torch.cuda.get_device_properties(0).multi_processor_count

    def prepare(self, q, k, v, out, lse, mask=None, q2=None, sequences=None, sinks=None, q_offset=0, band=0, window=0,
                softcap=0.0, scale=None, q_len=None):
        """q, k, v, out as [batch, heads, n, head_dim]; mask = (row_ptr, cols). Returns a function that launches."""
        b, hq, n, d = q.shape
        p = lambda t: 0 if t is None else t.data_ptr()
        nb = (n + 127) // 128
        batch = b
        if sequences is not None:
            batch = sequences.shape[0]
            nb = (int(sequences[:, 1].max()) + 127) // 128
        if mask is not None and sequences is None:
            assert mask[0].numel() == b * hq * nb + 1
        a = AttendArgs(out=p(out), lse=p(lse), row_ptr=p(mask and mask[0]), cols=p(mask and mask[1]), sequences=p(sequences),
                       sinks=p(sinks), counter=p(self.counter), out_batch=out.stride(0), out_head=out.stride(1),
                       out_row=out.stride(2), lse_batch=lse.stride(0), lse_head=lse.stride(1), batch=batch, q_heads=hq,
                       kv_heads=k.shape[1], q_blocks=nb, q_len=n, k_len=k.shape[2], q_offset=q_offset, band=band, window=window,
                       scale=d ** -0.5 if scale is None else scale, softcap=softcap)
        maps = [tensor_map(q, 128), tensor_map(q if q2 is None else q2, 128), tensor_map(k, 128), tensor_map(v, 128)]
        grid = (min(self.sms, batch * hq * nb),)
        tensors = dict(q=q, q2=q if q2 is None else q2, k=k, v=v)
        hold = (out, lse, mask, sequences, sinks)
        return lambda _hold=hold: self.start(grid, maps, a, tensors)

    def start(self, grid, maps, a, tensors):
        launch(self.f, grid, 384, self.shared, maps + [a])


class AttendPlainArgs(C.Structure):
    _fields_ = ([("a", AttendArgs)] + [(n, C.c_void_p) for n in ("q", "q2", "k", "v")]
                + [(n, C.c_longlong) for t in ("q", "q2", "k", "v") for n in (t + "_batch", t + "_head", t + "_row")])


class AttendPlain(Attend):
    """One compiled variant of attend_sm80.cu."""

    def __init__(self, head_dim=128, fp16=False, bands=False, window=False, softcap=False, sinks=False, arch="sm_90a"):
        on = [("FP16", fp16), ("BANDS", bands), ("WINDOW", window), ("SOFTCAP", softcap), ("SINKS", sinks)]
        self.module = Module("attend_sm80.cu", ["HEAD_DIM=%d" % head_dim] + [n for n, x in on if x], arch)
        self.shared = (1 + bands) * 128 * head_dim * 2 + 4 * 64 * head_dim * 2
        self.f = self.module.function("attend_plain", self.shared)
        self.counter = torch.zeros(2, dtype=torch.int32, device="cuda")
        self.sms = 1 << 30

    def start(self, grid, maps, a, tensors):
        x = AttendPlainArgs(a=a, **{n: t.data_ptr() for n, t in tensors.items()},
                            **{"%s_%s" % (n, axis): t.stride(i) for n, t in tensors.items() for i, axis in enumerate(("batch", "head", "row"))})
        launch(self.f, grid, 256, self.shared, [x])


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
