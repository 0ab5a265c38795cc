// The store's archive on disk: PageArchive over DiskStore.
#ifndef OSCARKV_SERVER_TIER_DISK_DISK_ARCHIVE_H_
#define OSCARKV_SERVER_TIER_DISK_DISK_ARCHIVE_H_

#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

#include "server/core/page_archive.h"
#include "server/tier/disk/disk_store.h"

namespace oscarkv {

class DiskArchive final : public PageArchive {
 public:
  explicit DiskArchive(std::unique_ptr<DiskStore> store) : store_(std::move(store)) {}

  std::optional<ArchivedPage> Find(const Namespace& space, std::string_view key) const override;
  std::vector<bool> HoldChains(const Namespace& space,
                               std::span<const std::string_view> keys) const override;
  std::vector<ArchivedAncestor> Ancestry(const Namespace& space, std::string_view key,
                                         size_t pages_max) const override;
  uint64_t BytesOf(const Namespace& space) const override {
    return store_->BytesOf(space.fingerprint());
  }
  bool Supersede(const Namespace& space, std::string_view key) override;
  void OnCorrupt(std::function<void(const ArchiveCorruption&)> told) override;
  bool HoldsOlder(const Namespace& space, std::string_view key) const override {
    return store_->HoldsOlder(space.fingerprint(), key);
  }
  void SetUsedAt(const Namespace& space, std::string_view key, uint32_t seconds) override {
    store_->SetUsedAt(space.fingerprint(), key, seconds);
  }
  Unused ListUnused(const Namespace& space, uint32_t now_s, uint32_t unused_s,
                    uint64_t cursor) const override;
  std::pair<bool, std::string> ForgetUnused(const Namespace& space, std::string_view key,
                                            uint32_t now_s, uint32_t unused_s) override {
    return store_->ForgetUnused(space.fingerprint(), key, now_s, unused_s);
  }
  bool Forget(const Namespace& space, std::string_view key) override;
  uint64_t ForgetTree(const Namespace& space, std::string_view key) override;
  ListResult List(const Namespace& space, uint32_t pages_max, uint64_t cursor) const override;
  TierStats Stats() const override;
  ArchiveCounters Counters() const override;
  Catalog* catalog() override { return &store_->catalog(); }
  void Write(std::span<ArchiveWrite> writes) override;
  void Read(const Namespace& space, std::span<ArchiveRead> reads) override;
  VerifyProgress Verify(uint64_t cursor, uint64_t bytes_max) override;

  const DiskStore& store() const { return *store_; }

 private:
  AlignedBuffer TakeBuffer(uint64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  void ReturnBuffer(AlignedBuffer buffer) ABSL_LOCKS_EXCLUDED(mutex_);

  const std::unique_ptr<DiskStore> store_;
  absl::Mutex mutex_;
  // For reads, kept from one to the next: memory that has been touched.
  std::vector<AlignedBuffer> idle_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TIER_DISK_DISK_ARCHIVE_H_
