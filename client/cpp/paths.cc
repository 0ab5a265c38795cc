#include "client/cpp/paths.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "client/cpp/connection.h"
#include "client/cpp/device_pages.h"
#include "client/cpp/ipc_fetch.h"
#include "client/cpp/nccl_fetch.h"
#include "client/cpp/shm_path.h"
#include "kernels/base/host_id.h"

namespace oscarkv::client {
namespace {

// The paths of this build, the best first.
constexpr DataPath kBuilt[] = {DataPath::kShm, DataPath::kGrpc};

bool MayUse(const std::vector<DataPath>& named, DataPath path) {
  return named.empty() || std::find(named.begin(), named.end(), path) != named.end();
}

// Of those, the ones that options name; none named: all.
std::vector<DataPath> Allowed(const std::vector<DataPath>& named) {
  std::vector<DataPath> allowed;
  for (const DataPath path : kBuilt) {
    if (MayUse(named, path)) allowed.push_back(path);
  }
  return allowed;
}

absl::Status NoPath(Direction direction, const std::string& reason) {
  const std::string_view name = DirectionName(direction);
  return absl::UnavailableError(absl::StrCat("no path for a ",
                                             absl::string_view(name.data(), name.size()),
                                             " that both ends have and may use: ", reason));
}

// The call's time that opening a session may take.
absl::Time SessionDeadline(absl::Time deadline) {
  const absl::Time now = absl::Now();
  return now + (deadline - now) / 4;
}

}  // namespace

Paths::Paths(Connection& connection)
    : connection_(connection),
      allowed_{Allowed(connection.options().fetch_paths), Allowed(connection.options().push_paths)},
      grpc_fetch_(MakeGrpcFetchPath()),
      grpc_push_(MakeGrpcPushPath()),
      ipc_fetch_(MayUse(connection.options().fetch_paths, DataPath::kIpc) ? MakeIpcFetchPath()
                                                                          : nullptr),
      nccl_fetch_(MayUse(connection.options().fetch_paths, DataPath::kNccl) ? MakeNcclFetchPath()
                                                                            : nullptr) {
  if (May(Direction::kFetch, DataPath::kGrpc)) fetch_.path = grpc_fetch_;
  if (May(Direction::kPush, DataPath::kGrpc)) push_.path = grpc_push_;
  fetch_.reason = push_.reason = "no session has been opened yet";
}

bool Paths::May(Direction direction, DataPath path) const {
  const std::vector<DataPath>& allowed = allowed_[static_cast<size_t>(direction)];
  return std::find(allowed.begin(), allowed.end(), path) != allowed.end();
}

v1::PathOffer Paths::Offer() const {
  v1::PathOffer offer;
  for (const DataPath path : allowed_[static_cast<size_t>(Direction::kFetch)])
    offer.add_fetch(static_cast<v1::DataPath>(path));
  for (const DataPath path : allowed_[static_cast<size_t>(Direction::kPush)])
    offer.add_push(static_cast<v1::DataPath>(path));
  offer.set_host(HostId());
  return offer;
}

void Paths::Agree(absl::Time deadline) {
  const bool grpc_alone = std::all_of(allowed_.begin(), allowed_.end(), [](const auto& allowed) {
    return allowed == std::vector<DataPath>{DataPath::kGrpc};
  });
  if (grpc_alone) return;  // nothing to agree on
  const std::optional<v1::SessionReply> reply = connection_.AwaitSession(SessionDeadline(deadline));
  if (!reply.has_value()) return;
  const absl::MutexLock lock(&mutex_);
  if (session_ == reply->session_id()) return;
  session_ = reply->session_id();
  const auto door = std::make_shared<ShmDoor>(*reply, connection_.options().endpoint);
  // A server of before paths were agreed on chooses nothing.
  const auto choose = [&](Direction direction, const v1::PathChoice& choice, const auto& grpc,
                          const auto& make_shm, auto* current) {
    current->reason = choice.reason();
    const bool shm = choice.path() == v1::SHM && May(direction, DataPath::kShm);
    current->path = shm ? make_shm(door) : May(direction, DataPath::kGrpc) ? grpc : nullptr;
  };
  choose(Direction::kFetch, reply->fetch(), grpc_fetch_, MakeShmFetchPath, &fetch_);
  choose(Direction::kPush, reply->push(), grpc_push_, MakeShmPushPath, &push_);
}

absl::StatusOr<std::shared_ptr<FetchPath>> Paths::ForFetch(bool decoded, absl::Time deadline) {
  if (decoded && May(Direction::kFetch, DataPath::kGrpc)) return grpc_fetch_;
  if (decoded) return NoPath(Direction::kFetch, "pages are decoded by the server only over grpc");
  Agree(deadline);
  const absl::MutexLock lock(&mutex_);
  if (fetch_.path == nullptr) return NoPath(Direction::kFetch, fetch_.reason);
  return fetch_.path;
}

std::shared_ptr<FetchPath> Paths::ForDevice(const DevicePages& pages, absl::Time deadline) {
  if (ipc_fetch_ == nullptr && nccl_fetch_ == nullptr) return nullptr;
  const uint64_t session = connection_.Session(SessionDeadline(deadline));
  if (session == 0) return nullptr;
  const absl::MutexLock lock(&mutex_);
  if (std::exchange(device_session_, session) != session) {
    ipc_failed_.clear();
    nccl_failed_.clear();
  }
  if (ipc_fetch_ != nullptr && ipc_failed_.empty()) return ipc_fetch_;
  // Memory of the same host, if there is a path to it, is nearer than another GPU.
  const bool shm = fetch_.path != nullptr && fetch_.path->kind() == DataPath::kShm;
  const bool nccl = nccl_fetch_ != nullptr && nccl_failed_.empty() && pages.receives();
  return nccl && !shm ? nccl_fetch_ : nullptr;
}

absl::StatusOr<std::shared_ptr<PushPath>> Paths::ForPush(absl::Time deadline) {
  Agree(deadline);
  const absl::MutexLock lock(&mutex_);
  if (push_.path == nullptr) return NoPath(Direction::kPush, push_.reason);
  return push_.path;
}

void Paths::GiveUp(Direction direction, const void* path, const absl::Status& why) {
  const absl::MutexLock lock(&mutex_);
  const auto give_up = [&](const auto& grpc, auto* current) {
    if (current->path.get() != path || path == grpc.get()) return;  // somebody else has
    const std::string_view name = DataPathName(current->path->kind());
    current->reason = absl::StrCat(absl::string_view(name.data(), name.size()),
                                   " has failed in this session: ", why.message());
    ++current->fallbacks;
    current->path = May(direction, DataPath::kGrpc) ? grpc : nullptr;
  };
  if (path == ipc_fetch_.get() || path == nccl_fetch_.get()) {
    const bool ipc = path == ipc_fetch_.get();
    std::string& failed = ipc ? ipc_failed_ : nccl_failed_;
    if (!failed.empty()) return;
    failed = absl::StrCat(ipc ? "ipc" : "nccl", " has failed in this session: ", why.message());
    ++device_fallbacks_;
  } else if (direction == Direction::kFetch) {
    give_up(grpc_fetch_, &fetch_);
  } else {
    give_up(grpc_push_, &push_);
  }
}

PathUse Paths::Use(Direction direction) const {
  const absl::MutexLock lock(&mutex_);
  const auto use_of = [](const auto& current) {
    PathUse use{.path = std::nullopt, .reason = current.reason, .fallbacks = current.fallbacks};
    if (current.path != nullptr) use.path = current.path->kind();
    return use;
  };
  if (direction == Direction::kPush) return use_of(push_);
  PathUse use = use_of(fetch_);
  for (const std::string& failed : {nccl_failed_, ipc_failed_}) {
    if (!failed.empty())
      use.reason = absl::StrCat(failed, use.reason.empty() ? "" : "; ", use.reason);
  }
  use.fallbacks += device_fallbacks_;
  return use;
}

}  // namespace oscarkv::client
