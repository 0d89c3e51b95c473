// Stochastic ascent of the semi-dual: with the potential g in bits, G = k g, a sample i has the weights
// p_j ~ 2^(offset_j + G_j - scale c_ij). Batches follow one another, each a function of the G that the last one left.
//
// A step has three phases. Parts: a warp takes a piece of a sample's row and finds its largest exponent and, relative
// to it, its sum. Norms: a thread joins the pieces of a sample. Move: a thread takes a column, evaluates its exponents
// anew and goes through the batch in order, so that a slot of the table that is drawn twice is renewed twice, as it
// should. In small problems one block goes through all phases of many steps, with barriers between them (loop); in
// larger ones each phase is a launch.
//
// Roofline on an H100 (132 SMs at 1.755 GHz), from the counts alone and never measured; per sample and column, s bytes
// each (points of dimension d: 2 d flops and 2 (d + 1) s bytes of L1 more, nothing from device memory):
//   averaged_sgd_loop, sag_loop: 2 exps and 2 s bytes (sag: and 2 s + 16 a column for table and total) on one SM: bound
//     by latency, about 3 us a step up to 4000 columns in float32 (1000 in float64), then by its exps (16 a clock;
//     float64 about 3).
//   softmax_parts, softmax_norms, averaged_sgd_move, sag_move: the same counts on all SMs: bound by the launches, about
//     15 us a step, up to 10^7 samples times columns in float32; then by device memory, 2 s bytes each.

typedef float float32;
typedef double float64;

constexpr int LOOP_THREADS = 512, THREADS = 256;

template <typename T> struct Dense {
  const T *C, *unused;
  T scale;
  i64 d, m;
  __device__ __forceinline__ T exponent(i64 i, i64 j, T start) const { return fma(-scale, C[i * m + j], start); }
};

template <typename T> struct Dot {
  const T *x, *y;
  T scale;
  i64 d, m;
  __device__ __forceinline__ T exponent(i64 i, i64 j, T start) const {
    for (i64 p = 0; p < d; ++p) start = fma(scale * x[i * d + p], y[p * m + j], start);
    return start;
  }
};

// A batch: its rows, and what the phases leave for each other: for pieces, and for samples (1 / sum in `shares`).
template <typename T> struct Batch {
  const i64* rows;
  i64 size, splits, width;
  T *tops, *peaks;
  double *sums, *shares;
};

template <typename T, typename Cost>
__device__ __forceinline__ void parts(const Cost& cost, const Batch<T>& batch, const T* offset, const double* G,
                                      i64 warp, i64 warps) {
  const int lane = threadIdx.x % 32;
  for (i64 piece = warp; piece < batch.size * batch.splits; piece += warps) {
    const i64 i = batch.rows[piece / batch.splits], lo = piece % batch.splits * batch.width;
    const i64 hi = lo + batch.width < cost.m ? lo + batch.width : cost.m;
    T top = -range<T>::largest(), partial = 0;  // finite, so that -inf is nothing but a weight of 0
    for (i64 j = lo + lane; j < hi; j += 32) {
      const T z = cost.exponent(i, j, (T)(G[j] + offset[j]));
      const T power = power2(smaller(z, top) - larger(z, top));
      partial = z > top ? partial * power + (T)1 : partial + power;
      top = larger(z, top);
    }
    double sum = partial;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      const T other = __shfl_xor_sync(FULL, top, step), most = larger(top, other);
      sum = sum * power2(top - most) + __shfl_xor_sync(FULL, sum, step) * power2(other - most);
      top = most;
    }
    if (lane == 0) {
      batch.tops[piece] = top;
      batch.sums[piece] = sum;
    }
  }
}

template <typename T>
__device__ __forceinline__ void norms(const Batch<T>& batch, i64 thread, i64 threads) {
  for (i64 q = thread; q < batch.size; q += threads) {
    const T* tops = batch.tops + q * batch.splits;
    const double* sums = batch.sums + q * batch.splits;
    T top = tops[0];
    double sum = 0;
    for (i64 s = 1; s < batch.splits; ++s) top = larger(top, tops[s]);
    for (i64 s = 0; s < batch.splits; ++s) sum += sums[s] * power2(tops[s] - top);
    batch.peaks[q] = top;
    batch.shares[q] = sum > 0 ? 1 / sum : 0;  // a sample without any path moves nothing
  }
}

// Weight of sample q of the batch on column j, whose exponent starts from `start`.
template <typename T, typename Cost>
__device__ __forceinline__ double weight(const Cost& cost, const Batch<T>& batch, i64 q, i64 j, T start) {
  return power2(cost.exponent(batch.rows[q], j, start) - batch.peaks[q]) * batch.shares[q];
}

// G += step / sqrt(t) (b - mean of p over the batch), and the running mean of G.
template <typename T> struct Sgd {
  const double* b;
  double *G, *mean, step;
  i64 start;
  template <typename Cost>
  __device__ __forceinline__ void move(const Cost& cost, const Batch<T>& batch, const T* offset, i64 t, i64 j) const {
    const double old = G[j], count = (double)(start + t + 1);
    const T first = (T)(old + offset[j]);
    double p = 0;
    for (i64 q = 0; q < batch.size; ++q) p += weight(cost, batch, q, j, first);
    const double next = old + step / sqrt(count) * (b[j] - p / (double)batch.size);
    G[j] = next;
    mean[j] += (next - mean[j]) / count;
  }
};

