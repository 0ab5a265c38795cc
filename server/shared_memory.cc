#include "server/shared_memory.h"

#include <algorithm>
#include <string>
#include <utility>

#include "kernels/base/status_macros.h"
#include "proto/wire/data_path.h"
#include "server/config/load.h"

#include "oscarkv/v1/server_config.pb.h"

namespace oscarkv {
namespace {

bool MayTakeShm(const v1::PathsConfig& paths) {
  const auto has_shm = [](const auto& names) {
    return std::ranges::find(names, DataPathName(DataPath::kShm)) != names.end();
  };
  return has_shm(paths.fetch()) || has_shm(paths.push());
}

uint64_t Bytes(const std::string& text) { return ParseBytes(text).value(); }  // was checked

mode_t ModeOf(const std::string& octal) {
  return static_cast<mode_t>(std::stoul(octal, nullptr, /*base=*/8));
}

}  // namespace

absl::StatusOr<SharedHostTier> OpenHostTier(const v1::ServerConfig& config) {
  SharedHostTier host;
  HostTierOptions options;
  options.capacity_bytes = Bytes(config.host().capacity());
  if (!MayTakeShm(config.paths())) {
    host.missing = absl::UnavailableError("neither paths.fetch nor paths.push has shm");
  } else if (SharedMemorySocket(config).empty()) {
    host.missing =
        absl::UnavailableError("shared_memory.socket is off, or auto without a Unix socket");
  } else {
    options.sharing = HostArena::Sharing::kReaders;
    absl::StatusOr<std::unique_ptr<HostTier>> tier = HostTier::Create(options);
    if (!tier.ok() && !absl::IsUnimplemented(tier.status())) return tier.status();
    if (tier.ok()) host.tier = *std::move(tier);
    host.missing = tier.status();
    options.sharing = HostArena::Sharing::kNone;
  }
  if (host.tier == nullptr) {
    OSCARKV_ASSIGN_OR_RETURN(host.tier, HostTier::Create(options));
  }
  host.arena = host.tier->arena();
  host.descriptor = host.tier->descriptor();
  return host;
}

absl::StatusOr<std::unique_ptr<Door>> OpenDoor(const v1::ServerConfig& config,
                                               const SharedHostTier& host, RpcContext& context) {
  if (!host.missing.ok()) {
    if (absl::IsUnimplemented(host.missing)) {
      context.logger().Log(LogLevel::kWarning,
                           "no shared memory: clients of this host use other paths",
                           {{"reason", std::string(host.missing.message())}});
    }
    context.paths().AddMissing(DataPath::kShm, host.missing);
    return nullptr;
  }
  const v1::SharedMemoryConfig& memory = config.shared_memory();
  DoorOptions options;
  options.socket = SharedMemorySocket(config);
  options.mode = ModeOf(memory.mode());
  options.staging_bytes_max = Bytes(memory.staging());
  options.staging_bytes_total = Bytes(memory.max_staging());
  options.mapped_bytes_max =
      static_cast<uint64_t>(memory.max_mapped_share() * static_cast<double>(host.arena.size()));
  OSCARKV_ASSIGN_OR_RETURN(std::unique_ptr<Door> door,
                           Door::Open(options, context, host.arena, host.descriptor));
  context.set_on_session_end([door = door.get()](SessionId session) { door->EndSession(session); });
  return door;
}

}  // namespace oscarkv
