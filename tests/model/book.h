// The oracle of the model: a universe of keys, and for each what a reader may be given. A plain
// map; it knows nothing of how the store works.
#ifndef OSCARKV_TESTS_MODEL_BOOK_H_
#define OSCARKV_TESTS_MODEL_BOOK_H_

#include <compare>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"

#include "server/core/page_store.h"
#include "tests/support/store_pages.h"

namespace oscarkv::testing {

// Chance, from one seed.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  size_t Below(size_t bound) { return static_cast<size_t>(engine_() % bound); }
  bool OneIn(size_t times) { return Below(times) == 0; }
  uint64_t Number() { return engine_(); }

 private:
  std::mt19937_64 engine_;
};

// What happens, for who replays a seed with --trace.
inline bool& Tracing() {
  static bool tracing = false;
  return tracing;
}
template <typename... Parts>
void Tell(const Parts&... parts) {
  if (Tracing()) std::puts(absl::StrCat(parts...).c_str());
}

// The bytes of a page follow from these.
struct Version {
  uint64_t seed = 0;
  Encoding encoding = Encoding::kWide;
  auto operator<=>(const Version&) const = default;
};

class Book {
 public:
  using Node = size_t;  // a key of the universe
  struct Page {
    TestItem item;  // its key, parent and position
    std::optional<Node> parent;
    std::vector<Node> children;
    // What a hit may be now; empty: a hit is an error. A miss never is, unless the page is leased.
    std::set<Version> now;
    // What may lie on the disk, and so be there after a crash.
    std::set<Version> disk;
  };
  struct Lease {
    LeaseId lease = 0;
    SessionId session = 0;
    absl::Duration end;
    std::vector<Node> nodes;  // that it holds in memory
  };

  // `roots` sequences that branch, with keys numbered from `first_key`.
  Book(const Namespace& space, uint64_t first_key, uint64_t roots);

  size_t size() const { return pages_.size(); }
  Page& at(Node node) { return pages_[node]; }
  const Page& at(Node node) const { return pages_[node]; }
  // The node of a key; nothing when it is of another book.
  std::optional<Node> Find(std::string_view key) const;
  // From the root to `node`.
  std::vector<Node> PathTo(Node node) const;
  std::vector<std::string_view> KeysAt(const std::vector<Node>& nodes) const;

  Node Any(Random& random) const {
    return busy_.has_value() && random.OneIn(2) ? *busy_ : random.Below(pages_.size());
  }
  // Somebody is in the middle of reading this page: what others do meanwhile is often about it.
  void SetBusy(std::optional<Node> node) { busy_ = node; }
  // Mostly one that is there.
  Node Likely(Random& random) const;
  // Mostly one whose parent is there and which is not.
  Node ToPut(Random& random) const;

  // The page is stored, with these bytes.
  void Stored(Node node, const Version& version);
  // The page is not there; what extends it may be.
  void Missed(Node node);
  // The page is gone, and all that extends it.
  void Gone(Node node);
  // The process has died: what is there now was on the disk.
  void Restarted();
  // What was there before is gone from the disk too. What is there may come to it any time.
  void DiskIsUpToDate();

  std::vector<Lease>& leases() { return leases_; }
  bool IsLeased(Node node) const;
  // Leases of which the store says that they are no more.
  void DropLeasesOf(Node node);  // of the page and what extends it
  size_t EndLeases(absl::Duration now);
  void EndLeasesOf(SessionId session);

  // Rises whenever anything is learnt: what happened in the middle of a call shows.
  uint64_t changes() const { return changes_; }

 private:
  void Grow(const Namespace& space, std::optional<Node> parent, uint64_t depth);

  const uint64_t first_key_;
  std::vector<Page> pages_;
  std::vector<Lease> leases_;
  std::optional<Node> busy_;
  uint64_t changes_ = 0;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_MODEL_BOOK_H_
