// Elementwise passes of sparse recovery, each array read once and written once, and the k largest entries of columns;
// see `contract`. Products with the matrix are those of cuBLAS.
//
// The numbers of blocks depend on the sizes alone, partial sums are in double and added in the order of the threads, of
// the warps and of the blocks, in a launch of their own: the bits are always the same. The k-th largest absolute value
// of a column is found by its digits, 8 bits at a time, in counts of integers, whose order changes nothing; where
// equal ones must be told apart, by the digits of their places too.
//
// Roofline on an H100 (3.35 TB/s, 132 SMs at 1.755 GHz), from the counts alone and never measured; per entry, s bytes
// each, for 10^7 entries in float32 (float64):
//   proximal_step: 3 s bytes for X alone, 5 s where Z is another array, 1 for the signs, about 20 issue slots: bound by
//     memory, 0.04 ms (0.07 ms), and 0.06 ms (0.12 ms). Below 10^6 entries the launch takes longer.
//   masked_adjoint: 3 s + 1 bytes, about 20 issue slots: bound by memory, 0.04 ms (0.07 ms).
//   keep_largest: s bytes in each of 5 passes (float64: 9), more where entries are equal, and s bytes for what becomes
//     0, from L2 where it holds X, about 40 issue slots each: bound by memory, 0.07 ms (0.24 ms), if there are columns
//     for all multiprocessors. A pass takes 3 barriers and the choice of a digit, some 2 us. One launch does it all;
//     where several blocks share long columns, each pass is one.

typedef float float32;
typedef double float64;

constexpr int THREADS = 256, MOST_THREADS = 1024, MOST_COLUMNS = 8, AT_ONCE = 4;

// ---------------------------------------------------------------- layers

// W = prox(Z - step G), with Z = X unless they are a pair; the signs, if any, are those of W.
template <typename T>
__device__ __forceinline__ void proximal_step(int soft, T step, T tau, T momentum, T* X, T* Z, int pair, const T* G,
                                              signed char* signs, int signing, i64 size, double* partial) {
  __shared__ double scratch[32];
  double product = 0;
  for (i64 i = blockIdx.x * (i64)THREADS + threadIdx.x; i < size; i += gridDim.x * (i64)THREADS) {
    const T x = X[i], z = pair ? Z[i] : x;
    const T v = fma(-step, G[i], z);
    const T w = fabs(v) <= tau ? (T)0 : !soft ? v : v > 0 ? v - tau : v + tau;  // a NaN passes
    if (signing) signs[i] = (w > 0) - (w < 0);
    if (pair) {
      product += (double)(z - w) * (double)(w - x);
      Z[i] = momentum != 0 ? fma(momentum, w - x, w) : w;
    }
    X[i] = w;
  }
  if (pair) {
    product = block_sum(product, scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = product;
  }
}

#define PROXIMAL_STEP(T)                                                                                              \
  extern "C" __global__ void __launch_bounds__(THREADS, 8) proximal_step_##T(                                          \
      int soft, T step, T tau, T momentum, T *X, T *Z, int pair, const T *G, signed char *signs, int signing,          \
      i64 size, double *partial) {                                                                                    \
    proximal_step(soft, step, tau, momentum, X, Z, pair, G, signs, signing, size, partial);                            \
  }
// resources: proximal_step registers <= 32, shared <= 256
PROXIMAL_STEP(float32)
PROXIMAL_STEP(float64)

// P where its sign is not 0; partial sums of its products with G, and with the signs.
template <typename T>
__device__ __forceinline__ void masked_adjoint(T* P, const signed char* signs, const T* G, i64 size, double* partial) {
  __shared__ double scratch[2][32];
  double sum = 0, signed_sum = 0;
  for (i64 i = blockIdx.x * (i64)THREADS + threadIdx.x; i < size; i += gridDim.x * (i64)THREADS) {
    const int sign = signs[i];
    const T p = P[i], q = sign != 0 ? p : (T)0;
    sum += (double)q * (double)G[i];
    signed_sum += (double)q * sign;
    P[i] = q;
  }
  sum = block_sum(sum, scratch[0]);
  signed_sum = block_sum(signed_sum, scratch[1]);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    partial[gridDim.x + blockIdx.x] = signed_sum;
  }
}

#define MASKED_ADJOINT(T)                                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS, 8) masked_adjoint_##T(                                         \
      T *P, const signed char *signs, const T *G, i64 size, double *partial) {                                        \
    masked_adjoint(P, signs, G, size, partial);                                                                       \
  }
// resources: masked_adjoint registers <= 32, shared <= 512
MASKED_ADJOINT(float32)
MASKED_ADJOINT(float64)

