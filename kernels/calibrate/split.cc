#include "kernels/calibrate/split.h"

#include <algorithm>
#include <numeric>

namespace oscarkv::calibrate {
namespace {

// At most this many held-back parts are scored: more cost time and change little.
constexpr size_t kScoredMax = 2;

// A sequence that ends up with fewer tokens than this behind the sinks says little about a window.
constexpr uint64_t kSingleHeldBackMin = 512;

HeldBack WholeSequence(const Sequence& sequence, const SplitOptions& options) {
  const uint64_t first = std::min(options.sink_tokens, sequence.tokens);
  return {sequence, first, std::min(sequence.tokens - first, options.context_tokens)};
}

Split SplitOne(const Sequence& only, uint64_t wanted, const SplitOptions& options) {
  const uint64_t half = only.tokens / 2;
  const uint64_t held = std::clamp(wanted, std::min(kSingleHeldBackMin, half), half);
  Sequence fitted = only;
  fitted.tokens -= held;
  const uint64_t first = std::max(fitted.tokens, std::min(options.sink_tokens, only.tokens));
  return {{fitted}, {{only, first, std::min(only.tokens - first, options.context_tokens)}}};
}

}  // namespace

Split SplitSequences(const std::vector<Sequence>& sequences, const SplitOptions& options) {
  uint64_t tokens = 0;
  for (const Sequence& sequence : sequences) tokens += sequence.tokens;
  const auto wanted = static_cast<uint64_t>(options.held_back_share * static_cast<double>(tokens));
  if (sequences.size() == 1) return SplitOne(sequences[0], wanted, options);

  std::vector<size_t> order(sequences.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return sequences[a].tokens != sequences[b].tokens ? sequences[a].tokens > sequences[b].tokens
                                                      : a > b;
  });
  std::vector<bool> held_back(sequences.size(), false);
  Split split;
  uint64_t held = 0;
  for (const size_t index : order) {
    const bool enough = !split.held_back.empty() && held >= wanted;
    if (enough || split.held_back.size() == std::min(kScoredMax, sequences.size() - 1)) break;
    split.held_back.push_back(WholeSequence(sequences[index], options));
    held_back[index] = true;
    held += sequences[index].tokens;
  }
  for (size_t i = 0; i < sequences.size(); ++i) {
    if (!held_back[i]) split.fitted.push_back(sequences[i]);
  }
  return split;
}

}  // namespace oscarkv::calibrate
