// Learns, while it runs, how likely and how soon each kind of page run is used again, and from that
// what a page is worth at every age: hits per second of memory held.
//
// Runs are sorted into classes by what is known when they are used. For each class and age the
// model counts uses and the time under watch, which gives uses per second. A class of which little
// is known takes after the coarser class that it is part of, down to a prior that falls with age:
// knowing nothing, the model prefers what was used last.
#ifndef OSCARKV_SERVER_CORE_REUSE_MODEL_H_
#define OSCARKV_SERVER_CORE_REUSE_MODEL_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "server/core/eviction_policy.h"

namespace oscarkv {

// What a run of pages is, to the model.
enum class RunKind : uint8_t {
  kNew = 0,     // stored by its last request
  kUsed = 1,    // stored before, used again
  kShared = 2,  // where many sequences part
  kEnd = 3,     // the last page of a put
};

struct RunTraits {
  ReuseHint reuse = ReuseHint::kNone;
  RunKind kind = RunKind::kNew;
  uint32_t turn = 1;           // requests of the session so far, the last one included
  uint64_t new_tokens = 0;     // of its last request
  uint32_t output_tokens = 0;  // of its last request; 0: not known
};

// Not thread-safe. Memory is bounded: 1,050 bytes for each class that was seen, of 2,880 at most,
// and 1.3 MB.
class ReuseModel {
 public:
  using ClassId = uint16_t;
  static constexpr size_t kAges = 32;
  using ByAge = std::array<double, kAges>;

  ReuseModel();

  // The class of runs like this; makes it when there is none.
  ClassId ClassOf(const RunTraits& run);
  size_t classes() const { return classes_.size(); }

  // The age bin of a run that was last used `seconds` ago: below kAges, each 1.5 times as wide.
  static size_t AgeOf(double seconds);

  // A run of the class was under watch from one age to another.
  void AddWatch(ClassId id, double from_s, double to_s);
  // A run of the class, or `share` of it, was used again at an age.
  void AddUse(ClassId id, double age_s, double share);
  // Works out anew what is known of every class; `elapsed_s` since the last time, for old knowledge
  // to fade. O(classes).
  void Refresh(double elapsed_s);

  // Hits per second that a page earns while it is held, from age bin `age` on, held as long as that
  // is best. Above 0; constant between calls of Refresh.
  double Worth(ClassId id, size_t age) const { return classes_[id].worth[age]; }
  // How likely a page is used within kUseHorizon, from age bin `age` on.
  double Chance(ClassId id, size_t age) const { return classes_[id].chance[age]; }
  // Uses that this rests on, old ones faded. While they are few, worth compares guesses.
  double uses() const { return uses_; }

  uint64_t memory_bytes() const;

 private:
  // Classes are numbered in a mixed radix, what is most general first, so that a coarser class is
  // the number divided. New and used runs of a session have one fate, so that comes last.
  static constexpr std::array<uint32_t, 6> kRadix = {kReuseHints, 3, 5, 4, 6, 2};
  static constexpr size_t kLevels = kRadix.size();

  struct Counts {
    ByAge uses{};
    ByAge seconds{};
    void Add(const Counts& other);
  };
  struct Class {
    uint32_t number = 0;
    Counts counts;
    ByAge worth{};
    ByAge chance{};
  };

  static uint32_t NumberOf(const RunTraits& run);
  // How many classes a level has: one at level 0, at level kLevels the finest.
  static uint32_t SizeOf(size_t level);
  static ByAge WorthOf(const ByAge& rates);
  static ByAge ChanceOf(const ByAge& rates);

  std::vector<ClassId> ids_;  // [number], kNoClass where there is none yet
  std::vector<Class> classes_;
  double uses_ = 0.0;
  std::array<std::vector<Counts>, kLevels> counts_;  // [level but the finest][number]
  std::array<std::vector<ByAge>, kLevels> rates_;    // uses per second, likewise
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_REUSE_MODEL_H_