// Sums of the rows of `partial`, a block for each.
// resources: sum_partials registers <= 32, shared <= 256
extern "C" __global__ void __launch_bounds__(THREADS) sum_partials(const double* partial, int count, double* sums) {
  __shared__ double scratch[32];
  double sum = 0;
  for (int b = threadIdx.x; b < count; b += THREADS) sum += partial[blockIdx.x * (i64)count + b];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// ---------------------------------------------------------------- the k largest of every column

// What is known of the k-th largest of a column, in the order of sizes, and of places from the end where these are
// equal: the leading digits of its size, then of its place, others 0; and which of the entries with these digits it is.
// Where all of them are among the k, that is 0, and no more need be known.
struct Kth {
  u64 size, place;
  unsigned left;
};

// Unsigned numbers in the order of the absolute values, NaN as infinity.
__device__ __forceinline__ unsigned magnitude(float v) {
  const unsigned bits = __float_as_uint(v) & 0x7fffffffu;
  return bits <= 0x7f800000u ? bits : 0x7f800000u;
}
__device__ __forceinline__ u64 magnitude(double v) {
  const u64 bits = __double_as_longlong(v) & 0x7fffffffffffffffull;
  return bits <= 0x7ff0000000000000ull ? bits : 0x7ff0000000000000ull;
}

// The columns of X (n, B) that a block has, `width` side by side, a power of 2, for all threads in turn, and its rows
// from lo to hi. The last of the passes finds a single entry.
template <typename T> struct Columns {
  typedef decltype(magnitude(T())) Size;
  T* X;
  i64 n, B, lo, hi;
  unsigned k;
  int width, passes;

  __device__ __forceinline__ i64 column() const { return blockIdx.x * (i64)width + mine(); }
  __device__ __forceinline__ int mine() const { return threadIdx.x % width; }
  __device__ __forceinline__ i64 first() const { return lo + threadIdx.x / 32 * (32 / width); }  // of a warp's rows
  __device__ __forceinline__ int row() const { return threadIdx.x % 32 / width; }                // of a lane, from it
  __device__ __forceinline__ int rows() const { return blockDim.x / width; }                     // of all threads
  __device__ __forceinline__ u64 place(i64 i) const { return n - 1 - i; }
  __device__ __forceinline__ bool of_place(int pass) const { return pass >= (int)sizeof(T); }
  __device__ __forceinline__ int shift_of(int pass) const {
    return 8 * ((of_place(pass) ? passes : (int)sizeof(T)) - 1 - pass);
  }

  __device__ __forceinline__ Kth unknown() const { return Kth{0, 0, column() < B ? k : 0}; }

  // Count the next digit of what may be the k-th largest.
  __device__ __forceinline__ void count(const Kth* kth, int pass, unsigned* bins) const {
    const Kth known = kth[mine()];
    const bool by_place = of_place(pass);
    const int shift = shift_of(pass);
#pragma unroll 1
    for (i64 start = first(); start < hi; start += AT_ONCE * rows()) {
      Size size[AT_ONCE];
      bool here[AT_ONCE];
#pragma unroll
      for (int u = 0; u < AT_ONCE; ++u) {
        const i64 i = start + u * rows() + row();
        here[u] = known.left > 0 && i < hi;
        size[u] = here[u] ? magnitude(X[i * B + column()]) : 0;
      }
#pragma unroll
      for (int u = 0; u < AT_ONCE; ++u) {
        const u64 number = by_place ? place(start + u * rows() + row()) : size[u];
        const u64 other = by_place ? known.place : known.size;
        const bool may = here[u] && (!by_place || size[u] == known.size) && number >> shift >> 8 == other >> shift >> 8;
        count_digit(bins, may ? (int)(number >> shift & 255) * width + mine() : -1);
      }
    }
  }

  // The digit that was counted, by a warp for each column; whether another is needed, to the lane that has found it.
  __device__ __forceinline__ bool choose(Kth* kth, int pass, const unsigned* bins) const {
    const int warp = threadIdx.x / 32;
    unsigned rank = warp >= width ? 0 : kth[warp].left;
    __syncwarp();
    if (rank == 0) return false;
    int digit;
    if (!ranked_digit(bins + warp, width, rank, digit)) return false;
    (of_place(pass) ? kth[warp].place : kth[warp].size) |= (u64)digit << shift_of(pass);
    kth[warp].left = rank == bins[digit * width + warp] ? 0 : rank;
    return kth[warp].left > 0;
  }

  __device__ __forceinline__ void drop_rest(const Kth* kth) const {
    const Kth known = kth[mine()];
    if (column() >= B) return;
#pragma unroll 4
    for (i64 i = first() + row(); i < hi; i += rows()) {
      const Size size = magnitude(X[i * B + column()]);
      if (size < known.size || (size == known.size && place(i) < known.place)) X[i * B + column()] = 0;
    }
  }
};

__device__ __forceinline__ void clear(unsigned* bins, int width) {
  for (int bin = threadIdx.x; bin < 256 * width; bin += blockDim.x) bins[bin] = 0;
}

// All digits in a launch, for columns whose rows one block goes through.
template <typename T> __device__ __forceinline__ void keep_largest(const Columns<T>& columns) {
  __shared__ unsigned bins[256 * MOST_COLUMNS];
  __shared__ Kth kth[MOST_COLUMNS];
  if (threadIdx.x < columns.width) kth[threadIdx.x] = columns.unknown();
  for (int pass = 0;; ++pass) {
    clear(bins, columns.width);
    __syncthreads();
    columns.count(kth, pass, bins);
    __syncthreads();
    if (!__syncthreads_or(columns.choose(kth, pass, bins))) break;
  }
  columns.drop_rest(kth);
}

#define KEEP_LARGEST(T)                                                                                               \
  extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1) keep_largest_##T(                                      \
      T *X, i64 n, i64 B, unsigned k, int width, int passes) {                                                        \
    keep_largest(Columns<T>{X, n, B, 0, n, k, width, passes});                                                        \
  }
