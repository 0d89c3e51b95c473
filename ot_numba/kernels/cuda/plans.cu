// Plans P_ij = 2^(F_i + G_j - scale c_ij), never formed: one pass over the costs for a row update and its column sums.
//
// A block of threads owns a range of rows and takes 32 / sizeof(T) of them at a time. A thread owns columns: it loads
// G_j, and y_j, once for these rows. The powers wait in shared memory for the weights that the row sums give: those of
// the first `stored` columns. The others are evaluated a second time, from costs that the L2 cache still has. No thread
// but its own touches an entry of the block's partial column sums. A second kernel adds these in the order of the
// blocks, so that the result has the same bits always; nothing is added atomically.
//
// A row whose sum leaves the range of 2^x is shifted until its largest exponent is 0, and its group evaluated again.
//
// Roofline on an H100 SXM, on paper and never measured: 132 SMs at 1.755 GHz with 128 float32, 64 float64, 16 special
// operations per clock, 3.35 TB/s from memory, about 5.5 TB/s from L2. A power in float64 counts 16 operations, one in
// float32 a special one and another. Per entry, float32 / float64, and for n = m = 10^4 (for m <= 3000 nothing is read
// or evaluated twice: 4.5 / 9 bytes of memory, 6 / 12 of L2, and 1 exp):
// sinkhorn_rows, dense: 4.4 / 8.8 bytes of memory, 9 / 17 of L2; 5 flops, 1.65 exp; bound by L2: 0.16 / 0.31 ms
// sinkhorn_rows, d = 3: 0.4 / 0.8 bytes of memory, 4 / 8 of L2; 13 flops, 1.65 exp; bound by issue / float64:
//   0.07 / 0.25 ms
// plan_pair: as sinkhorn_rows, 1 flop more
// marginals, dense: 4.4 / 8.8 bytes of memory, 6 / 12 of L2; 6 flops, 1 exp; bound by memory: 0.13 / 0.26 ms
// products, dense, p = q = 4: 6 / 11 bytes of memory, 12 / 24 of L2; 18 flops, 1 exp; bound by L2: 0.22 / 0.44 ms
// plan, dense: 8 / 16 bytes of memory; 3 flops, 1 exp; bound by memory: 0.24 / 0.48 ms
// row_logsumexp, dense: 4 / 8 bytes of memory, 4.5 / 9 of L2; 4 flops, 1 exp; bound by memory: 0.12 / 0.24 ms
// row_logsumexp, d = 3: 0 bytes of memory, 2 / 8 of L2 or L1; 9 flops, 1 exp; bound by issue / float64: 0.04 / 0.15 ms
// column_logsumexp: 4 / 8 bytes of memory; 4 flops, 1.1 exp; bound by memory: 0.12 / 0.24 ms; of points: row_logsumexp
// sum_columns, sum_both: 4 / 8 bytes an entry of the partial sums (250, m), 1 flop, 0 exp; bound by latency: 0.005 ms
// sinkhorn_columns: 20 / 32 bytes, 40 flops, 1 exp for each of m columns; bound by latency: 0.005 ms
// combine: 12 / 16 bytes, 20 flops, 1 exp for each partial sum; bound by latency: 0.003 ms
// sum_errors: 8 bytes, 1 flop, 0 exp for each block; bound by latency: 0.003 ms

constexpr int MOST_WARPS = 16;                               // of a block
template <typename T> constexpr int GROUP = 32 / sizeof(T);  // rows at a time
constexpr int FACTORS = 4, PRODUCTS_WARPS = 4;               // columns of V, and of U, at a time; warps for them

// x, y, scale, d, m are a cost as `Rows` takes it.
template <typename T> struct Plan {
  const T *x, *y;
  T scale;
  int d, m;
  const T* G;
  T* points;  // shared memory of `Rows`

  // visit(j, e, p) with exponents and powers of rows i.., for the columns of this thread from `first` on
  template <int D, int R, typename Visit>
  __device__ __forceinline__ void visit(const Rows<T, D, R>& rows, const T (&f)[R], int first, Visit&& visit) const {
#pragma unroll 1
    for (int j = first + threadIdx.x; j < m; j += blockDim.x) {
      T e[R], p[R];
      rows.exponents(j, f, G[j], e);
#pragma unroll
      for (int r = 0; r < R; ++r) p[r] = power2(e[r]);
      visit(j, e, p);
    }
  }
};

// Sums over the block of R numbers per thread, by way of parts[warps * R]: left there, and after a barrier taken.
template <int R, typename T> __device__ __forceinline__ void leave_sums(const T (&s)[R], double* parts) {
  double v[R];
#pragma unroll
  for (int r = 0; r < R; ++r) v[r] = (double)saturated(s[r]);
  warp_sums(v);
  if ((threadIdx.x & 31) < R) parts[(threadIdx.x >> 5) * R + warp_sums_index<R>()] = v[0];
}
template <int R> __device__ __forceinline__ double take_sum(const double* parts, int r) {
  double sum = parts[r];
  for (int w = 1; w < blockDim.x >> 5; ++w) sum += parts[w * R + r];
  return sum;
}

