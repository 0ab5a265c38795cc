// Defaults, limits and sizes of the configuration.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

#include "kernels/base/log.h"
#include "kernels/base/status_macros.h"
#include "proto/wire/data_path.h"
#include "proto/wire/store_wide.h"
#include "server/config/load.h"
#include "server/core/page_archive.h"
#include "server/tier/disk/block_io.h"
#include "server/tier/disk/disk_directory.h"

namespace oscarkv {
namespace {

constexpr std::pair<std::string_view, uint64_t> kUnits[] = {{"TiB", uint64_t{1} << 40},
                                                            {"GiB", uint64_t{1} << 30},
                                                            {"MiB", uint64_t{1} << 20},
                                                            {"KiB", uint64_t{1} << 10}};
constexpr uint64_t kHostBytesMin = 16 << 20;
constexpr uint64_t kGpuBytesMin = 16 << 20;
// Each policy takes memory, and a put looks at all of them.
constexpr uint32_t kTenantsMax = 1024;
constexpr char kOtherTenants[] = "*";
// Of host memory: the rest is lost between pages of different sizes.
constexpr double kProtectedShareMax = 0.9;
constexpr double kLadderCoresMax = 256;
constexpr uint32_t kGpuDevices = 1024;  // more than any machine has

void SetDefault(std::string* field, std::string value) {
  if (field->empty()) *field = std::move(value);
}

absl::Status CheckBytes(const char* field, const std::string& text, uint64_t least, uint64_t most) {
  const absl::StatusOr<uint64_t> bytes = ParseBytes(text);
  if (!bytes.ok()) return Annotate(bytes.status(), field);
  if (*bytes >= least && *bytes <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " must be ", FormatBytes(least), "..",
                                                 FormatBytes(most), ", found ", text));
}

constexpr uint32_t kPortMax = 65535;
constexpr size_t kUnixPathMax = 107;  // of sockaddr_un

bool IsPrintable(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

bool IsHostPort(std::string_view address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string_view::npos || colon == 0 || !IsPrintable(address)) return false;
  uint32_t port = 0;
  const std::string_view digits = address.substr(colon + 1);
  return absl::SimpleAtoi(absl::string_view(digits.data(), digits.size()), &port) &&
         port <= kPortMax;
}

absl::Status CheckAddresses(const v1::ServerConfig& config) {
  for (const std::string& address : config.listen()) {
    if (address.starts_with("unix:")) {
      const size_t bytes = address.size() - std::string_view("unix:").size();
      if (bytes > 0 && bytes <= kUnixPathMax && IsPrintable(address)) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("listen: the path of a Unix socket has 1..", kUnixPathMax,
                       " bytes of printable ASCII, found ", bytes, " bytes"));
    }
    if (IsHostPort(address)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("listen must be host:port or unix:/path, found '", address, "'"));
  }
  if (config.metrics_listen() == "off" || IsHostPort(config.metrics_listen()))
    return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("metrics_listen must be host:port or off, found '",
                                                 config.metrics_listen(), "'"));
}

absl::Status CheckGpu(const v1::ServerConfig& config) {
  const v1::GpuTierConfig& gpu = config.gpu();
  if (!WantsGpu(config)) {
    if (!gpu.required()) return absl::OkStatus();
    return absl::InvalidArgumentError("gpu.required is true, and gpu.capacity is off");
  }
  OSCARKV_RETURN_IF_ERROR(
      CheckBytes("gpu.capacity", gpu.capacity(), kGpuBytesMin, uint64_t{1} << 44));
  if (gpu.staging() != "off") {
    OSCARKV_RETURN_IF_ERROR(
        CheckBytes("gpu.staging", gpu.staging(), kGpuBytesMin, uint64_t{1} << 40));
  }
  if (gpu.device() < kGpuDevices) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("gpu.device must be below ", kGpuDevices, ", found ", gpu.device()));
}

