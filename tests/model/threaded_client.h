// A client of the store under test on a thread of its own: does what clients do, at random, at the
// same time as others, and holds what it is given against their common history.
#ifndef OSCARKV_TESTS_MODEL_THREADED_CLIENT_H_
#define OSCARKV_TESTS_MODEL_THREADED_CLIENT_H_

#include <optional>
#include <set>
#include <span>
#include <string_view>
#include <vector>

#include "tests/model/book.h"
#include "tests/model/history.h"
#include "tests/model/world.h"

namespace oscarkv::testing {

// For one thread at a time.
class ThreadedClient {
 public:
  // The world, the universe of keys and the history are shared, and outlive the client.
  ThreadedClient(World& world, const Book& universe, History& history, uint64_t seed);

  // Anything that clients do.
  void Step();

  // Lets go of everything, and forgets the session: the store is about to die, or has done so.
  void LetGoOfAll();
  void OpenSession();
  void CloseSession();
  void EndSession();  // and begin another

  size_t open_puts() const { return puts_.size(); }
  size_t held_copies() const { return held_copies_.size(); }
  uint64_t pages_checked() const { return pages_checked_; }
  uint64_t copies_checked() const { return copies_checked_; }

 private:
  using Node = Book::Node;
  using Tick = History::Tick;

  struct HeldPage {
    PinnedPage page;
    Version version;
    uint64_t flips;  // in memory, before it was read
  };
  struct OpenPut {
    PutSlot slot;
    Node node;
    Version version;
    bool spoiled;  // its bytes do not have their checksums
    uint64_t flips;
  };
  struct HeldCopy {
    PinnedCopy copy;
    std::set<Version> versions;
  };
  struct LeasedPage {
    Node node;
    uint64_t removals;  // that had ended before it was leased
  };
  struct Lease {
    LeaseId lease;
    absl::Duration end;  // not before it
    bool rotten;         // memory, when it was granted
    uint64_t flips;      // in memory, until then
    std::vector<LeasedPage> pages;
  };

  struct Operation {
    int weight;
    void (ThreadedClient::*run)();
  };
  static std::span<const Operation> Operations();

  void BeginPut();
  void FinishPut();
  void Fetch();
  void LetGo();
  void Lookup() { LookUp(false); }
  void TakeLease() { LookUp(true); }
  void ReleaseLease();
  void Touch();
  void Delete();
  void ReadCopy();

  void LookUp(bool lease);
  void CheckPutAnswer(Node node, const Version& version, ItemStatus status, Tick begun, bool rotten,
                      bool may_be_corrupt);
  // The page, which was not there, is none that a lease of this client holds.
  void CheckNotLeased(Node node) const;
  void CheckCopy(const HeldCopy& held);
  std::optional<Version> VersionOf(ByteView bytes, Encoding encoding,
                                   const std::set<Version>& allowed) const;
  Node Any() { return random_.Below(universe_.size()); }
  PageStore& store() { return world_.store(); }

  World& world_;
  const Book& universe_;
  History& history_;
  Random random_;
  SessionId session_ = 0;
  std::vector<HeldPage> held_;
  std::vector<OpenPut> puts_;
  std::vector<HeldCopy> held_copies_;
  std::vector<Lease> leases_;
  uint64_t pages_checked_ = 0;
  uint64_t copies_checked_ = 0;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_MODEL_THREADED_CLIENT_H_
