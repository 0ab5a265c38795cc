#include "server/disk_archive_setup.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "server/config/load.h"
#include "server/tier/disk/disk_archive.h"

#include "oscarkv/v1/server_config.pb.h"

namespace oscarkv {
namespace {

// Of the capacity, for namespaces and transform sets.
constexpr uint64_t kCatalogShare = 16;
constexpr uint64_t kCatalogBytesMax = uint64_t{2} << 30;

}  // namespace

absl::StatusOr<std::unique_ptr<PageArchive>> OpenDiskArchive(const v1::DiskTierConfig& config,
                                                             const Logger& logger) {
  OSCARKV_ASSIGN_OR_RETURN(ChosenIo chosen,
                           MakeBlockIo(ParseIoBackend(config.io()).value_or(IoBackend::kAuto)));
  if (!chosen.why_not_uring.empty()) {
    logger.Log(LogLevel::kWarning, "the disk tier reads and writes with pread and pwrite",
               {{"reason", chosen.why_not_uring}});
  }
  DiskStoreOptions options;
  options.directory.path = config.path();
  options.directory.owner = config.owner();
  OSCARKV_ASSIGN_OR_RETURN(options.directory.capacity_bytes, ParseBytes(config.capacity()));
  options.directory.catalog_bytes =
      std::min(options.directory.capacity_bytes / kCatalogShare, kCatalogBytesMax);
  OSCARKV_ASSIGN_OR_RETURN(options.directory.segment_bytes, ParseBytes(config.segment()));
  OSCARKV_ASSIGN_OR_RETURN(std::unique_ptr<DiskStore> store,
                           DiskStore::Open(options, std::move(chosen.io)));
  const DiskStoreStats stats = store->Stats();
  logger.Log(LogLevel::kInfo, "disk tier open",
             {{"path", config.path()},
              {"io", std::string(stats.backend)},
              {"direct", stats.direct ? "true" : "false"},
              {"bytes", FormatBytes(stats.capacity_bytes)},
              {"pages", absl::StrCat(stats.recovered_pages)},
              {"orphans", absl::StrCat(stats.orphan_pages)},
              {"damaged_headers", absl::StrCat(stats.damaged_headers)},
              {"segments_made", absl::StrCat(stats.segments_made)},
              {"seconds", absl::StrCat(absl::ToDoubleSeconds(stats.recovery))}});
  return std::make_unique<DiskArchive>(std::move(store));
}

}  // namespace oscarkv