absl::Status CheckDisk(const v1::ServerConfig& config) {
  const v1::DiskTierConfig& disk = config.disk();
  if (!WantsDisk(config)) return absl::OkStatus();
  OSCARKV_RETURN_IF_ERROR(
      CheckBytes("disk.segment", disk.segment(), kSegmentBytesMin, kSegmentBytesMax));
  const uint64_t segment = ParseBytes(disk.segment()).value_or(0);
  if (segment % kDiskBlockBytes != 0) {
    return absl::InvalidArgumentError(absl::StrCat("disk.segment must be a multiple of ",
                                                   FormatBytes(kDiskBlockBytes), ", found ",
                                                   disk.segment()));
  }
  OSCARKV_RETURN_IF_ERROR(CheckBytes("disk.capacity", disk.capacity(),
                                     kSegmentsMin * segment + kDiskOtherFilesBytes,
                                     uint64_t{1} << 50));
  if (disk.owner().size() > kOwnerBytesMax || !IsPrintable(disk.owner())) {
    return absl::InvalidArgumentError(absl::StrCat("disk.owner has at most ", kOwnerBytesMax,
                                                   " bytes of printable ASCII, found ",
                                                   disk.owner().size(), " bytes"));
  }
  if (!ParseIoBackend(disk.io()).has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("disk.io must be auto, io_uring or pread, found '", disk.io(), "'"));
  }
  if (ParseArchiveAdmission(disk.admit()).has_value()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("disk.admit must be all, fetched or worth, found '", disk.admit(), "'"));
}

absl::Status CheckSharedMemory(const v1::SharedMemoryConfig& memory) {
  if (memory.socket() != "auto" && memory.socket() != "off") {
    const size_t bytes = memory.socket().size();
    if (!memory.socket().starts_with('/') || bytes > kUnixPathMax || !IsPrintable(memory.socket()))
      return absl::InvalidArgumentError(
          absl::StrCat("shared_memory.socket must be auto, off, or a whole path of at most ",
                       kUnixPathMax, " bytes of printable ASCII, found '", memory.socket(), "'"));
  }
  if (memory.mode() != "0600" && memory.mode() != "0660" && memory.mode() != "0666") {
    return absl::InvalidArgumentError(
        absl::StrCat("shared_memory.mode must be 0600, 0660 or 0666, found '", memory.mode(), "'"));
  }
  OSCARKV_RETURN_IF_ERROR(CheckBytes("shared_memory.staging", memory.staging(), 1 << 20, 1 << 30));
  OSCARKV_RETURN_IF_ERROR(
      CheckBytes("shared_memory.max_staging", memory.max_staging(), 1 << 20, uint64_t{1} << 44));
  if (memory.max_mapped_share() > 0.0 && memory.max_mapped_share() <= 1.0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("shared_memory.max_mapped_share must be above 0 and at most 1, found ",
                   memory.max_mapped_share()));
}

absl::Status CheckPaths(const char* field,
                        const google::protobuf::RepeatedPtrField<std::string>& names) {
  for (const std::string& name : names) {
    if (ParseDataPath(name).has_value()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(field, " names ipc, shm, nccl, grpc, found '", name, "'"));
  }
  return absl::OkStatus();
}

void SetDefaultPaths(google::protobuf::RepeatedPtrField<std::string>* names) {
  if (!names->empty()) return;
  for (const DataPath path : kDataPaths) *names->Add() = DataPathName(path);
}

absl::Status CheckEviction(const v1::EvictionConfig& eviction) {
  if (eviction.policy() != "learnt" && eviction.policy() != "lru") {
    return absl::InvalidArgumentError(
        absl::StrCat("eviction.policy must be learnt or lru, found '", eviction.policy(), "'"));
  }
  if (eviction.max_pinned_share() > 0.0 && eviction.max_pinned_share() <= 1.0)
    return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("eviction.max_pinned_share must be above 0 and at most 1, found ",
                   eviction.max_pinned_share()));
}