// column += sum_r w_r p_r, from the stored powers and, for later columns, from new ones.
template <typename T, int D, int R>
__device__ __forceinline__ void add_columns(const Plan<T>& plan, const Rows<T, D, R>& rows, const T (&f)[R],
                                            const T* weights, const T* powers, int stored, bool begun, T* column) {
  T w[R];
#pragma unroll
  for (int r = 0; r < R; ++r) w[r] = weights[r];
#pragma unroll 2
  for (int j = threadIdx.x; j < stored; j += blockDim.x) {
    T sum = begun ? column[j] : T(0);
#pragma unroll
    for (int r = 0; r < R; ++r) sum = fma(w[r], powers[r * stored + j], sum);
    column[j] = sum;
  }
  plan.visit(rows, f, stored, [&](int j, const T(&)[R], const T(&p)[R]) {
    T sum = begun ? column[j] : T(0);
#pragma unroll
    for (int r = 0; r < R; ++r) sum = fma(w[r], p[r], sum);
    column[j] = sum;
  });
}

// Factors are multiplied by it, and sums divided: in float32, where numbers below 2^-126 are flushed to 0, products of
// small powers and small factors would else be lost.
template <typename T> constexpr T LIFT = sizeof(T) == 4 ? 4096 : 1;

// Groups of rows lo <= i < hi: as many full ones as there are, then single rows.
#define FOR_GROUPS(T, lo, hi, i, CALL)                                                                                \
  {                                                                                                                   \
    i64 i = lo;                                                                                                       \
    for (; i + GROUP<T> <= hi; i += GROUP<T>) CALL(GROUP<T>);                                                         \
    for (; i < hi; ++i) CALL(1);                                                                                      \
  }

// ---------------------------------------------------------------- fused row update

template <typename T> struct RowUpdate {
  T* F;
  const T *a, *offset;
  double damping, relaxation;
};

// Update of F for R rows, and their powers after it into `column`; threads below R add the error before it to `error`.
template <typename T, int D, int R>
__device__ __forceinline__ void update_group(const Plan<T>& plan, const RowUpdate<T>& update, i64 i, T* powers,
                                             int stored, bool begun, T* column, double& error) {
  __shared__ double parts[MOST_WARPS * R];
  __shared__ T tops[MOST_WARPS * R], weights[R], shifts[R];
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const Rows<T, D, R> rows(plan.x, plan.y, plan.scale, plan.d, plan.m, i, plan.points);
  T f[R];
#pragma unroll
  for (int r = 0; r < R; ++r) f[r] = update.F[i + r];
  T old = 0;
  double weight = 0, offset = 0, relaxation = update.relaxation;
  if (thread < R) old = update.F[i + thread], weight = update.a[i + thread], offset = update.offset[i + thread];
  bool lost = false, again = false;
  while (true) {
    T s[R] = {};
    plan.visit(rows, f, 0, [&](int j, const T(&)[R], const T(&p)[R]) {
#pragma unroll
      for (int r = 0; r < R; ++r) s[r] += p[r];
      if (j < stored)
#pragma unroll
        for (int r = 0; r < R; ++r) powers[r * stored + j] = p[r];
    });
    leave_sums(s, parts);
    __syncthreads();
    if (thread < R) {
      const double sum = take_sum<R>(parts, thread), tiny = range<T>::tiny();
      if (!again) {
        const double wanted = marginal_target(old, weight, offset, update.damping);
        lost = !(sum > tiny && sum < 0.75 / tiny);  // 0.75 / tiny < 2^960, where powers saturate
        error += fabs(sum - wanted);
      } else {
        lost = false;
      }
      if (relaxation == 0.0) {  // no path: the potential stays
        weights[thread] = 0;
      } else if (!lost) {
        const double ratio = log2(weight) - log2(sum);
        const double next = updated(old, offset, ratio, update.damping, relaxation);
        const T stored_next = (T)bounded(old, next, sum, range<T>::reach());
        update.F[i + thread] = stored_next;
        weights[thread] = (T)power2((double)stored_next - (double)old);
      }
    }
    if (!__syncthreads_or(lost)) break;
    again = true;  // bring the largest exponents of the rows that are lost to 0
    T top[R];
#pragma unroll
    for (int r = 0; r < R; ++r) top[r] = -infinity(T());
    for (int j = thread; j < plan.m; j += blockDim.x) {
      T e[R];
      rows.exponents(j, f, plan.G[j], e);
#pragma unroll
      for (int r = 0; r < R; ++r) top[r] = larger(top[r], e[r]);
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      top[r] = warp_max(top[r]);
      if (lane == 0) tops[warp * R + r] = top[r];
    }
    __syncthreads();
    if (thread < R) {
      T shift = tops[thread];
      for (int w = 1; w < blockDim.x >> 5; ++w) shift = larger(shift, tops[w * R + thread]);
      const bool reachable = shift > -infinity(T());
      if (lost) relaxation = reachable ? 1.0 : 0.0;
      shift = lost && reachable ? shift : T(0);
      old -= shift;
      shifts[thread] = shift;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < R; ++r) f[r] -= shifts[r];
  }
  add_columns(plan, rows, f, weights, powers, stored, begun, column);
}

