// What every path between host memories keeps, held against a whole server and a client in this
// process: page_path_contract.cc instantiates it. How each path stands the death of either side, at
// every step, is for processes: tests/torture/faults.py.
#ifndef OSCARKV_TESTS_CLIENT_PAGE_PATH_CONTRACT_H_
#define OSCARKV_TESTS_CLIENT_PAGE_PATH_CONTRACT_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "client/cpp/client.h"
#include "server/server.h"
#include "tests/client/fake_store.h"
#include "tests/support/scoped_folder.h"

namespace oscarkv::testing {

// Keeps what comes, in the order it comes; one layer after another.
class RecordingSink final : public client::PageSink {
 public:
  explicit RecordingSink(uint64_t pages) : pages_(pages) {}

  uint64_t pages() const override { return pages_; }
  std::vector<BlockRange> LayerGroups(BlockRange layers) const override;
  absl::Status Begin(BlockRange, BlockRange) override { return absl::OkStatus(); }
  absl::StatusOr<MutableByteView> Room(uint32_t page, Encoding encoding, BlockRange layers,
                                       uint64_t bytes) override;
  absl::Status Take(std::span<const uint32_t> block_crc32c) override;
  absl::Status EndLayers(BlockRange, uint32_t) override { return absl::OkStatus(); }
  absl::StatusOr<std::vector<absl::Status>> Finish() override {
    return std::vector<absl::Status>();
  }
  void Abandon(const absl::Status&) override { ++abandoned; }

  using Part = std::pair<uint32_t, uint32_t>;  // layer, page
  std::vector<Part> taken;
  std::map<Part, std::vector<std::byte>> bytes;
  int abandoned = 0;
  std::function<absl::Status(uint32_t page)> on_take = [](uint32_t) { return absl::OkStatus(); };

 private:
  const uint64_t pages_;
  Part at_;
};

// 16 pages of 4 tokens, 2 layers, 2 heads, in the model's dtype.
class PagePathContract : public ::testing::TestWithParam<DataPath> {
 protected:
  static constexpr uint32_t kPages = 16;

  PagePathContract();

  void StartServer();
  std::unique_ptr<client::Client> NewClient(client::ClientOptions options = {}) const;
  std::unique_ptr<client::Namespace> Open(client::Client& client) const;
  client::PushRequest PushOfAll() const { return {.keys = keys_, .slots = slots_}; }
  client::FetchRequest FetchOfAll() const { return {.keys = keys_, .slots = slots_}; }
  // All pages, from `source_` and into `destination_`.
  client::PushReport Push();
  client::FetchReport Fetch();

  ScopedFolder folder_;
  NamespaceSpec spec_;
  std::vector<std::string> keys_;
  std::vector<int64_t> slots_;
  EngineCache source_;
  EngineCache destination_;
  EngineCache untouched_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<client::Client> client_;
  std::unique_ptr<client::Namespace> space_;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_CLIENT_PAGE_PATH_CONTRACT_H_
