// Arbitrary bytes as a configuration: either refused, or one that prints as YAML that is read back
// as the same, before and after its defaults are filled in.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "server/config/load.h"

namespace {

void ExpectPrintsAsItself(const oscarkv::v1::ServerConfig& config) {
  const auto again = oscarkv::ParseConfig(oscarkv::ConfigToYaml(config), "printed");
  // As text: a NaN does not equal itself.
  if (!again.ok() || again->ShortDebugString() != config.ShortDebugString()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = oscarkv::ParseConfig(text, "fuzz.yaml");
  if (!config.ok()) return 0;
  const oscarkv::v1::ServerConfig complete = oscarkv::WithDefaults(*config, uint64_t{1} << 34);
  if (oscarkv::CheckConfig(complete).ok()) ExpectPrintsAsItself(complete);
  return 0;
}
