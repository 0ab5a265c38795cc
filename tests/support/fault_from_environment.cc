// Linked into a program, has it die or stop at a named place (kernels/base/fault_point.h):
//
//   OSCARKV_FAULT="shm.client.mapped 2 kill"     when it comes there for the second time, as by
//   kill -9 OSCARKV_FAULT="shm.client.mapped 1 stop"     as by SIGSTOP; it goes on when it is told
//   to
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

#include "kernels/base/fault_point.h"

namespace oscarkv {
namespace {

struct Fault {
  std::string point;
  int signal = 0;
  std::atomic<int> left = 0;  // times until it happens; relaxed: threads only count
};

Fault& TheFault() {
  static Fault fault;
  return fault;
}

void Act(std::string_view point) {
  Fault& fault = TheFault();
  if (point == fault.point && fault.left.fetch_sub(1, std::memory_order_relaxed) == 1)
    kill(getpid(), fault.signal);
}

[[maybe_unused]] const bool armed = [] {
  const char* asked = std::getenv("OSCARKV_FAULT");
  if (asked == nullptr) return false;
  const std::vector<std::string> words = absl::StrSplit(asked, ' ');
  int times = 0;
  if (words.size() != 3 || !absl::SimpleAtoi(words[1], &times) ||
      (words[2] != "kill" && words[2] != "stop")) {
    std::abort();  // a mistake of the test
  }
  TheFault().point = words[0];
  TheFault().left = times;
  TheFault().signal = words[2] == "kill" ? SIGKILL : SIGSTOP;
  SetFaultHandler(&Act);
  return true;
}();

}  // namespace
}  // namespace oscarkv
