// The commands that talk to a server.
#ifndef OSCARKV_CLIENT_CLI_STORE_COMMANDS_H_
#define OSCARKV_CLIENT_CLI_STORE_COMMANDS_H_

namespace CLI {
class App;
}

namespace oscarkv::cli {

void AddStatCommand(CLI::App& app);    // what a server holds
void AddLsCommand(CLI::App& app);      // namespaces, or the pages of one
void AddRmCommand(CLI::App& app);      // removes pages
void AddPutCommand(CLI::App& app);     // stores K and V from files
void AddGetCommand(CLI::App& app);     // fetches pages into a file
void AddVerifyCommand(CLI::App& app);  // has every page's checksums checked
void AddTopCommand(CLI::App& app);     // a live view
void AddBenchCommand(CLI::App& app);   // a load test

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_STORE_COMMANDS_H_
