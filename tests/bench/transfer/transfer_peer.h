// What `transfer_bench` measures: stores, and ceilings, that hold pages named by number.
#ifndef OSCARKV_TESTS_BENCH_TRANSFER_TRANSFER_PEER_H_
#define OSCARKV_TESTS_BENCH_TRANSFER_TRANSFER_PEER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/base/bytes.h"
#include "proto/wire/data_path.h"

namespace oscarkv::bench {

struct PeerOptions {
  std::string endpoint;  // "127.0.0.1:7411" or "unix:/run/oscarkv.sock"
  uint32_t page_bytes = 0;
  bool checksum = true;             // this side verifies what it fetches; of those that can
  DataPath path = DataPath::kGrpc;  // of ours
};

// One connection. Used by one thread.
class TransferPeer {
 public:
  virtual ~TransferPeer() = default;
  // Stores pages `first`, `first` + 1, ..., one behind the other in `pages`.
  virtual absl::Status Put(uint64_t first, ByteView pages) = 0;
  // Fetches pages `first`, ..., one behind the other, into `room`.
  virtual absl::Status Get(uint64_t first, MutableByteView room) = 0;
  // Forgets pages, where storing them again would otherwise store nothing.
  virtual absl::Status Remove(uint64_t /*first*/, uint64_t /*count*/) { return absl::OkStatus(); }
};

// Ours, also for look-ups of pages 0, 1, ...: kNotFound unless all are there.
class LookupPeer : public TransferPeer {
 public:
  virtual absl::Status LookUp(uint32_t count) = 0;
};

absl::StatusOr<std::unique_ptr<LookupPeer>> ConnectForLookups(const PeerOptions& options);
absl::StatusOr<std::unique_ptr<TransferPeer>> ConnectOurs(const PeerOptions& options);
absl::StatusOr<std::unique_ptr<TransferPeer>> ConnectBareStream(const PeerOptions& options);
absl::StatusOr<std::unique_ptr<TransferPeer>> ConnectRawSocket(const PeerOptions& options);
absl::StatusOr<std::unique_ptr<TransferPeer>> ConnectRedis(const PeerOptions& options);
// A copy in this process's memory, with a CRC32C of what was copied where checksums are on.
std::unique_ptr<TransferPeer> MakeMemcpyPeer(const PeerOptions& options);

// The other ends of two of them: serve until the process is killed. Both hold `set_bytes` of memory
// as one range, in which page i lies at i * page_bytes.
absl::Status ServeBareStream(const std::string& endpoint, uint64_t set_bytes);
absl::Status ServeRawSocket(const std::string& endpoint, uint64_t set_bytes);

}  // namespace oscarkv::bench

#endif  // OSCARKV_TESTS_BENCH_TRANSFER_TRANSFER_PEER_H_
