// Bytes of pages and durations of transfers, by path and direction; what /metrics shows of them.
#ifndef OSCARKV_SERVER_RPC_TRANSFER_STATS_H_
#define OSCARKV_SERVER_RPC_TRANSFER_STATS_H_

#include <array>
#include <atomic>
#include <cstdint>

#include "absl/time/time.h"

#include "kernels/base/latency_histogram.h"
#include "proto/wire/data_path.h"

namespace oscarkv {

// Thread-safe. Counters are relaxed: each is read on its own.
class TransferStats {
 public:
  // One transfer that has ended, of as many bytes of pages as came through.
  void Record(DataPath path, Direction direction, uint64_t bytes, absl::Duration duration) {
    Cell& cell = cells_[Index(path, direction)];
    cell.bytes.fetch_add(bytes, std::memory_order_relaxed);
    cell.duration.Record(duration);
  }
  uint64_t bytes(DataPath path, Direction direction) const {
    return cells_[Index(path, direction)].bytes.load(std::memory_order_relaxed);
  }
  LatencyHistogram::Snapshot duration(DataPath path, Direction direction) const {
    return cells_[Index(path, direction)].duration.Take();
  }

 private:
  struct Cell {
    std::atomic<uint64_t> bytes = 0;
    LatencyHistogram duration;
  };
  static size_t Index(DataPath path, Direction direction) {
    return (static_cast<size_t>(path) - 1) * kDirections.size() + static_cast<size_t>(direction);
  }

  std::array<Cell, kDataPaths.size() * kDirections.size()> cells_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_RPC_TRANSFER_STATS_H_
