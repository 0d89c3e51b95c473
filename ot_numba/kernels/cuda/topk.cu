// Rows of quadratic and cardinality-constrained plans, projections of rows on the simplex, k-support norms; see
// `contract`. Scores are in the dtype of the cost, all that follows in double.
//
// A block takes a row at a time, one warp where rows are short. Scores are evaluated once, and wait with their columns
// in shared memory, or where a row is longer than that in a piece of global memory of the block, which L2 holds. Of
// these a compaction in the order of the columns leaves the few that can have mass: those that are not too far below
// the largest, nor below the k-th largest of what is largest for a thread. The k-th largest of them is found by its
// digits, 8 bits at a time, and a second compaction leaves k, of equal ones the first. What is left is gone through a
// few times: for the threshold (Michelot: entries below the threshold of what is left are thrown out) and, if relaxed,
// by Newton's method for the level, and around it for the potential. No other thread touches a column of the block's
// partial column sums while a row is added to them; they are added in the order of the blocks. So the bits are always
// the same.
//
// Roofline on an H100 (3.35 TB/s, 132 SMs at 1.755 GHz), from the counts alone and never measured; per entry, s bytes
// each, n = m = 10^4, dense (points of dimension d: no bytes from device memory, 2 d flops and (d + 1) s bytes of L1):
//   plan_rows: s bytes of memory, 2 s + 4 bytes of shared memory or L2, 3 flops, no exp, about 25 issue slots; for the
//     sums also 16 m bytes of partial sums for each of 396 blocks: bound by memory, 0.15 ms in float32 and 0.3 ms in
//     float64. On top of it come about 30 barriers a row, some 3 us that the three blocks of a multiprocessor share:
//     0.1 ms. Where nearly all entries of a row are near the largest (reg large), and 256 <= k < m, the selection by
//     digits takes up to 4 passes (float64: 8) of 25 slots, at most 0.4 ms (0.8 ms) more; with delta > 0 it is Newton's
//     method on all of them, about 5 times 5 passes of 10 operations in float64: 3 ms. A plan takes two such launches,
//     and s + 4 (8) bytes for each entry.
//   project_rows: 2 s bytes of memory, else as plan_rows: bound by memory, 0.25 ms in float32 and 0.5 ms in float64.
//   ksupport_rows: s bytes of memory, and the row from L2 in each of about 8 passes of 5 operations in float64: bound
//     by these and by conversions, 0.5 ms.

typedef float float32;
typedef double float64;

constexpr int MOST_WARPS = 8, AT_ONCE = 4, MAX_STEPS = 100;
constexpr double NEAR = 1e-14;  // a relative step of this size is the last: it ends on the piece it began on

// Scores G_j - scale c_ij of the AT_ONCE columns j, j + 32, ... of row i; -inf beyond the last column.
template <typename T> struct Scores {
  const T *x, *y;
  T scale;
  i64 d;
  int dense;
  const T* G;
  i64 n;
  int m;
  __device__ __forceinline__ void scores(i64 i, int j, T (&s)[AT_ONCE]) const {
    int column[AT_ONCE];
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      column[u] = j + 32 * u < m ? j + 32 * u : m - 1;
      s[u] = G[column[u]];
    }
    if (dense) {
#pragma unroll
      for (int u = 0; u < AT_ONCE; ++u)
        if (j + 32 * u < m) s[u] = fma(-scale, x[i * m + column[u]], s[u]);
    } else {
#pragma unroll 1
      for (i64 p = 0; p < d; ++p) {
        const T coordinate = scale * x[i * d + p];
#pragma unroll
        for (int u = 0; u < AT_ONCE; ++u) s[u] = fma(coordinate, y[p * m + column[u]], s[u]);
      }
    }
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) s[u] = j + 32 * u < m ? s[u] : -infinity(T());
  }
};

// Rows of a matrix as they are.
template <typename T> struct Given {
  const T* V;
  i64 n;
  int m;
  __device__ __forceinline__ void scores(i64 i, int j, T (&s)[AT_ONCE]) const {
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u, j += 32) s[u] = j < m ? V[i * m + j] : -infinity(T());
  }
};

