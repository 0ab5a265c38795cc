// The archive on disk, from a configuration.
#ifndef OSCARKV_SERVER_DISK_ARCHIVE_SETUP_H_
#define OSCARKV_SERVER_DISK_ARCHIVE_SETUP_H_

#include <memory>

#include "absl/status/statusor.h"

#include "kernels/base/log.h"
#include "server/core/page_archive.h"

namespace oscarkv::v1 {
class DiskTierConfig;
}

namespace oscarkv {

// Opens the disk tier of `config`, whose path is not off, and logs what was found there. Errors are
// those of DiskStore::Open and MakeBlockIo: a disk that was asked for is there, or the server does
// not start.
absl::StatusOr<std::unique_ptr<PageArchive>> OpenDiskArchive(const v1::DiskTierConfig& config,
                                                             const Logger& logger);

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_DISK_ARCHIVE_SETUP_H_