template <typename T, int D>
__device__ __forceinline__ void sinkhorn_rows(const Plan<T>& plan, const RowUpdate<T>& update, i64 n, i64 block_rows,
                                              T* powers, int stored, T* columns, double* errors) {
  const i64 lo = blockIdx.x * block_rows, hi = smaller(lo + block_rows, n);
  T* column = columns + blockIdx.x * (i64)plan.m;
  double error = 0;
#define CALL(R) update_group<T, D, R>(plan, update, i, powers, stored, i > lo, column, error)
  FOR_GROUPS(T, lo, hi, i, CALL)
#undef CALL
  if (threadIdx.x < 32) {
    error = warp_sum(error);
    if (threadIdx.x == 0) errors[blockIdx.x] = error;
  }
}

// ---------------------------------------------------------------- t = P v, P' (w t)

template <typename T> struct Pair {
  const double *v, *w;
  double* t;
};

template <typename T, int D, int R>
__device__ __forceinline__ void pair_group(const Plan<T>& plan, const Pair<T>& pair, const T* F, i64 i, T* powers,
                                           int stored, bool begun, T* column) {
  __shared__ double parts[MOST_WARPS * R];
  __shared__ T weights[R];
  const Rows<T, D, R> rows(plan.x, plan.y, plan.scale, plan.d, plan.m, i, plan.points);
  T f[R], s[R] = {};
#pragma unroll
  for (int r = 0; r < R; ++r) f[r] = F[i + r];
  plan.visit(rows, f, 0, [&](int j, const T(&)[R], const T(&p)[R]) {
    const T v = LIFT<T> * (T)pair.v[j];
#pragma unroll
    for (int r = 0; r < R; ++r) s[r] = fma(p[r], v, s[r]);
    if (j < stored)
#pragma unroll
      for (int r = 0; r < R; ++r) powers[r * stored + j] = p[r];
  });
  leave_sums(s, parts);
  __syncthreads();
  if (threadIdx.x < R) {
    const double t = take_sum<R>(parts, threadIdx.x) / LIFT<T>;
    pair.t[i + threadIdx.x] = t;
    weights[threadIdx.x] = (T)(pair.w[i + threadIdx.x] * t);
  }
  __syncthreads();
  add_columns(plan, rows, f, weights, powers, stored, begun, column);
}

template <typename T, int D>
__device__ __forceinline__ void plan_pair(const Plan<T>& plan, const Pair<T>& pair, const T* F, i64 n, i64 block_rows,
                                          T* powers, int stored, T* columns) {
  const i64 lo = blockIdx.x * block_rows, hi = smaller(lo + block_rows, n);
  T* column = columns + blockIdx.x * (i64)plan.m;
#define CALL(R) pair_group<T, D, R>(plan, pair, F, i, powers, stored, i > lo, column)
  FOR_GROUPS(T, lo, hi, i, CALL)
#undef CALL
}

// ---------------------------------------------------------------- row sums, column sums, entropies

template <typename T, int D, int R>
__device__ __forceinline__ void marginals_group(const Plan<T>& plan, const T* F, i64 i, bool begun, T* column,
                                                double* row_sums, double* entropies) {
  __shared__ double parts[2][MOST_WARPS * R];
  const Rows<T, D, R> rows(plan.x, plan.y, plan.scale, plan.d, plan.m, i, plan.points);
  T f[R], s[R] = {}, h[R] = {};
#pragma unroll
  for (int r = 0; r < R; ++r) f[r] = F[i + r];
  plan.visit(rows, f, 0, [&](int j, const T(&e)[R], const T(&p)[R]) {
    T sum = begun ? column[j] : T(0);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      s[r] += p[r];
      h[r] = fma(p[r], larger(e[r], range<T>::lowest()), h[r]);  // 0 where p is
      sum += p[r];
    }
    column[j] = sum;
  });
  leave_sums(s, parts[0]);
  leave_sums(h, parts[1]);
  __syncthreads();
  if (threadIdx.x < R) {
    row_sums[i + threadIdx.x] = take_sum<R>(parts[0], threadIdx.x);
    entropies[i + threadIdx.x] = take_sum<R>(parts[1], threadIdx.x);
  }
  __syncthreads();
}

