// Which tokens of a dump are fitted on, and which are held back to score on.
#ifndef OSCARKV_KERNELS_CALIBRATE_SPLIT_H_
#define OSCARKV_KERNELS_CALIBRATE_SPLIT_H_

#include <cstdint>
#include <vector>

#include "kernels/calibrate/dump.h"

namespace oscarkv::calibrate {

// Tokens `first`.. of a sequence, scored behind its first (sink) tokens.
struct HeldBack {
  Sequence sequence;  // whole
  uint64_t first = 0;
  uint64_t tokens = 0;
};

struct Split {
  std::vector<Sequence> fitted;
  std::vector<HeldBack> held_back;
};

struct SplitOptions {
  double held_back_share = 0.15;
  uint64_t sink_tokens = 64;
  uint64_t context_tokens = 1536;  // of each held-back part, at most
};

// Of several sequences, whole ones are held back, the longest first (a later one before an earlier
// one of the same length): they have most behind their sinks. Of a single sequence its end is.
// Deterministic.
Split SplitSequences(const std::vector<Sequence>& sequences, const SplitOptions& options);

}  // namespace oscarkv::calibrate

#endif  // OSCARKV_KERNELS_CALIBRATE_SPLIT_H_
