// oscarkv calibrate: fits a transform set to a model's dumped Q, K and V.
#ifndef OSCARKV_CLIENT_CLI_CALIBRATE_COMMAND_H_
#define OSCARKV_CLIENT_CLI_CALIBRATE_COMMAND_H_

namespace CLI {
class App;
}

namespace oscarkv::cli {

void AddCalibrateCommand(CLI::App& app);

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_CALIBRATE_COMMAND_H_
