// FlexPrefill's representative attention in plain float32 arithmetic: any even head_dim, blocks of 64 or 128, any input
// type. It is the reference of the tensor-core version, and what devices before sm_90 use.
// FLOAT_INPUT: q and k are float32; otherwise bf16, or fp16 with FP16.
#include "flexindex.cuh"

// Softmax of one probe row over all keys. Grid (block, heads), 256 threads, shared: 34 + 2 d floats.
extern "C" __global__ void __launch_bounds__(256) flexindex_plain_rows(const __grid_constant__ IndexArgs a) {
  extern __shared__ float shared[];
  const int row = blockIdx.x, head = blockIdx.y, batch = head / a.q_heads, q_head = head % a.q_heads;
  const int query = a.n - a.block + row;
  float* q = shared + 34;
  const long long q_base = batch * a.q_batch + q_head * a.q_head + (long long)(query - a.q_offset) * a.q_row;
  const long long k_base = batch * a.k_batch + kv_head_of(a, q_head) * a.k_head;
  for (int i = threadIdx.x; i < a.d / 2; i += blockDim.x) {
    const float2 x = load_pair(a.q, q_base + 2 * i);
    q[2 * i] = x.x * a.scale;
    q[2 * i + 1] = x.y * a.scale;
    if (a.q2) {
      const float2 y = load_pair(a.q2, batch * a.q2_batch + q_head * a.q2_head + (long long)(query - a.q_offset) * a.q2_row + 2 * i);
      q[a.d + 2 * i] = y.x * a.scale;
      q[a.d + 2 * i + 1] = y.y * a.scale;
    }
  }
  __syncthreads();
  float* out = a.scores + ((long long)head * a.block + row) * a.n;
  float top = NEG_INF;
  for (int key = threadIdx.x; key < a.n; key += blockDim.x) {
    float s = NEG_INF;
    if (key <= query && (a.window == 0 || query - key < a.window)) {
      const float* by = a.q2 && query - key >= a.band ? q + a.d : q;
      s = 0.0f;
      for (int i = 0; i < a.d / 2; ++i) {
        const float2 x = load_pair(a.k, k_base + (long long)key * a.k_row + 2 * i);
        s += by[2 * i] * x.x + by[2 * i + 1] * x.y;
      }
      s = capped(a, s);
    }
    out[key] = s;
    top = fmaxf(top, s);
  }
  for (int o = 16; o; o >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x / 32] = top;
  __syncthreads();
  for (int w = 0; w < 8; ++w) top = fmaxf(top, shared[w]);
  float sum = 0.0f;
  for (int key = threadIdx.x; key < a.n; key += blockDim.x) sum += expf(out[key] - top);
  sum = block_sum(sum, shared);
  for (int key = threadIdx.x; key < a.n; key += blockDim.x) out[key] = expf(out[key] - top) / sum;
}

// Sums by key and by distance. Grid (ceil(n / 256), heads), 256 threads, shared: 34 + 2 d floats.
extern "C" __global__ void __launch_bounds__(256) flexindex_plain_sums(const __grid_constant__ IndexArgs a) {
  extern __shared__ float shared[];
  const int head = blockIdx.y, i = blockIdx.x * 256 + threadIdx.x;
  const float* p = a.scores + (long long)head * a.block * a.n;
  if (i < a.n) {
    float column = 0.0f, diagonal = 0.0f;
    for (int r = 0; r < a.block; ++r) {
      column += p[(long long)r * a.n + i];
      const int key = a.n - a.block + r - i;
      if (key >= 0) diagonal += p[(long long)r * a.n + key];
    }
    a.vertical[(long long)head * a.n + i] = column / a.block;
    a.slash[(long long)head * a.n + i] = diagonal / a.block;
  }
  if (last_block(a.done + head, gridDim.x)) decide_head<false>(a, head, shared);
}