template <typename T, int D>
__device__ __forceinline__ void marginals(const Plan<T>& plan, const T* F, i64 n, i64 block_rows, T* columns,
                                          double* row_sums, double* entropies) {
  const i64 lo = blockIdx.x * block_rows, hi = smaller(lo + block_rows, n);
  T* column = columns + blockIdx.x * (i64)plan.m;
#define CALL(R) marginals_group<T, D, R>(plan, F, i, i > lo, column, row_sums, entropies)
  FOR_GROUPS(T, lo, hi, i, CALL)
#undef CALL
}

// ---------------------------------------------------------------- P V and P' U, up to FACTORS columns of each

template <typename T> struct Factors {
  const T *VT, *UT;  // (p, m), (q, n)
  int p, q;
  i64 n;
  double* PVT;       // (p, n)
};

template <typename T, int D, int R>
__device__ __forceinline__ void products_group(const Plan<T>& plan, const Factors<T>& factors, const T* F, i64 i,
                                               bool begun, T* column) {
  __shared__ double parts[FACTORS][PRODUCTS_WARPS * R];
  __shared__ T u[FACTORS * R];
  const int thread = threadIdx.x, p = factors.p, q = factors.q, m = plan.m;
  for (int k = thread; k < q * R; k += blockDim.x) u[k] = LIFT<T> * factors.UT[k / R * factors.n + i + k % R];
  __syncthreads();
  const Rows<T, D, R> rows(plan.x, plan.y, plan.scale, plan.d, plan.m, i, plan.points);
  T f[R], s[FACTORS][R] = {};
#pragma unroll
  for (int r = 0; r < R; ++r) f[r] = F[i + r];
  plan.visit(rows, f, 0, [&](int j, const T(&)[R], const T(&power)[R]) {
#pragma unroll
    for (int c = 0; c < FACTORS; ++c) {
      if (c < p) {
        const T v = LIFT<T> * factors.VT[c * (i64)m + j];
#pragma unroll
        for (int r = 0; r < R; ++r) s[c][r] = fma(power[r], v, s[c][r]);
      }
    }
    for (int c = 0; c < q; ++c) {
      T sum = begun ? column[c * (i64)m + j] : T(0);
#pragma unroll
      for (int r = 0; r < R; ++r) sum = fma(u[c * R + r], power[r], sum);
      column[c * (i64)m + j] = sum;
    }
  });
#pragma unroll
  for (int c = 0; c < FACTORS; ++c) {
    if (c == p) break;
    leave_sums(s[c], parts[c]);
  }
  __syncthreads();
  if (thread < p * R)  // at most 32
    factors.PVT[thread / R * factors.n + i + thread % R] = take_sum<R>(parts[thread / R], thread % R) / LIFT<T>;
}

template <typename T, int D>
__device__ __forceinline__ void products(const Plan<T>& plan, const Factors<T>& factors, const T* F, i64 block_rows,
                                         T* columns) {
  const i64 lo = blockIdx.x * block_rows, hi = smaller(lo + block_rows, factors.n);
  T* column = columns + blockIdx.x * (i64)plan.m * factors.q;
#define CALL(R) products_group<T, D, R>(plan, factors, F, i, i > lo, column)
  FOR_GROUPS(T, lo, hi, i, CALL)
#undef CALL
}

// ---------------------------------------------------------------- dense plan

template <typename T, typename S> struct Wider { typedef T type; };
template <> struct Wider<float, double> { typedef double type; };

template <typename T, typename S, int D, int R>
__device__ __forceinline__ void plan_group(const Plan<T>& plan, const T* F, i64 i, T floor, S* out) {
  typedef typename Wider<T, S>::type Power;
  const Rows<T, D, R> rows(plan.x, plan.y, plan.scale, plan.d, plan.m, i, plan.points);
  T f[R];
#pragma unroll
  for (int r = 0; r < R; ++r) f[r] = F[i + r];
  for (i64 j = blockIdx.y * blockDim.x + threadIdx.x; j < plan.m; j += gridDim.y * blockDim.x) {
    T e[R];
    rows.exponents((int)j, f, plan.G[j], e);
#pragma unroll
    for (int r = 0; r < R; ++r)
      out[(i + r) * plan.m + j] = e[r] > floor ? (S)power2((Power)smaller(e[r], range<T>::highest())) : S(0);
  }
}

template <typename T, typename S, int D>
__device__ __forceinline__ void dense_plan(const Plan<T>& plan, const T* F, i64 n, T floor, S* out) {
  const i64 lo = blockIdx.x * (i64)GROUP<T>, hi = smaller(lo + GROUP<T>, n);
#define CALL(R) plan_group<T, S, D, R>(plan, F, i, floor, out)
  FOR_GROUPS(T, lo, hi, i, CALL)
#undef CALL
}

