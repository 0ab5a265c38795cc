#include "client/cpp/shm_link.h"

#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

#include "kernels/base/status_macros.h"

namespace oscarkv::client {
namespace {

// Connections that wait for the next fetch; for the next push, which keep staging memory.
constexpr size_t kIdleMax[] = {16, 1};

}  // namespace

absl::Status StatusOf(const v1::DoorReply& reply) {
  return absl::Status(static_cast<absl::StatusCode>(reply.code()), reply.message());
}

absl::StatusOr<std::pair<v1::DoorReply, std::vector<Descriptor>>> AskDoor(
    PacketSocket& socket, const v1::DoorRequest& request, CallGroup& group, absl::Time deadline,
    EagerWait* eager) {
  const CallGroup::Member member(group, [&socket] { socket.Shutdown(); });
  const auto cancelled_or = [&](absl::Status status) {
    return group.cancelled() ? absl::CancelledError("the call was cancelled") : std::move(status);
  };
  absl::Status sent = socket.Send(request.SerializeAsString());
  if (!sent.ok()) return cancelled_or(std::move(sent));
  absl::StatusOr<Packet> packet = socket.Receive(deadline, eager);
  if (!packet.ok()) return cancelled_or(packet.status());
  v1::DoorReply reply;
  if (!reply.ParseFromString(packet->bytes))
    return absl::DataLossError("the server sent a packet that is no DoorReply");
  return std::pair(std::move(reply), std::move(packet->descriptors));
}

// --- ShmLink ---

absl::StatusOr<v1::DoorReply> ShmLink::Ask(const v1::DoorRequest& request, CallGroup& group,
                                           absl::Time deadline) {
  // An answer that comes too late would be taken for the next one.
  alive_ = false;
  OSCARKV_ASSIGN_OR_RETURN(auto answer, AskDoor(socket_, request, group, deadline, &answers_));
  alive_ = true;
  return std::move(answer.first);
}

void ShmLink::Release(const v1::DoorRelease& release) {
  v1::DoorRequest request;
  *request.mutable_release() = release;
  if (!socket_.Send(request.SerializeAsString()).ok()) alive_ = false;
}

// --- ShmDoor ---

ShmDoor::ShmDoor(const v1::SessionReply& reply, const std::string& endpoint)
    : door_(reply.shm()), session_(reply.session_id()), server_epoch_(reply.server_epoch()) {
  absl::string_view path = endpoint;
  if (!absl::ConsumePrefix(&path, "unix:")) return;
  const std::filesystem::path folder = std::filesystem::path(std::string(path)).parent_path();
  beside_ = folder / std::filesystem::path(door_.socket()).filename();
}

absl::StatusOr<std::unique_ptr<ShmLink>> ShmDoor::Take(Direction direction, CallGroup& group,
                                                       absl::Time deadline) {
  {
    const absl::MutexLock lock(&mutex_);
    auto& idle = idle_[static_cast<size_t>(direction)];
    while (!idle.empty()) {
      std::unique_ptr<ShmLink> link = std::move(idle.back());
      idle.pop_back();
      if (link->alive()) return link;
    }
  }
  return Open(direction == Direction::kPush ? door_.staging_bytes() : 0, group, deadline);
}

void ShmDoor::Give(Direction direction, std::unique_ptr<ShmLink> link) {
  if (!link->alive()) return;
  const absl::MutexLock lock(&mutex_);
  auto& idle = idle_[static_cast<size_t>(direction)];
  if (idle.size() < kIdleMax[static_cast<size_t>(direction)]) idle.push_back(std::move(link));
}

absl::StatusOr<PacketSocket> ShmDoor::Connect() const {
  absl::StatusOr<PacketSocket> socket = PacketSocket::Connect(door_.socket(), door_.uid());
  if (!absl::IsUnavailable(socket.status()) || beside_.empty() || beside_ == door_.socket())
    return socket;
  absl::StatusOr<PacketSocket> beside = PacketSocket::Connect(beside_, door_.uid());
  return beside.ok() ? std::move(beside) : std::move(socket);
}

absl::StatusOr<std::unique_ptr<ShmLink>> ShmDoor::Open(uint64_t staging_bytes, CallGroup& group,
                                                       absl::Time deadline) {
  OSCARKV_ASSIGN_OR_RETURN(PacketSocket socket, Connect());
  v1::DoorRequest request;
  request.mutable_hello()->set_session_id(session_);
  request.mutable_hello()->set_server_epoch(server_epoch_);
  request.mutable_hello()->set_staging_bytes(staging_bytes);
  OSCARKV_ASSIGN_OR_RETURN(auto answer, AskDoor(socket, request, group, deadline));
  auto& [reply, descriptors] = answer;
  OSCARKV_RETURN_IF_ERROR(StatusOf(reply));
  const v1::DoorWelcome& welcome = reply.welcome();
  const size_t expected = staging_bytes > 0 ? 3 : 2;
  if (welcome.server_epoch() != server_epoch_ || descriptors.size() != expected ||
      welcome.staging_bytes() > staging_bytes ||
      (staging_bytes > 0) != (welcome.staging_bytes() > 0)) {
    return absl::DataLossError(absl::StrCat(
        "the server's memory was to be of epoch ", server_epoch_, ", with ", expected,
        " descriptors and at most ", staging_bytes, " bytes for staging; found ",
        welcome.server_epoch(), ", ", descriptors.size(), " and ", welcome.staging_bytes()));
  }
  OSCARKV_ASSIGN_OR_RETURN(std::shared_ptr<const SharedRegion> arena,
                           Arena(std::move(descriptors[0]), welcome.arena_bytes()));
  OSCARKV_ASSIGN_OR_RETURN(
      SharedRegion fence,
      SharedRegion::Map(std::move(descriptors[1]), kReadFenceBytes, SharedRegion::Access::kRead));
  SharedRegion staging;
  if (staging_bytes > 0) {
    OSCARKV_ASSIGN_OR_RETURN(staging,
                             SharedRegion::Map(std::move(descriptors[2]), welcome.staging_bytes(),
                                               SharedRegion::Access::kWrite));
  }
  return std::make_unique<ShmLink>(std::move(socket), std::move(arena), std::move(fence),
                                   std::move(staging));
}

// Mapped once: it is large, and its page tables with it.
absl::StatusOr<std::shared_ptr<const SharedRegion>> ShmDoor::Arena(Descriptor memory,
                                                                   uint64_t bytes) {
  const absl::MutexLock lock(&mutex_);
  if (arena_ != nullptr && arena_->bytes().size() == bytes) return arena_;
  OSCARKV_ASSIGN_OR_RETURN(
      SharedRegion arena, SharedRegion::Map(std::move(memory), bytes, SharedRegion::Access::kRead));
  arena_ = std::make_shared<const SharedRegion>(std::move(arena));
  return arena_;
}

}  // namespace oscarkv::client
