// Arbitrary bytes as a transform file: either refused, or a set that writes a file that parses to a
// set of the same extents.
#include <cstdint>
#include <cstdlib>

#include "kernels/base/bytes.h"
#include "kernels/codec/transform_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  const auto set = oscarkv::ParseTransformFile(file);
  if (!set.ok()) return 0;
  const auto report = oscarkv::TransformFileReport(file);
  if (!report.ok()) std::abort();
  const std::string written = oscarkv::SerializeTransformFile(*set, *report);
  const auto again = oscarkv::ParseTransformFile(oscarkv::AsBytes(written));
  if (!again.ok() || again->layers() != set->layers() || again->kv_heads() != set->kv_heads()) {
    std::abort();
  }
  return 0;
}
