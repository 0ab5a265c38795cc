// What clients of a store under test hold, whether they take turns or go on threads of their own,
// and how what they hold is looked at again.
#ifndef OSCARKV_TESTS_MODEL_MODEL_CLIENT_H_
#define OSCARKV_TESTS_MODEL_MODEL_CLIENT_H_

#include <cstdint>
#include <optional>
#include <set>
#include <vector>

#include "tests/model/book.h"
#include "tests/model/world.h"

namespace oscarkv::testing {

// Hints of all kinds; a page in eight is pinned, or let go again.
RequestTraits SomeTraits(Random& random);

// For one thread at a time. The world outlives the client.
class ModelClient {
 public:
  void OpenSession() { session_ = store().OpenSession("model"); }

  size_t open_puts() const { return puts_.size(); }
  size_t held_copies() const { return held_copies_.size(); }
  uint64_t pages_checked() const { return pages_checked_; }
  uint64_t copies_checked() const { return copies_checked_; }

 protected:
  static constexpr size_t kHeldMax = 6;
  static constexpr size_t kPutsMax = 5;

  struct HeldPage {
    PinnedPage page;
    Version version;
    uint64_t flips;  // in memory, before it was read
  };
  struct OpenPut {
    PutSlot slot;
    Book::Node node;
    Version version;
    bool spoiled;  // its bytes do not have their checksums
    uint64_t flips;
  };
  struct HeldCopy {
    PinnedCopy copy;
    std::set<Version> versions;
  };

  ModelClient(World& world, uint64_t seed) : world_(world), random_(seed) { OpenSession(); }

  // Of pages, puts and copies.
  void LetGoOfHeld();
  // Of a page being read, whose bytes are still what they were.
  void LetGo();
  // What a page that was put so may have become; null: nothing else.
  const TestPage* ReEncodedFormOf(const Version& version) const {
    return version.encoding == Encoding::kWide ? world_.ReEncodedForm(version.seed) : nullptr;
  }
  // Whether a put may be told so while a page that was put as `stored` is there.
  bool MayExist(const Version& stored, const Version& put, bool rotten) const;
  bool MayConflict(const Version& stored, const Version& put) const;
  // The page's version, if its bytes are those of one of `allowed`.
  std::optional<Version> VersionOf(ByteView bytes, Encoding encoding,
                                   const std::set<Version>& allowed) const;
  // Looks at a copy, and at one that is held; keeps it for a while.
  void HoldCopy(PinnedCopy copy, std::set<Version> versions);
  PageStore& store() { return world_.store(); }

  World& world_;
  Random random_;
  SessionId session_ = 0;
  std::vector<HeldPage> held_;
  std::vector<OpenPut> puts_;
  uint64_t pages_checked_ = 0;

 private:
  void CheckCopy(const HeldCopy& held);

  std::vector<HeldCopy> held_copies_;
  uint64_t copies_checked_ = 0;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_MODEL_MODEL_CLIENT_H_