// G += step (b - total), total = weights @ table, after the batch's rows of the table have been renewed one by one.
template <typename T> struct Sag {
  const double* b;
  double *G, step;
  const i64* slots;
  const double* weights;
  T* table;
  double* total;
  template <typename Cost>
  __device__ __forceinline__ void move(const Cost& cost, const Batch<T>& batch, const T* offset, i64 t, i64 j) const {
    const double old = G[j];
    const T first = (T)(old + offset[j]);
    double sum = total[j];
    for (i64 q = 0; q < batch.size; ++q) {
      const i64 slot = slots[t * batch.size + q];
      T& entry = table[slot * cost.m + j];
      const T p = (T)weight(cost, batch, q, j, first);
      sum += weights[slot] * ((double)p - (double)entry);
      entry = p;
    }
    total[j] = sum;
    G[j] = old + step * (b[j] - sum);
  }
};

template <typename T, typename Cost, typename Method>
__device__ __forceinline__ void loop(const Cost& cost, Batch<T> batch, const T* offset, const Method& method, i64 lo,
                                     i64 hi) {
  const i64* rows = batch.rows;
  for (i64 t = lo; t < hi; ++t) {
    batch.rows = rows + t * batch.size;
    parts(cost, batch, offset, method.G, threadIdx.x / 32, LOOP_THREADS / 32);
    __syncthreads();
    norms(batch, threadIdx.x, LOOP_THREADS);
    __syncthreads();
    for (i64 j = threadIdx.x; j < cost.m; j += LOOP_THREADS) method.move(cost, batch, offset, t, j);
    __syncthreads();
  }
}

#define COST(T) const T *x, const T *y, T scale, i64 d, i64 m, const T *offset
#define BATCH(T) const i64 *rows, i64 size, i64 splits, i64 width, T *tops, double *sums, T *peaks, double *shares
#define STATE const double *b, double *G, double step
#define SGD(T) double *mean, i64 start
#define SAG(T) const i64 *slots, const double *weights, T *table, double *total
#define THIS_COST(KIND, T) KIND<T>{x, y, scale, d, m}
#define BATCH_FROM(T, FIRST) Batch<T>{rows + (FIRST) * size, size, splits, width, tops, peaks, sums, shares}
#define BOTH(KERNEL, ...)                      \
  KERNEL(dense, Dense, float32, ##__VA_ARGS__) \
  KERNEL(dense, Dense, float64, ##__VA_ARGS__) \
  KERNEL(dot, Dot, float32, ##__VA_ARGS__)     \
  KERNEL(dot, Dot, float64, ##__VA_ARGS__)

#define PARTS(NAME, KIND, T)                                                                                          \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                                \
      softmax_parts_##NAME##_##T(COST(T), BATCH(T), const double* G, i64 t) {                                         \
    const i64 warps = THREADS / 32;                                                                                   \
    parts(THIS_COST(KIND, T), BATCH_FROM(T, t), offset, G, blockIdx.x * warps + threadIdx.x / 32, gridDim.x * warps);  \
  }
// resources: softmax_parts registers <= 64, shared <= 0
BOTH(PARTS)

#define NORMS(T)                                                                                                      \
  extern "C" __global__ void __launch_bounds__(THREADS) softmax_norms_##T(BATCH(T)) {                                  \
    norms(BATCH_FROM(T, 0), blockIdx.x * (i64)THREADS + threadIdx.x, gridDim.x * (i64)THREADS);                        \
  }
// resources: softmax_norms registers <= 56, shared <= 0
NORMS(float32)
NORMS(float64)

#define SGD_MOVE(NAME, KIND, T)                                                                                       \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                                \
      averaged_sgd_move_##NAME##_##T(COST(T), BATCH(T), STATE, SGD(T), i64 t) {                                       \
    const i64 j = blockIdx.x * (i64)THREADS + threadIdx.x;                                                            \
    const Sgd<T> method{b, G, mean, step, start};                                                                     \
    if (j < m) method.move(THIS_COST(KIND, T), BATCH_FROM(T, t), offset, t, j);                                       \
  }
// resources: averaged_sgd_move registers <= 48, shared <= 0
BOTH(SGD_MOVE)

#define SGD_LOOP(NAME, KIND, T)                                                                                       \
  extern "C" __global__ void __launch_bounds__(LOOP_THREADS)                                                           \
      averaged_sgd_loop_##NAME##_##T(COST(T), BATCH(T), STATE, SGD(T), i64 lo, i64 hi) {                              \
    loop(THIS_COST(KIND, T), BATCH_FROM(T, 0), offset, Sgd<T>{b, G, mean, step, start}, lo, hi);                       \
  }
// resources: averaged_sgd_loop registers <= 64, shared <= 0
BOTH(SGD_LOOP)

#define SAG_MOVE(NAME, KIND, T)                                                                                       \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                                \
      sag_move_##NAME##_##T(COST(T), BATCH(T), STATE, SAG(T), i64 t) {                                                \
    const i64 j = blockIdx.x * (i64)THREADS + threadIdx.x;                                                            \
    const Sag<T> method{b, G, step, slots, weights, table, total};                                                    \
    if (j < m) method.move(THIS_COST(KIND, T), BATCH_FROM(T, t), offset, t, j);                                       \
  }
// resources: sag_move registers <= 56, shared <= 0
BOTH(SAG_MOVE)

#define SAG_LOOP(NAME, KIND, T)                                                                                       \
  extern "C" __global__ void __launch_bounds__(LOOP_THREADS)                                                           \
      sag_loop_##NAME##_##T(COST(T), BATCH(T), STATE, SAG(T), i64 lo, i64 hi) {                                       \
    loop(THIS_COST(KIND, T), BATCH_FROM(T, 0), offset, Sag<T>{b, G, step, slots, weights, table, total}, lo, hi);      \
  }
// resources: sag_loop registers <= 64, shared <= 0
BOTH(SAG_LOOP)
