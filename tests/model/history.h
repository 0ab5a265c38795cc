// The oracle of the model with threads: what was stored and removed, and when each of these began
// and had ended. An answer is right if some order of what overlapped it explains it.
#ifndef OSCARKV_TESTS_MODEL_HISTORY_H_
#define OSCARKV_TESTS_MODEL_HISTORY_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

#include "tests/model/book.h"

namespace oscarkv::testing {

// Thread-safe but for what says otherwise.
class History {
 public:
  using Node = Book::Node;
  using Tick = uint64_t;

  // `universe`: its keys, and nothing else, are used.
  explicit History(const Book& universe);

  // A moment: later than all before it, on whatever thread.
  Tick Now() { return ++ticks_; }

  // A put that may show from now on, until it has ended and was not stored.
  class Put {
   public:
    Put(History& history, Node node, const Version& version);
    void End(bool stored);

   private:
    History& history_;
    const Node node_;
    const Version version_;
    const Tick begun_;
  };

  // The page was not there at some moment since `begun`.
  void Absent(Node node, Tick begun);

  // The page and all that extends it are deleted, from now on at some moment until it ends.
  class Removal {
   public:
    Removal(History& history, Node node);
    void End();

   private:
    History& history_;
    const Node node_;
    const Tick begun_;
  };

  // What a reader may have been given who asked at `begun` and has its answer.
  std::set<Version> MayBe(Node node, Tick begun) const;

  // All that is known of it, for who has to find out why it is wrong.
  std::string Describe(Node node) const;

  // Deletions of the page, or of what it extends. If as many have begun by now as had ended at an
  // earlier moment, then there was none since.
  uint64_t removals_begun(Node node) const { return pages_[node].removals_begun; }
  uint64_t removals_ended(Node node) const { return pages_[node].removals_ended; }

  // --- While nobody else does anything. ---

  // What can not be read any more is forgotten.
  void Settle();
  // Nothing is there.
  void Cleared();
  // The process has died: what is there now was on the disk.
  void Restarted();
  // What was there before is gone from the disk too.
  void DiskIsUpToDate();

 private:
  static constexpr Tick kNever = ~Tick{0};
  struct Span {
    Tick begun;
    Tick ended;
  };
  struct Stored {
    Version version;
    Span put;
  };
  struct Page {
    mutable absl::Mutex mutex;
    std::vector<Stored> stored ABSL_GUARDED_BY(mutex);
    std::vector<Span> absent ABSL_GUARDED_BY(mutex);
    // What may lie on the disk, and so be there after a crash.
    std::set<Version> disk ABSL_GUARDED_BY(mutex);
    std::atomic<uint64_t> removals_begun = 0;  // sequentially consistent, as the moments
    std::atomic<uint64_t> removals_ended = 0;
  };

  // The node and all that extend it.
  std::vector<Node> TreeOf(Node node) const;

  const Book& universe_;
  std::deque<Page> pages_;
  std::atomic<Tick> ticks_ = 0;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_MODEL_HISTORY_H_