// ---------------------------------------------------------------- what a block does together

struct Shared {
  double parts[2][4][MOST_WARPS];
  int counts[2][MOST_WARPS];
  unsigned bins[256];
  double tops[32 * MOST_WARPS];  // largest score of each thread
  u64 chosen;
  int left, whole;
};

// Uses of the two halves of `parts` and `counts` alternate, so that one barrier is enough for each.
struct Team {
  Shared& shared;
  int turn;

  // sums over the block, in the order of the warps
  template <int N> __device__ __forceinline__ void sum(double (&v)[N]) {
    turn ^= 1;
#pragma unroll
    for (int q = 0; q < N; ++q) {
      v[q] = warp_sum(v[q]);
      if (threadIdx.x % 32 == 0) shared.parts[turn][q][threadIdx.x / 32] = v[q];
    }
    __syncthreads();
#pragma unroll
    for (int q = 0; q < N; ++q) v[q] = 0;
#pragma unroll 1
    for (int w = 0; w < blockDim.x / 32; ++w)
#pragma unroll
      for (int q = 0; q < N; ++q) v[q] += shared.parts[turn][q][w];
  }

  __device__ __forceinline__ double max(double v) {
    turn ^= 1;
    v = warp_max(v);
    if (threadIdx.x % 32 == 0) shared.parts[turn][0][threadIdx.x / 32] = v;
    __syncthreads();
    v = shared.parts[turn][0][0];
#pragma unroll 1
    for (int w = 1; w < blockDim.x / 32; ++w) v = larger(v, shared.parts[turn][0][w]);
    return v;
  }
};

enum { DROP, KEEP, TIE };

// Entries that the rule keeps, and the first `ties` of those that it calls ties, in place and in order; their number.
// The columns of a whole row are not there yet.
template <typename T, typename Rule>
__device__ __forceinline__ int compact(Team& team, T* value, int* column, int count, bool whole, int ties,
                                       const Rule& rule) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, chunk = AT_ONCE * blockDim.x;
  const unsigned before = (1u << lane) - 1;
  int kept = 0, tied = 0;
#pragma unroll 1
  for (int first = 0; first < count; first += chunk) {
    T v[AT_ONCE];
    int at[AT_ONCE], mine = 0;
    unsigned keep[AT_ONCE], tie[AT_ONCE];
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      const int c = first + 32 * (AT_ONCE * warp + u) + lane;
      int verdict = DROP;
      v[u] = 0;
      at[u] = c;
      if (c < count) {
        v[u] = value[c];
        if (!whole) at[u] = column[c];
        verdict = rule(v[u]);
      }
      keep[u] = __ballot_sync(FULL, verdict == KEEP);
      tie[u] = __ballot_sync(FULL, verdict == TIE);
      mine += __popc(keep[u]) + (__popc(tie[u]) << 16);
    }
    team.turn ^= 1;
    if (lane == 0) team.shared.counts[team.turn][warp] = mine;
    __syncthreads();  // all have read what others may now write over
    int earlier = 0, all = 0;
#pragma unroll 1
    for (int w = 0; w < blockDim.x / 32; ++w) {
      if (w == warp) earlier = all;
      all += team.shared.counts[team.turn][w];
    }
    int position = kept + (earlier & 0xffff), equal = tied + (earlier >> 16);
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      const int here = equal + __popc(tie[u] & before);
      if ((keep[u] >> lane & 1) || ((tie[u] >> lane & 1) && here < ties)) {
        const int to = position + __popc(keep[u] & before) + (here < ties ? here : ties);
        value[to] = v[u];
        column[to] = at[u];
      }
      position += __popc(keep[u]);
      equal += __popc(tie[u]);
    }
    kept += all & 0xffff;
    tied += all >> 16;
  }
  __syncthreads();
  return kept + (tied < ties ? tied : ties);
}

