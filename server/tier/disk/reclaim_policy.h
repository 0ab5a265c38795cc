// What goes when the disk is full: which segment, and which of its pages all the same stay.
#ifndef OSCARKV_SERVER_TIER_DISK_RECLAIM_POLICY_H_
#define OSCARKV_SERVER_TIER_DISK_RECLAIM_POLICY_H_

#include <algorithm>
#include <cstdint>
#include <span>

namespace oscarkv {

struct DiskSegmentInfo {
  uint32_t segment = 0;
  uint64_t generation = 0;  // lower: written earlier
  uint64_t segment_bytes = 0;
  uint64_t live_bytes = 0;
};

// Called by the store under its lock: short, and calls nobody.
class DiskReclaimPolicy {
 public:
  virtual ~DiskReclaimPolicy() = default;
  // The place in `segments`, which is not empty, of the one to reclaim.
  virtual size_t Victim(std::span<const DiskSegmentInfo> segments) const = 0;
  // Whether a page of it is written again; `used` means that it was read since it was written.
  virtual bool Keeps(bool used) const = 0;
};

// A segment in which little lives goes first, the emptiest before others; then the oldest. A page
// that was read gets a second life, and has to be read again for a third.
class SecondChanceReclaim final : public DiskReclaimPolicy {
 public:
  size_t Victim(std::span<const DiskSegmentInfo> segments) const override {
    const auto rank = [](const DiskSegmentInfo& info) {
      const bool sparse = info.live_bytes < info.segment_bytes / kSparseDivisor;
      return sparse ? info.live_bytes : info.segment_bytes + info.generation;
    };
    return static_cast<size_t>(std::ranges::min_element(segments, {}, rank) - segments.begin());
  }
  bool Keeps(bool used) const override { return used; }

 private:
  static constexpr uint64_t kSparseDivisor = 4;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TIER_DISK_RECLAIM_POLICY_H_
