// Where the mass of the plan P_ij = 2^e_ij lies, and its larger entries as CSR.
//
// Every kernel evaluates the exponents anew, none stores them all. All go through the same explicit multiply-adds, so
// that counting, filling and selecting see the same bits. The cost is dense, or minus the inner product of points (any
// dimension; a warp reads a coordinate of its row once for 4 columns a lane).
//
// Roofline on an H100 (3.35 TB/s, 132 SMs at 1.755 GHz), from the counts alone and never measured; per entry, s bytes
// each, n = m = 10^4, dense (points of dimension d: no bytes from device memory, 2 d flops and (d + 1) s bytes of L1):
//   mass_histogram: s bytes, 1 exp, about 100 issue slots, most of them to add what meets in a bin within a warp (its
//     shuffles go at a quarter of the rate): issue-bound, 0.4 ms in float32 and 0.6 ms in float64.
//   csr_count: s bytes, 2 flops, no exp: memory-bound, 0.13 ms in float32 and 0.26 ms in float64.
//   csr_fill_int32, csr_fill_int64: the same, and s + 4 (8) bytes and 1 exp for an entry that is kept.
//   row_kth: s bytes, and s bytes of shared memory in each of 4 passes (float64: 8) of about 25 issue slots; a row of
//     more than 40 KB comes from L2 again in each pass: issue-bound, 0.4 ms in float32 and 0.8 ms in float64.

typedef float float32;
typedef double float64;

constexpr int WARPS = 8, HISTOGRAM_WARPS = 4, AT_ONCE = 4;
constexpr int BINS_PER_BIT = 4, LAST_BIN = 1024, CHUNK = 1024;  // LAST_BIN: exponents >= 0; columns of a piece of work

__device__ __forceinline__ i64 least(i64 a, i64 b) { return a < b ? a : b; }

// Exponents e_ij of the AT_ONCE columns j, j + 32, ... of row i; -inf beyond the last column.
template <typename T> struct Dense {
  const T *C, *unused;
  T scale;
  i64 d;
  const T *F, *G;
  i64 n, m;
  __device__ __forceinline__ void exponents(i64 i, i64 j, T (&e)[AT_ONCE]) const {
    const T f = F[i];
    const T* c = C + i * m;
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u, j += 32) e[u] = j < m ? fma(-scale, c[j], f + G[j]) : -infinity(T());
  }
};

template <typename T> struct Dot {
  const T *x, *y;
  T scale;
  i64 d;
  const T *F, *G;
  i64 n, m;
  __device__ __forceinline__ void exponents(i64 i, i64 j, T (&e)[AT_ONCE]) const {
    const T f = F[i];
    i64 column[AT_ONCE];
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      column[u] = least(j + 32 * u, m - 1);
      e[u] = f + G[column[u]];
    }
    for (i64 p = 0; p < d; ++p) {
      const T coordinate = scale * x[i * d + p];
#pragma unroll
      for (int u = 0; u < AT_ONCE; ++u) e[u] = fma(coordinate, y[p * m + column[u]], e[u]);
    }
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) e[u] = j + 32 * u < m ? e[u] : -infinity(T());
  }
};

// ---------------------------------------------------------------- mass by exponent

// Each warp has bins of its own. Lanes that meet in a bin are added pair by pair, in the order of the lanes, and the
// lowest of them adds the sum: no atomics, the same bits every time.
template <typename T, typename Cost>
__device__ __forceinline__ void mass_histogram(const Cost& cost, double* partial) {
  extern __shared__ __align__(16) unsigned char memory[];
  double* const all = (double*)memory;
  double* const bins = all + threadIdx.x / 32 * (LAST_BIN + 1);
  const int lane = threadIdx.x % 32;
  for (int k = lane; k <= LAST_BIN; k += 32) bins[k] = 0;
  __syncwarp();
  const i64 chunks = (cost.m + CHUNK - 1) / CHUNK;
  for (i64 piece = blockIdx.x * HISTOGRAM_WARPS + threadIdx.x / 32; piece < cost.n * chunks;
       piece += (i64)gridDim.x * HISTOGRAM_WARPS) {
    const i64 i = piece / chunks, first = piece % chunks * CHUNK, end = least(cost.m, first + CHUNK);
    for (i64 j = first; j < end; j += 32 * AT_ONCE) {
      T e[AT_ONCE];
      cost.exponents(i, j + lane, e);
#pragma unroll
      for (int u = 0; u < AT_ONCE; ++u) {
        const T bounded = smaller(larger(e[u] * BINS_PER_BIT, (T)-LAST_BIN), (T)0);
        const int bin = LAST_BIN + (int)floor(bounded);
        double mass = power2(e[u]);
        unsigned others = __match_any_sync(FULL, bin);
        int rank = __popc(others & ((1u << lane) - 1));
        const bool first_of_bin = rank == 0;
        others &= FULL << lane << 1;  // the lanes after this one whose mass is still their own
        while (__any_sync(FULL, others)) {
          const int next = others ? __ffs(others) - 1 : lane;
          const double its = __shfl_sync(FULL, mass, next);
          if (others) mass += its;
          others &= __ballot_sync(FULL, rank % 2 == 0);
          rank /= 2;
        }
        if (first_of_bin) bins[bin] += mass;
        __syncwarp();
      }
    }
  }
  __syncthreads();
  for (int k = threadIdx.x; k <= LAST_BIN; k += 32 * HISTOGRAM_WARPS) {
    double mass = all[k];
    for (int w = 1; w < HISTOGRAM_WARPS; ++w) mass += all[w * (LAST_BIN + 1) + k];
    partial[blockIdx.x * (i64)(LAST_BIN + 1) + k] = mass;
  }
}

