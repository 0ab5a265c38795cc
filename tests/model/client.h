// A client of the store under test: does what clients do, at random, and holds what it is given
// against a book.
#ifndef OSCARKV_TESTS_MODEL_CLIENT_H_
#define OSCARKV_TESTS_MODEL_CLIENT_H_

#include <span>
#include <vector>

#include "tests/model/book.h"
#include "tests/model/model_client.h"
#include "tests/model/world.h"

namespace oscarkv::testing {

class Client : public ModelClient {
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
  void LetGoOfAll() { LetGoOfHeld(); }
  void CloseSession();

  // --- Operations ---

  void BeginPut();
  void FinishPut();  // or break off
  void Fetch();
  using ModelClient::LetGo;
  void Lookup() { LookUp(false); }
  void Lease() { LookUp(true); }
  void ReleaseLease();
  void Touch();
  void Delete();
  void EndSession();
  void DropPuts();
  void ReadCopy();

 private:
  // `before`: pages that had gone ahead of bits.
  void CheckBitsWentFirst(uint64_t before);
  bool MustExtend(Book::Node node);
  uint64_t Obstacles();
  void CheckPutAnswer(Book::Node node, const Version& version, ItemStatus status,
                      bool may_be_corrupt);
  void LookUp(bool lease);

  Book& book_;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_MODEL_CLIENT_H_
