// Block-sparse attention, forward, for Hopper: TMA, mbarriers, WGMMA.
//
// One CTA computes 128 queries of one head. One thread of the first warpgroup asks TMA for the tiles of queries, keys
// and values; TMA itself gathers a three-dimensional tile of tokens from raster order, so no permuted copy is ever made.
// The two other warpgroups own 64 queries each and take turns: while one has the tensor cores, the other computes its
// softmax; within a warpgroup the next scores are computed together with the last output.
// Design: FlashAttention-3 (arXiv 2407.08608).

#include "instructions.cuh"
#include "problem.cuh"
#include "softmax.cuh"

constexpr int CONSUMERS = 2;                          // warpgroups that compute
constexpr int WARPGROUP = 128;
constexpr int THREADS = (CONSUMERS + 1) * WARPGROUP;
constexpr int STAGES = HEAD_SIZE == 64 ? 4 : 2;       // tiles of keys, and of values, in flight
constexpr int PANEL_BYTES = BLOCK * 128;
constexpr int TILE_BYTES = PANELS * PANEL_BYTES;
constexpr int KEY_TILES = BLOCK / 8, OUTPUT_TILES = HEAD_SIZE / 8;

struct alignas(64) TensorMap {  // a CUtensorMap: dimensions channel, column, row, frame, head of all samples
  unsigned long long words[16];
};

struct TensorMaps {
  TensorMap q_grid, q_prefix, k_grid, k_prefix, v_grid, v_prefix;
};

struct Barriers {
  unsigned long long queries, keys_full[STAGES], keys_empty[STAGES], values_full[STAGES], values_empty[STAGES];
};

// ------------------------------------------------------------------------------------------------ mbarriers and TMA

__device__ __forceinline__ void initialise(unsigned long long& barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void arrive(unsigned long long& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}

__device__ __forceinline__ void arrive_expecting(unsigned long long& barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes)
               : "memory");
}

// Until the phase of this parity is complete; a fresh barrier's phase 1 counts as complete.
__device__ __forceinline__ void await(unsigned long long& barrier, int parity) {
  unsigned address = shared_address(&barrier), complete;
  do {
    asm volatile(
        "{\n.reg .pred complete;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
        "selp.u32 %0, 1, 0, complete;\n}"
        : "=r"(complete)
        : "r"(address), "r"(parity)
        : "memory");
  } while (!complete);
}

// A tile of tokens of one head, panel by panel. Tokens beyond the grid arrive as zeros.
__device__ __forceinline__ void load_tile(unsigned target, const TensorMap& grid, const TensorMap& prefix, int4 origin,
                                          int head, unsigned long long& barrier) {
  const TensorMap* map = origin.w ? &prefix : &grid;
#pragma unroll
  for (int panel = 0; panel < PANELS; ++panel)
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5, %6}], "
        "[%7];" ::"r"(target + panel * PANEL_BYTES),
        "l"(map), "r"(panel * PANEL_CHUNKS * 8), "r"(origin.x), "r"(origin.y), "r"(origin.z), "r"(head),
        "r"(shared_address(&barrier))
        : "memory");
}

// ------------------------------------------------------------------------------------------------ WGMMA

// A tile in shared memory for WGMMA: 128-byte swizzle, groups of eight rows 1024 bytes apart, panels PANEL_BYTES apart
// (the latter only matters where rows are the summed dimension, as in the values).
__device__ __forceinline__ unsigned long long describe(unsigned address) {
  return 1ull << 62 | static_cast<unsigned long long>(1024 >> 4) << 32 |
         static_cast<unsigned long long>(PANEL_BYTES >> 4) << 16 | (address & 0x3ffff) >> 4;
}

__device__ __forceinline__ void open_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void close_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING groups of products are unfinished.
template <int PENDING>
__device__ __forceinline__ void await_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// The compiler must not use a result before the wait that precedes this line.
template <int TILES>
__device__ __forceinline__ void mark_ready(float (&fragment)[TILES][4]) {
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
    for (int element = 0; element < 4; ++element) asm volatile("" : "+f"(fragment[tile][element])::"memory");
}

#if ELEMENT_IS_BF16
#define WGMMA_TYPES ".f32.bf16.bf16 "
#else
#define WGMMA_TYPES ".f32.f16.f16 "
#endif
#define TILE(f, i) "+f"(f[i][0]), "+f"(f[i][1]), "+f"(f[i][2]), "+f"(f[i][3])
#define TILES_8(f, i) \
  TILE(f, i), TILE(f, i + 1), TILE(f, i + 2), TILE(f, i + 3), TILE(f, i + 4), TILE(f, i + 5), TILE(f, i + 6), TILE(f, i + 7)
