// Scalings p (n,), q (m,) of a stored kernel K (n, m): every iteration reads K from device memory once.
//
// A block owns a range of rows. It takes a few at a time: their products with q, the update of their scalings, and
// then, from the same entries, their part of K' p, which it keeps for its rows and writes once; the parts of all blocks
// are added in the order of the blocks. A thread owns columns, so that only the products need barriers. Where the
// entries of the rows, and the running column sums, wait between the two uses depends on the size of a row:
//
//   narrow   m <= 512: both in registers; a warp takes a row, and no barrier is met until the end
//   four     4 rows and the sums in shared memory
//   single   1 row and the sums in shared memory
//   reread   the sums in shared memory, 1 row a second time from the L2 cache (21 MB of rows are in flight at m = 10^4)
//   long     4 rows a second time from L2, or from device memory when they do not fit; the sums in L2
//
// All but the first do the same arithmetic in the same order: the choice, which is the device's, shows in no bit.
//
// Roofline on an H100 (3.35 TB/s, 132 SMs at 1.755 GHz), from the counts alone and never measured; per entry of K, s
// bytes each, n = m = 10^4:
//   absorbed_rows, absorbed_pair: s bytes (plus 2 s 264 / n for the partial sums), 4 flops, no exp: memory-bound,
//     0.13 ms in float32 (single) and 0.26 ms in float64 (reread, with 2 s bytes through L2); long: up to 2.5 s bytes.
//   absorbed_columns: 8 + 3 s bytes a column, 1 division (damped: 3 log2 and 2 exp2 in double): latency, 3 us.
//   sum_partials: s bytes an entry of the (264, m) partial sums, 1 flop: latency, 5 us.

typedef float float32;
typedef double float64;
constexpr int NARROW_WARPS = 8, PER_LANE = 16, WIDE_THREADS = 512;
constexpr int SUM_COLUMNS = 32, SUM_GROUPS = 8;

// Update of one scaling against s = (K q)_i; returns the error of its marginal before.
template <typename T>
__device__ __forceinline__ double rescale(T* p, const T* weights, const T* base, i64 i, double s, double damping,
                                          double relaxation) {
  const double old = p[i], weight = weights[i];
  double target = weight, fresh = weight / s;
  if (damping != 1.0) {
    const double bits = log2((double)base[i]);
    target *= exp2((bits - (1.0 - damping) * log2(old)) / damping);
    fresh = exp2(bits + damping * log2(fresh));
  }
  if (relaxation != 1.0) fresh = exp2(relaxation * log2(fresh) + (1.0 - relaxation) * log2(old));
  p[i] = (T)fresh;
  return fabs(old * s - target);
}

// What is done with the product s of row i; returns the weight of the row in the column sums.
template <typename T> struct Rescale {
  T* p;
  const T *a, *base;
  double damping, relaxation;
  __device__ __forceinline__ T operator()(i64 i, double s, double& error) const {
    error += rescale(p, a, base, i, s, damping, relaxation);
    return p[i];
  }
};

template <typename T> struct Keep {
  T* t;
  const T* w;
  __device__ __forceinline__ T operator()(i64 i, double s, double&) const {
    const T product = (T)s;
    t[i] = product;
    return w[i] * product;
  }
};

template <typename T, typename Row>
__device__ __forceinline__ void narrow(const T* K, const T* q, i64 n, int m, i64 rows, const Row& row, T* partial,
                                       double* errors) {
  __shared__ T sums[NARROW_WARPS][32 * PER_LANE];
  __shared__ double each[NARROW_WARPS];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const i64 lo = blockIdx.x * rows, hi = lo + rows < n ? lo + rows : n;
  T column[PER_LANE];
  double error = 0;
#pragma unroll
  for (int e = 0; e < PER_LANE; ++e) column[e] = 0;
  for (i64 i = lo + warp; i < hi; i += NARROW_WARPS) {
    const T* k = K + i * m;
    T entry[PER_LANE], s = 0, weight = 0;
#pragma unroll
    for (int e = 0; e < PER_LANE; ++e) {
      const int j = lane + 32 * e;
      entry[e] = j < m ? k[j] : (T)0;
    }
#pragma unroll
    for (int e = 0; e < PER_LANE; ++e) {
      const int j = lane + 32 * e;
      if (j < m) s = fma(entry[e], q[j], s);
    }
    const double total = warp_sum((double)s);
    if (lane == 0) weight = row(i, total, error);
    weight = __shfl_sync(FULL, weight, 0);
#pragma unroll
    for (int e = 0; e < PER_LANE; ++e) column[e] = fma(weight, entry[e], column[e]);
  }
#pragma unroll
  for (int e = 0; e < PER_LANE; ++e) sums[warp][lane + 32 * e] = column[e];
  if (lane == 0) each[warp] = error;
  __syncthreads();
  for (int j = threadIdx.x; j < m; j += 32 * NARROW_WARPS) {
    T s = sums[0][j];
    for (int w = 1; w < NARROW_WARPS; ++w) s += sums[w][j];
    partial[blockIdx.x * (i64)m + j] = s;
  }
  if (threadIdx.x == 0) {
    for (int w = 1; w < NARROW_WARPS; ++w) error += each[w];
    errors[blockIdx.x] = error;
  }
}