// Unsigned numbers in the order of the floats, -0 with 0.
__device__ __forceinline__ unsigned ordered(float v) {
  const unsigned bits = __float_as_uint(v + 0.0f);
  return bits >> 31 ? ~bits : bits | 1u << 31;
}
__device__ __forceinline__ u64 ordered(double v) {
  const u64 bits = __double_as_longlong(v + 0.0);
  return bits >> 63 ? ~bits : bits | 1ull << 63;
}

// The key of the k-th largest of at least k numbers, or one below it with the same numbers above it, and how many of
// those with this key are among the k.
template <typename T, typename Number, typename Key>
__device__ __forceinline__ void select(Team& team, const Number* value, int count, int k, Key& found, int& left) {
  Shared& shared = team.shared;
  const int lane = threadIdx.x % 32;
  found = 0;
  left = k;
#pragma unroll 1
  for (int shift = 8 * sizeof(Key) - 8; shift >= 0; shift -= 8) {
    const bool all = shift == 8 * sizeof(Key) - 8;
#pragma unroll 1
    for (int bin = threadIdx.x; bin < 256; bin += blockDim.x) shared.bins[bin] = 0;
    __syncthreads();
#pragma unroll 1
    for (int first = 32 * (threadIdx.x / 32); first < count; first += blockDim.x) {
      const int c = first + lane;
      const Key key = c < count ? ordered((T)value[c]) : 0;
      const bool mine = c < count && (all || key >> shift >> 8 == found >> shift >> 8);
      count_digit(shared.bins, mine ? (int)(key >> shift & 255) : -1);
    }
    __syncthreads();
    unsigned rank = left;
    int digit;
    if (threadIdx.x < 32 && ranked_digit(shared.bins, 1, rank, digit)) {
      shared.chosen = found | (Key)digit << shift;
      shared.left = rank;
      shared.whole = rank == shared.bins[digit];
    }
    __syncthreads();
    found = (Key)shared.chosen;
    left = shared.left;
    if (shared.whole) break;  // all with these digits are taken, whatever the others
  }
}

// A number of the dtype of the scores that is not above the limit, by no more than rounding below it.
__device__ __forceinline__ float not_above(double limit, float) { return (float)(limit - fabs(limit) * 1.2e-7); }
__device__ __forceinline__ double not_above(double limit, double) { return limit; }

// Scores of a row, and the largest of them, to every thread.
template <typename T, typename Cost>
__device__ __forceinline__ double evaluate(Team& team, const Cost& cost, i64 i, T* value) {
  T top = -infinity(T());
#pragma unroll 1
  for (int first = AT_ONCE * (threadIdx.x / 32 * 32); first < cost.m; first += AT_ONCE * blockDim.x) {
    T s[AT_ONCE];
    cost.scores(i, first + threadIdx.x % 32, s);
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      const int j = first + threadIdx.x % 32 + 32 * u;
      if (j < cost.m) value[j] = s[u];
      top = larger(top, s[u]);
    }
  }
  team.shared.tops[threadIdx.x] = top;
  return team.max(top);
}

// Of a row that is evaluated, the k largest of the entries from about `limit` on, of equal ones the first; returns
// their number. If more than k threads have such an entry, the k-th largest of their largest ones is a better limit.
template <typename T>
__device__ __forceinline__ int candidates(Team& team, T* value, int* column, int m, double limit, int k) {
  typedef decltype(ordered(T())) Key;
  const T least = not_above(limit, T());
  Key bound = ordered(least);
  int ties;
  if (__syncthreads_count(team.shared.tops[threadIdx.x] >= least) > k)
    select<T>(team, team.shared.tops, blockDim.x, k, bound, ties);
  const auto rule = [&](T v) {
    const Key key = ordered(v);
    return key > bound ? KEEP : key == bound ? TIE : DROP;
  };
  const int count = compact(team, value, column, m, true, m, rule);
  if (count <= k) return count;
  select<T>(team, value, count, k, bound, ties);
  return compact(team, value, column, count, false, ties, rule);
}

