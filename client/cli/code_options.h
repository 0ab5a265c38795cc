// Options of the commands that make codes: how many bits an element takes, and what a scale and a
// zero point are.
#ifndef OSCARKV_CLIENT_CLI_CODE_OPTIONS_H_
#define OSCARKV_CLIENT_CLI_CODE_OPTIONS_H_

#include <cstdint>
#include <string>

#include "kernels/codec/geometry.h"

namespace CLI {
class App;
}

namespace oscarkv::cli {

struct CodeOptions {
  uint32_t k_bits = 2, v_bits = 2;
  std::string params = "fp16";  // or fp32

  LayerBits bits() const { return {static_cast<uint8_t>(k_bits), static_cast<uint8_t>(v_bits)}; }
  ParamsDType params_dtype() const {
    return params == "fp32" ? ParamsDType::kFp32 : ParamsDType::kFp16;
  }
};

// Declares --k-bits, --v-bits and --params.
void AddCodeOptions(CLI::App* command, CodeOptions* options);

// Declares --group: elements that share a scale and a zero point.
void AddGroupOption(CLI::App* command, uint32_t* group);

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_CODE_OPTIONS_H_
