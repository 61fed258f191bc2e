// Block-sparse attention, forward, for Ampere and later: cp.async, ldmatrix, mma.sync m16n8k16.
//
// One CTA computes 128 queries of one head with four warps of 32 queries. Keys come in halves of a block, 64 at a
// time. The tiles of keys and of values are filled in turn: values arrive while the scores are computed, the next keys
// while the probabilities are. With 64 KiB of shared memory at head size 128 two CTAs share a multiprocessor.
// Design: FlashAttention-2 (arXiv 2307.08691).

#include "instructions.cuh"
#include "problem.cuh"
#include "softmax.cuh"

constexpr int WARPS = 4;
constexpr int THREADS = 32 * WARPS;
constexpr int KEYS = 64;                              // keys in a step
constexpr int ROW_TILES = BLOCK / WARPS / 16;         // fragments of 16 queries that a warp holds
constexpr unsigned ROW_BYTES = HEAD_SIZE * 2;

// Copies 16 bytes in the background, or writes 16 zero bytes.
__device__ __forceinline__ void copy_async(unsigned target, const void* source, bool real) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(real ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void await_copies() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

// Four 8x8 matrices; lanes 8 i … 8 i + 7 give the addresses of the rows of matrix i.
__device__ __forceinline__ void load_matrices(unsigned (&parts)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(unsigned (&parts)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
               : "r"(address)
               : "memory");
}

// sum += left · right: 16x16 by 16x8.
__device__ __forceinline__ void multiply(float (&sum)[4], const unsigned (&left)[4], unsigned right0, unsigned right1) {
#if ELEMENT_IS_BF16
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
#endif
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

// Gathers the rows of a tile; slots without a token become zeros.
template <int ROWS>
__device__ __forceinline__ void gather(unsigned tile, const unsigned short* source, int stride, const int* tokens) {
  constexpr int STRIDE = THREADS / CHUNKS;
  int chunk = threadIdx.x % CHUNKS, first_row = threadIdx.x / CHUNKS;
  source += chunk * 8;
  unsigned target = tile + chunk_offset<ROWS>(first_row, chunk);
#pragma unroll
  for (int row = 0; row < ROWS; row += STRIDE) {
    int token = __ldg(tokens + first_row + row);
    copy_async(target + row * PANEL_CHUNKS * 16, source + static_cast<long long>(max(token, 0)) * stride, token >= 0);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention(const __grid_constant__ Problem problem) {
  extern __shared__ __align__(1024) unsigned char memory[];
  unsigned q_tile = shared_address(memory), k_tile = q_tile + BLOCK * ROW_BYTES, v_tile = k_tile + KEYS * ROW_BYTES;

  int lane = threadIdx.x % 32, first_row = threadIdx.x / 32 * 16 * ROW_TILES;
  int query_block = problem.schedule[blockIdx.x];
  int first_entry = problem.first_entry[query_block];
  int steps = (problem.first_entry[query_block + 1] - first_entry) * (BLOCK / KEYS);
  int group = blockIdx.y / problem.heads_per_group;
  const unsigned short* q = problem.q + blockIdx.z * problem.q_strides.batch + blockIdx.y * problem.q_strides.head;
  const unsigned short* k = problem.k + blockIdx.z * problem.k_strides.batch + group * problem.k_strides.head;
  const unsigned short* v = problem.v + blockIdx.z * problem.v_strides.batch + group * problem.v_strides.head;
  float scale = problem.scale * 1.44269504f;  // exp(x) = exp2(x / log 2)

  // What this lane passes to ldmatrix for the first fragment of each tile.
  unsigned q_lane = q_tile + chunk_offset<BLOCK>(first_row + lane % 16, lane / 16);
  unsigned k_lane = k_tile + chunk_offset<KEYS>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  unsigned v_lane = v_tile + chunk_offset<KEYS>(lane % 16, lane / 16);

  auto entry_of = [&](int step) { return __ldg(problem.entries + first_entry + step / 2); };
  auto tokens_of = [&](int step) { return problem.key_tokens + entry_of(step).x * BLOCK + step % 2 * KEYS; };

  float output[ROW_TILES][CHUNKS][4] = {};
  RunningSoftmax rows[ROW_TILES];

  if (steps > 0) {
    gather<BLOCK>(q_tile, q, problem.q_strides.token, problem.query_tokens + query_block * BLOCK);
    gather<KEYS>(k_tile, k, problem.k_strides.token, tokens_of(0));
    close_copies();
  }
  for (int step = 0; step < steps; ++step) {
    await_copies();
    __syncthreads();  // keys are there, and nobody reads the last values any more
    gather<KEYS>(v_tile, v, problem.v_strides.token, tokens_of(step));
    close_copies();

    float scores[ROW_TILES][KEYS / 8][4] = {};
#pragma unroll 1  // unrolled, its prefetched fragments push the sums out of the registers
    for (int depth = 0; depth < HEAD_SIZE / 16; ++depth) {
      unsigned left[ROW_TILES][4];
#pragma unroll
      for (int i = 0; i < ROW_TILES; ++i)
        load_matrices(left[i], step_from<BLOCK>(q_lane, depth, 16 * i));
#pragma unroll
      for (int pair = 0; pair < KEYS / 16; ++pair) {
        unsigned right[4];
        load_matrices(right, step_from<KEYS>(k_lane, depth, 16 * pair));
#pragma unroll
        for (int i = 0; i < ROW_TILES; ++i) {
          multiply(scores[i][2 * pair], left[i], right[0], right[1]);
          multiply(scores[i][2 * pair + 1], left[i], right[2], right[3]);
        }
      }
    }

    await_copies();
    __syncthreads();  // values are there, and nobody reads the keys any more
    if (step + 1 < steps) gather<KEYS>(k_tile, k, problem.k_strides.token, tokens_of(step + 1));
    close_copies();

    int mask = entry_of(step).y;
    unsigned operand[ROW_TILES][KEYS / 16][4];
#pragma unroll
    for (int i = 0; i < ROW_TILES; ++i) {
      if (mask >= 0) {
        int row = mask * BLOCK + first_row + 16 * i + lane / 4;
        hide_invisible(scores[i], load_mask<KEYS / 8>(problem.masks + row * MASK_WORDS + step % 2 * (KEYS / 32)));
      }
      rescale(output[i], absorb(rows[i], scores[i], scale));
      pack_operand(operand[i], scores[i]);
    }
#pragma unroll
    for (int pair = 0; pair < CHUNKS / 2; ++pair)
#pragma unroll
      for (int depth = 0; depth < KEYS / 16; ++depth) {
        unsigned right[4];
        load_matrices_transposed(right, step_from<KEYS>(v_lane, pair, 16 * depth));
#pragma unroll
        for (int i = 0; i < ROW_TILES; ++i) {
          multiply(output[i][2 * pair], operand[i][depth], right[0], right[1]);
          multiply(output[i][2 * pair + 1], operand[i][depth], right[2], right[3]);
        }
      }
  }

  // A warp reads only its own queries, so it may overwrite them with its output.
#pragma unroll
  for (int i = 0; i < ROW_TILES; ++i) {
    __syncwarp();
    finish(problem, query_block, first_row + 16 * i, q_tile, rows[i], output[i]);
  }
}
