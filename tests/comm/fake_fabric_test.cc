// The fake keeps the contract, whatever its delays.
#include "tests/comm/fake_fabric.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

#include "tests/comm/peer_comm_contract.h"

namespace oscarkv::testing {
namespace {

class Words {
 public:
  void Add(const std::string& word) {
    absl::MutexLock lock(&mutex_);
    words_.push_back(word);
  }
  std::string Next() {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(
        +[](std::deque<std::string>* words) { return !words->empty(); }, &words_));
    std::string word = words_.front();
    words_.pop_front();
    return word;
  }

 private:
  absl::Mutex mutex_;
  std::deque<std::string> words_ ABSL_GUARDED_BY(mutex_);
};

class ThreadSide final : public PeerSide {
 public:
  ThreadSide(int rank, FakeFabric& fabric, Words& told, Words& heard)
      : rank_(rank), fabric_(fabric), told_(told), heard_(heard) {}
  int rank() const override { return rank_; }
  comm::PeerFabric& fabric() override { return fabric_; }
  std::byte* Allocate(uint64_t bytes) override {
    memory_.push_back(std::make_unique<std::byte[]>(bytes));
    return memory_.back().get();
  }
  void Write(std::byte* to, ByteView bytes) override { std::ranges::copy(bytes, to); }
  std::vector<std::byte> Read(const std::byte* from, uint64_t bytes) override {
    return {from, from + bytes};
  }
  void Tell(const std::string& word) override { told_.Add(word); }
  std::string Hear() override { return heard_.Next(); }
  void Die() override {}  // what the body leaves ends with it

 private:
  const int rank_;
  FakeFabric& fabric_;
  Words& told_;
  Words& heard_;
  std::vector<std::unique_ptr<std::byte[]>> memory_;
};

class ThreadRunner final : public PeerRunner {
 public:
  explicit ThreadRunner(const FakeFabricOptions& options) : fabric_(options) {}
  void Run(const std::function<void(PeerSide&)>& body) override {
    Words to_first;
    Words to_second;
    std::thread second([&] {
      ThreadSide side(1, fabric_, to_first, to_second);
      body(side);
    });
    {
      ThreadSide side(0, fabric_, to_second, to_first);
      body(side);
    }
    second.join();
  }

 private:
  FakeFabric fabric_;
};

int Register(const std::string& name, const FakeFabricOptions& options) {
  return RegisterPeerCommContract(name, [=] { return std::make_unique<ThreadRunner>(options); });
}

[[maybe_unused]] const int kRegistered =
    Register("fake", {}) +
    Register("fake_slow", {.seed = 1, .delay_polls_max = 50, .closing_polls_max = 50}) +
    Register("fake_eager", {.seed = 2, .delay_polls_max = 5, .eager_percent = 50}) +
    Register("fake_telling", {.seed = 3, .closing_polls_max = 5, .tells_of_aborts = true});

}  // namespace
}  // namespace oscarkv::testing