absl::Status CheckLadder(const v1::LadderConfig& ladder) {
  if (!ParseStoreWide(ladder.store_wide()).has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("ladder.store_wide must be never, tail or until_pressure, found '",
                     ladder.store_wide(), "'"));
  }
  if (!(ladder.max_cores() > 0.0 && ladder.max_cores() <= kLadderCoresMax)) {
    return absl::InvalidArgumentError(absl::StrCat("ladder.max_cores must be above 0 and at most ",
                                                   kLadderCoresMax, ", found ",
                                                   ladder.max_cores()));
  }
  for (const auto& [name, share] :
       {std::pair("free_share", ladder.free_share()),
        std::pair("max_wide_tails_share", ladder.max_wide_tails_share())}) {
    if (share > 0.0 && share <= 1.0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("ladder.", name, " must be above 0 and at most 1, found ", share));
  }
  return absl::OkStatus();
}

absl::Status CheckLimits(const v1::LimitsConfig& limits) {
  OSCARKV_RETURN_IF_ERROR(CheckBytes("limits.max_chunk", limits.max_chunk(), 4096, 32 << 20));
  OSCARKV_RETURN_IF_ERROR(
      CheckBytes("limits.max_inflight", limits.max_inflight(), 1 << 20, uint64_t{1} << 44));
  OSCARKV_RETURN_IF_ERROR(CheckBytes("limits.max_transform_set", limits.max_transform_set(),
                                     1 << 10, uint64_t{1} << 40));
  if (limits.max_items() > 65536) {
    return absl::InvalidArgumentError(
        absl::StrCat("limits.max_items must be 1..65536, found ", limits.max_items()));
  }
  if (limits.max_tenants() > kTenantsMax) {
    return absl::InvalidArgumentError(absl::StrCat("limits.max_tenants must be 1..", kTenantsMax,
                                                   ", found ", limits.max_tenants()));
  }
  if (!(limits.max_leased_share() > 0.0 && limits.max_leased_share() <= 1.0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("limits.max_leased_share must be above 0 and at most 1, found ",
                     limits.max_leased_share()));
  }
  return absl::OkStatus();
}

// The size, or without one no limit.
uint64_t LimitOf(const std::string& text) {
  return text.empty() ? Budget::kNoLimit : ParseBytes(text).value_or(Budget::kNoLimit);
}

absl::Status CheckTenant(const v1::TenantConfig& tenant, int index) {
  const std::string where = absl::StrCat("tenants[", index, "]");
  if (tenant.name().empty())
    return absl::InvalidArgumentError(absl::StrCat(where, ".name is missing"));
  for (const auto& [field, text] :
       {std::pair(".host", tenant.host()), std::pair(".protected", tenant.protected_()),
        std::pair(".gpu", tenant.gpu()), std::pair(".disk", tenant.disk()),
        std::pair(".inflight", tenant.inflight())}) {
    if (!text.empty())
      OSCARKV_RETURN_IF_ERROR(
          CheckBytes(absl::StrCat(where, field).c_str(), text, 1, uint64_t{1} << 50));
  }
  if (!tenant.protected_().empty() && tenant.name() == kOtherTenants) {
    return absl::InvalidArgumentError(absl::StrCat(
        where,
        ".protected: tenants that are not named have none, for nobody knows how many there"
        " will be"));
  }
  if (!tenant.protected_().empty() && LimitOf(tenant.protected_()) > LimitOf(tenant.host())) {
    return absl::InvalidArgumentError(absl::StrCat(where, ".protected must be at most .host, ",
                                                   tenant.host(), ", found ", tenant.protected_()));
  }
  if (tenant.weight() > 0.0 && tenant.weight() <= 1e6) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(where, ".weight must be above 0 and at most 1e6, found ", tenant.weight()));
}

absl::Status CheckTenants(const v1::ServerConfig& config) {
  absl::flat_hash_set<std::string> names;
  double protected_bytes = 0;
  for (int i = 0; i < config.tenants_size(); ++i) {
    const v1::TenantConfig& tenant = config.tenants(i);
    OSCARKV_RETURN_IF_ERROR(CheckTenant(tenant, i));
    if (!names.insert(tenant.name()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("tenants[", i, "].name: '", tenant.name(), "' stands twice"));
    }
    if (!tenant.protected_().empty())
      protected_bytes += static_cast<double>(LimitOf(tenant.protected_()));
  }
  const double host = static_cast<double>(ParseBytes(config.host().capacity()).value_or(0));
  if (protected_bytes <= kProtectedShareMax * host) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "tenants: together at most ", kProtectedShareMax, " of host.capacity, ",
      config.host().capacity(), ", can be protected, found ", protected_bytes, " bytes"));
}

}  // namespace

