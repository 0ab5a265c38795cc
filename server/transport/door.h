// The door of the server's memory: a Unix socket at which clients of the same host are given the
// arena to map, and a thread for each connection (DoorLink).
#ifndef OSCARKV_SERVER_TRANSPORT_DOOR_H_
#define OSCARKV_SERVER_TRANSPORT_DOOR_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

#include "kernels/base/bytes.h"
#include "server/core/page_handles.h"
#include "server/rpc/rpc_context.h"

namespace oscarkv {

struct DoorOptions {
  std::string socket;  // a whole path
  mode_t mode = 0600;  // of it; with 0600 only this process's user and root may come in
  uint64_t staging_bytes_max = 32ull << 20;  // of one connection
  uint64_t staging_bytes_total = 256ull << 20;
  uint64_t mapped_bytes_max = 256ull << 20;  // of pages that clients read at once
  uint32_t links_max = 256;
};

struct DoorStats {
  uint64_t links = 0;          // connections
  uint64_t mapped_bytes = 0;   // of pages that clients read
  uint64_t staging_bytes = 0;  // that clients have for pushes
  uint64_t revoked =
      0;  // since the start: pages taken back from a client that read them for too long
};

class Door {
 public:
  // Offers SHM to clients from here on. `context` and the arena are borrowed for the door's life;
  // `arena_descriptor` is what clients map of it. Errors of PacketListener::Listen.
  static absl::StatusOr<std::unique_ptr<Door>> Open(const DoorOptions& options, RpcContext& context,
                                                    ByteView arena, int arena_descriptor);
  // Ends all connections; the context must not be asked for sessions any more.
  ~Door();

  // The session is over: its connections end. From any thread.
  void EndSession(SessionId session);
  DoorStats Stats() const;

 private:
  class Impl;
  explicit Door(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TRANSPORT_DOOR_H_