// tau with sum max(v - top - tau, 0) = z > 0, and how many entries are above it.
template <typename T>
__device__ __forceinline__ double threshold(Team& team, const T* value, int count, double top, double z, int& above) {
  double tau = -infinity(double());
  above = count + 1;
  while (true) {
    double sums[2] = {0, 0};
#pragma unroll 1
    for (int c = threadIdx.x; c < count; c += blockDim.x) {
      const double v = (double)value[c] - top;
      if (v > tau) {
        sums[0] += v;
        sums[1] += 1;
      }
    }
    team.sum(sums);
    const int kept = (int)sums[1];
    if (kept >= above || kept == 0) return tau;
    above = kept;
    tau = (sums[0] - z) / sums[1];
  }
}

// ---------------------------------------------------------------- rows of the plan

// The row of the plan with potential f: entries are x = score - shift + f.
struct Oracle {
  const double reg, delta, ratio, per_full, per_pooled;  // reg / delta, 1 / (reg + delta), 1 / delta
  double shift, f, level, full, pooled;

  __device__ __forceinline__ double x(double score) const { return score - shift + f; }

  __device__ __forceinline__ bool is_pooled(double positive) const {
    return level > 0 && (positive - level) * ratio < level;
  }
  __device__ __forceinline__ double mass(double score) const {
    const double positive = larger(x(score), 0.0);
    return is_pooled(positive) ? larger(positive - level, 0.0) * per_pooled : positive * per_full;
  }

  // sum min(max(x - level, 0) reg / delta, level) = k level; how many entries lie far above it, and how many above it
  template <typename T>
  __device__ __forceinline__ void find_level(Team& team, const T* value, int count, double most, int k) {
    double low = 0, high = most;
#pragma unroll 1
    for (int step = -1; step < MAX_STEPS; ++step) {  // first the entries that are positive are counted, at level 0
      level = step < 0 ? 0 : level;
      double sums[4] = {0, 0, 0, 0};
#pragma unroll 1
      for (int c = threadIdx.x; c < count; c += blockDim.x) {
        const double v = x(value[c]), excess = (v - level) * ratio;
        if (excess >= level && v > 0) {
          sums[0] += 1;
        } else if (excess > 0) {
          sums[1] += 1;
          sums[2] += v;
          sums[3] += excess;
        }
      }
      team.sum(sums);
      full = sums[0];
      pooled = sums[1];
      if (step < 0) {
        if (full <= k) return;
        level = 0.5 * high;
        continue;
      }
      const double missing = (full - k) * level + sums[3], weight = k - full + ratio * pooled;
      (missing > 0 ? low : high) = level;
      const double next = weight > 0 ? ratio * sums[2] / weight : -1.0;
      if (fabs(next - level) <= NEAR * level) {
        level = next;
        return;
      }
      if (missing == 0 || high <= low) return;
      level = next > low && next < high ? next : 0.5 * (low + high);
    }
  }

  // the level for this f, and if `solving` first the f for which the masses sum to a, from a lower bound of it
  template <typename T>
  __device__ __forceinline__ void relax(Team& team, const T* value, int count, double top, int k, bool solving,
                                        double a) {
    double low = f, high = infinity(double());
#pragma unroll 1
    for (int step = 0; step <= MAX_STEPS; ++step) {
      find_level(team, value, count, top - shift + f, k);
      if (!solving) return;
      double sums[1] = {0};
#pragma unroll 1
      for (int c = threadIdx.x; c < count; c += blockDim.x) {
        const double v = x(value[c]);
        sums[0] += larger(0.0, smaller((v - level) * per_pooled, v * per_full));
      }
      team.sum(sums);
      const double missing = a - sums[0];
      (missing > 0 ? low : high) = f;
      double slope = full * per_full;
      if (pooled > 0) {
        const double rest = k - full, size = pooled * ratio;
        slope += rest * size / ((rest + size) * reg);
      }
      const double next = f + missing / slope;
      const bool last = fabs(next - f) <= NEAR * fabs(f);
      if (!last && (missing == 0 || high <= low)) return;
      f = last || (next > low && next < high) || high == infinity(double()) ? next : 0.5 * (low + high);
      solving = !last && step + 1 < MAX_STEPS;
    }
  }
};

