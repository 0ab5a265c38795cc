// The seam between the store and a kind of memory: a fixed arena from which page slots are
// reserved and to which they return. The interface belongs to the store, which calls it; the tiers
// are in server/tier. There are two kinds:
//
//   MappedTier  its bytes are the CPU's to read and write: where the store keeps its pages.
//   CopiedTier  its bytes are reached by copies only: where copies of pages lie (PageCopies).
#ifndef OSCARKV_SERVER_CORE_TIER_H_
#define OSCARKV_SERVER_CORE_TIER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/base/bytes.h"

namespace oscarkv {

// Fastest first. Numbers equal oscarkv.v1.Tier.
enum class TierKind : uint8_t { kGpu = 1, kHost = 2, kDisk = 3 };

std::string_view TierKindName(TierKind kind);

// A slot of a tier's arena: `bytes` usable bytes at `offset`, a multiple of kTierSlotAlignment.
// Plain data; who holds it has to release it exactly once.
struct TierSlot {
  uint64_t offset = 0;
  uint64_t bytes = 0;
  bool operator==(const TierSlot&) const = default;
};

inline constexpr uint64_t kTierSlotAlignment = 64;

// Who holds a slot, for a tier that wants to clear memory: a number the store gave to it.
using TierSlotOwner = uint32_t;
inline constexpr TierSlotOwner kNoTierSlotOwner = 0xffffffff;

struct TierStats {
  TierKind kind = TierKind::kHost;
  uint64_t capacity_bytes = 0;
  uint64_t used_bytes = 0;       // of reserved slots, as asked for
  uint64_t reserved_slots = 0;   // number of them
  uint64_t free_bytes = 0;       // in regions that belong to no slot size
  uint64_t stranded_bytes = 0;   // free, but in regions bound to a slot size (fragmentation)
  uint64_t failed_reserves = 0;  // since the start
  // Of a CopiedTier: host memory that it copies at full speed.
  uint64_t pinned_host_bytes = 0;
  std::string degraded;  // why the tier is out of use; empty: it is in use
};

// Thread-safe. Calls never block on anything but a short lock of the tier's own, under which it
// calls nobody: the store calls while it holds its locks.
//
// Every tier passes tests/tier/tier_contract.h.
class Tier {
 public:
  virtual ~Tier() = default;

  virtual TierKind kind() const = 0;
  virtual uint64_t capacity_bytes() const = 0;

  // A slot of `bytes`, whose content is undefined. kResourceExhausted when there is no free slot of
  // that size now; kInvalidArgument when there never can be (0 bytes, or more than the tier holds).
  virtual absl::StatusOr<TierSlot> Reserve(uint64_t bytes) = 0;

  // Returns `slot` to the arena at once.
  virtual void Release(const TierSlot& slot) = 0;

  // States that the slot may be moved by its owner, and who that is; until it is called, or with
  // kNoTierSlotOwner, a slot stays where it is.
  virtual void SetOwner(const TierSlot& slot, TierSlotOwner owner) = 0;

  // Free memory may be stuck in regions bound to other slot sizes. If moving slots within their own
  // sizes would free a region for a slot of `bytes`, closes the cheapest such region to new slots
  // and returns the owners of the slots in it: the store moves each (Reserve, copy, Release) and
  // calls EndEvacuation. A region with a slot that has no owner, or whose owner is not `movable`,
  // is not considered. Empty, with nothing closed, when nothing can be gained. One evacuation is
  // under way at a time; `movable` is called under the tier's lock and must not call the tier.
  virtual std::vector<TierSlotOwner> BeginEvacuation(
      uint64_t bytes, absl::FunctionRef<bool(TierSlotOwner)> movable) = 0;
  // Opens the region again; memory that was freed meanwhile has returned to the arena.
  virtual void EndEvacuation() = 0;

  // Whether all that a region bound to slots of `from_bytes` holds could move into slots of
  // `to_bytes` now: then the region can be had back, whatever else is full.
  virtual bool CanShrinkRegion(uint64_t from_bytes, uint64_t to_bytes) const = 0;

  virtual TierStats Stats() const = 0;
};

class MappedTier : public Tier {
 public:
  // Where the slot's bytes are, valid until Release: `slot.bytes` of them.
  virtual MutableByteView Map(const TierSlot& slot) = 0;
};

// A transfer under way. Destroying it waits for its end.
class PendingTransfer {
 public:
  virtual ~PendingTransfer() = default;
  // Waits for the transfer's end and returns what it ended with; once. OK: all bytes are there.
  virtual absl::Status Wait() = 0;
};

// `count` pieces of `bytes` bytes each, one behind the other from `offset` in a slot. Offset and
// bytes are multiples of 4.
struct TierPieces {
  uint64_t offset = 0;
  uint64_t bytes = 0;
  uint32_t count = 0;
};

// What transfers name (host memory, the slot, `crcs`) stays until they have ended. A slot has one
// transfer under way at a time. Transfers of different slots may overlap, and end in any order.
//
// Transfers may be started by one thread at a time, beside any use of the rest. They are for a
// thread that may wait: starting one can take as long as making host memory ready for the first
// time. Errors, at the start or at Wait: kUnavailable when the memory is lost (every later transfer
// then fails too, and what it held is gone), kInvalidArgument for sizes that do not fit the slot;
// any other concerns this transfer alone.
class CopiedTier : public Tier {
 public:
  // Copies `from` (slot.bytes of them) into the slot, then computes the CRC32C of each of the
  // `check`ed pieces as it lies in the slot: [the sum of the counts], in that order.
  virtual absl::StatusOr<std::unique_ptr<PendingTransfer>> CopyIn(const TierSlot& slot,
                                                                  ByteView from,
                                                                  std::span<const TierPieces> check,
                                                                  std::span<uint32_t> crcs) = 0;
  // Copies the slot's bytes to `to` (slot.bytes of them).
  virtual absl::StatusOr<std::unique_ptr<PendingTransfer>> CopyOut(const TierSlot& slot,
                                                                   MutableByteView to) = 0;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_TIER_H_
