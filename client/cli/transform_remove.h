// oscarkv transform rm.
#ifndef OSCARKV_CLIENT_CLI_TRANSFORM_REMOVE_H_
#define OSCARKV_CLIENT_CLI_TRANSFORM_REMOVE_H_

namespace CLI {
class App;
}

namespace oscarkv::cli {

void AddTransformRemove(CLI::App& transform);

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_TRANSFORM_REMOVE_H_