TenantQuotas QuotasOf(const v1::ServerConfig& config) {
  TenantQuotas quotas;
  for (const v1::TenantConfig& tenant : config.tenants()) {
    TenantQuota& quota =
        tenant.name() == kOtherTenants ? quotas.others : quotas.named[tenant.name()];
    quota.host_bytes = LimitOf(tenant.host());
    if (tenant.host_pages() > 0) quota.host_pages = tenant.host_pages();
    quota.gpu_bytes = LimitOf(tenant.gpu());
    quota.disk_bytes = LimitOf(tenant.disk());
    quota.inflight_bytes = LimitOf(tenant.inflight());
    if (!tenant.protected_().empty()) quota.protected_host_bytes = LimitOf(tenant.protected_());
    quota.weight = tenant.weight();
  }
  return quotas;
}

absl::StatusOr<uint64_t> ParseBytes(std::string_view text) {
  uint64_t unit = 1;
  absl::string_view number(text.data(), text.size());
  for (const auto& [name, bytes] : kUnits) {
    if (text.ends_with(name)) {
      unit = bytes;
      number.remove_suffix(name.size());
    }
  }
  double value = 0.0;
  const bool parsed = number.find_first_not_of("0123456789.") == absl::string_view::npos &&
                      absl::SimpleAtod(number, &value);
  const double bytes = value * static_cast<double>(unit);
  if (parsed && bytes < 0x1p62 && bytes == std::floor(bytes)) return static_cast<uint64_t>(bytes);
  return absl::InvalidArgumentError(absl::StrCat("'", absl::string_view(text.data(), text.size()),
                                                 "' is not a size like 512MiB, 64GiB or 1000000"));
}

std::string FormatBytes(uint64_t bytes) {
  for (const auto& [name, unit] : kUnits) {
    if (bytes >= unit && bytes % unit == 0)
      return absl::StrCat(bytes / unit, absl::string_view(name.data(), name.size()));
  }
  return absl::StrCat(bytes);
}

bool WantsGpu(const v1::ServerConfig& config) { return config.gpu().capacity() != "off"; }
bool WantsDisk(const v1::ServerConfig& config) { return config.disk().path() != "off"; }

std::string SharedMemorySocket(const v1::ServerConfig& config) {
  constexpr std::string_view kUnix = "unix:";
  const std::string& socket = config.shared_memory().socket();
  if (socket == "off") return "";
  if (socket != "auto") return socket;
  for (const std::string& address : config.listen()) {
    // A path that is not whole means something else to a client, in a folder of its own.
    if (!address.starts_with("unix:/")) continue;
    std::string beside = absl::StrCat(address.substr(kUnix.size()), ".shm");
    return beside.size() <= kUnixPathMax ? beside : "";
  }
  return "";
}

