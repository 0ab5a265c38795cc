// Files of a disk tier's directory that hold no pages: namespaces and transform sets (FORMAT.md).
#ifndef OSCARKV_SERVER_TIER_DISK_DISK_CATALOG_H_
#define OSCARKV_SERVER_TIER_DISK_DISK_CATALOG_H_

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

#include "server/core/catalog.h"
#include "server/tier/disk/block_io.h"
#include "server/tier/disk/format.h"

namespace oscarkv {

struct DiskCatalogOptions {
  std::string path;        // of the directory, which the caller has locked
  DiskId id{};             // of the directory
  uint64_t bytes_max = 0;  // of all files, one that is being written included
};

class DiskCatalog final : public Catalog {
 public:
  // Looks for files and reads their headers; damaged ones and those of another directory are
  // passed over, those that a crash left unfinished are removed. `io` outlives the catalog.
  DiskCatalog(DiskCatalogOptions options, BlockIo& io);

  std::vector<CatalogEntry> Entries() const override;
  bool Has(CatalogKind kind, std::string_view name) const override;
  CatalogStats Stats() const override;
  absl::Status Save(CatalogKind kind, std::string_view name, std::string_view contents) override;
  absl::Status Remove(CatalogKind kind, std::string_view name) override;
  absl::StatusOr<std::string> Load(CatalogKind kind, std::string_view name,
                                   uint64_t bytes_max) override;
  std::vector<std::string> TakeComplaints() override;

 private:
  using Name = std::pair<CatalogKind, std::string>;
  struct File {
    uint64_t file_bytes = 0;
    bool sound = false;
    CatalogFileHeader header;
  };

  std::string PathOf(const Name& name) const;
  void Scan() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<CatalogFileHeader> ReadHeader(const Name& name, int file, uint64_t file_bytes);
  absl::StatusOr<std::string> ReadContents(const Name& name, const CatalogFileHeader& header);
  absl::Status Write(const std::string& path, const CatalogFileHeader& header,
                     std::string_view contents);
  absl::Status SyncFolder() const;
  void Complain(const std::string& file, const absl::Status& status)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const DiskCatalogOptions options_;
  BlockIo& io_;
  absl::Mutex save_mutex_;  // the turn to save, held during I/O; before `mutex_`
  mutable absl::Mutex mutex_;
  std::map<Name, File> files_ ABSL_GUARDED_BY(mutex_);  // all that take room, sound or not
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;          // of them
  uint64_t skipped_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t failed_writes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::string> complaints_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TIER_DISK_DISK_CATALOG_H_
