// oscarkv decode: the codes that encode wrote, or another implementation's, back to rows.
#ifndef OSCARKV_CLIENT_CLI_DECODE_COMMAND_H_
#define OSCARKV_CLIENT_CLI_DECODE_COMMAND_H_

namespace CLI {
class App;
}

namespace oscarkv::cli {

void AddDecodeCommand(CLI::App& app);

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_DECODE_COMMAND_H_
