// Arbitrary bytes as a safetensors file: either refused, or every tensor lies inside the bytes, and
// writing what was read gives a file that reads the same.
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "kernels/base/bytes.h"
#include "kernels/safetensors/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using oscarkv::Safetensors;
  using oscarkv::Tensor;
  const auto file = std::as_bytes(std::span(data, size));
  const auto parsed = Safetensors::Parse(file);
  if (!parsed.ok()) return 0;
  std::vector<Tensor> tensors;
  for (const auto& [name, tensor] : parsed->tensors()) {
    // Reads every byte, so that a sanitizer sees one outside.
    for (const std::byte value : tensor.bytes) {
      volatile std::byte sink = value;
      static_cast<void>(sink);
    }
    if (tensor.bytes.data() < file.data() ||
        tensor.bytes.data() + tensor.bytes.size() > file.data() + file.size()) {
      std::abort();
    }
    tensors.push_back(tensor);
  }
  const std::string written = oscarkv::SerializeSafetensors(tensors, parsed->metadata());
  const auto again = Safetensors::Parse(oscarkv::AsBytes(written));
  if (!again.ok() || again->tensors().size() != tensors.size()) std::abort();
  return 0;
}
