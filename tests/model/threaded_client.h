// A client of the store under test on a thread of its own: does what clients do, at random, at the
// same time as others, and holds what it is given against their common history.
#ifndef OSCARKV_TESTS_MODEL_THREADED_CLIENT_H_
#define OSCARKV_TESTS_MODEL_THREADED_CLIENT_H_

#include <span>
#include <string_view>
#include <vector>

#include "tests/model/book.h"
#include "tests/model/history.h"
#include "tests/model/model_client.h"
#include "tests/model/world.h"

namespace oscarkv::testing {

// For one thread at a time.
class ThreadedClient : public ModelClient {
 public:
  // The world, the universe of keys and the history are shared, and outlive the client.
  ThreadedClient(World& world, const Book& universe, History& history, uint64_t seed);

  // Anything that clients do.
  void Step();

  // Lets go of everything, and forgets the session: the store is about to die, or has done so.
  void LetGoOfAll();
  void CloseSession();
  void EndSession();  // and begin another

 private:
  using Node = Book::Node;
  using Tick = History::Tick;

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
  Node Any() { return random_.Below(universe_.size()); }

  const Book& universe_;
  History& history_;
  std::vector<Lease> leases_;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_MODEL_THREADED_CLIENT_H_
