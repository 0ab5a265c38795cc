// oscarkvd's configuration: one YAML file with the names of proto ServerConfig, every one of which
// has a default.
#ifndef OSCARKV_SERVER_CONFIG_LOAD_H_
#define OSCARKV_SERVER_CONFIG_LOAD_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

#include "server/core/ladder.h"
#include "server/core/tenant.h"

#include "oscarkv/v1/server_config.pb.h"

namespace oscarkv {

// kInvalidArgument "file:line:column: ...": not YAML, a key that is not known (with the nearest
// that is), a value of the wrong type, a key given twice. `file` is for the messages.
absl::StatusOr<v1::ServerConfig> ParseConfig(std::string_view yaml, std::string_view file);
// kNotFound or the errors above, naming the path.
absl::StatusOr<v1::ServerConfig> LoadConfig(const std::string& path);

// The same with every field set that was not: the configuration that runs. `memory_bytes`: of the
// machine.
v1::ServerConfig WithDefaults(v1::ServerConfig config, uint64_t memory_bytes);

// kInvalidArgument naming the field: sizes that do not parse or are out of range, addresses that
// are none, unknown log levels, shares beyond 0..1. `config` is complete (WithDefaults).
absl::Status CheckConfig(const v1::ServerConfig& config);

// What tenants may hold by the configuration, which is complete and checked.
TenantQuotas QuotasOf(const v1::ServerConfig& config);

// Whether the configuration, which is complete, asks for a GPU tier; for a disk tier.
bool WantsGpu(const v1::ServerConfig& config);
bool WantsDisk(const v1::ServerConfig& config);
// The path of the socket where clients find shared memory; empty: nowhere.
std::string SharedMemorySocket(const v1::ServerConfig& config);

// "512MiB", "64GiB", "1.5TiB", "1000000". kInvalidArgument for anything else, or beyond 2^62.
absl::StatusOr<uint64_t> ParseBytes(std::string_view text);
std::string FormatBytes(uint64_t bytes);  // "64GiB": the greatest unit that divides

// As YAML, to be read by LoadConfig.
std::string ConfigToYaml(const v1::ServerConfig& config);

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CONFIG_LOAD_H_