v1::ServerConfig WithDefaults(v1::ServerConfig config, uint64_t memory_bytes) {
  constexpr uint64_t kMiB = 1 << 20;
  if (config.listen().empty()) config.add_listen("127.0.0.1:7411");
  SetDefault(config.mutable_metrics_listen(), "127.0.0.1:9411");
  SetDefault(config.mutable_host()->mutable_capacity(),
             FormatBytes(std::max(memory_bytes / 4 / kMiB * kMiB, kHostBytesMin)));
  const uint64_t host = ParseBytes(config.host().capacity()).value_or(kHostBytesMin);
  SetDefault(config.mutable_gpu()->mutable_capacity(), "off");
  SetDefault(config.mutable_gpu()->mutable_nccl(), "auto");
  SetDefault(config.mutable_gpu()->mutable_staging(), "256MiB");
  v1::DiskTierConfig* disk = config.mutable_disk();
  SetDefault(disk->mutable_path(), "off");
  SetDefault(disk->mutable_capacity(), "64GiB");
  SetDefault(disk->mutable_segment(), "256MiB");
  SetDefault(disk->mutable_owner(), "oscarkvd");
  SetDefault(disk->mutable_io(), "auto");
  SetDefault(disk->mutable_admit(), "worth");
  v1::SharedMemoryConfig* memory = config.mutable_shared_memory();
  SetDefault(memory->mutable_socket(), "auto");
  SetDefault(memory->mutable_mode(), "0600");
  SetDefault(memory->mutable_staging(), "32MiB");
  SetDefault(memory->mutable_max_staging(), FormatBytes(std::max(host / 8 / kMiB * kMiB, kMiB)));
  if (memory->max_mapped_share() == 0.0) memory->set_max_mapped_share(0.25);
  SetDefaultPaths(config.mutable_paths()->mutable_fetch());
  SetDefaultPaths(config.mutable_paths()->mutable_push());
  v1::EvictionConfig* eviction = config.mutable_eviction();
  SetDefault(eviction->mutable_policy(), "learnt");
  if (eviction->max_pinned_share() == 0.0) eviction->set_max_pinned_share(0.25);
  v1::LadderConfig* ladder = config.mutable_ladder();
  SetDefault(ladder->mutable_store_wide(), "tail");
  if (ladder->max_cores() == 0.0) ladder->set_max_cores(1.0);
  if (ladder->free_share() == 0.0) ladder->set_free_share(0.1);
  if (ladder->max_wide_tails_share() == 0.0) ladder->set_max_wide_tails_share(0.1);
  v1::LimitsConfig* limits = config.mutable_limits();
  if (limits->max_items() == 0) limits->set_max_items(1024);
  SetDefault(limits->mutable_max_chunk(), "1MiB");
  SetDefault(limits->mutable_max_inflight(), FormatBytes(std::max(host / 8 / kMiB * kMiB, kMiB)));
  if (limits->lease_ms_max() == 0) limits->set_lease_ms_max(600'000);
  SetDefault(limits->mutable_max_transform_set(), "1GiB");
  if (limits->max_leased_share() == 0.0) limits->set_max_leased_share(0.5);
  if (limits->max_namespaces() == 0) limits->set_max_namespaces(1024);
  if (limits->max_tenants() == 0) limits->set_max_tenants(64);
  for (v1::TenantConfig& tenant : *config.mutable_tenants())
    if (tenant.weight() == 0.0) tenant.set_weight(1.0);
  SetDefault(config.mutable_log_level(), "info");
  SetDefault(config.mutable_log_format(), "text");
  if (config.drain_grace_ms() == 0) config.set_drain_grace_ms(10'000);
  return config;
}

absl::Status CheckConfig(const v1::ServerConfig& config) {
  OSCARKV_RETURN_IF_ERROR(
      CheckBytes("host.capacity", config.host().capacity(), kHostBytesMin, uint64_t{1} << 46));
  OSCARKV_RETURN_IF_ERROR(CheckGpu(config));
  OSCARKV_RETURN_IF_ERROR(CheckDisk(config));
  OSCARKV_RETURN_IF_ERROR(CheckSharedMemory(config.shared_memory()));
  OSCARKV_RETURN_IF_ERROR(CheckPaths("paths.fetch", config.paths().fetch()));
  OSCARKV_RETURN_IF_ERROR(CheckPaths("paths.push", config.paths().push()));
  OSCARKV_RETURN_IF_ERROR(CheckEviction(config.eviction()));
  OSCARKV_RETURN_IF_ERROR(CheckLadder(config.ladder()));
  OSCARKV_RETURN_IF_ERROR(CheckLimits(config.limits()));
  OSCARKV_RETURN_IF_ERROR(CheckTenants(config));
  if (!ParseLogLevel(config.log_level())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "log_level must be debug, info, warning or error, found '", config.log_level(), "'"));
  }
  if (config.log_format() != "text" && config.log_format() != "json") {
    return absl::InvalidArgumentError(
        absl::StrCat("log_format must be text or json, found '", config.log_format(), "'"));
  }
  return CheckAddresses(config);
}

}  // namespace oscarkv
