// Times pages between oscarkvd's GPU and a worker's, end to end: a fetch from its call until all of
// its pages are verified and decoded in the worker's cache, a push from its call until all are
// stored. By each path, for several sizes of pages and calls, beside one copy of as many bytes
// between two buffers of those GPUs. On one GPU, or with the worker on the second of two.
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "nlohmann/json.hpp"

#include "CLI/CLI.hpp"
#include "tests/gpu/peer_worker.h"

namespace oscarkv::testing {
namespace {

constexpr uint32_t kPagesMax = 64;
constexpr uint32_t kBatches[] = {1, 16, kPagesMax};
// Of pages of 16 tokens and 8 heads in 2 bits, 9 KiB a layer: 63 KiB to 1 MiB.
constexpr uint32_t kLayers[] = {7, 28, 77, 114};
constexpr DataPath kPaths[] = {DataPath::kIpc, DataPath::kNccl, DataPath::kShm, DataPath::kGrpc};
constexpr size_t kCallsMin = 20;
constexpr size_t kCallsMax = 400;

struct Times {
  double p50 = 0;
  double p99 = 0;
  size_t calls = 0;
};

// Of calls for about `seconds`, after one that is not counted; in microseconds.
Times Measure(double seconds, const std::function<absl::Duration()>& call) {
  call();
  std::vector<double> us;
  const absl::Time end = absl::Now() + absl::Seconds(seconds);
  while (us.size() < kCallsMin || (us.size() < kCallsMax && absl::Now() < end))
    us.push_back(absl::ToDoubleMicroseconds(call()));
  std::sort(us.begin(), us.end());
  return {us[us.size() / 2], us[us.size() * 99 / 100], us.size()};
}

// One copy between buffers of the server's GPU and the worker's, waited for.
class Copies {
 public:
  explicit Copies(uint64_t bytes) {
    int devices = 0;
    OrDie(device::ToStatus(cudaGetDeviceCount(&devices), "counting devices"));
    to_ = OrDie(device::DeviceBuffer::Allocate(bytes));
    OrDie(device::ToStatus(cudaSetDevice(0), "taking a device"));
    from_ = OrDie(device::DeviceBuffer::Allocate(bytes));
    UseLastDevice();
    if (devices > 1) cudaDeviceEnablePeerAccess(0, 0);  // it may be so already
    cudaGetLastError();
  }
  absl::Duration Copy(uint64_t bytes) {
    const absl::Time start = absl::Now();
    OrDie(device::ToStatus(
        cudaMemcpyAsync(to_.data(), from_.data(), bytes, cudaMemcpyDefault, stream_.get()),
        "copying"));
    OrDie(stream_.Synchronize());
    return absl::Now() - start;
  }

 private:
  device::Stream stream_ = OrDie(device::Stream::Create());
  device::DeviceBuffer from_;
  device::DeviceBuffer to_;
};

class Bench {
 public:
  Bench(std::string endpoint, double seconds)
      : endpoint_(std::move(endpoint)), seconds_(seconds), copies_(uint64_t{kPagesMax} << 21) {
    std::printf("%-5s %5s %6s | %9s %9s %8s %9s %8s | %9s %9s %8s\n", "path", "pages", "KiB",
                "GET us", "p99", "GB/s", "as bf16", "of copy", "PUT us", "p99", "GB/s");
  }

  void Run(uint32_t layers, DataPath path) {
    Geometry geometry = kModel;
    geometry.layers = layers;
    geometry.page_tokens = 16;
    const std::string model = "bench-" + std::to_string(layers);
    Worker worker(endpoint_, {.fetch_paths = {path}, .push_paths = {path}}, model, absl::Seconds(5),
                  geometry, kPagesMax);
    if (path == DataPath::kNccl) {
      worker.ReceiveOverNccl();
      worker.SendOverNccl();
    }
    worker.Clear();
    worker.FillCache();
    worker.PushPages(kPagesMax, nullptr);
    worker.AwaitCopies();
    for (const uint32_t batch : kBatches) rows_.push_back(Row(worker, path, batch));
    Worker by_grpc(endpoint_, {.fetch_paths = {DataPath::kGrpc}}, model, absl::Seconds(5), geometry,
                   kPagesMax);
    by_grpc.Fetch();
    worker.Fetch();
    if (worker.Cache() != by_grpc.Cache()) OrDie(absl::DataLossError("others than by gRPC"));
  }
  const nlohmann::json& rows() const { return rows_; }

