// oscarkv encode: rows of K and V in a file to 2-bit codes with scale and zero.
#ifndef OSCARKV_CLIENT_CLI_ENCODE_COMMAND_H_
#define OSCARKV_CLIENT_CLI_ENCODE_COMMAND_H_

namespace CLI {
class App;
}

namespace oscarkv::cli {

void AddEncodeCommand(CLI::App& app);

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_ENCODE_COMMAND_H_
