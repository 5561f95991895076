// The sm_90a instructions the kernels use, as inline PTX: no CUDA header is needed to compile them.
#pragma once

#ifdef FP16
#define MMA_TYPE "f16"
#else
#define MMA_TYPE "bf16"
#endif

#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

// TensorMap is CUtensorMap: opaque, 128 bytes, passed by value as a __grid_constant__ parameter.
struct alignas(64) TensorMap { u64 opaque[16]; };

constexpr int kTile = 128;  // rows and keys of a tile

#define NEG_INF (-__int_as_float(0x7f800000))

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// ---- mbarriers -------------------------------------------------------------------------------------------------
__device__ __forceinline__ void barrier_init(u32 bar, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals));
}
__device__ __forceinline__ void barrier_arrive(u32 bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
__device__ __forceinline__ void barrier_expect(u32 bar, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_wait(u32 bar, u32 parity) {
  asm volatile(
      "{\n.reg .pred p;\nwait_loop:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@p bra wait_done;\nbra wait_loop;\nwait_done:\n}"
      ::"r"(bar), "r"(parity) : "memory");
}
__device__ __forceinline__ void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// ---- TMA: one box of 64 elements x rows, 128-byte swizzle --------------------------------------------------------
__device__ __forceinline__ void tma_load(u32 dst, const TensorMap* map, u32 bar, int d, int row, int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];"
      ::"r"(dst), "l"((u64)map), "r"(bar), "r"(d), "r"(row), "r"(head), "r"(batch) : "memory");
}
// Shared memory written by ordinary stores is visible to copies and products that this thread, or one that it then
// synchronises with, starts.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Stores a box, if `on`: a predicate instead of a branch, for which ptxas would serialise the wgmma around it (C7520).
// Rows and columns behind the end of the tensor are not written; negative ones trap.
__device__ __forceinline__ void tma_store(bool on, const TensorMap* map, u32 src, int d, int row, int head, int batch) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"
      "@p cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];\n}"
      ::"l"((u64)map), "r"(src), "r"(d), "r"(row), "r"(head), "r"(batch), "r"((int)on) : "memory");
}
__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until the stores that this thread committed have read shared memory.
__device__ __forceinline__ void bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
template <int N> __device__ __forceinline__ void registers_take() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> __device__ __forceinline__ void registers_give() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

// ---- wgmma -----------------------------------------------------------------------------------------------------
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

// Keeps the compiler from moving accumulators across an asynchronous product.
template <int N> __device__ __forceinline__ void pin(float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(x[i])::"memory");
}

// Descriptors: 128-byte swizzle, 1024 bytes from one group of eight rows to the next.
// K-major (Q, K: head_dim contiguous): a step of 16 along head_dim is 32 bytes.
// MN-major (V: keys are the reduced axis): a step of 16 keys is 2048 bytes, lead = bytes between 64-wide halves of head_dim.
__device__ __forceinline__ u64 descriptor(u32 address, u32 lead) {
  const u32 low = ((address & 0x3ffff) >> 4) | (lead >> 4) << 16;
  u64 d;
  asm("mov.b64 %0, {%1, %2};" : "=l"(d) : "r"(low), "r"(0x40000000u | (1024 >> 4)));
  return d;
}
// The descriptor `bytes` further on; the address field does not overflow, so one 32-bit addition is enough.
__device__ __forceinline__ u64 advance(u64 d, u32 bytes) {
  u64 r;
  asm("{\n.reg .b32 l, h;\nmov.b64 {l, h}, %1;\nadd.u32 l, l, %2;\nmov.b64 %0, {l, h};\n}" : "=l"(r) : "l"(d), "r"(bytes >> 4));
  return r;
}

#define ACC16(d, o)                                                                                             \
  "+f"(d[o]), "+f"(d[o + 1]), "+f"(d[o + 2]), "+f"(d[o + 3]), "+f"(d[o + 4]), "+f"(d[o + 5]), "+f"(d[o + 6]),   \
      "+f"(d[o + 7]), "+f"(d[o + 8]), "+f"(d[o + 9]), "+f"(d[o + 10]), "+f"(d[o + 11]), "+f"(d[o + 12]),        \
      "+f"(d[o + 13]), "+f"(d[o + 14]), "+f"(d[o + 15])
