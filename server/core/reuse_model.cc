#include "server/core/reuse_model.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace oscarkv {
namespace {

constexpr ReuseModel::ClassId kNoClass = 0xffff;

// Bin 0 ends at kFirstEnd, each further one kGrowth times later: the last begins at 13 hours.
constexpr double kFirstEnd = 0.25;
constexpr double kGrowth = 1.5;

// How many uses weigh as much as what a coarser class says: of how often a class is used, and of
// when; and how many make the prior forgotten.
constexpr double kScaleTrust = 4.0;
constexpr double kShapeTrust = 1.0;
constexpr double kPriorTrust = 0.1;
// What a use in one age bin says of its neighbours.
constexpr double kSmoothing = 0.5;
// Old knowledge counts half after this long.
constexpr double kHalfLife = 3600.0;

using Edges = std::array<double, ReuseModel::kAges + 1>;
// Where each bin begins, in seconds; the last is where the last bin ends.
Edges MakeEdges() {
  Edges edges{};
  for (size_t i = 1; i < edges.size(); ++i)
    edges[i] = kFirstEnd * std::pow(kGrowth, static_cast<double>(i - 1));
  return edges;
}
const Edges kEdges = MakeEdges();

// Uses per second at an age, when nothing is known: the older the rarer.
double PriorRate(size_t age) { return 0.1 / (10.0 + (kEdges[age] + kEdges[age + 1]) / 2); }

// What a hint is taken to say before anything is learnt of those who give it.
double HintScale(uint32_t hint) {
  switch (static_cast<ReuseHint>(hint)) {
    case ReuseHint::kSessionOver:
    case ReuseHint::kSingleShot:
      return 0.1;
    case ReuseHint::kWillReturn:
      return 3.0;
    case ReuseHint::kNone:
      break;
  }
  return 1.0;
}

// How many of ascending `bounds` are not above `value`.
template <size_t N>
uint32_t BucketOf(const std::array<uint64_t, N>& bounds, uint64_t value) {
  return static_cast<uint32_t>(std::upper_bound(bounds.begin(), bounds.end(), value) -
                               bounds.begin());
}
// Few buckets: what is learnt of a class must be more than noise.
constexpr std::array<uint64_t, 4> kTurns = {2, 3, 5, 9};
constexpr std::array<uint64_t, 3> kNewTokens = {3000, 5000, 10000};
constexpr std::array<uint64_t, 5> kOutputTokens = {3, 30, 100, 250, 500};

// Counts at an age and, in part, at its neighbours, as far as `shape` makes them comparable.
struct SmoothCount {
  double uses = 0.0;
  double seconds = 0.0;
};
SmoothCount CountAround(const ReuseModel::ByAge& uses, const ReuseModel::ByAge& seconds,
                        const ReuseModel::ByAge& shape, size_t age) {
  SmoothCount count{uses[age], seconds[age]};
  const auto add = [&](size_t other) {
    count.uses += kSmoothing * uses[other];
    count.seconds += kSmoothing * seconds[other] * shape[other] / shape[age];
  };
  if (age > 0) add(age - 1);
  if (age + 1 < ReuseModel::kAges) add(age + 1);
  return count;
}

// Uses per second by age: those of the coarser class times a scale, `scale` unless the counts say
// otherwise, moved towards the counts.
ReuseModel::ByAge RatesOf(const ReuseModel::ByAge& uses, const ReuseModel::ByAge& seconds,
                          const ReuseModel::ByAge& coarser, double scale, double shape_trust) {
  double seen = 0.0;
  double expected = 0.0;
  for (size_t age = 0; age < ReuseModel::kAges; ++age) {
    seen += uses[age];
    expected += seconds[age] * coarser[age];
  }
  scale = (seen + kScaleTrust * scale) / (expected + kScaleTrust);
  ReuseModel::ByAge rates;
  for (size_t age = 0; age < ReuseModel::kAges; ++age) {
    const double rate = std::max(scale * coarser[age], 1e-12);
    const SmoothCount count = CountAround(uses, seconds, coarser, age);
    rates[age] = (count.uses + shape_trust) / (count.seconds + shape_trust / rate);
  }
  return rates;
}

}  // namespace

ReuseModel::ReuseModel() : ids_(SizeOf(kLevels), kNoClass) {
  for (size_t level = 0; level < kLevels; ++level) {
    counts_[level].resize(SizeOf(level));
    rates_[level].resize(SizeOf(level));
  }
  Refresh(0.0);
}

uint32_t ReuseModel::SizeOf(size_t level) {
  uint32_t size = 1;
  for (size_t i = 0; i < level; ++i) size *= kRadix[i];
  return size;
}

uint32_t ReuseModel::NumberOf(const RunTraits& run) {
  const uint32_t place = run.kind == RunKind::kShared ? 1 : run.kind == RunKind::kEnd ? 2 : 0;
  uint32_t number = static_cast<uint32_t>(run.reuse);
  number = number * kRadix[1] + place;
  number = number * kRadix[2] + BucketOf(kTurns, run.turn);
  number = number * kRadix[3] + BucketOf(kNewTokens, run.new_tokens);
  number = number * kRadix[4] + BucketOf(kOutputTokens, run.output_tokens);
  return number * kRadix[5] + (run.kind == RunKind::kUsed ? 1 : 0);
}

