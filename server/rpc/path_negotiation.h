// By which path the bytes of pages travel in a session, each way: agreed on when it opens.
#ifndef OSCARKV_SERVER_RPC_PATH_NEGOTIATION_H_
#define OSCARKV_SERVER_RPC_PATH_NEGOTIATION_H_

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

#include "proto/wire/data_path.h"

#include "oscarkv/v1/kv_cache.pb.h"

namespace oscarkv {

// Thread-safe.
class PathNegotiation {
 public:
  // Whether a client that offers this may take the path, in this direction; then the reply says
  // where it finds it. An error is why not, for people. Called with no lock but this class's own.
  using Agreement =
      absl::AnyInvocable<absl::Status(Direction, const v1::PathOffer&, v1::SessionReply*) const>;

  // Of the paths that there are, those that may be used: [Direction].
  explicit PathNegotiation(std::array<std::vector<DataPath>, 2> allowed)
      : allowed_(std::move(allowed)) {}

  // This server has `path`; gRPC it always has.
  void Add(DataPath path, Agreement agreement) ABSL_LOCKS_EXCLUDED(mutex_);
  // It should, but has not: clients are told why.
  void AddMissing(DataPath path, const absl::Status& why) ABSL_LOCKS_EXCLUDED(mutex_);
  // kUnimplemented: the configuration forbids it.
  absl::Status CheckAllowed(Direction direction, DataPath path) const;

  // Chooses for a client that offers this: the best path that both have and may use, or none.
  void Agree(const v1::PathOffer& offer, v1::SessionReply* reply) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Status Try(Direction direction, DataPath path, const v1::PathOffer& offer,
                   v1::SessionReply* reply) const ABSL_LOCKS_EXCLUDED(mutex_);

  const std::array<std::vector<DataPath>, 2> allowed_;
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<DataPath, Agreement> here_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_RPC_PATH_NEGOTIATION_H_