// ---------------------------------------------------------------- log-sum-exp

// Sum s of powers of 2, relative to 2^top. The reference `top` moves only when an exponent exceeds it by more than
// `slack`: no sum overflows, and what underflows is nothing next to the largest term. No infinity meets another.
template <typename T> struct LogSum {
  T top, s;
  __device__ __forceinline__ LogSum() : top(-range<T>::largest()), s(0) {}
  static __device__ __forceinline__ T slack() { return sizeof(T) == 4 ? 32 : 256; }
  template <int N> __device__ __forceinline__ void add(const T (&e)[N]) {
    T most = e[0];
#pragma unroll
    for (int k = 1; k < N; ++k) most = larger(most, e[k]);
    if (most - top > slack()) {
      s *= bounded_power2(top - most);
      top = most;
    }
#pragma unroll
    for (int k = 0; k < N; ++k) s += bounded_power2(e[k] - top);
  }
};

// log2 of the sum over the rows of the plan, with F = 0, for one line of G; or, in parts of columns, (top, sum).
template <typename T, int D, int R>
__device__ __forceinline__ void logsumexp_group(const Plan<T>& plan, i64 i, int first, int last, T* tops,
                                                double* sums) {
  __shared__ double parts[MOST_WARPS * R];
  __shared__ T references[MOST_WARPS * R];
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const Rows<T, D, R> rows(plan.x, plan.y, plan.scale, plan.d, plan.m, i, plan.points);
  LogSum<T> total[R];
#pragma unroll 1
  for (int j = first + thread; j < last; j += blockDim.x) {
    const T g = plan.G[j];
    T e[R];
#pragma unroll
    for (int r = 0; r < R; ++r) e[r] = g;
    rows.subtract_costs(j, e);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const T one[1] = {e[r]};
      total[r].add(one);
    }
  }
  T s[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const T most = warp_max(total[r].top);
    s[r] = total[r].s * bounded_power2(total[r].top - most);
    if (lane == 0) references[warp * R + r] = most;
  }
  leave_sums(s, parts);
  __syncthreads();
  if (thread < R) {
    const int warps = blockDim.x >> 5;
    T top = references[thread];
    for (int w = 1; w < warps; ++w) top = larger(top, references[w * R + thread]);
    double sum = 0;
    for (int w = 0; w < warps; ++w)
      sum += parts[w * R + thread] * bounded_power2((double)references[w * R + thread] - top);
    if (gridDim.y == 1) {
      tops[i + thread] = (T)(top + log2(sum));
    } else {
      tops[i + thread] = top;
      sums[i + thread] = sum;
    }
  }
  __syncthreads();
}

// Blocks along x: groups of rows, line by line; along y: parts of the columns.
template <typename T, int D>
__device__ __forceinline__ void row_logsumexp(Plan<T> plan, i64 n, i64 lines, i64 part_columns, T* tops, double* sums) {
  const i64 groups = (n + GROUP<T> - 1) / GROUP<T>, line = blockIdx.x / groups;
  const i64 lo = blockIdx.x % groups * GROUP<T>, hi = smaller(lo + GROUP<T>, n);
  const i64 first = blockIdx.y * part_columns, last = smaller(first + part_columns, (i64)plan.m);
  plan.G += line * plan.m;
  tops += (blockIdx.y * lines + line) * n;
  if (gridDim.y > 1) sums += (blockIdx.y * lines + line) * n;
#define CALL(R) logsumexp_group<T, D, R>(plan, i, first, last, tops, sums)
  FOR_GROUPS(T, lo, hi, i, CALL)
#undef CALL
}

// log2 sum_i 2^(F_i - scale C_ij) of a dense cost, a thread for a column; along y: parts of the rows.
template <typename T>
__device__ __forceinline__ void column_logsumexp(const T* C, T scale, i64 n, int m, const T* F, i64 part_rows, T* tops,
                                                 double* sums) {
  const i64 j = blockIdx.x * (i64)blockDim.x + threadIdx.x;
  i64 i = blockIdx.y * part_rows;
  const i64 last = smaller(i + part_rows, n);
  if (j >= m) return;
  LogSum<T> total;
  for (; i + GROUP<T> <= last; i += GROUP<T>) {
    T e[GROUP<T>];
#pragma unroll
    for (int r = 0; r < GROUP<T>; ++r) e[r] = fma(-scale, C[(i + r) * m + j], F[i + r]);
    total.add(e);
  }
  for (; i < last; ++i) {
    const T e[1] = {fma(-scale, C[i * m + j], F[i])};
    total.add(e);
  }
  if (gridDim.y == 1) {
    tops[j] = (T)(total.top + log2((double)total.s));
  } else {
    tops[blockIdx.y * (i64)m + j] = total.top;
    sums[blockIdx.y * (i64)m + j] = total.s;
  }
}

