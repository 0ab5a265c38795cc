// oscarkv, the command line: one file a subcommand.
#include <cstdio>
#include <exception>
#include <iostream>

#include "CLI/CLI.hpp"
#include "client/cli/commands.h"

int main(int argc, char** argv) try {
  CLI::App app("oscarkv: calibrate, inspect and use a disaggregated KV-cache store", "oscarkv");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("oscarkv ") + OSCARKV_VERSION);
  oscarkv::cli::AddCommands(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  }
  if (!std::cout.flush())
    oscarkv::cli::Report(absl::DataLossError("the output could not be written"));
  return oscarkv::cli::ExitCode();
} catch (const std::exception& error) {  // memory has run out, for one
  std::fprintf(stderr, "oscarkv: %s\n", error.what());
  return 1;
}
