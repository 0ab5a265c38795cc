// The seam between the server and where it keeps, besides pages, what it is to know again after a
// restart: a few named contents, each saved whole. On disk: server/tier/disk/disk_catalog.h.
#ifndef OSCARKV_SERVER_CORE_CATALOG_H_
#define OSCARKV_SERVER_CORE_CATALOG_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace oscarkv {

enum class CatalogKind : uint8_t {
  kNamespace = 1,     // named by its fingerprint
  kTransformSet = 2,  // named by its hash
};
inline constexpr size_t kCatalogNameBytes = 32;

struct CatalogEntry {
  CatalogKind kind = CatalogKind::kNamespace;
  std::string name;    // kCatalogNameBytes, raw
  uint64_t bytes = 0;  // of its contents
  bool operator==(const CatalogEntry&) const = default;
};

struct CatalogStats {
  uint64_t entries = 0;
  uint64_t bytes = 0;          // that they take
  uint64_t skipped = 0;        // found damaged or another's since the start
  uint64_t failed_writes = 0;  // since the start
};

// Thread-safe. Save and Load wait for the device.
class Catalog {
 public:
  virtual ~Catalog() = default;

  virtual std::vector<CatalogEntry> Entries() const = 0;  // in the order of kinds and names
  virtual bool Has(CatalogKind kind, std::string_view name) const = 0;
  virtual CatalogStats Stats() const = 0;

  // OK: the contents are durable, in place of any that had the name; after a crash in the middle
  // one or the other is there. kInvalidArgument: the name's size. kResourceExhausted: no room.
  virtual absl::Status Save(CatalogKind kind, std::string_view name, std::string_view contents) = 0;
  // OK: it is not there, also after a crash.
  virtual absl::Status Remove(CatalogKind kind, std::string_view name) = 0;
  // What was saved, verified. kNotFound; kResourceExhausted: more than `bytes_max`, found before
  // any memory is taken; kDataLoss: damaged, so that it is no entry any more.
  virtual absl::StatusOr<std::string> Load(CatalogKind kind, std::string_view name,
                                           uint64_t bytes_max) = 0;
  // What was found damaged or another's since the last call, for people.
  virtual std::vector<std::string> TakeComplaints() = 0;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_CATALOG_H_
