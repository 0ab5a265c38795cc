// oscarkvd as an object: store, services, metrics, put together from a configuration.
#ifndef OSCARKV_SERVER_SERVER_H_
#define OSCARKV_SERVER_SERVER_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "kernels/comm/nccl_fabric.h"
#include "server/tier/device_memory.h"

namespace oscarkv::v1 {
class ServerConfig;
}

namespace oscarkv {

// Where the GPU tier's memory and the way to other GPUs come from. Tests have fakes of both.
struct ServerDevices {
  std::function<absl::StatusOr<std::unique_ptr<DeviceMemory>>(const DeviceMemoryOptions&)> memory =
      MakeDeviceMemory;
  std::function<absl::StatusOr<std::unique_ptr<comm::PeerFabric>>(const comm::NcclOptions&)>
      fabric = comm::MakeNcclFabric;
};

// Create starts serving; Shutdown (or the destructor) ends it. Not thread-safe.
class Server {
 public:
  // `config` is complete (WithDefaults) and checked. kUnavailable: an address cannot be listened
  // on. kResourceExhausted: the memory is not there.
  static absl::StatusOr<std::unique_ptr<Server>> Create(const v1::ServerConfig& config,
                                                        const ServerDevices& devices = {});
  ~Server();

  // Where it listens: the addresses of the configuration, with the ports that were picked.
  const std::vector<std::string>& addresses() const;
  // host:port of /metrics, empty when it is off.
  const std::string& metrics_address() const;
  // Called, on any thread, when Admin.Drain asks for the process to end, with the grace it asks
  // for; zero: the configured one.
  void set_drain_request(absl::AnyInvocable<void(absl::Duration)> request);

  // Takes what may change while it serves from a new configuration, which is complete and checked:
  // what tenants may hold. Or, with an error, logs that there is none and goes on as it was.
  void Reload(const absl::StatusOr<v1::ServerConfig>& config);

  // Health turns NOT_SERVING, new calls are refused, those in flight have `grace` to end, then they
  // are cancelled.
  void Shutdown(absl::Duration grace);

 private:
  class Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_SERVER_H_