// Logarithms of the sums whose parts (parts, count) are relative to 2^tops.
template <typename T>
__device__ __forceinline__ void combine(const T* tops, const double* sums, int parts, i64 count, T* out) {
  const i64 k = blockIdx.x * (i64)blockDim.x + threadIdx.x;
  if (k >= count) return;
  T top = tops[k];
  for (int p = 1; p < parts; ++p) top = larger(top, tops[p * count + k]);
  double sum = 0;
  for (int p = 0; p < parts; ++p) sum += sums[p * count + k] * bounded_power2((double)tops[p * count + k] - top);
  out[k] = (T)(top + log2(sum));
}

// ---------------------------------------------------------------- vectors

constexpr int SUM_WARPS = 32;

// Sums of the columns of partial (count, width) times `factor`, in fixed order: 32 columns a block, 32 rows at a time.
template <typename T>
__device__ __forceinline__ void sum_columns(const T* partial, int count, i64 width, double factor, double* out) {
  __shared__ double parts[SUM_WARPS][32];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const i64 j = blockIdx.x * 32ll + lane;
  double sum = 0;
  if (j < width) {
#pragma unroll 4
    for (int k = warp; k < count; k += SUM_WARPS) sum += (double)saturated(partial[k * width + j]);
  }
  parts[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && j < width) {
    for (int w = 1; w < SUM_WARPS; ++w) sum += parts[w][lane];
    out[j] = factor * sum;
  }
}

__device__ __forceinline__ void sum_all(const double* values, int count, double* out) {
  __shared__ double scratch[32];
  double sum = 0;
  for (int k = threadIdx.x; k < count; k += blockDim.x) sum += values[k];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) *out = sum;
}

template <typename T>
__device__ __forceinline__ void sinkhorn_columns(const double* column_sums, const T* b, T* G, const T* offset, int m,
                                                 double damping, double relaxation, double* errors) {
  __shared__ double scratch[32];
  const double tiny = range<T>::tiny();
  double error = 0;
  for (i64 j = blockIdx.x * (i64)blockDim.x + threadIdx.x; j < m; j += gridDim.x * (i64)blockDim.x) {
    const double s = column_sums[j], old = G[j], weight = b[j], zero = offset[j];
    error += fabs(s - marginal_target(old, weight, zero, damping));
    const bool lost = !(s > tiny && s < 1.0 / tiny);  // the next iterations pull it in
    const double believed = s > tiny ? smaller(s, 1.0 / tiny) : tiny;
    const double next = updated(old, zero, log2(weight) - log2(believed), damping, lost ? 1.0 : relaxation);
    G[j] = (T)bounded(old, next, believed, range<T>::reach());
  }
  error = block_sum(error, scratch);
  if (threadIdx.x == 0) errors[blockIdx.x] = error;
}

// ---------------------------------------------------------------- entry points
//
// All of them, or where the loader defines ONLY, those that ONLY_<operation>, ONLY_KIND and ONLY_BYTES choose: who
// calls five kernels need not wait until sixty are compiled.

typedef float float32;
typedef double float64;

#if !defined(ONLY) || ONLY_BYTES == 4
#define WITH_FLOAT32(ENTRY, ...) ENTRY(__VA_ARGS__, float32)
#else
#define WITH_FLOAT32(ENTRY, ...)
#endif
#if !defined(ONLY) || ONLY_BYTES == 8
#define WITH_FLOAT64(ENTRY, ...) ENTRY(__VA_ARGS__, float64)
#else
#define WITH_FLOAT64(ENTRY, ...)
#endif
#define BOTH(ENTRY, ...) WITH_FLOAT32(ENTRY, __VA_ARGS__) WITH_FLOAT64(ENTRY, __VA_ARGS__)
#if !defined(ONLY) || ONLY_KIND == 0
#define WITH_DENSE(ENTRY) BOTH(ENTRY, dense, DENSE)
#else
#define WITH_DENSE(ENTRY)
#endif
#if !defined(ONLY) || ONLY_KIND == 2
#define WITH_DOT2(ENTRY) BOTH(ENTRY, dot2, 2)
#else
#define WITH_DOT2(ENTRY)
#endif
#if !defined(ONLY) || ONLY_KIND == 3
#define WITH_DOT3(ENTRY) BOTH(ENTRY, dot3, 3)
#else
#define WITH_DOT3(ENTRY)
#endif
#if !defined(ONLY) || ONLY_KIND == 4
#define WITH_DOTS(ENTRY) BOTH(ENTRY, dots, ANY)
#else
#define WITH_DOTS(ENTRY)
#endif
#define EVERY(ENTRY) WITH_DENSE(ENTRY) WITH_DOT2(ENTRY) WITH_DOT3(ENTRY) WITH_DOTS(ENTRY)