#define REGISTERS_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, " \
  "%25, %26, %27, %28, %29, %30, %31"
#define REGISTERS_64 \
  REGISTERS_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
  "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// scores (+)= left · rightᵀ over 16 channels: 64 queries by 128 keys, both operands with adjacent channels.
__device__ __forceinline__ void multiply_scores(float (&scores)[16][4], unsigned long long left,
                                                unsigned long long right, int accumulate) {
  asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %66, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n128k16" WGMMA_TYPES "{" REGISTERS_64
               "}, %64, %65, accumulate, 1, 1, 0, 0;\n}"
               : TILES_8(scores, 0), TILES_8(scores, 8)
               : "l"(left), "l"(right), "r"(accumulate));
}

// output += left · right over 16 keys: 64 queries by the channels; `right` has adjacent channels, hence transposed.
__device__ __forceinline__ void multiply_values(float (&output)[16][4], const unsigned (&left)[4],
                                                unsigned long long right) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16" WGMMA_TYPES "{" REGISTERS_64
               "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
               : TILES_8(output, 0), TILES_8(output, 8)
               : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right));
}

__device__ __forceinline__ void multiply_values(float (&output)[8][4], const unsigned (&left)[4],
                                                unsigned long long right) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16" WGMMA_TYPES "{" REGISTERS_32
               "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
               : TILES_8(output, 0)
               : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right));
}

__device__ __forceinline__ void issue_scores(float (&scores)[KEY_TILES][4], unsigned queries, unsigned keys) {
  open_products();
#pragma unroll
  for (int depth = 0; depth < HEAD_SIZE / 16; ++depth) {
    unsigned offset = depth / 4 * PANEL_BYTES + depth % 4 * 32;
    multiply_scores(scores, describe(queries + offset), describe(keys + offset), depth > 0);
  }
  close_products();
}

__device__ __forceinline__ void issue_output(float (&output)[OUTPUT_TILES][4],
                                             const unsigned (&probabilities)[KEY_TILES / 2][4], unsigned values) {
  open_products();
#pragma unroll
  for (int depth = 0; depth < BLOCK / 16; ++depth)
    multiply_values(output, probabilities[depth], describe(values + depth * 16 * 128));
  close_products();
}

// ------------------------------------------------------------------------------------------------ turns

// A consumer waits on the barrier of its own number; the other one's arrival there is what it waits for.
__device__ __forceinline__ void await_turn(int consumer) {
  asm volatile("bar.sync %0, %1;" ::"r"(1 + consumer), "n"(CONSUMERS * WARPGROUP) : "memory");
}

__device__ __forceinline__ void give_turn(int consumer) {
  asm volatile("bar.arrive %0, %1;" ::"r"(1 + consumer), "n"(CONSUMERS * WARPGROUP) : "memory");
}

__device__ __forceinline__ void await_warpgroup(int consumer) {
  asm volatile("bar.sync %0, %1;" ::"r"(1 + CONSUMERS + consumer), "n"(WARPGROUP) : "memory");
}

