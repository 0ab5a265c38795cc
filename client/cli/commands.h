// How a subcommand joins the program: its file defines Add...Command, which declares its options
// and a callback that calls Report with the outcome. CLI11 parses; the callbacks run while parsing
// ends.
#ifndef OSCARKV_CLIENT_CLI_COMMANDS_H_
#define OSCARKV_CLIENT_CLI_COMMANDS_H_

#include "absl/status/status.h"

namespace CLI {
class App;
}

namespace oscarkv::cli {

void AddCommands(CLI::App& app);

// Prints "oscarkv: <message>" to the error stream when `status` is not OK, and sets the exit code
// to 1.
void Report(const absl::Status& status);
int ExitCode();

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_COMMANDS_H_