#define BOUNDS(D) __launch_bounds__(D == DENSE ? 512 : 256, 2)  // points need registers
#define COST(T) const T *__restrict__ x, const T *__restrict__ y, T scale, int d, i64 n, int m
#define SHARED(T)                                                                                                     \
  extern __shared__ __align__(32) unsigned char dynamic[];                                                            \
  T* const points = (T*)dynamic;
#define PLAN {x, y, scale, d, m, G, points}
#define POWERS(T, D) (points + (D == ANY ? GROUP<T> * d : 0))

#if !defined(ONLY) || defined(ONLY_sinkhorn_rows)
#define SINKHORN_ROWS(NAME, D, T)                                                                                     \
  extern "C" __global__ void BOUNDS(D) sinkhorn_rows_##NAME##_##T(                                                    \
      COST(T), T* __restrict__ F, const T* __restrict__ G, const T* __restrict__ a, const T* __restrict__ offset,     \
      double damping, double relaxation, i64 block_rows, int stored, T* __restrict__ columns,                         \
      double* __restrict__ errors) {                                                                                  \
    SHARED(T)                                                                                                         \
    sinkhorn_rows<T, D>(PLAN, {F, a, offset, damping, relaxation}, n, block_rows, POWERS(T, D), stored, columns,      \
                        errors);                                                                                      \
  }
// resources: sinkhorn_rows_dense registers <= 64, shared <= 2048
// resources: sinkhorn_rows_dot registers <= 128, shared <= 2048
EVERY(SINKHORN_ROWS)
#endif

#if !defined(ONLY) || defined(ONLY_plan_pair)
#define PLAN_PAIR(NAME, D, T)                                                                                         \
  extern "C" __global__ void BOUNDS(D) plan_pair_##NAME##_##T(                                                        \
      COST(T), const T* __restrict__ F, const T* __restrict__ G, const double* __restrict__ v,                        \
      const double* __restrict__ w, double* __restrict__ t, i64 block_rows, int stored, T* __restrict__ columns) {    \
    SHARED(T)                                                                                                         \
    plan_pair<T, D>(PLAN, {v, w, t}, F, n, block_rows, POWERS(T, D), stored, columns);                                \
  }
// resources: plan_pair_dense registers <= 64, shared <= 1280
// resources: plan_pair_dot registers <= 128, shared <= 1280
EVERY(PLAN_PAIR)
#endif

#if !defined(ONLY) || defined(ONLY_marginals)
#define MARGINALS(NAME, D, T)                                                                                         \
  extern "C" __global__ void BOUNDS(D) marginals_##NAME##_##T(                                                        \
      COST(T), const T* __restrict__ F, const T* __restrict__ G, double* __restrict__ row_sums,                       \
      double* __restrict__ entropies, i64 block_rows, T* __restrict__ columns) {                                      \
    SHARED(T)                                                                                                         \
    marginals<T, D>(PLAN, F, n, block_rows, columns, row_sums, entropies);                                            \
  }
// resources: marginals_dense registers <= 64, shared <= 2304
// resources: marginals_dot registers <= 128, shared <= 2304
EVERY(MARGINALS)
#endif

#if !defined(ONLY) || defined(ONLY_products)
#define PRODUCTS(NAME, D, T)                                                                                          \
  extern "C" __global__ void __launch_bounds__(128, 3) products_##NAME##_##T(                                         \
      COST(T), const T* __restrict__ F, const T* __restrict__ G, const T* __restrict__ VT, const T* __restrict__ UT,  \
      int p, int q, double* __restrict__ PVT, i64 block_rows, T* __restrict__ columns) {                              \
    SHARED(T)                                                                                                         \
    products<T, D>(PLAN, {VT, UT, p, q, n, PVT}, F, block_rows, columns);                                             \
  }
// resources: products registers <= 168, shared <= 1408
EVERY(PRODUCTS)
#endif

#if !defined(ONLY) || defined(ONLY_plan)
#define DENSE_PLAN(NAME, D, T)                                                                                        \
  extern "C" __global__ void BOUNDS(D) plan_##NAME##_##T##_float32(                                                   \
      COST(T), const T* __restrict__ F, const T* __restrict__ G, T floor, float* __restrict__ out) {                  \
    SHARED(T)                                                                                                         \
    dense_plan<T, float, D>(PLAN, F, n, floor, out);                                                                  \
  }                                                                                                                   \
  extern "C" __global__ void BOUNDS(D) plan_##NAME##_##T##_float64(                                                   \
      COST(T), const T* __restrict__ F, const T* __restrict__ G, T floor, double* __restrict__ out) {                 \
    SHARED(T)                                                                                                         \
    dense_plan<T, double, D>(PLAN, F, n, floor, out);                                                                 \
  }
