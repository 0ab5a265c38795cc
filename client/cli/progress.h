// A progress bar on the error stream: a moving line on a terminal, nothing when piped.
#ifndef OSCARKV_CLIENT_CLI_PROGRESS_H_
#define OSCARKV_CLIENT_CLI_PROGRESS_H_

#include <cstdint>
#include <string>

#include "absl/time/time.h"

namespace oscarkv::cli {

// Not thread-safe.
class ProgressBar {
 public:
  ProgressBar(std::string title, std::string unit);
  ~ProgressBar() { Finish(); }
  void Show(uint64_t done, uint64_t all);
  void Finish();

 private:
  const std::string title_;
  const std::string unit_;
  const absl::Time start_;
  const bool terminal_;
  bool shown_ = false;
};

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_PROGRESS_H_
