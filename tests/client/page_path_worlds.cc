// The contract of paths in one process.
#include "kernels/comm/nccl_fabric.h"
#include "server/server.h"
#include "tests/client/page_path_contract.h"
#include "tests/comm/fake_fabric.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

class OneProcess final : public PathWorld {
 public:
  explicit OneProcess(DataPath path) : path_(path) {}

  DataPath path() const override { return path_; }
  void Start(const v1::ServerConfig& config) override {
    auto server = Server::Create(
        config, {.memory =
                     [](const DeviceMemoryOptions& options) {
                       return std::make_unique<FakeDeviceMemory>(options.bytes);
                     },
                 .fabric = [this](const comm::NcclOptions&) { return NewFabric(); }});
    ASSERT_OK(server.status());
    server_ = *std::move(server);
  }
  void Stop() override { server_.reset(); }
  std::unique_ptr<WorkersDevice> NewDevice() override {
    return std::make_unique<FakeWorkersDevice>();
  }
  std::unique_ptr<comm::PeerFabric> NewFabric() override {
    if (path_ != DataPath::kNccl) return nullptr;
    return std::make_unique<SharedFabric>(fabric_);
  }

 private:
  const DataPath path_;
  const std::shared_ptr<FakeFabric> fabric_ = std::make_shared<FakeFabric>(
      FakeFabricOptions{.seed = 1, .delay_polls_max = 3, .eager_percent = 30});
  std::unique_ptr<Server> server_;
};

constexpr auto kInOneProcess = [](DataPath path) -> std::unique_ptr<PathWorld> {
  return std::make_unique<OneProcess>(path);
};

INSTANTIATE_TEST_SUITE_P(Paths, PagePathContract,
                         ::testing::Values(PathCase{DataPath::kIpc, kInOneProcess},
                                           PathCase{DataPath::kShm, kInOneProcess},
                                           PathCase{DataPath::kNccl, kInOneProcess},
                                           PathCase{DataPath::kGrpc, kInOneProcess}),
                         NameOf);

}  // namespace
}  // namespace oscarkv::testing
