// Strided copies on a CPU, block by block.
#pragma once

#include "../strided_copy.h"
#include "work.h"

namespace fastnets {

// How a block, the innermost part of a copy, is moved.
enum class Move {
  kRun,         // result[j][i] = source[j][i], i < count bytes; offsets: of the sources, as many as the block has runs
  kInterleave,  // result[i * g + j] = source[j][i], j < g, i < count; offsets: of the g sources
  kDeinterleave,  // result[j][i] = source[i * g + j]; offsets: of the g results
  kGather,        // result[k] = source[k], at any place; offsets: of the sources
};

// Lanes of one vector of the result, taken by a permutation out of one vector of the source.
struct Window {
  alignas(64) unsigned char index[64];  // numbers of the lanes, as wide as an element
  int64_t offset;                       // of the source
  uint64_t read, written;               // lanes
  bool last;                            // of this vector of the result
};

struct Block {
  Move move;
  int64_t bytes, count;  // of an element; see Move
  std::vector<int64_t> offsets;
  bool streams;                   // past the caches: only where each vector of the result is a cache line
  std::vector<Window> windows{};  // of kGather, where the processor can
};

// Moves `rows` blocks that lie so many bytes apart.
struct Rows {
  const char* from;
  char* to;
  int64_t count, from_step, to_step;
};
// A kernel, found with all that it needs to know in the block.
using BlockKernel = void (*)(const Block&, const Rows&);

// A copy cut into a block and the loops around it.
class CopyPlan {
 public:
  explicit CopyPlan(StridedCopy copy);

  int64_t blocks() const;
  void run(int64_t begin, int64_t end) const;  // of the blocks
  void move_result(int64_t bytes) { to_ += bytes; }

 private:
  bool plan_run(StridedCopy& copy);
  bool plan_interleave(StridedCopy& copy, Move move);
  void plan_gather(StridedCopy& copy);

  const char* from_;
  char* to_;
  Block block_;
  BlockKernel kernel_ = nullptr;
  std::vector<Axis> loops_;
};

// Copies with all threads.
void run(const StridedCopy& copy);

}  // namespace fastnets
