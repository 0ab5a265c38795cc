#include "client/cli/progress.h"

#include <unistd.h>

#include <iostream>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

namespace oscarkv::cli {

ProgressBar::ProgressBar(std::string title, std::string unit)
    : title_(std::move(title)),
      unit_(std::move(unit)),
      start_(absl::Now()),
      terminal_(isatty(STDERR_FILENO) == 1) {}

void ProgressBar::Show(uint64_t done, uint64_t all) {
  if (!terminal_ || all == 0) return;
  constexpr uint64_t kWidth = 30;
  const uint64_t filled = kWidth * done / all;
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start_);
  std::cerr << absl::StrFormat("\r%s [%s%s] %d/%d %s, %.0f s ", title_, std::string(filled, '#'),
                               std::string(kWidth - filled, '.'), done, all, unit_, seconds)
            << std::flush;
  shown_ = true;
}

void ProgressBar::Finish() {
  if (shown_) std::cerr << "\n";
  shown_ = false;
}

}  // namespace oscarkv::cli
