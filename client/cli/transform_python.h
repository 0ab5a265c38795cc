// What the command line leaves to its Python package: pictures, and other programs' files.
#ifndef OSCARKV_CLIENT_CLI_TRANSFORM_PYTHON_H_
#define OSCARKV_CLIENT_CLI_TRANSFORM_PYTHON_H_

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace oscarkv::cli {

// Runs `python -m module arguments...` and waits for it; its output is ours. `python` is looked for
// in PATH unless it is a path. kFailedPrecondition with the command and what it needs when it
// cannot be started or fails.
absl::Status RunPythonModule(const std::string& python, const std::string& module,
                             const std::vector<std::string>& arguments);

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_TRANSFORM_PYTHON_H_
