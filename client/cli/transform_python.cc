#include "client/cli/transform_python.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace oscarkv::cli {

absl::Status RunPythonModule(const std::string& python, const std::string& module,
                             const std::vector<std::string>& arguments) {
  std::vector<std::string> words = {python, "-m", module};
  words.insert(words.end(), arguments.begin(), arguments.end());
  const auto failed = [&](const std::string& how) {
    return absl::FailedPreconditionError(absl::StrCat("`", absl::StrJoin(words, " "), "` ", how));
  };
  constexpr const char* kNeeds =
      "; it needs the Python package oscarkv (client/python) with numpy and matplotlib: install "
      "them, or name an interpreter that has them with --python";
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  std::cout.flush();
  pid_t child = 0;
  if (const int error =
          posix_spawnp(&child, python.c_str(), nullptr, nullptr, argv.data(), environ);
      error != 0) {
    return failed(absl::StrCat("did not start: ", std::strerror(error), kNeeds));
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return absl::ErrnoToStatus(errno, "waiting for Python");
  }
  if (!WIFEXITED(status)) return failed(absl::StrCat("was killed by signal ", WTERMSIG(status)));
  if (WEXITSTATUS(status) == 0) return absl::OkStatus();
  // With 2 our modules end when they have said what is wrong.
  if (WEXITSTATUS(status) == 2) return failed("refused, see above");
  return failed(absl::StrCat("ended with status ", WEXITSTATUS(status), kNeeds));
}

}  // namespace oscarkv::cli