enum { SUMS, COUNT, FILL };  // as in topk.py

// What is done, and where a block leaves its results: row sums (of given potentials), conjugates, partial column sums |
// numbers of entries | CSR, with indices of one kind or the other.
template <typename T> struct Output {
  int mode, wide;
  double *row_sums, *conjugates, *partial;
  i64* counts;
  int* narrow_indices;
  i64* wide_indices;
  T* data;
};

template <typename T>
__device__ __forceinline__ void plan_rows(const Scores<T>& cost, double* F, const T* a, int solving, int k, Oracle row,
                                          int stored, T* values, int* columns, const Output<T>& output) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ Shared shared;
  Team team{shared, 0};
  T* const value = stored ? (T*)memory : values + (i64)blockIdx.x * cost.m;
  int* const column = stored ? (int*)(value + cost.m) : columns + (i64)blockIdx.x * cost.m;
  for (i64 i = blockIdx.x; i < cost.n; i += gridDim.x) {
    const double a_i = solving ? (double)a[i] : 0.0, given = solving ? 0.0 : F[i];
    const bool finite = fabs(given) < infinity(double());
    double top = 0, whole = 0, sums[2] = {0, 0};
    int count = 0;
    row.shift = row.level = 0;
    row.f = given;
    if (finite) top = evaluate(team, cost, i, value);
    if (finite && (!solving || (a_i > 0 && top > -infinity(double())))) {
      const double z = (row.reg + row.delta) * a_i;
      count = candidates(team, value, column, cost.m, solving ? top - z : -given, row.delta > 0 ? cost.m : k);
      int above = count;
      if (solving) {
        row.shift = top;
        if (row.reg > 0)
          row.f = -threshold(team, value, count, top, z, above);
        else
          whole = a_i;  // of which nothing goes elsewhere
      }
      if (row.delta > 0 && above > k) row.relax(team, value, count, top, k, solving, a_i);
    }
    const auto mass = [&](T v) { return whole > 0 ? whole : row.mass(v); };
    if (output.mode == FILL) {
      const i64 start = output.counts[i];
      count = compact(team, value, column, count, false, 0, [&](T v) { return mass(v) > 0 ? KEEP : DROP; });
#pragma unroll 1
      for (int c = threadIdx.x; c < count; c += blockDim.x) {
        if (output.wide)
          output.wide_indices[start + c] = column[c];
        else
          output.narrow_indices[start + c] = column[c];
        output.data[start + c] = (T)mass(value[c]);
      }
    } else {
      double* const partial = output.partial + (i64)blockIdx.x * cost.m;
#pragma unroll 1
      for (int c = threadIdx.x; c < count; c += blockDim.x) {
        const double t = mass(value[c]);
        if (output.mode == SUMS) {
          const double weight = row.reg > 0 && row.is_pooled(row.x(value[c])) ? row.delta : row.reg + row.delta;
          partial[column[c]] += t;
          sums[0] += t;
          sums[1] += weight * t * t;
        } else {
          sums[0] += t > 0 ? 1 : 0;
        }
      }
      team.sum(sums);
      if (threadIdx.x == 0) {
        const double rest = row.level > 0 ? (k - row.full) * row.level * row.level / row.reg : 0;
        if (output.mode == COUNT) {
          output.counts[i] = (i64)sums[0];
        } else {
          output.conjugates[i] = 0.5 * (sums[1] + rest);
          if (!solving) output.row_sums[i] = sums[0];
        }
        if (solving) F[i] = row.f - top;
      }
    }
    __syncthreads();
  }
}

