#include "client/cli/commands.h"

#include <iostream>

#include "CLI/CLI.hpp"
#include "client/cli/calibrate_command.h"
#include "client/cli/decode_command.h"
#include "client/cli/encode_command.h"
#include "client/cli/store_commands.h"
#include "client/cli/transform_command.h"

namespace oscarkv::cli {
namespace {

int exit_code = 0;

}  // namespace

void AddCommands(CLI::App& app) {
  AddCalibrateCommand(app);
  AddEncodeCommand(app);
  AddDecodeCommand(app);
  AddTransformCommand(app);
  AddPutCommand(app);
  AddGetCommand(app);
  AddStatCommand(app);
  AddLsCommand(app);
  AddRmCommand(app);
  AddVerifyCommand(app);
  AddTopCommand(app);
  AddBenchCommand(app);
}

void Report(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << "oscarkv: " << status.message() << " (" << absl::StatusCodeToString(status.code())
            << ")\n";
  exit_code = 1;
}

int ExitCode() { return exit_code; }

}  // namespace oscarkv::cli
