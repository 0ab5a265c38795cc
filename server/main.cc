// oscarkvd: flags, signals, exit code.
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <exception>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "kernels/base/deadlocks.h"
#include "kernels/base/status_macros.h"
#include "server/config/load.h"
#include "server/server.h"
#include "server/tier/device_memory.h"
#include "server/version.h"

#include "oscarkv/v1/server_config.pb.h"

namespace {

struct Flags {
  std::string config;
  std::vector<std::string> listen;
  std::string metrics_listen, host_capacity, log_level, log_format;
  std::string gpu_capacity;
  std::optional<uint32_t> gpu_device;
  bool gpu_required = false;
  std::string disk_path, disk_capacity;
  bool check_config = false;
};

void Override(const Flags& flags, oscarkv::v1::ServerConfig* config) {
  if (!flags.listen.empty())
    config->mutable_listen()->Assign(flags.listen.begin(), flags.listen.end());
  if (!flags.metrics_listen.empty()) config->set_metrics_listen(flags.metrics_listen);
  if (!flags.host_capacity.empty()) config->mutable_host()->set_capacity(flags.host_capacity);
  if (!flags.gpu_capacity.empty()) config->mutable_gpu()->set_capacity(flags.gpu_capacity);
  if (flags.gpu_device.has_value()) config->mutable_gpu()->set_device(*flags.gpu_device);
  if (flags.gpu_required) config->mutable_gpu()->set_required(true);
  if (!flags.disk_path.empty()) config->mutable_disk()->set_path(flags.disk_path);
  if (!flags.disk_capacity.empty()) config->mutable_disk()->set_capacity(flags.disk_capacity);
  if (!flags.log_level.empty()) config->set_log_level(flags.log_level);
  if (!flags.log_format.empty()) config->set_log_format(flags.log_format);
  if (config->log_format().empty() && isatty(STDERR_FILENO) == 0) config->set_log_format("json");
}

// What gRPC receives into comes and goes by the megabyte. The allocator would give that back to the
// system each time, and fault it in again.
void KeepFreedMemory() {
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
}

int Fail(const absl::Status& status) {
  std::cerr << "oscarkvd: " << status.message() << "\n";
  return 1;
}

// The configuration that the flags ask for, complete and checked.
absl::StatusOr<oscarkv::v1::ServerConfig> ReadConfig(const Flags& flags) {
  oscarkv::v1::ServerConfig config;
  if (!flags.config.empty()) {
    OSCARKV_ASSIGN_OR_RETURN(config, oscarkv::LoadConfig(flags.config));
  }
  Override(flags, &config);
  const uint64_t memory =
      static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  config = oscarkv::WithDefaults(std::move(config), memory);
  OSCARKV_RETURN_IF_ERROR(oscarkv::CheckConfig(config));
  return config;
}

int Serve(const Flags& flags, const oscarkv::v1::ServerConfig& config) {
  // Signals are waited for here: blocked before any thread starts, so that all threads inherit it.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  auto server = oscarkv::Server::Create(config);
  if (!server.ok()) return Fail(server.status());
  std::atomic<int64_t> grace_ms = config.drain_grace_ms();
  (*server)->set_drain_request([&grace_ms](absl::Duration grace) {
    if (grace > absl::ZeroDuration()) grace_ms = absl::ToInt64Milliseconds(grace);
    kill(getpid(), SIGTERM);
  });
  for (const std::string& address : (*server)->addresses())
    std::cout << "listening on " << address << std::endl;
  if (!(*server)->metrics_address().empty())
    std::cout << "metrics on " << (*server)->metrics_address() << std::endl;
  int signal = 0;
  for (sigwait(&signals, &signal); signal == SIGHUP; sigwait(&signals, &signal))
    (*server)->Reload(ReadConfig(flags));
  (*server)->Shutdown(absl::Milliseconds(grace_ms.load()));
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  KeepFreedMemory();
  oscarkv::LookForNoDeadlocks();
  Flags flags;
  CLI::App app("oscarkvd: a disaggregated KV-cache store that holds pages in OSCAR 2-bit form",
               "oscarkvd");
  app.set_version_flag("--version", "oscarkvd " + std::string(oscarkv::kVersion));
  app.add_option("--config", flags.config,
                 "YAML file; every field has a default (deploy/config/oscarkvd.yaml)");
  app.add_option("--listen", flags.listen,
                 "host:port or unix:/path, repeatable; port 0 picks one (127.0.0.1:7411)");
  app.add_option("--metrics-listen", flags.metrics_listen,
                 "host:port of /metrics, or off (127.0.0.1:9411)");
  app.add_option("--host-capacity", flags.host_capacity,
                 "Memory for pages, as 64GiB (a quarter of the machine's)");
  app.add_option("--gpu-capacity", flags.gpu_capacity,
                 "Device memory for copies of pages, as 16GiB, or off (off)");
  app.add_option("--gpu-device", flags.gpu_device, "CUDA's number of the device (0)");
  app.add_flag("--gpu-required", flags.gpu_required, "Do not start without the device");
  app.add_option("--disk-path", flags.disk_path,
                 "Folder for pages behind host memory, or off (off)");
  app.add_option("--disk-capacity", flags.disk_capacity, "Of all files in it, as 1TiB (64GiB)");
  app.add_option("--log-level", flags.log_level, "debug, info, warning, error (info)");
  app.add_option("--log-format", flags.log_format, "text or json (text on a terminal)");
  app.add_flag("--check-config", flags.check_config,
               "Print the configuration that would run, and exit");
  CLI11_PARSE(app, argc, argv);

  const auto read = ReadConfig(flags);
  if (!read.ok()) return Fail(read.status());
  const oscarkv::v1::ServerConfig& config = *read;
  if (oscarkv::WantsGpu(config)) {
    const absl::Status supported = oscarkv::DeviceMemorySupported();
    if (!supported.ok()) return Fail(oscarkv::Annotate(supported, "gpu.capacity"));
  }
  if (flags.check_config) {
    std::cout << oscarkv::ConfigToYaml(config);
    return 0;
  }
  return Serve(flags, config);
} catch (const std::exception& error) {  // memory has run out, for one
  std::cerr << "oscarkvd: " << error.what() << "\n";
  return 1;
}