#define COST(T) const T *x, const T *y, T scale, i64 d, const T *F, const T *G, i64 n, i64 m
#define BOTH(KERNEL, ...)                      \
  KERNEL(dense, Dense, float32, ##__VA_ARGS__) \
  KERNEL(dense, Dense, float64, ##__VA_ARGS__) \
  KERNEL(dot, Dot, float32, ##__VA_ARGS__)     \
  KERNEL(dot, Dot, float64, ##__VA_ARGS__)

#define MASS_HISTOGRAM(NAME, KIND, T)                                                                                 \
  extern "C" __global__ void __launch_bounds__(32 * HISTOGRAM_WARPS)                                                   \
      mass_histogram_##NAME##_##T(COST(T), double* partial) {                                                         \
    mass_histogram<T>(KIND<T>{x, y, scale, d, F, G, n, m}, partial);                                                   \
  }
// resources: mass_histogram registers <= 80, shared <= 0
BOTH(MASS_HISTOGRAM)

// ---------------------------------------------------------------- the larger entries

// Numbers of entries of every row that are kept, most at most; a warp takes a row.
template <typename T, typename Cost>
__device__ __forceinline__ void csr_count(const Cost& cost, const T* thresholds, i64 most, i64* counts) {
  const int lane = threadIdx.x % 32;
  const i64 i = blockIdx.x * (i64)WARPS + threadIdx.x / 32;
  if (i >= cost.n) return;
  const T limit = larger(thresholds[i], range<T>::lowest());
  i64 count = 0;
  for (i64 j = 0; j < cost.m; j += 32 * AT_ONCE) {
    T e[AT_ONCE];
    cost.exponents(i, j + lane, e);
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) count += __popc(__ballot_sync(FULL, e[u] >= limit));
  }
  if (lane == 0) counts[i] = least(count, most);
}

#define CSR_COUNT(NAME, KIND, T)                                                                                      \
  extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                             \
      csr_count_##NAME##_##T(COST(T), const T* thresholds, i64 most, i64* counts) {                                   \
    csr_count(KIND<T>{x, y, scale, d, F, G, n, m}, thresholds, most, counts);                                          \
  }
// resources: csr_count registers <= 64, shared <= 0
BOTH(CSR_COUNT)

// The entries that were counted, in the order of their columns, from starts[i] on.
template <typename T, typename Index, typename Cost>
__device__ __forceinline__ void csr_fill(const Cost& cost, const T* thresholds, const i64* starts, Index* indices,
                                         T* data) {
  const int lane = threadIdx.x % 32;
  const i64 i = blockIdx.x * (i64)WARPS + threadIdx.x / 32;
  if (i >= cost.n) return;
  const T limit = larger(thresholds[i], range<T>::lowest());
  const i64 stop = starts[i + 1];
  i64 position = starts[i];
  for (i64 j = 0; j < cost.m && position < stop; j += 32 * AT_ONCE) {
    T e[AT_ONCE];
    cost.exponents(i, j + lane, e);
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      const unsigned kept = __ballot_sync(FULL, e[u] >= limit);
      const i64 place = position + __popc(kept & ((1u << lane) - 1));
      if (e[u] >= limit && place < stop) {
        indices[place] = (Index)(j + lane + 32 * u);
        data[place] = power2(e[u]);
      }
      position += __popc(kept);
    }
  }
}

