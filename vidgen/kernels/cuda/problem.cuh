// What both attention kernels are asked to compute, and how they lay tiles out in shared memory.
//
// Compiled for one head size and one element type: HEAD_SIZE is 64 or 128, ELEMENT_IS_BF16 is 0 or 1.
// Tokens stay in raster order in global memory. Queries and keys are cut into blocks of 128 slots; `query_tokens` and
// `key_tokens` say which token lies in each slot (-1: none). For each query block there is a list of key blocks, each
// either seen whole (mask -1) or with a mask of one bit for each pair of slots.
#pragma once

constexpr int BLOCK = 128;                   // slots in a block of queries or keys
constexpr int CHUNKS = HEAD_SIZE / 8;        // 16-byte chunks in a row of one token
constexpr int PANEL_CHUNKS = 8;              // a panel is 64 channels, 128 bytes, of all rows of a tile
constexpr int PANELS = CHUNKS / PANEL_CHUNKS;
constexpr int MASK_WORDS = BLOCK / 32;       // words of a mask for one query
#define MINUS_INFINITY __int_as_float(0xff800000)

struct Strides {  // in elements; channels are adjacent
  long long batch, head;
  int token;
};

struct Problem {
  const unsigned short* q;      // batch, head, token, channel by strides
  const unsigned short* k;      // batch, group, token, channel by strides
  const unsigned short* v;
  unsigned short* output;       // batch, head, token, channel, contiguous
  float* lse;                   // batch, head, token, contiguous
  Strides q_strides, k_strides, v_strides;
  const int* query_tokens;      // token in each query slot, -1 for padding
  const int* key_tokens;        // token in each key slot, -1 for padding
  const int4* query_origins;    // where the tile of a block begins: column, row, frame; 1 in .w = in the text prefix
  const int4* key_origins;
  const int* schedule;          // query blocks in the order of launch, the longest first
  const int* first_entry;       // index of a query block's first entry; one more at the end
  const int2* entries;          // key block, mask (-1: none needed)
  const unsigned* masks;        // mask, query slot, MASK_WORDS; bit i of word w = key slot 32 w + i is visible
  int heads;
  int heads_per_group;          // query heads that share a head of keys
  int queries;                  // tokens in q
  int tile_slots;               // slots of a tile that TMA fills, the rest of 128 is padding
  float scale;                  // of the scores
};

// Byte offset of a 16-byte chunk in a tile: panels one after another, in each the 128-byte swizzle of TMA and WGMMA,
// which lets eight rows of one chunk be read without bank conflicts.
template <int ROWS>
__device__ __forceinline__ unsigned chunk_offset(int row, int chunk) {
  int panel = chunk / PANEL_CHUNKS, place = (chunk % PANEL_CHUNKS) ^ (row % 8);
  return ((panel * ROWS + row) * PANEL_CHUNKS + place) * 16;
}

// The same lane's address `pairs` pairs of chunks to the right and `rows` rows further (a multiple of 8), from its
// address in pair 0: the swizzle then is one exclusive or, and everything else a constant offset.
template <int ROWS>
__device__ __forceinline__ unsigned step_from(unsigned address, int pairs, int rows) {
  constexpr int PAIRS = PANEL_CHUNKS / 2;
  return (address ^ (pairs % PAIRS * 32)) + (pairs / PAIRS * ROWS + rows) * PANEL_CHUNKS * 16;
}
