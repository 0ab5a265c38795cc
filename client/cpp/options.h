// How a client behaves. Every field has a default that works.
#ifndef OSCARKV_CLIENT_CPP_OPTIONS_H_
#define OSCARKV_CLIENT_CPP_OPTIONS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"

#include "kernels/codec/page_codec.h"
#include "proto/wire/data_path.h"
#include "proto/wire/store_wide.h"

namespace oscarkv::client {

// When to stop asking a store that does not answer.
struct BreakerOptions {
  int failures = 5;                              // in a row, with no success between them
  absl::Duration pause = absl::Seconds(2);       // then calls are misses at once, for this long
  absl::Duration pause_max = absl::Seconds(30);  // the pause doubles while probes fail, up to this
};

// Of a namespace on the server, the same for all of its clients: the last that says one is heard.
struct NamespaceSettings {
  // Nothing: as it is, at first what the server's configuration says.
  std::optional<StoreWide> store_wide = std::nullopt;
  // Pages that nobody used for so long are dropped, in whole milliseconds. Zero: as it is, at first
  // never.
  absl::Duration page_ttl = absl::ZeroDuration();
};

struct ClientOptions {
  std::string endpoint = "127.0.0.1:7411";  // or "unix:/run/oscarkv.sock"
  std::string name = "oscarkv-client";      // in the server's logs

  // Deadlines of whole calls, retries included.
  absl::Duration control_timeout = absl::Seconds(5);  // open, delete, list, clear, stats
  absl::Duration lookup_timeout = absl::Milliseconds(200);
  absl::Duration fetch_timeout = absl::Seconds(2);
  absl::Duration push_timeout = absl::Seconds(5);
  absl::Duration transform_timeout = absl::Seconds(60);

  // That a GPU and a server's may take to meet over NCCL, while calls go by other paths: then it is
  // given up for the session.
  absl::Duration peer_meet_timeout = absl::Seconds(10);

  int attempts = 3;  // of a call that answers UNAVAILABLE, within its deadline
  BreakerOptions breaker = {};
  CodecBackend codec = CodecBackend::kCpu;
  // Connections for pages, beside the one for look-ups and control. Fetches and pushes that run at
  // once spread over them, and a large fetch comes over several. 0: one for every four cores, 4 at
  // most.
  int bulk_channels = 0;
  uint64_t bulk_part_bytes = 4ull << 20;  // of a fetch, that a connection more is worth
  // K and V, in the model's dtype, that may wait to be pushed by the asynchronous form; what comes
  // beyond is dropped. One push may always wait.
  uint64_t push_queue_bytes = 1ull << 30;
  uint64_t push_batch_bytes = 32ull << 20;  // encoded bytes held at once while pushing
  // The paths that pages may travel by: of those that both ends have, the best. Empty: all. Without
  // kGrpc there is nothing to fall back to: what another path cannot bring is a miss.
  std::vector<DataPath> fetch_paths = {};
  std::vector<DataPath> push_paths = {};
  int async_threads = 2;  // for the asynchronous forms; started by the first of them
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_OPTIONS_H_