// resources: plan_dense registers <= 64, shared <= 0
// resources: plan_dot registers <= 112, shared <= 0
EVERY(DENSE_PLAN)
#endif

#if !defined(ONLY) || defined(ONLY_row_logsumexp)
#define ROW_LOGSUMEXP(NAME, D, T)                                                                                     \
  extern "C" __global__ void BOUNDS(D) row_logsumexp_##NAME##_##T(                                                    \
      COST(T), const T* __restrict__ G, i64 lines, i64 part_columns, T* __restrict__ tops,                            \
      double* __restrict__ sums) {                                                                                    \
    SHARED(T)                                                                                                         \
    row_logsumexp<T, D>(PLAN, n, lines, part_columns, tops, sums);                                                    \
  }
// resources: row_logsumexp_dense registers <= 64, shared <= 1792
// resources: row_logsumexp_dot registers <= 128, shared <= 1792
EVERY(ROW_LOGSUMEXP)
#endif

#if !defined(ONLY) || defined(ONLY_column_logsumexp)
#define COLUMN_LOGSUMEXP(NAME, D, T)                                                                                  \
  extern "C" __global__ void BOUNDS(D) column_logsumexp_##NAME##_##T(                                                 \
      const T* __restrict__ C, T scale, i64 n, int m, const T* __restrict__ F, i64 part_rows, T* __restrict__ tops,   \
      double* __restrict__ sums) {                                                                                    \
    column_logsumexp<T>(C, scale, n, m, F, part_rows, tops, sums);                                                    \
  }
// resources: column_logsumexp registers <= 64, shared <= 0
WITH_DENSE(COLUMN_LOGSUMEXP)
#endif

#if !defined(ONLY) || defined(ONLY_combine)
#define COMBINE(T)                                                                                                    \
  extern "C" __global__ void __launch_bounds__(256, 2) combine_##T(                                                   \
      const T* __restrict__ tops, const double* __restrict__ sums, int parts, i64 count, T* __restrict__ out) {       \
    combine<T>(tops, sums, parts, count, out);                                                                        \
  }
// resources: combine registers <= 64, shared <= 0
COMBINE(float32)
COMBINE(float64)
#endif

#if !defined(ONLY) || defined(ONLY_sum_columns)
#define SUM_COLUMNS(T)                                                                                                \
  extern "C" __global__ void __launch_bounds__(1024) sum_columns_##T(                                                 \
      const T* __restrict__ partial, int count, i64 width, double factor, double* __restrict__ out) {                 \
    sum_columns<T>(partial, count, width, factor, out);                                                               \
  }
// resources: sum_columns registers <= 40, shared <= 8192
SUM_COLUMNS(float32)
SUM_COLUMNS(float64)
#endif

#if !defined(ONLY) || defined(ONLY_sum_both)
// The last block adds up the errors of the blocks.
#define SUM_BOTH(T)                                                                                                   \
  extern "C" __global__ void __launch_bounds__(1024) sum_both_##T(                                                    \
      const T* __restrict__ partial, int count, i64 width, const double* __restrict__ errors,                         \
      double* __restrict__ out, double* __restrict__ error) {                                                         \
    if (blockIdx.x == gridDim.x - 1)                                                                                  \
      sum_all(errors, count, error);                                                                                  \
    else                                                                                                              \
      sum_columns<T>(partial, count, width, 1.0, out);                                                                \
  }
// resources: sum_both registers <= 40, shared <= 8448
SUM_BOTH(float32)
SUM_BOTH(float64)
#endif

#if !defined(ONLY) || defined(ONLY_sum_errors)
// resources: sum_errors registers <= 32, shared <= 256
extern "C" __global__ void __launch_bounds__(1024) sum_errors(
    const double* __restrict__ errors, int count, double* __restrict__ out) {
  sum_all(errors, count, out);
}
#endif

#if !defined(ONLY) || defined(ONLY_sinkhorn_columns)
#define SINKHORN_COLUMNS(T)                                                                                           \
  extern "C" __global__ void __launch_bounds__(256, 2) sinkhorn_columns_##T(                                          \
      const double* __restrict__ column_sums, const T* __restrict__ b, T* __restrict__ G,                             \
      const T* __restrict__ offset, int m, double damping, double relaxation, double* __restrict__ errors) {          \
    sinkhorn_columns<T>(column_sums, b, G, offset, m, damping, relaxation, errors);                                   \
  }
// resources: sinkhorn_columns registers <= 64, shared <= 256
SINKHORN_COLUMNS(float32)
SINKHORN_COLUMNS(float64)
#endif
