// What fetches and pushes between GPUs have in common: the memory that a server shares, and the
// peer that it opens. Included by the client's own sources only.
#ifndef OSCARKV_CLIENT_CPP_PEER_CALLS_H_
#define OSCARKV_CLIENT_CPP_PEER_CALLS_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "client/cpp/namespace_impl.h"
#include "client/cpp/wire.h"
#include "proto/wire/data_path.h"

namespace oscarkv::client {

class PeerLink;

// What the server of the newest session shares of its GPU's memory; asked for once a session.
// Thread-safe.
class SharedDevice {
 public:
  // `broken`: it shares nothing with this client, and why. An error: no session, or no answer.
  absl::StatusOr<v1::ShareDeviceReply> Get(Namespace::Impl& space, CallGroup& group,
                                           absl::Time deadline, absl::Status* broken)
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Mutex mutex_;
  uint64_t session_ ABSL_GUARDED_BY(mutex_) = 0;
  v1::ShareDeviceReply shared_ ABSL_GUARDED_BY(mutex_);
};

// Has the link be in an epoch: if it is in none, has the server open a peer, and waits for the two
// to meet: half of the time that is left where another path could take its place, else all of it.
// They go on meeting if that is not enough. False: they have not met yet, and this call has to do
// without. `broken`: they do not meet, or have no NCCL that both can use. An error: no answer.
absl::StatusOr<bool> OpenPeerLink(Namespace::Impl& space, PeerLink& link, Direction direction,
                                  CallGroup& group, absl::Time deadline, absl::Status* broken);

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_PEER_CALLS_H_
