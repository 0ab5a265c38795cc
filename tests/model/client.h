// A client of the store under test: does what clients do, at random, and holds what it is given
// against a book.
#ifndef OSCARKV_TESTS_MODEL_CLIENT_H_
#define OSCARKV_TESTS_MODEL_CLIENT_H_

#include <span>
#include <vector>

#include "tests/model/book.h"
#include "tests/model/world.h"

namespace oscarkv::testing {

// Hints of all kinds; a page in eight is pinned, or let go again.
RequestTraits SomeTraits(Random& random);

class Client {
 public:
  // The book may be shared with clients that take turns; the world outlives the client.
  Client(World& world, Book& book, uint64_t seed);

  // To add an operation: write a method and give it a line in Operations(). It says what it expects
  // with gtest's macros and tells the book what it has learnt.
  struct Operation {
    const char* name;
    int weight;
    void (Client::*run)();
  };
  static std::span<const Operation> Operations();
  // One of them.
  void Step();

  // Lets go of everything, and forgets the session: the store is about to die, or has done so.
  void LetGoOfAll();
  void OpenSession();
  void CloseSession();

  size_t open_puts() const { return puts_.size(); }
  size_t held_copies() const { return held_copies_.size(); }
  uint64_t copies_checked() const { return copies_checked_; }
  uint64_t pages_checked() const { return pages_checked_; }

  // --- Operations ---

  void BeginPut();
  void FinishPut();  // or break off
  void Fetch();
  void LetGo();  // of a page being read, whose bytes are still what they were
  void Lookup() { LookUp(false); }
  void Lease() { LookUp(true); }
  void ReleaseLease();
  void Touch();
  void Delete();
  void EndSession();
  void DropPuts();
  void ReadCopy();

 private:
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

  void CheckPutAnswer(Book::Node node, const Version& version, ItemStatus status,
                      bool may_be_corrupt);
  void LookUp(bool lease);
  // The page's version, if its bytes are those of one of `allowed`.
  std::optional<Version> VersionOf(ByteView bytes, Encoding encoding,
                                   const std::set<Version>& allowed) const;
  void CheckCopy(const HeldCopy& held);
  PageStore& store() { return world_.store(); }

  World& world_;
  Book& book_;
  Random random_;
  SessionId session_ = 0;
  std::vector<HeldPage> held_;
  std::vector<OpenPut> puts_;
  std::vector<HeldCopy> held_copies_;
  uint64_t copies_checked_ = 0;
  uint64_t pages_checked_ = 0;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_MODEL_CLIENT_H_