#define CSR_FILL(NAME, KIND, T, INDEX, BITS)                                                                          \
  extern "C" __global__ void __launch_bounds__(32 * WARPS) csr_fill_int##BITS##_##NAME##_##T(                          \
      COST(T), const T* thresholds, const i64* starts, INDEX* indices, T* data) {                                     \
    csr_fill(KIND<T>{x, y, scale, d, F, G, n, m}, thresholds, starts, indices, data);                                  \
  }
// resources: csr_fill_int32 registers <= 64, shared <= 0
BOTH(CSR_FILL, int, 32)
// resources: csr_fill_int64 registers <= 64, shared <= 0
BOTH(CSR_FILL, i64, 64)

// ---------------------------------------------------------------- the k-th largest of a row

// Unsigned numbers in the order of the floats.
__device__ __forceinline__ unsigned ordered(float e) {
  const unsigned bits = __float_as_uint(e);
  return bits >> 31 ? ~bits : bits | 1u << 31;
}
__device__ __forceinline__ u64 ordered(double e) {
  const u64 bits = __double_as_longlong(e);
  return bits >> 63 ? ~bits : bits | 1ull << 63;
}
__device__ __forceinline__ float exponent(unsigned key) {
  return __uint_as_float(key >> 31 ? key & ~(1u << 31) : ~key);
}
__device__ __forceinline__ double exponent(u64 key) {
  return __longlong_as_double(key >> 63 ? key & ~(1ull << 63) : ~key);
}

// A block takes a row, and finds 8 bits of the answer in each pass: how many entries with the bits found so far have
// each value of the next 8. Keys wait in shared memory if it is there (stored).
template <typename T, typename Key, typename Cost>
__device__ __forceinline__ void row_kth(const Cost& cost, i64 k, int stored, T* out) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ unsigned counts[256];
  __shared__ Key chosen;
  __shared__ i64 left;
  Key* const keys = (Key*)memory;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const i64 i = blockIdx.x;
  Key found = 0;
  for (int shift = 8 * sizeof(Key) - 8; shift >= 0; shift -= 8) {
    counts[threadIdx.x] = 0;
    __syncthreads();
    const bool all = shift == 8 * sizeof(Key) - 8;
    for (i64 first = warp * 32 * AT_ONCE; first < cost.m; first += 32 * WARPS * AT_ONCE) {
      T e[AT_ONCE];
      if (all || !stored) cost.exponents(i, first + lane, e);
#pragma unroll
      for (int u = 0; u < AT_ONCE; ++u) {
        const i64 j = first + lane + 32 * u;
        Key key = 0;
        if (j < cost.m) {
          key = all || !stored ? ordered(e[u]) : keys[j];
          if (all && stored) keys[j] = key;
        }
        const bool mine = j < cost.m && (all || key >> shift >> 8 == found >> shift >> 8);
        const int value = mine ? (int)(key >> shift & 255) : 256;
        const unsigned same = __match_any_sync(FULL, value);
        if (mine && lane == __ffs(same) - 1) atomicAdd(&counts[value], (unsigned)__popc(same));
      }
    }
    __syncthreads();
    if (warp == 0) {  // a lane has 8 values, lane 0 the largest
      unsigned sum = 0;
      for (int v = 0; v < 8; ++v) sum += counts[255 - 8 * lane - v];
      unsigned above = sum;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const unsigned other = __shfl_up_sync(FULL, above, step);
        if (lane >= step) above += other;
      }
      i64 rank = k - (i64)(above - sum);
      if (rank > 0 && rank <= (i64)sum) {
        int value = 255 - 8 * lane;
        for (; rank > (i64)counts[value]; --value) rank -= counts[value];
        chosen = found | (Key)value << shift;
        left = rank;
      }
    }
    __syncthreads();
    found = chosen;
    k = left;
  }
  if (threadIdx.x == 0) out[i] = exponent(found);
}

#define ROW_KTH(NAME, KIND, T)                                                                                        \
  extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                             \
      row_kth_##NAME##_##T(COST(T), i64 k, int stored, T* out) {                                                      \
    row_kth<T, decltype(ordered(T()))>(KIND<T>{x, y, scale, d, F, G, n, m}, k, stored, out);                           \
  }
// resources: row_kth registers <= 80, shared <= 1040
BOTH(ROW_KTH)
