// Dense costs between points x (n, d) and y (d, m): ||x - y||_2 ** power, and ||x - y||_1.
//
// A block computes a tile of 64 x 64 costs, a thread 4 x 4 of them; 16 coordinates at a time of the points of the tile
// wait in shared memory. Differences come first, so that near points keep their digits.
//
// Roofline on an H100 (3.35 TB/s, 132 SMs at 1.755 GHz), from the counts alone and never measured; per cost, s bytes
// each, n = m = 10^4:
//   pairwise_cost: writes s bytes, 2 d instructions (3 d flops), a square root or a log2 and an exp2 where the power is
//     neither 1 nor 2. d = 3: bound by the writes, 0.12 ms in float32 and 0.24 ms in float64. d = 100: bound by
//     arithmetic at 128 (float64: 64) lanes a clock, 0.7 ms in float32 and 1.4 ms in float64.

typedef float float32;
typedef double float64;

constexpr int SIDE = 64, DEPTH = 16, EACH = 4, LANES = SIDE / EACH;
constexpr int CITYBLOCK = 1;

template <int METRIC, typename T>
__device__ __forceinline__ void pairwise_cost(const T* x, const T* y, i64 n, i64 m, i64 d, T half_power, T* out) {
  __shared__ T xs[DEPTH][SIDE + 1], ys[DEPTH][SIDE];
  const i64 across = (m + SIDE - 1) / SIDE, top = blockIdx.x / across * SIDE, left = blockIdx.x % across * SIDE;
  const int tx = threadIdx.x % LANES, ty = threadIdx.x / LANES;
  T cost[EACH][EACH];
#pragma unroll
  for (int r = 0; r < EACH; ++r)
#pragma unroll
    for (int c = 0; c < EACH; ++c) cost[r][c] = 0;
  for (i64 first = 0; first < d; first += DEPTH) {
    const int depth = d - first < DEPTH ? (int)(d - first) : DEPTH;
    for (int e = threadIdx.x; e < DEPTH * SIDE; e += LANES * LANES) {
      const int p = e % DEPTH, row = e / DEPTH, column = e % SIDE, q = e / SIDE;
      if (p < depth) xs[p][row] = top + row < n ? x[(top + row) * d + first + p] : (T)0;
      if (q < depth) ys[q][column] = left + column < m ? y[(first + q) * m + left + column] : (T)0;
    }
    __syncthreads();
    for (int p = 0; p < depth; ++p) {
      T u[EACH], v[EACH];
#pragma unroll
      for (int e = 0; e < EACH; ++e) {
        u[e] = xs[p][ty + LANES * e];
        v[e] = ys[p][tx + LANES * e];
      }
#pragma unroll
      for (int r = 0; r < EACH; ++r)
#pragma unroll
        for (int c = 0; c < EACH; ++c) {
          const T difference = u[r] - v[c];
          cost[r][c] += METRIC == CITYBLOCK ? fabs(difference) : difference * difference;
        }
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < EACH; ++r) {
    const i64 i = top + ty + LANES * r;
#pragma unroll
    for (int c = 0; c < EACH; ++c) {
      const i64 j = left + tx + LANES * c;
      T value = cost[r][c];
      if (METRIC != CITYBLOCK && half_power != (T)1) {
        // log2(0) = -inf gives 0 for any power > 0
        value = half_power == (T)0.5 ? sqrt(value) : exp2(half_power * log2(value));
      }
      if (i < n && j < m) out[i * m + j] = value;
    }
  }
}

#define PAIRWISE_COST(NAME, METRIC, T)                                                                                \
  extern "C" __global__ void __launch_bounds__(LANES* LANES) pairwise_cost_##NAME##_##T(                               \
      const T* x, const T* y, i64 n, i64 m, i64 d, T half_power, T* out) {                                             \
    pairwise_cost<METRIC>(x, y, n, m, d, half_power, out);                                                            \
  }
// resources: pairwise_cost_power registers <= 80, shared <= 16512
PAIRWISE_COST(power, 0, float32)
PAIRWISE_COST(power, 0, float64)
// resources: pairwise_cost_cityblock registers <= 80, shared <= 16512
PAIRWISE_COST(cityblock, CITYBLOCK, float32)
PAIRWISE_COST(cityblock, CITYBLOCK, float64)