// Where tile number i of a stream lies in its ring of stages, and the parity of that place's i-th use.
__device__ __forceinline__ int stage_of(int i) { return i % STAGES; }
__device__ __forceinline__ int parity_of(int i) { return i / STAGES % 2; }

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention(const __grid_constant__ Problem problem, const __grid_constant__ TensorMaps maps) {
  extern __shared__ unsigned char memory[];
  __shared__ Barriers barriers;
  unsigned q_tile = (shared_address(memory) + 1023) / 1024 * 1024;
  unsigned k_tiles = q_tile + TILE_BYTES, v_tiles = k_tiles + STAGES * TILE_BYTES;

  int query_block = problem.schedule[blockIdx.x];
  int count = problem.first_entry[query_block + 1] - problem.first_entry[query_block];
  const int2* entries = problem.entries + problem.first_entry[query_block];

  if (threadIdx.x == 0) {
    initialise(barriers.queries, 1);
    for (int stage = 0; stage < STAGES; ++stage) {
      initialise(barriers.keys_full[stage], 1);
      initialise(barriers.values_full[stage], 1);
      initialise(barriers.keys_empty[stage], CONSUMERS * WARPGROUP / 32);
      initialise(barriers.values_empty[stage], CONSUMERS * WARPGROUP / 32);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  // TMA never writes the slots beyond a short tile. Their probabilities are zero, but zero times whatever lies in
  // shared memory may be NaN, so the values there are made zero once.
  int padding = (BLOCK - problem.tile_slots) * 32;  // 4-byte words in a panel
  for (int i = threadIdx.x; i < STAGES * PANELS * padding; i += THREADS)
    store_shared(v_tiles + i / padding * PANEL_BYTES + problem.tile_slots * 128 + i % padding * 4, 0);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();

  if (threadIdx.x < WARPGROUP) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == 0 && count > 0) {
      int bytes = problem.tile_slots * HEAD_SIZE * 2;
      int head = blockIdx.z * problem.heads + blockIdx.y;
      int group = blockIdx.z * (problem.heads / problem.heads_per_group) + blockIdx.y / problem.heads_per_group;
      arrive_expecting(barriers.queries, bytes);
      load_tile(q_tile, maps.q_grid, maps.q_prefix, problem.query_origins[query_block], head, barriers.queries);
      for (int i = 0; i < count; ++i) {
        int stage = stage_of(i);
        int4 origin = problem.key_origins[entries[i].x];
        await(barriers.keys_empty[stage], parity_of(i) ^ 1);
        arrive_expecting(barriers.keys_full[stage], bytes);
        load_tile(k_tiles + stage * TILE_BYTES, maps.k_grid, maps.k_prefix, origin, group, barriers.keys_full[stage]);
        await(barriers.values_empty[stage], parity_of(i) ^ 1);
        arrive_expecting(barriers.values_full[stage], bytes);
        load_tile(v_tiles + stage * TILE_BYTES, maps.v_grid, maps.v_prefix, origin, group, barriers.values_full[stage]);
      }
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  int consumer = threadIdx.x / WARPGROUP - 1, lane = threadIdx.x % 32;
  int first_row = (threadIdx.x - WARPGROUP) / 32 * 16;
  unsigned queries = q_tile + consumer * (BLOCK / CONSUMERS) * 128;
  const unsigned* masks = problem.masks + (first_row + lane / 4) * MASK_WORDS;
  float scale = problem.scale * 1.44269504f;  // exp(x) = exp2(x / log 2)

  float output[OUTPUT_TILES][4] = {};
  RunningSoftmax rows;
  float scores[KEY_TILES][4];
  unsigned probabilities[KEY_TILES / 2][4];

  VisibleColumns<KEY_TILES> visible;  // read while the tensor cores are busy

  if (count > 0) {
    int mask = __ldg(&entries[0].y);
    if (consumer == 1) give_turn(0);
    await(barriers.queries, 0);
    await(barriers.keys_full[0], 0);
    await_turn(consumer);
    issue_scores(scores, queries, k_tiles);
    if (consumer == 0 || count > 1) give_turn(1 - consumer);
    if (mask >= 0) visible = load_mask<KEY_TILES>(masks + mask * BLOCK * MASK_WORDS);
    await_products<0>();
    mark_ready(scores);
    if (lane == 0) arrive(barriers.keys_empty[0]);
    if (mask >= 0) hide_invisible(scores, visible);
    absorb(rows, scores, scale);
    pack_operand(probabilities, scores);

    for (int i = 1; i < count; ++i) {
      int stage = stage_of(i), last = stage_of(i - 1);
      mask = __ldg(&entries[i].y);
      await(barriers.keys_full[stage], parity_of(i));
      await_turn(consumer);
      issue_scores(scores, queries, k_tiles + stage * TILE_BYTES);
      await(barriers.values_full[last], parity_of(i - 1));
      issue_output(output, probabilities, v_tiles + last * TILE_BYTES);
      if (consumer == 0 || i + 1 < count) give_turn(1 - consumer);
      if (mask >= 0) visible = load_mask<KEY_TILES>(masks + mask * BLOCK * MASK_WORDS);
      await_products<1>();
      mark_ready(scores);
      if (lane == 0) arrive(barriers.keys_empty[stage]);
      if (mask >= 0) hide_invisible(scores, visible);
      float2 factors = absorb(rows, scores, scale);
      await_products<0>();
      mark_ready(output);
      if (lane == 0) arrive(barriers.values_empty[last]);
      rescale(output, factors);
      pack_operand(probabilities, scores);
    }

    await(barriers.values_full[stage_of(count - 1)], parity_of(count - 1));
    issue_output(output, probabilities, v_tiles + stage_of(count - 1) * TILE_BYTES);
    await_products<0>();
    mark_ready(output);
  }

  // All four warps have read the queries of this warpgroup, so its rows of that tile are free for the output.
  await_warpgroup(consumer);
  finish(problem, query_block, first_row, q_tile, rows, output);
}
