// What every path keeps, held against a whole server and a client. page_path_worlds.cc runs it in
// one process, the paths between GPUs over fakes of their memory and of NCCL; tests/gpu/
// peer_path_test.cc over both themselves. How each path stands the death of either side, at every
// step, is for processes: tests/torture/faults.py, and tests/gpu/peer_deaths_test.cc.
#ifndef OSCARKV_TESTS_CLIENT_PAGE_PATH_CONTRACT_H_
#define OSCARKV_TESTS_CLIENT_PAGE_PATH_CONTRACT_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "client/cpp/client.h"
#include "client/cpp/cpu_pages.h"
#include "client/cpp/pending_fetch.h"
#include "tests/client/device_ends.h"
#include "tests/client/fake_store.h"
#include "tests/support/scoped_folder.h"

#include "oscarkv/v1/server_config.pb.h"

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
  void Filled(uint64_t count) override;
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
  uint64_t filled_ = 0;  // of it
};

// Where a server runs, and the ends of a path.
class PathWorld {
 public:
  virtual ~PathWorld() = default;
  virtual DataPath path() const = 0;
  // Serves, with that configuration; until Stop.
  virtual void Start(const v1::ServerConfig& config) = 0;
  virtual void Stop() = 0;
  virtual client::ClientOptions options() const { return {}; }
  virtual size_t calls_at_once() const { return 48; }

  // Of paths between devices: the worker's, and what moves pages to and from it (null: nothing).
  virtual std::unique_ptr<WorkersDevice> NewDevice() { return nullptr; }
  virtual std::unique_ptr<comm::PeerFabric> NewFabric() { return nullptr; }
};

struct PathCase {
  DataPath path;
  std::unique_ptr<PathWorld> (*make)(DataPath);
};

// 16 pages of 4 tokens, 2 layers, 2 heads, in the model's dtype.
class PagePathContract : public ::testing::TestWithParam<PathCase> {
 protected:
  static constexpr uint32_t kPages = 16;

  PagePathContract();
  ~PagePathContract() override;

  void StartServer();
  std::unique_ptr<client::Client> NewClient(client::ClientOptions options) const;
  std::unique_ptr<client::Namespace> Open(client::Client& client) const;
  client::PushRequest PushOfAll() const { return {.keys = keys_, .slots = slots_}; }
  client::FetchRequest FetchOfAll() const { return {.keys = keys_, .slots = slots_}; }
  static DataPath path() { return GetParam().path; }
  static bool OfDevices() { return IsOfDevices(path()); }

  // All pages, from `source_` and into `destination_`. A push returns when what it has stored may
  // be fetched by the path.
  client::PushReport Push();
  client::FetchReport Fetch();
  // The calls of a namespace, with a GPU's ends for the paths that have such.
  absl::StatusOr<client::PushReport> Push(client::Namespace& space, const EngineView& cache);
  absl::StatusOr<client::PushReport> PushFrom(client::Namespace& space, client::PageSource& source);
  absl::StatusOr<client::FetchReport> Fetch(client::Namespace& space, const EngineView& cache);
  absl::StatusOr<client::FetchReport> FetchTo(client::PageSink& sink, client::FetchRequest request);
  std::unique_ptr<client::PendingFetch> StartFetch(const EngineView& cache,
                                                   client::StartFetchOptions options);
  void PushAsync(std::function<void(absl::StatusOr<client::PushReport>)> done);
  void FetchAsync(const EngineView& cache,
                  std::function<void(absl::StatusOr<client::FetchReport>)> done);
  void AwaitCopies(uint64_t pages);

  std::unique_ptr<DeviceSinkAround> Around(client::PageSink& sink) const;

  // What a fetch on its way writes to.
  struct Ends {
    Ends(const PagePathContract& test, const EngineView& cache)
        : view(cache), host(test.space_->codec(), view, test.slots_), device(test.Around(host)) {}
    const EngineView view;
    client::CpuPageSink host;
    const std::unique_ptr<DeviceSinkAround> device;
  };

  ScopedFolder folder_;
  NamespaceSpec spec_;
  std::vector<std::string> keys_;
  std::vector<int64_t> slots_;
  WorkerCache source_;
  WorkerCache destination_;
  WorkerCache untouched_;
  const std::unique_ptr<PathWorld> world_;
  std::unique_ptr<client::Client> client_;
  std::unique_ptr<client::Namespace> space_;
  std::vector<std::unique_ptr<Ends>> ends_;
  std::vector<std::thread> threads_;  // of calls that a path has no asynchronous form of
};

std::string NameOf(const ::testing::TestParamInfo<PathCase>& path);

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_CLIENT_PAGE_PATH_CONTRACT_H_
