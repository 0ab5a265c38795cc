// The contract of paths over CUDA IPC and NCCL themselves: the server in a process of its own,
// which is killed where the contract stops it.
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"

#include "kernels/comm/nccl_fabric.h"
#include "kernels/device/buffer.h"
#include "kernels/device/shared_memory.h"
#include "tests/client/page_path_contract.h"
#include "tests/gpu/peer_worker.h"

namespace oscarkv::testing {
namespace {

class CudaWorkersDevice final : public WorkersDevice {
 public:
  std::byte* Allocate(uint64_t bytes) override {
    memory_.push_back(OrDie(device::DeviceBuffer::Allocate(bytes)));
    return memory_.back().data();
  }
  absl::StatusOr<std::byte*> Open(const std::string& handle) override {
    auto opened = device::OpenedMemory::Open(handle);
    if (!opened.ok()) return opened.status();
    opened_.push_back(*std::move(opened));
    return opened_.back().writable();
  }
  void Copy(std::byte* to, ByteView from) override {
    UseLastDevice();  // the thread's may be another
    OrDie(device::ToStatus(cudaMemcpy(to, from.data(), from.size(), cudaMemcpyDefault), "copying"));
    OrDie(device::ToStatus(cudaStreamSynchronize(nullptr), "copying"));
  }

 private:
  std::vector<device::DeviceBuffer> memory_;
  std::vector<device::OpenedMemory> opened_;
};

class TwoProcesses final : public PathWorld {
 public:
  explicit TwoProcesses(DataPath path) : path_(path) { UseLastDevice(); }
  ~TwoProcesses() override { Kill(); }

  DataPath path() const override { return path_; }
  void Start(const v1::ServerConfig& config) override {
    v1::ServerConfig with_nccl = config;
    with_nccl.mutable_gpu()->set_nccl(NcclLibrary());
    std::ofstream file(folder_.file("config"), std::ios::binary);
    ASSERT_TRUE(with_nccl.SerializeToOstream(&file));
    file.close();
    std::string self = "/proc/self/exe";
    std::string serve = std::string(kServe) + folder_.file("config");
    char* arguments[] = {self.data(), serve.data(), nullptr};
    ASSERT_EQ(posix_spawn(&server_, self.c_str(), nullptr, nullptr, arguments, environ), 0);
    const auto client = OrDie(client::Client::Create({.endpoint = config.listen(0)}));
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (!client->Stats().ok()) ASSERT_LT(absl::Now(), deadline) << "the server does not come up";
  }
  void Stop() override { Kill(); }
  // A first fetch takes the meeting of two GPUs.
  ClientOptions options() const override {
    return {.fetch_timeout = absl::Seconds(10), .push_timeout = absl::Seconds(10)};
  }
  size_t calls_at_once() const override { return path_ == DataPath::kNccl ? 6 : 24; }
  std::unique_ptr<WorkersDevice> NewDevice() override {
    UseLastDevice();
    return std::make_unique<CudaWorkersDevice>();
  }
  std::unique_ptr<comm::PeerFabric> NewFabric() override {
    if (path_ != DataPath::kNccl) return nullptr;
    UseLastDevice();
    MakeHost();
    comm::NcclOptions options;
    options.library = NcclLibrary();
    OrDie(device::ToStatus(cudaGetDevice(&options.device), "asking for the device"));
    return OrDie(comm::MakeNcclFabric(options));
  }

  static constexpr char kServe[] = "--serve=";

 private:
  void Kill() {
    if (server_ < 0) return;
    kill(server_, SIGKILL);
    waitpid(std::exchange(server_, -1), nullptr, 0);
  }

  const DataPath path_;
  ScopedFolder folder_;
  pid_t server_ = -1;
};

constexpr auto kInTwoProcesses = [](DataPath path) -> std::unique_ptr<PathWorld> {
  return std::make_unique<TwoProcesses>(path);
};

INSTANTIATE_TEST_SUITE_P(BetweenGpus, PagePathContract,
                         ::testing::Values(PathCase{DataPath::kIpc, kInTwoProcesses},
                                           PathCase{DataPath::kNccl, kInTwoProcesses}),
                         NameOf);

// The server of such a test.
void ServeFrom(const std::string& path) {
  v1::ServerConfig config;
  std::ifstream file(path, std::ios::binary);
  if (!config.ParseFromIstream(&file)) OrDie(absl::DataLossError("reading " + path));
  MakeHost();
  const auto server = OrDie(Server::Create(config));
  for (;;) pause();
}

}  // namespace
}  // namespace oscarkv::testing

int main(int argc, char** argv) {
  const std::string first = argc > 1 ? argv[1] : "";
  const std::string serve = oscarkv::testing::TwoProcesses::kServe;
  if (first.starts_with(serve)) oscarkv::testing::ServeFrom(first.substr(serve.size()));
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