ReuseModel::ClassId ReuseModel::ClassOf(const RunTraits& run) {
  const uint32_t number = NumberOf(run);
  ClassId& id = ids_[number];
  if (id == kNoClass) {
    id = static_cast<ClassId>(classes_.size());
    const ByAge& coarser = rates_[kLevels - 1][number / kRadix[kLevels - 1]];
    classes_.push_back(
        {.number = number, .counts = {}, .worth = WorthOf(coarser), .chance = ChanceOf(coarser)});
  }
  return id;
}

size_t ReuseModel::AgeOf(double seconds) {
  if (seconds < kFirstEnd) return 0;
  static const double kBinsPerOctave = 1.0 / std::log2(kGrowth);
  const double bin = 1.0 + std::log2(seconds / kFirstEnd) * kBinsPerOctave;
  return std::min(static_cast<size_t>(bin), kAges - 1);
}

void ReuseModel::AddWatch(ClassId id, double from_s, double to_s) {
  ByAge& seconds = classes_[id].counts.seconds;
  for (size_t age = AgeOf(from_s); age < kAges && kEdges[age] < to_s; ++age) {
    const double end = age + 1 == kAges ? to_s : std::min(to_s, kEdges[age + 1]);
    seconds[age] += std::max(0.0, end - std::max(from_s, kEdges[age]));
  }
}

void ReuseModel::AddUse(ClassId id, double age_s, double share) {
  classes_[id].counts.uses[AgeOf(age_s)] += share;
}

void ReuseModel::Counts::Add(const Counts& other) {
  for (size_t age = 0; age < kAges; ++age) {
    uses[age] += other.uses[age];
    seconds[age] += other.seconds[age];
  }
}

void ReuseModel::Refresh(double elapsed_s) {
  const double keep = std::exp2(-elapsed_s / kHalfLife);
  for (std::vector<Counts>& level : counts_) std::fill(level.begin(), level.end(), Counts{});
  for (Class& one : classes_) {
    for (size_t age = 0; age < kAges; ++age) {
      one.counts.uses[age] *= keep;
      one.counts.seconds[age] *= keep;
    }
    uint32_t number = one.number;
    for (size_t level = kLevels; level-- > 0;) {
      number /= kRadix[level];
      counts_[level][number].Add(one.counts);
    }
  }
  const ByAge& uses = counts_[0][0].uses;
  uses_ = std::accumulate(uses.begin(), uses.end(), 0.0);
  ByAge prior;
  for (size_t age = 0; age < kAges; ++age) prior[age] = PriorRate(age);
  rates_[0][0] = RatesOf(counts_[0][0].uses, counts_[0][0].seconds, prior, 1.0, kPriorTrust);
  for (size_t level = 1; level < kLevels; ++level) {
    for (uint32_t number = 0; number < SizeOf(level); ++number) {
      const Counts& counts = counts_[level][number];
      rates_[level][number] =
          RatesOf(counts.uses, counts.seconds, rates_[level - 1][number / kRadix[level - 1]],
                  level == 1 ? HintScale(number) : 1.0, kShapeTrust);
    }
  }
  for (Class& one : classes_) {
    const ByAge& coarser = rates_[kLevels - 1][one.number / kRadix[kLevels - 1]];
    const ByAge rates = RatesOf(one.counts.uses, one.counts.seconds, coarser, 1.0, kShapeTrust);
    one.worth = WorthOf(rates);
    one.chance = ChanceOf(rates);
  }
}

// The Gittins index: the best ratio, over all times to give up, of the chance that a use comes
// before, to the time held until then.
ReuseModel::ByAge ReuseModel::WorthOf(const ByAge& rates) {
  ByAge used;  // of the pages that reach a bin, those used in it
  ByAge held;  // and how long they are held in it
  for (size_t age = 0; age < kAges; ++age) {
    used[age] = -std::expm1(-rates[age] * (kEdges[age + 1] - kEdges[age]));
    held[age] = used[age] / rates[age];
  }
  ByAge worth;
  for (size_t from = 0; from < kAges; ++from) {
    double alive = 1.0;
    double time = 0.0;
    double best = 0.0;
    for (size_t age = from; age < kAges; ++age) {
      time += alive * held[age];
      alive -= alive * used[age];
      best = std::max(best, (1.0 - alive) / time);
    }
    worth[from] = best;
  }
  return worth;
}

ReuseModel::ByAge ReuseModel::ChanceOf(const ByAge& rates) {
  const double horizon = absl::ToDoubleSeconds(kUseHorizon);
  ByAge chance;
  for (size_t from = 0; from < kAges; ++from) {
    double expected = 0.0;
    double left = horizon;
    for (size_t age = from; left > 0.0 && age < kAges; ++age) {
      const double seconds = std::min(left, kEdges[age + 1] - kEdges[age]);
      expected += seconds * rates[age];
      left -= seconds;
    }
    chance[from] = -std::expm1(-expected);
  }
  return chance;
}

uint64_t ReuseModel::memory_bytes() const {
  uint64_t bytes = ids_.capacity() * sizeof(ids_[0]) + classes_.capacity() * sizeof(Class);
  for (size_t level = 0; level < kLevels; ++level)
    bytes += counts_[level].capacity() * sizeof(Counts) + rates_[level].capacity() * sizeof(ByAge);
  return bytes;
}

}  // namespace oscarkv