// resources: keep_largest registers <= 56, shared <= 8384
KEEP_LARGEST(float32)
KEEP_LARGEST(float64)

// A launch for each digit, for long columns: blocks of one x have pieces of the same columns. What is known before a
// pass, from the counts of the last one and what was known before that, which all of these blocks join, and one of them
// keeps; whether more need be known.
template <typename T>
__device__ __forceinline__ bool join(const Columns<T>& columns, Kth* kth, int pass, u64* known,
                                     const unsigned* counts) {
  const i64 all = gridDim.x * (i64)columns.width;
  const bool mine = threadIdx.x < columns.width;
  u64* const state = known + 3 * pass * all + columns.column();
  if (mine && pass == 0) kth[threadIdx.x] = columns.unknown();
  if (mine && pass > 0) kth[threadIdx.x] = Kth{state[-3 * all], state[-2 * all], (unsigned)state[-all]};
  __syncthreads();
  const unsigned* const last = counts + ((pass - 1) * (i64)gridDim.x + blockIdx.x) * 256 * columns.width;
  const bool more = pass == 0 || __syncthreads_or(columns.choose(kth, pass - 1, last));
  if (mine && blockIdx.y == 0) {
    state[0] = kth[threadIdx.x].size;
    state[all] = kth[threadIdx.x].place;
    state[2 * all] = kth[threadIdx.x].left;
  }
  return more;
}

template <typename T>
__device__ __forceinline__ void count_digits(const Columns<T>& columns, int pass, u64* known, unsigned* counts) {
  __shared__ unsigned bins[256 * MOST_COLUMNS];
  __shared__ Kth kth[MOST_COLUMNS];
  if (!join(columns, kth, pass, known, counts)) return;
  clear(bins, columns.width);
  __syncthreads();
  columns.count(kth, pass, bins);
  __syncthreads();
  unsigned* const total = counts + (pass * (i64)gridDim.x + blockIdx.x) * 256 * columns.width;
  for (int bin = threadIdx.x; bin < 256 * columns.width; bin += blockDim.x)
    if (bins[bin] > 0) atomicAdd(&total[bin], bins[bin]);
}

template <typename T>
__device__ __forceinline__ void drop_rest(const Columns<T>& columns, u64* known, const unsigned* counts) {
  __shared__ Kth kth[MOST_COLUMNS];
  join(columns, kth, columns.passes, known, counts);
  columns.drop_rest(kth);
}

#define PIECES(T)                                                                                                     \
  const i64 lo = blockIdx.y * rows;                                                                                   \
  const Columns<T> columns{X, n, B, lo, smaller(n, lo + rows), k, width, passes};
#define COUNT_DIGITS(T)                                                                                               \
  extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1) count_digits_##T(                                      \
      T *X, i64 n, i64 B, unsigned k, int width, int passes, int pass, i64 rows, u64 *known, unsigned *counts) {       \
    PIECES(T)                                                                                                         \
    count_digits(columns, pass, known, counts);                                                                       \
  }
// resources: count_digits registers <= 56, shared <= 8384
COUNT_DIGITS(float32)
COUNT_DIGITS(float64)

#define DROP_REST(T)                                                                                                  \
  extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1) drop_rest_##T(                                         \
      T *X, i64 n, i64 B, unsigned k, int width, int passes, i64 rows, u64 *known, const unsigned *counts) {           \
    PIECES(T)                                                                                                         \
    drop_rest(columns, known, counts);                                                                                \
  }
// resources: drop_rest registers <= 48, shared <= 192
DROP_REST(float32)
DROP_REST(float64)