// R rows at a time; STORED: they wait in shared memory; SHARED_SUMS: so do the column sums.
template <int R, bool STORED, bool SHARED_SUMS, typename T, typename Int, typename Row>
__device__ __forceinline__ void wide(const T* K, const T* q, i64 n, Int m, i64 rows, const Row& row, T* partial,
                                     double* errors) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ double products[WIDE_THREADS / 32][R];
  __shared__ T weights[R];
  T* const stored = (T*)memory;
  T* const shared_sums = stored + (STORED ? R * m : 0);
  T* const global_sums = partial + blockIdx.x * (i64)m;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const i64 lo = blockIdx.x * rows, hi = lo + rows < n ? lo + rows : n;
  double error = 0;
  for (Int j = threadIdx.x; j < m; j += WIDE_THREADS) {
    if (SHARED_SUMS) shared_sums[j] = 0;
    else global_sums[j] = 0;
  }
  for (i64 i = lo; i < hi; i += R) {
    const int taken = hi - i < R ? (int)(hi - i) : R;
    const T* k = K + i * m;
    T s[R];
#pragma unroll
    for (int r = 0; r < R; ++r) s[r] = 0;
#pragma unroll (R == 1 ? 4 : 1)
    for (Int j = threadIdx.x; j < m; j += WIDE_THREADS) {
      const T factor = q[j];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (r < taken) {
          const T entry = k[r * m + j];
          if (STORED) stored[r * m + j] = entry;
          s[r] = fma(entry, factor, s[r]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const double total = warp_sum((double)s[r]);
      if (lane == 0) products[warp][r] = total;
    }
    __syncthreads();
    const int mine = (int)threadIdx.x - (int)((i - lo) % 4);  // so that R does not change how the errors are added
    if (mine >= 0 && mine < taken) {
      double total = 0;
      for (int w = 0; w < WIDE_THREADS / 32; ++w) total += products[w][mine];
      weights[mine] = row(i + mine, total, error);
    }
    __syncthreads();
#pragma unroll (R == 1 ? 4 : 1)
    for (Int j = threadIdx.x; j < m; j += WIDE_THREADS) {
      T sum = SHARED_SUMS ? shared_sums[j] : global_sums[j];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (r < taken) sum = fma(weights[r], STORED ? stored[r * m + j] : k[r * m + j], sum);
      }
      if (SHARED_SUMS) shared_sums[j] = sum;
      else global_sums[j] = sum;
    }
  }
  if (SHARED_SUMS) {
    for (Int j = threadIdx.x; j < m; j += WIDE_THREADS) global_sums[j] = shared_sums[j];
  }
  if (warp == 0) {
    error = warp_sum(error);
    if (lane == 0) errors[blockIdx.x] = error;
  }
}

#define ROWS(VARIANT, T, THREADS, INT, ...)                                                                           \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) absorbed_rows_##VARIANT##_##T(                              \
      const T* K, const T* q, i64 n, i64 m, i64 rows, T* p, const T* a, const T* base, double damping,                 \
      double relaxation, T* partial, double* errors) {                                                                \
    __VA_ARGS__(K, q, n, (INT)m, rows, Rescale<T>{p, a, base, damping, relaxation}, partial, errors);                  \
  }
#define PAIR(VARIANT, T, THREADS, INT, ...)                                                                           \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) absorbed_pair_##VARIANT##_##T(                              \
      const T* K, const T* v, i64 n, i64 m, i64 rows, T* t, const T* w, T* partial, double* errors) {                  \
    __VA_ARGS__(K, v, n, (INT)m, rows, Keep<T>{t, w}, partial, errors);                                                \
  }
