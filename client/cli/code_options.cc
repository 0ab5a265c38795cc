#include "client/cli/code_options.h"

#include "CLI/CLI.hpp"

namespace oscarkv::cli {

void AddCodeOptions(CLI::App* command, CodeOptions* options) {
  command->add_option("--k-bits", options->k_bits, "Bits of K codes")
      ->check(CLI::IsMember({2, 4}))
      ->capture_default_str();
  command->add_option("--v-bits", options->v_bits, "Bits of V codes")
      ->check(CLI::IsMember({2, 4}))
      ->capture_default_str();
  command->add_option("--params", options->params, "Scale and zero point as fp16 or fp32")
      ->check(CLI::IsMember({"fp16", "fp32"}))
      ->capture_default_str();
}

void AddGroupOption(CLI::App* command, uint32_t* group) {
  command->add_option("--group", *group, "Elements that share a scale: 16, 32, 64; 0: the head dim")
      ->check(CLI::IsMember({0, 16, 32, 64}))
      ->capture_default_str();
}

}  // namespace oscarkv::cli