#define REGS32                                                                                   \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"       \
  "%24,%25,%26,%27,%28,%29,%30,%31"
#define REGS64                                                                                   \
  REGS32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,"     \
         "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define REGS128                                                                                  \
  REGS64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,"     \
         "%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,"  \
         "%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,"      \
         "%120,%121,%122,%123,%124,%125,%126,%127"
#define WGMMA(n) "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." MMA_TYPE "." MMA_TYPE " "

// d[64 x 128] (+)= A . B with A[64 x 16] in registers, B in shared memory; transposed = 1 when B is MN-major.
template <int transposed> __device__ __forceinline__ void wgmma_rs(float (&d)[64], const u32 (&a)[4], u64 b, int accumulate) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n" WGMMA(128) "{" REGS64 "}, {%64,%65,%66,%67}, %68, p, 1, 1, %70;\n}"
               : ACC16(d, 0), ACC16(d, 16), ACC16(d, 32), ACC16(d, 48)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(transposed));
}
// d[64 x 64] += A . B with A in registers (head_dim 64).
template <int transposed> __device__ __forceinline__ void wgmma_rs(float (&d)[32], const u32 (&a)[4], u64 b, int accumulate) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n" WGMMA(64) "{" REGS32 "}, {%32,%33,%34,%35}, %36, p, 1, 1, %38;\n}"
               : ACC16(d, 0), ACC16(d, 16)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(transposed));
}

// d[64 x 128] (+)= A . B with both in shared memory, K-major.
__device__ __forceinline__ void wgmma_ss(float (&d)[64], u64 a, u64 b, int accumulate) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n" WGMMA(128) "{" REGS64 "}, %64, %65, p, 1, 1, 0, 0;\n}"
               : ACC16(d, 0), ACC16(d, 16), ACC16(d, 32), ACC16(d, 48)
               : "l"(a), "l"(b), "r"(accumulate));
}
// d[64 x 64] (+)= A . B with both in shared memory, K-major.
__device__ __forceinline__ void wgmma_ss(float (&d)[32], u64 a, u64 b, int accumulate) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n" WGMMA(64) "{" REGS32 "}, %32, %33, p, 1, 1, 0, 0;\n}"
               : ACC16(d, 0), ACC16(d, 16)
               : "l"(a), "l"(b), "r"(accumulate));
}
// d[64 x 256] (+)= A . B with both in shared memory, K-major.
__device__ __forceinline__ void wgmma_ss(float (&d)[128], u64 a, u64 b, int accumulate) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n" WGMMA(256) "{" REGS128 "}, %128, %129, p, 1, 1, 0, 0;\n}"
               : ACC16(d, 0), ACC16(d, 16), ACC16(d, 32), ACC16(d, 48), ACC16(d, 64), ACC16(d, 80), ACC16(d, 96), ACC16(d, 112)
               : "l"(a), "l"(b), "r"(accumulate));
}

// ---- arithmetic ------------------------------------------------------------------------------------------------
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Two floats rounded to the 16-bit type, the first in the low half.
__device__ __forceinline__ u32 pack(float lo, float hi) {
  u32 r;
  asm("cvt.rn." MMA_TYPE "x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
__device__ __forceinline__ float unpack_lo(u32 x) {
#ifdef FP16
  float y;
  asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %1;\ncvt.f32.f16 %0, l;\n}" : "=f"(y) : "r"(x));
  return y;
#else
  return __uint_as_float(x << 16);
#endif
}
__device__ __forceinline__ float unpack_hi(u32 x) {
#ifdef FP16
  float y;
  asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %1;\ncvt.f32.f16 %0, h;\n}" : "=f"(y) : "r"(x));
  return y;
#else
  return __uint_as_float(x & 0xffff0000u);
#endif
}
__device__ __forceinline__ void stmatrix_x4(u32 address, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
__device__ __forceinline__ void ldmatrix_x4(u32 address, u32 (&a)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(address) : "memory");
}