#define BOTH(KERNEL, VARIANT, THREADS, INT, ...)        \
  KERNEL(VARIANT, float32, THREADS, INT, __VA_ARGS__)   \
  KERNEL(VARIANT, float64, THREADS, INT, __VA_ARGS__)

// resources: absorbed_rows_narrow registers <= 128, shared <= 32832
BOTH(ROWS, narrow, 256, int, narrow)
// resources: absorbed_pair_narrow registers <= 128, shared <= 32832
BOTH(PAIR, narrow, 256, int, narrow)
// resources: absorbed_rows_four registers <= 64, shared <= 544
BOTH(ROWS, four, 512, int, wide<4, true, true>)
// resources: absorbed_pair_four registers <= 64, shared <= 544
BOTH(PAIR, four, 512, int, wide<4, true, true>)
// resources: absorbed_rows_single registers <= 64, shared <= 144
BOTH(ROWS, single, 512, int, wide<1, true, true>)
// resources: absorbed_pair_single registers <= 64, shared <= 144
BOTH(PAIR, single, 512, int, wide<1, true, true>)
// resources: absorbed_rows_reread registers <= 64, shared <= 144
BOTH(ROWS, reread, 512, int, wide<1, false, true>)
// resources: absorbed_pair_reread registers <= 48, shared <= 144
BOTH(PAIR, reread, 512, int, wide<1, false, true>)
// resources: absorbed_rows_long registers <= 64, shared <= 544
BOTH(ROWS, long, 512, i64, wide<4, false, false>)
// resources: absorbed_pair_long registers <= 48, shared <= 544
BOTH(PAIR, long, 512, i64, wide<4, false, false>)

// Column sums from the parts of all blocks, and the sum of their errors, in the order of the blocks within 8 groups.
#define SUM_PARTIALS(T)                                                                                               \
  extern "C" __global__ void __launch_bounds__(SUM_COLUMNS* SUM_GROUPS) sum_partials_##T(                              \
      const T* partial, const double* errors, int blocks, i64 m, double* column_sums, double* error) {                 \
    sum_partials(partial, errors, blocks, m, column_sums, error);                                                     \
  }

template <typename T>
__device__ __forceinline__ void sum_partials(const T* partial, const double* errors, int blocks, i64 m,
                                             double* column_sums, double* error) {
  __shared__ double sums[SUM_GROUPS][SUM_COLUMNS];
  const int lane = threadIdx.x % SUM_COLUMNS, group = threadIdx.x / SUM_COLUMNS;
  const i64 j = blockIdx.x * (i64)SUM_COLUMNS + lane;
  double s = 0;
  if (j < m) {
#pragma unroll 4
    for (int block = group; block < blocks; block += SUM_GROUPS) s += partial[block * m + j];
  }
  sums[group][lane] = s;
  __syncthreads();
  if (group == 0 && j < m) {
    for (int g = 1; g < SUM_GROUPS; ++g) s += sums[g][lane];
    column_sums[j] = s;
  }
  if (blockIdx.x == 0 && group == 1) {
    double total = 0;
    for (int block = lane; block < blocks; block += SUM_COLUMNS) total += errors[block];
    total = warp_sum(total);
    if (lane == 0) *error = total;
  }
}

// resources: sum_partials registers <= 40, shared <= 2048
SUM_PARTIALS(float32)
SUM_PARTIALS(float64)

// The column scalings from the column sums; a block's part of the error.
template <typename T>
__device__ __forceinline__ void columns(const double* sums, i64 m, T* q, const T* b, const T* base, double damping,
                                        double relaxation, double* errors) {
  __shared__ double each[8];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const i64 j = blockIdx.x * 256ll + threadIdx.x;
  double error = j < m ? rescale(q, b, base, j, sums[j], damping, relaxation) : 0;
  error = warp_sum(error);
  if (lane == 0) each[warp] = error;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < 8; ++w) error += each[w];
    errors[blockIdx.x] = error;
  }
}

#define COLUMNS(T)                                                                                                    \
  extern "C" __global__ void __launch_bounds__(256) absorbed_columns_##T(                                              \
      const double* sums, i64 m, T* q, const T* b, const T* base, double damping, double relaxation,                   \
      double* errors) {                                                                                               \
    columns(sums, m, q, b, base, damping, relaxation, errors);                                                        \
  }
// resources: absorbed_columns registers <= 48, shared <= 64
COLUMNS(float32)
COLUMNS(float64)