 private:
  nlohmann::json Row(Worker& worker, DataPath path, uint32_t batch) {
    uint64_t bytes = 0;
    const Times get = Measure(seconds_, [&] {
      absl::Duration took;
      const FetchReport report = worker.FetchPages(batch, &took);
      OrDie(report.store);
      if (report.pages != batch || report.path != path)
        OrDie(absl::InternalError("fetched otherwise"));
      bytes = report.bytes_wire;
      return took;
    });
    const Times copy = Measure(seconds_ / 4, [&] { return copies_.Copy(bytes); });
    const Times put = Measure(seconds_, [&] {
      worker.Clear();
      absl::Duration took;
      const client::PushReport report = worker.PushPages(batch, &took);
      OrDie(report.store);
      if (report.path != path || report.bytes_wire != bytes)
        OrDie(absl::InternalError("pushed otherwise"));
      return took;
    });
    // For the next row.
    worker.PushPages(kPagesMax, nullptr);
    worker.AwaitCopies();
    const auto rate = [&](const Times& times) {
      return static_cast<double>(bytes) / times.p50 * 1e-3;
    };
    const std::string name(DataPathName(path));
    const double kib = static_cast<double>(bytes / batch) / 1024.0;
    const double bf16 = 32.0 / 4.5;  // of 16 bits, at 2.25
    std::printf("%-5s %5u %6.0f | %9.0f %9.0f %8.2f %9.1f %6.0f %% | %9.0f %9.0f %8.2f\n",
                name.c_str(), batch, kib, get.p50, get.p99, rate(get), rate(get) * bf16,
                100.0 * copy.p50 / get.p50, put.p50, put.p99, rate(put));
    std::fflush(stdout);
    return {{"path", name},
            {"pages", batch},
            {"page_bytes", bytes / batch},
            {"get_us", get.p50},
            {"get_p99_us", get.p99},
            {"get_calls", get.calls},
            {"put_us", put.p50},
            {"put_p99_us", put.p99},
            {"put_calls", put.calls},
            {"copy_us", copy.p50},
            {"get_gb_per_s", rate(get)},
            {"put_gb_per_s", rate(put)},
            {"copy_gb_per_s", rate(copy)}};
  }

  const std::string endpoint_;
  const double seconds_;
  Copies copies_;
  nlohmann::json rows_ = nlohmann::json::array();
};

// oscarkvd in a process of its own, which ends with this one.
class ServerOfItsOwn {
 public:
  explicit ServerOfItsOwn(const std::string& endpoint) {
    std::string self = "/proc/self/exe";
    std::string serve = "--serve=" + endpoint;
    char* arguments[] = {self.data(), serve.data(), nullptr};
    if (posix_spawn(&pid_, self.c_str(), nullptr, nullptr, arguments, environ) != 0)
      OrDie(absl::InternalError("spawning the server"));
  }
  ~ServerOfItsOwn() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

 private:
  pid_t pid_ = -1;
};

void AwaitServer(const std::string& endpoint) {
  const auto client = OrDie(client::Client::Create({.endpoint = endpoint}));
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  while (!client->Stats().ok())
    if (absl::Now() > deadline) OrDie(absl::DeadlineExceededError("the server does not come up"));
}

int Main(int argc, char** argv) {
  CLI::App app("Times pages between a server's GPU and a worker's, by each path", "peer_bench");
  double seconds = 0.2;
  std::string json;
  std::string serve;
  app.add_option("--seconds", seconds, "of each measurement")->capture_default_str();
  std::vector<uint32_t> layers(std::begin(kLayers), std::end(kLayers));
  app.add_option("--layers", layers, "of the pages, 9 KiB each")->capture_default_str();
  app.add_option("--json", json, "write every figure to this file");
  app.add_option("--serve", serve, "be the server at this endpoint")->group("");
  CLI11_PARSE(app, argc, argv);
  silent = true;
  if (!serve.empty()) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const auto server = Serve(serve, "1GiB");
    for (;;) pause();
  }
  const ServerOfItsOwn server(Endpoint());
  AwaitServer(Endpoint());
  UseLastDevice();
  Bench bench(Endpoint(), seconds);
  for (const uint32_t count : layers)
    for (const DataPath path : kPaths) bench.Run(count, path);
  if (json.empty()) return 0;
  std::ofstream file(json);
  file << bench.rows().dump(1) << "\n";
  return file.flush() ? 0 : 1;
}

}  // namespace
}  // namespace oscarkv::testing

int main(int argc, char** argv) { return oscarkv::testing::Main(argc, argv); }
