#include "server/transport/door.h"

#include <unistd.h>

#include <list>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

#include "kernels/base/fault_point.h"
#include "kernels/base/host_id.h"
#include "kernels/base/status_macros.h"
#include "proto/local/packet_socket.h"
#include "server/transport/door_link.h"

namespace oscarkv {
namespace {

// Clients beyond the most, which are told so and go.
constexpr uint32_t kRefusedMax = 16;

// Whether a client may take this path.
absl::Status CheckHost(const v1::PathOffer& offer) {
  const std::string here = HostId();
  if (offer.host() == here || offer.host().empty() || here.empty()) return absl::OkStatus();
  return absl::UnavailableError("the client is on another host");
}

}  // namespace

class Door::Impl {
 public:
  Impl(const DoorOptions& options, RpcContext& context, ByteView arena, int arena_descriptor,
       PacketListener listener)
      : options_(options),
        shared_{.context = context,
                .arena = arena,
                .arena_descriptor = arena_descriptor,
                .staging_bytes_max = options.staging_bytes_max,
                .mapped = MappedBudget(options.mapped_bytes_max),
                .staging = MappedBudget(options.staging_bytes_total)},
        listener_(std::move(listener)),
        thread_([this] { Listen(); }) {}

  ~Impl() {
    listener_.Stop();
    thread_.join();
    {
      const absl::MutexLock lock(&mutex_);
      stopping_ = true;
      for (Visitor& visitor : visitors_)
        if (visitor.link != nullptr) visitor.link->Shutdown();
      mutex_.Await(absl::Condition(this, &Impl::AllEnded));
    }
    Sweep();
  }

  void EndSession(SessionId session) ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::MutexLock lock(&mutex_);
    for (Visitor& visitor : visitors_)
      if (visitor.session == session && visitor.link != nullptr) visitor.link->Shutdown();
  }

  DoorStats Stats() const ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::MutexLock lock(&mutex_);
    return {.links = live_,
            .mapped_bytes = shared_.mapped.taken(),
            .staging_bytes = shared_.staging.taken(),
            .revoked = shared_.revoked.load(std::memory_order_relaxed)};
  }

 private:
  // A connection's thread. Stays where it is until it has been joined. Guarded by the mutex, but
  // for the thread.
  struct Visitor {
    DoorLink* link = nullptr;  // while there is one
    SessionId session = 0;     // once the client has named it
    bool refused = false;      // one too many
    bool ended = false;
    std::thread thread;
  };

  bool AllEnded() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return live_ == 0; }

  void Listen() {
    for (;;) {
      absl::StatusOr<PacketSocket> socket = listener_.Accept();
      Sweep();
      if (absl::IsCancelled(socket.status())) return;
      if (!socket.ok()) {
        shared_.context.logger().Log(LogLevel::kError, "shared memory takes no more clients",
                                     {{"reason", std::string(socket.status().message())}});
        return;
      }
      Take(*std::move(socket));
    }
  }

  void Take(PacketSocket socket) ABSL_LOCKS_EXCLUDED(mutex_) {
    FaultPoint("shm.server.accepted");
    const ProcessId peer = socket.peer();
    // With another mode the file system has said who may.
    if (options_.mode == 0600 && peer.uid != geteuid() && peer.uid != 0) {
      shared_.context.logger().Log(LogLevel::kWarning, "shared memory refuses a client",
                                   {{"uid", absl::StrCat(peer.uid)}});
      return;
    }
    const absl::MutexLock lock(&mutex_);
    const bool refused = live_ >= options_.links_max;
    if (refused) {
      shared_.context.logger().Log(LogLevel::kWarning, "shared memory has too many clients",
                                   {{"connections", absl::StrCat(live_)}});
      if (live_ >= options_.links_max + kRefusedMax) return;
    }
    ++live_;
    Visitor& visitor = visitors_.emplace_back();
    visitor.refused = refused;
    visitor.thread = std::thread([this, &visitor, taken = std::move(socket)]() mutable {
      Serve(visitor, std::move(taken));
    });
  }

  void Serve(Visitor& visitor, PacketSocket socket) ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      DoorLink link(shared_, std::move(socket),
                    [&](SessionId session) { return Admit(visitor, session); });
      {
        const absl::MutexLock lock(&mutex_);
        visitor.link = &link;
        if (stopping_) link.Shutdown();
      }
      link.Run();
      const absl::MutexLock lock(&mutex_);
      visitor.link = nullptr;
    }
    const absl::MutexLock lock(&mutex_);
    visitor.ended = true;
    --live_;
  }

  // Named before it is looked for: a session that ends now is noticed here, or finds the visitor.
  absl::Status Admit(Visitor& visitor, SessionId session) ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      const absl::MutexLock lock(&mutex_);
      visitor.session = session;
      if (visitor.refused) {
        return absl::ResourceExhaustedError(
            absl::StrCat("at most ", options_.links_max, " connections to shared memory"));
      }
    }
    if (shared_.context.store().HasSession(session)) return absl::OkStatus();
    return absl::FailedPreconditionError("the session is not open here");
  }

  // Joins the threads that have ended.
  void Sweep() ABSL_LOCKS_EXCLUDED(mutex_) {
    std::list<Visitor> ended;
    {
      const absl::MutexLock lock(&mutex_);
      for (auto visitor = visitors_.begin(); visitor != visitors_.end();) {
        const auto next = std::next(visitor);
        if (visitor->ended) ended.splice(ended.end(), visitors_, visitor);
        visitor = next;
      }
    }
    for (Visitor& visitor : ended) visitor.thread.join();
  }

  const DoorOptions options_;
  DoorShared shared_;
  PacketListener listener_;
  mutable absl::Mutex mutex_;
  std::list<Visitor> visitors_ ABSL_GUARDED_BY(mutex_);
  uint64_t live_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses what is above
};

Door::Door(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Door::~Door() = default;

absl::StatusOr<std::unique_ptr<Door>> Door::Open(const DoorOptions& options, RpcContext& context,
                                                 ByteView arena, int arena_descriptor) {
  OSCARKV_ASSIGN_OR_RETURN(PacketListener listener,
                           PacketListener::Listen(options.socket, options.mode));
  std::unique_ptr<Door> door(new Door(
      std::make_unique<Impl>(options, context, arena, arena_descriptor, std::move(listener))));
  context.paths().Add(
      DataPath::kShm,
      [options](Direction, const v1::PathOffer& offer, v1::SessionReply* reply) -> absl::Status {
        OSCARKV_RETURN_IF_ERROR(CheckHost(offer));
        reply->mutable_shm()->set_socket(options.socket);
        reply->mutable_shm()->set_uid(geteuid());
        reply->mutable_shm()->set_staging_bytes(options.staging_bytes_max);
        return absl::OkStatus();
      });
  return door;
}

void Door::EndSession(SessionId session) { impl_->EndSession(session); }
DoorStats Door::Stats() const { return impl_->Stats(); }

}  // namespace oscarkv