#define PLAN_ROWS(T)                                                                                                  \
  extern "C" __global__ void __launch_bounds__(32 * MOST_WARPS, 3) plan_rows_##T(                                      \
      const T *x, const T *y, T scale, i64 d, int dense, const T *G, i64 n, int m, double *F, const T *a, int solving, \
      int k, double reg, double delta, double ratio, double per_full, double per_pooled, int stored, T *values,        \
      int *columns, int mode, int wide, double *row_sums, double *conjugates, double *partial, i64 *counts,            \
      int *narrow_indices, i64 *wide_indices, T *data) {                                                               \
    const Output<T> output{mode, wide, row_sums, conjugates, partial, counts, narrow_indices, wide_indices, data};     \
    plan_rows(Scores<T>{x, y, scale, d, dense, G, n, m}, F, a, solving, k,                                            \
              Oracle{reg, delta, ratio, per_full, per_pooled, 0, 0, 0, 0, 0}, stored, values, columns, output);        \
  }
// resources: plan_rows registers <= 80, shared <= 3664
PLAN_ROWS(float32)
PLAN_ROWS(float64)

// ---------------------------------------------------------------- rows of a matrix

template <typename T>
__device__ __forceinline__ void project_rows(const Given<T>& given, const double* z, int k, int stored, T* values,
                                             int* columns, T* out) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ Shared shared;
  Team team{shared, 0};
  T* const value = stored ? (T*)memory : values + (i64)blockIdx.x * given.m;
  int* const column = stored ? (int*)(value + given.m) : columns + (i64)blockIdx.x * given.m;
  for (i64 i = blockIdx.x; i < given.n; i += gridDim.x) {
#pragma unroll 1
    for (int j = threadIdx.x; j < given.m; j += blockDim.x) out[i * given.m + j] = 0;
    if (z[i] > 0) {
      const double top = evaluate(team, given, i, value);
      const int count = candidates(team, value, column, given.m, top - z[i], k);
      int above;
      const double tau = threshold(team, value, count, top, z[i], above);
#pragma unroll 1
      for (int c = threadIdx.x; c < count; c += blockDim.x)
        out[i * given.m + column[c]] = (T)larger((double)value[c] - top - tau, 0.0);
    }
    __syncthreads();
  }
}

#define PROJECT_ROWS(T)                                                                                               \
  extern "C" __global__ void __launch_bounds__(32 * MOST_WARPS) project_rows_##T(                                      \
      const T* V, i64 n, int m, const double* z, int k, int stored, T* values, int* columns, T* out) {                \
    project_rows(Given<T>{V, n, m}, z, k, stored, values, columns, out);                                              \
  }
// resources: project_rows registers <= 64, shared <= 3664
PROJECT_ROWS(float32)
PROJECT_ROWS(float64)

// With q such that sum min(|t| / q, 1) = k, the square is the sum of squares above q, and k - their number times q^2.
// q falls to it from the mean of all, as entries above it are taken out of the mean.
template <typename T> __device__ __forceinline__ void ksupport_rows(const T* V, i64 n, int m, int k, double* out) {
  __shared__ Shared shared;
  Team team{shared, 0};
  for (i64 i = blockIdx.x; i < n; i += gridDim.x) {
    double q = infinity(double()), square = 0;
    int above = -1;
    while (true) {
      double sums[3] = {0, 0, 0};  // of what is above q: number, squares; of the rest
#pragma unroll 1
      for (int j = threadIdx.x; j < m; j += blockDim.x) {
        const double t = fabs((double)V[i * m + j]);
        if (t > q) {
          sums[0] += 1;
          sums[1] += t * t;
        } else {
          sums[2] += t;
        }
      }
      team.sum(sums);
      const int more = (int)sums[0];
      if (more <= above || more >= k) break;
      above = more;
      q = sums[2] / (k - more);
      square = sums[1] + sums[2] * q;
    }
    if (threadIdx.x == 0) out[i] = square;
  }
}

#define KSUPPORT_ROWS(T)                                                                                              \
  extern "C" __global__ void __launch_bounds__(32 * MOST_WARPS) ksupport_rows_##T(                                     \
      const T* V, i64 n, int m, int k, double* out) {                                                                 \
    ksupport_rows(V, n, m, k, out);                                                                                   \
  }
// resources: ksupport_rows registers <= 40, shared <= 3664
KSUPPORT_ROWS(float32)
KSUPPORT_ROWS(float64)
