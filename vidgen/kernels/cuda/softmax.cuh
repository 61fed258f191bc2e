// The online softmax over fragments of scores, and how a finished fragment leaves the registers.
//
// Both mma.sync m16n8 and wgmma give a lane the columns 2t, 2t + 1 of each tile of 8 columns, in rows g (elements 0, 1)
// and g + 8 (elements 2, 3) of its warp's 16, with g = lane / 4 and t = lane % 4.
#pragma once

#include "instructions.cuh"
#include "problem.cuh"

struct RunningSoftmax {  // of the two rows g and g + 8
  float maximum[2] = {MINUS_INFINITY, MINUS_INFINITY};  // of the scores before scaling
  float sum[2] = {0.0f, 0.0f};                          // over this lane's columns only, until `finish`
};

template <int TILES>
struct VisibleColumns {  // bits of the two rows, 32 columns a word
  unsigned words[2][TILES / 4];
};

// `mask` points to the words of the first column for row g of the warp's 16 rows.
template <int TILES>
__device__ __forceinline__ VisibleColumns<TILES> load_mask(const unsigned* mask) {
  VisibleColumns<TILES> visible;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int word = 0; word < TILES / 4; ++word) visible.words[half][word] = __ldg(mask + 8 * half * MASK_WORDS + word);
  return visible;
}

template <int TILES>
__device__ __forceinline__ void hide_invisible(float (&scores)[TILES][4], const VisibleColumns<TILES>& visible) {
  int first_column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
    for (int element = 0; element < 4; ++element) {
      unsigned bits = visible.words[element / 2][tile / 4] >> first_column;
      if (!(bits >> (tile % 4 * 8 + element % 2) & 1)) scores[tile][element] = MINUS_INFINITY;
    }
}

// Scores become exp2(score · scale - maximum · scale), with scale in units of log 2. Returns by which factors the sums
// and the output so far of the two rows had to shrink. Rows that saw nothing yet keep weight 0.
template <int TILES>
__device__ __forceinline__ float2 absorb(RunningSoftmax& rows, float (&scores)[TILES][4], float scale) {
  float factors[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float maximum = rows.maximum[half];
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile)
      maximum = fmaxf(maximum, fmaxf(scores[tile][2 * half], scores[tile][2 * half + 1]));
    maximum = quad_maximum(maximum);
    float reference = maximum == MINUS_INFINITY ? 0.0f : maximum * scale;
    factors[half] = exp2_fast(rows.maximum[half] * scale - reference);
    rows.maximum[half] = maximum;
    float sum = 0.0f;
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
      for (int element = 2 * half; element < 2 * half + 2; ++element) {
        scores[tile][element] = exp2_fast(scores[tile][element] * scale - reference);
        sum += scores[tile][element];
      }
    rows.sum[half] = rows.sum[half] * factors[half] + sum;
  }
  return make_float2(factors[0], factors[1]);
}

template <int TILES>
__device__ __forceinline__ void rescale(float (&fragment)[TILES][4], float2 factors) {
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile) {
    fragment[tile][0] *= factors.x;
    fragment[tile][1] *= factors.x;
    fragment[tile][2] *= factors.y;
    fragment[tile][3] *= factors.y;
  }
}

// Two neighbouring tiles of probabilities, as the left operand of the second product.
template <int TILES>
__device__ __forceinline__ void pack_operand(unsigned (&operand)[TILES / 2][4], const float (&scores)[TILES][4]) {
#pragma unroll
  for (int step = 0; step < TILES / 2; ++step)
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const float(&tile)[4] = scores[2 * step + part / 2];
      operand[step][part] = pack(tile[part % 2 * 2], tile[part % 2 * 2 + 1]);
    }
}

// Divides by the sums and writes 16 rows of output and their log-sum-exp. `stage` is a tile of BLOCK rows in shared
// memory that this warp may overwrite in its own rows; going through it makes the writes to memory 16 bytes wide.
__device__ __forceinline__ void finish(const Problem& problem, int query_block, int first_row, unsigned stage,
                                       RunningSoftmax& rows, float (&output)[CHUNKS][4]) {
  int lane = threadIdx.x % 32, row = first_row + lane / 4;
  const int* tokens = problem.query_tokens + query_block * BLOCK;
  long long first = static_cast<long long>(blockIdx.z * problem.heads + blockIdx.y) * problem.queries;

  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = quad_sum(rows.sum[half]);
    inverse[half] = sum == 0.0f ? 0.0f : 1.0f / sum;
    int token = tokens[row + 8 * half];
    if (lane % 4 == 0 && token >= 0)
      problem.lse[first + token] = sum == 0.0f ? MINUS_INFINITY : rows.maximum[half] * problem.scale + logf(sum);
  }
  rescale(output, make_float2(inverse[0], inverse[1]));

#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; ++chunk)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      store_shared(stage + chunk_offset<BLOCK>(row + 8 * half, chunk) + lane % 4 * 4,
                   pack(output[chunk][2 * half], output[chunk][2 * half + 1]));
  __syncwarp();
#pragma unroll
  for (int i = lane; i < 16 * CHUNKS; i += 32) {
    int source_row = first_row + i / CHUNKS, chunk = i % CHUNKS, token = tokens[source_row];
    if (token >= 0)
      *reinterpret_cast<uint4*>(problem.output + (first + token) * HEAD_SIZE + chunk * 8) =
          load_shared(stage + chunk_offset<BLOCK>(source_row, chunk));
  }
}
