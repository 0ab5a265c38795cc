// Host memory that clients of the same host may map, from a configuration.
#ifndef OSCARKV_SERVER_SHARED_MEMORY_H_
#define OSCARKV_SERVER_SHARED_MEMORY_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/base/bytes.h"
#include "server/rpc/rpc_context.h"
#include "server/tier/host_tier.h"
#include "server/transport/door.h"

namespace oscarkv::v1 {
class ServerConfig;
}

namespace oscarkv {

struct SharedHostTier {
  std::unique_ptr<HostTier> tier;
  ByteView arena;        // the tier's
  int descriptor = -1;   // the tier's, for clients to map
  absl::Status missing;  // not OK: why no client can
};

// The host tier: in memory that can be shared where the configuration offers it and the system has
// such memory, else in memory of this process alone. Errors of HostTier::Create.
absl::StatusOr<SharedHostTier> OpenHostTier(const v1::ServerConfig& config);

// The door to the tier's memory, known to `context`, which ends it before it goes itself; null
// where there is none, and clients are told why. A machine that has no such memory is no reason not
// to serve; a socket that cannot be had is one, as an address would be: errors of Door::Open.
absl::StatusOr<std::unique_ptr<Door>> OpenDoor(const v1::ServerConfig& config,
                                               const SharedHostTier& host, RpcContext& context);

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_SHARED_MEMORY_H_
