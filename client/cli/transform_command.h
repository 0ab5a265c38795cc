// oscarkv transform: what is in a transform file, and files from elsewhere made into one.
#ifndef OSCARKV_CLIENT_CLI_TRANSFORM_COMMAND_H_
#define OSCARKV_CLIENT_CLI_TRANSFORM_COMMAND_H_

namespace CLI {
class App;
}

namespace oscarkv::cli {

void AddTransformCommand(CLI::App& app);

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_TRANSFORM_COMMAND_H_
