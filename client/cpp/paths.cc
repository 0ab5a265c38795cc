#include "client/cpp/paths.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "client/cpp/connection.h"
#include "client/cpp/device_fetch.h"
#include "client/cpp/device_pages.h"
#include "client/cpp/device_push.h"
#include "client/cpp/device_source.h"
#include "client/cpp/shm_path.h"
#include "kernels/base/host_id.h"

namespace oscarkv::client {
namespace {

// The paths of this build, the best first.
constexpr DataPath kBuilt[] = {DataPath::kIpc, DataPath::kShm, DataPath::kNccl, DataPath::kGrpc};

// With less a GPU's memory takes longer to be asked for, in calls, than shared memory to be copied.
constexpr uint64_t kIpcWorthBytes = 3 << 20;

bool Contains(const std::vector<DataPath>& paths, DataPath path) {
  return std::find(paths.begin(), paths.end(), path) != paths.end();
}

bool MayUse(const std::vector<DataPath>& named, DataPath path) {
  return named.empty() || Contains(named, path);
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

// For people.
std::string HasFailed(DataPath path, const absl::Status& why) {
  const std::string_view name = DataPathName(path);
  return absl::StrCat(absl::string_view(name.data(), name.size()),
                      " has failed in this session: ", why.message());
}

// Why nothing better is used, of a direction's two kinds of paths.
std::string Reason(const auto& current, const auto& devices) {
  const bool both = !devices.failed.empty() && !current.reason.empty();
  return absl::StrCat(devices.failed, both ? "; " : "", current.reason);
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
      device_fetch_{.built = {MakeIpcFetchPath(), MakeNcclFetchPath()}},
      device_push_{.built = {MakeIpcPushPath(), MakeNcclPushPath()}} {
  if (May(Direction::kFetch, DataPath::kGrpc)) fetch_.path = grpc_fetch_;
  if (May(Direction::kPush, DataPath::kGrpc)) push_.path = grpc_push_;
  fetch_.reason = push_.reason = "no session has been opened yet";
}

bool Paths::May(Direction direction, DataPath path) const {
  return Contains(allowed_[static_cast<size_t>(direction)], path);
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

bool Paths::Agree(const Wanted wanted, absl::Time deadline) {
  // Nothing to agree on where there is one path at most.
  const auto choices = [&](const std::vector<DataPath>& allowed) {
    return std::count_if(allowed.begin(), allowed.end(), [&](DataPath path) {
      return path != DataPath::kGrpc && IsOfDevices(path) == (wanted == Wanted::kOfDevices);
    });
  };
  const auto fetch = static_cast<size_t>(Direction::kFetch);
  const auto push = static_cast<size_t>(Direction::kPush);
  const bool grpc =
      May(Direction::kFetch, DataPath::kGrpc) && May(Direction::kPush, DataPath::kGrpc);
  if (choices(allowed_[fetch]) + choices(allowed_[push]) == 0 &&
      (grpc || wanted == Wanted::kOfDevices))
    return false;
  const std::optional<v1::SessionReply> reply = connection_.AwaitSession(SessionDeadline(deadline));
  if (!reply.has_value()) return false;
  const absl::MutexLock lock(&mutex_);
  if (std::exchange(session_, reply->session_id()) == reply->session_id()) return true;
  const auto door = std::make_shared<ShmDoor>(*reply, connection_.options().endpoint);
  // A server of before paths were agreed on chooses nothing.
  const auto choose = [&](Direction direction, const v1::PathChoice& choice, const auto& grpc_path,
                          const auto& make_shm, auto* current, auto* devices) {
    devices->agreed = {static_cast<DataPath>(choice.path())};
    for (const int path : choice.then()) devices->agreed.push_back(static_cast<DataPath>(path));
    devices->failed.clear();
    current->reason = choice.reason();
    const bool shm = Contains(devices->agreed, DataPath::kShm) && May(direction, DataPath::kShm);
    current->path = shm ? make_shm(door) : May(direction, DataPath::kGrpc) ? grpc_path : nullptr;
  };
  choose(Direction::kFetch, reply->fetch(), grpc_fetch_, MakeShmFetchPath, &fetch_, &device_fetch_);
  choose(Direction::kPush, reply->push(), grpc_push_, MakeShmPushPath, &push_, &device_push_);
  return true;
}

absl::StatusOr<std::shared_ptr<FetchPath>> Paths::ForFetch(bool decoded, absl::Time deadline) {
  if (decoded && May(Direction::kFetch, DataPath::kGrpc)) return grpc_fetch_;
  if (decoded) return NoPath(Direction::kFetch, "pages are decoded by the server only over grpc");
  Agree(Wanted::kOfHosts, deadline);
  const absl::MutexLock lock(&mutex_);
  if (fetch_.path == nullptr) return NoPath(Direction::kFetch, Reason(fetch_, device_fetch_));
  return fetch_.path;
}

template <typename Path>
std::shared_ptr<Path> Paths::BestOf(const OfDevices<Path>& devices, bool nccl, bool shm,
                                    uint64_t bytes) {
  for (const DataPath kind : devices.agreed) {
    if (kind == DataPath::kIpc && shm && bytes < kIpcWorthBytes) continue;
    // Memory of the same host, if there is a path to it, is nearer than another GPU.
    if (kind == DataPath::kShm && shm) return nullptr;
    if (kind == DataPath::kNccl && !nccl) continue;
    for (const std::shared_ptr<Path>& path : devices.built)
      if (path->kind() == kind) return path;
  }
  return nullptr;
}

std::shared_ptr<FetchPath> Paths::ForDevice(const DevicePages& pages, uint64_t bytes,
                                            absl::Time deadline) {
  if (!Agree(Wanted::kOfDevices, deadline)) return nullptr;
  const absl::MutexLock lock(&mutex_);
  const bool shm = fetch_.path != nullptr && fetch_.path->kind() == DataPath::kShm;
  return BestOf(device_fetch_, pages.receives(), shm, bytes);
}

absl::StatusOr<std::shared_ptr<PushPath>> Paths::ForPush(DeviceSource* source, uint64_t bytes,
                                                         absl::Time deadline) {
  Agree(Wanted::kOfHosts, deadline);
  const bool devices = source != nullptr && Agree(Wanted::kOfDevices, deadline);
  const absl::MutexLock lock(&mutex_);
  if (devices) {
    const bool shm = push_.path != nullptr && push_.path->kind() == DataPath::kShm;
    auto path = BestOf(device_push_, source->sender() != nullptr, shm, bytes);
    if (path != nullptr) return path;
  }
  if (push_.path == nullptr) return NoPath(Direction::kPush, Reason(push_, device_push_));
  return push_.path;
}

template <typename Path>
bool Paths::GiveUpDevice(const void* path, const absl::Status& why, OfDevices<Path>* devices) {
  const auto built = std::find_if(devices->built.begin(), devices->built.end(),
                                  [path](const auto& each) { return each.get() == path; });
  if (built == devices->built.end()) return false;
  const auto agreed = std::find(devices->agreed.begin(), devices->agreed.end(), (*built)->kind());
  if (agreed == devices->agreed.end()) return true;  // somebody else has
  absl::StrAppend(&devices->failed, devices->failed.empty() ? "" : "; ", HasFailed(*agreed, why));
  devices->agreed.erase(agreed);
  ++devices->fallbacks;
  return true;
}

void Paths::GiveUp(Direction direction, const void* path, const absl::Status& why) {
  const absl::MutexLock lock(&mutex_);
  const auto give_up = [&](const auto& grpc, auto* current) {
    if (current->path.get() != path || path == grpc.get()) return;  // somebody else has
    current->reason = HasFailed(current->path->kind(), why);
    ++current->fallbacks;
    current->path = May(direction, DataPath::kGrpc) ? grpc : nullptr;
  };
  if (direction == Direction::kFetch) {
    if (!GiveUpDevice(path, why, &device_fetch_)) give_up(grpc_fetch_, &fetch_);
  } else {
    if (!GiveUpDevice(path, why, &device_push_)) give_up(grpc_push_, &push_);
  }
}

bool Paths::HasHostPath(Direction direction) const {
  const absl::MutexLock lock(&mutex_);
  return direction == Direction::kFetch ? fetch_.path != nullptr : push_.path != nullptr;
}

PathUse Paths::Use(Direction direction) const {
  const absl::MutexLock lock(&mutex_);
  const auto use_of = [](const auto& current, const auto& devices) {
    PathUse use{.path = std::nullopt,
                .device_path = std::nullopt,
                .reason = Reason(current, devices),
                .fallbacks = current.fallbacks + devices.fallbacks};
    if (current.path != nullptr) use.path = current.path->kind();
    for (const DataPath path : devices.agreed) {
      if (!IsOfDevices(path)) continue;
      use.device_path = path;
      break;
    }
    return use;
  };
  if (direction == Direction::kPush) return use_of(push_, device_push_);
  return use_of(fetch_, device_fetch_);
}

}  // namespace oscarkv::client
