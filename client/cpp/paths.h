// Which path a client's pages travel by, each way: agreed on with the server when a session opens,
// for pages in host memory and for those in a GPU's. One that proves to be out of use is left for
// the next best, once in a session.
#ifndef OSCARKV_CLIENT_CPP_PATHS_H_
#define OSCARKV_CLIENT_CPP_PATHS_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "client/cpp/client.h"
#include "client/cpp/page_path.h"
#include "proto/wire/data_path.h"

namespace oscarkv::client {

// Thread-safe. Part of a Connection, which it borrows.
class Paths {
 public:
  explicit Paths(Connection& connection);

  // What a session is opened with: the paths that this build, this machine and the options have.
  v1::PathOffer Offer() const;

  // The path to take now. While no session is there in good time, gRPC. kUnavailable: there is no
  // path that both ends have and may use. `decoded`: for pages that the server is to decode.
  absl::StatusOr<std::shared_ptr<FetchPath>> ForFetch(bool decoded, absl::Time deadline)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // The path for sinks that read a GPU's memory (PageSink::device_pages), to be taken before that,
  // of about so many bytes; null: there is none, or none that is better.
  std::shared_ptr<FetchPath> ForDevice(const DevicePages& pages, uint64_t bytes,
                                       absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);
  // The path to take now, as ForFetch, of about so many bytes; `source`: where it may be one that
  // goes from there, or null.
  absl::StatusOr<std::shared_ptr<PushPath>> ForPush(DeviceSource* source, uint64_t bytes,
                                                    absl::Time deadline)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // `path` has proved to be out of use: gRPC takes its place until the next session, if it may.
  void GiveUp(Direction direction, const FetchPath& path, const absl::Status& why) {
    GiveUp(direction, &path, why);
  }
  void GiveUp(Direction direction, const PushPath& path, const absl::Status& why) {
    GiveUp(direction, &path, why);
  }

  // Whether there is a path for pages in host memory.
  bool HasHostPath(Direction direction) const ABSL_LOCKS_EXCLUDED(mutex_);

  // What is used now, and why nothing better.
  PathUse Use(Direction direction) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // One direction. `path` null: there is none, and `reason` says why.
  template <typename Path>
  struct Current {
    std::shared_ptr<Path> path;
    std::string reason;
    uint64_t fallbacks = 0;
  };

  // The paths of GPUs that may be taken, in one direction.
  template <typename Path>
  struct OfDevices {
    std::vector<std::shared_ptr<Path>> built;
    std::vector<DataPath> agreed = {};  // on in the session, all paths, the best first
    std::string failed = {};            // in the session, of those, and why
    uint64_t fallbacks = 0;
  };
  // The best of them before shared memory (if `shm`: there is a path by it), or null.
  template <typename Path>
  static std::shared_ptr<Path> BestOf(const OfDevices<Path>& devices, bool nccl, bool shm,
                                      uint64_t bytes);
  // Whether it is one of them.
  template <typename Path>
  static bool GiveUpDevice(const void* path, const absl::Status& why, OfDevices<Path>* devices);
  bool May(Direction direction, DataPath path) const;
  // Takes over what the newest session has agreed on, waiting for one a while if there is none.
  // False: there is nothing of what is wanted to agree on, or no session in time.
  enum class Wanted : uint8_t { kOfHosts, kOfDevices };
  bool Agree(Wanted wanted, absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);
  void GiveUp(Direction direction, const void* path, const absl::Status& why)
      ABSL_LOCKS_EXCLUDED(mutex_);

  Connection& connection_;
  const std::array<std::vector<DataPath>, 2> allowed_;  // [Direction], of those that there are
  const std::shared_ptr<FetchPath> grpc_fetch_;
  const std::shared_ptr<PushPath> grpc_push_;

  mutable absl::Mutex mutex_;
  OfDevices<FetchPath> device_fetch_ ABSL_GUARDED_BY(mutex_);
  OfDevices<PushPath> device_push_ ABSL_GUARDED_BY(mutex_);
  uint64_t session_ ABSL_GUARDED_BY(mutex_) = 0;  // that the paths were agreed on in
  Current<FetchPath> fetch_ ABSL_GUARDED_BY(mutex_);
  Current<PushPath> push_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_PATHS_H_
