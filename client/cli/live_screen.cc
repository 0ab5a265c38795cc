#include "client/cli/live_screen.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace oscarkv::cli {
namespace {

constexpr char kEnter[] = "\033[?1049h\033[?25l";
constexpr char kLeave[] = "\033[?25h\033[?1049l";
constexpr char kCtrlC = 3;

sigset_t Signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGWINCH}) sigaddset(&set, number);
  return set;
}

// Whether the next key is one that ends the program.
bool TakeQuitKey() {
  char key = 0;
  if (read(STDIN_FILENO, &key, 1) != 1) return true;  // the terminal is gone
  return key == 'q' || key == 'Q' || key == kCtrlC;
}

}  // namespace

absl::StatusOr<std::unique_ptr<LiveScreen>> LiveScreen::Open() {
  if (isatty(STDOUT_FILENO) == 0)
    return absl::FailedPreconditionError("the output must be a terminal, and is none");
  std::unique_ptr<LiveScreen> screen(new LiveScreen());
  const sigset_t set = Signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  screen->signals_ = signalfd(-1, &set, SFD_CLOEXEC);
  if (screen->signals_ < 0) return absl::InternalError("no descriptor for signals");
  if (termios state = {}; isatty(STDIN_FILENO) == 1 && tcgetattr(STDIN_FILENO, &state) == 0) {
    screen->before_ = state;
    // Keys come one by one, and Ctrl-C is one of them.
    state.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO | ISIG);
    tcsetattr(STDIN_FILENO, TCSANOW, &state);
  }
  std::cout << kEnter << std::flush;
  return screen;
}

LiveScreen::~LiveScreen() {
  if (signals_ >= 0) {
    std::cout << kLeave << std::flush;
    close(signals_);
  }
  if (before_) tcsetattr(STDIN_FILENO, TCSANOW, &*before_);
}

void LiveScreen::Draw(const std::vector<std::string>& lines) {
  winsize size = {};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_row == 0)
    size = {.ws_row = 24, .ws_col = 80, .ws_xpixel = 0, .ws_ypixel = 0};
  std::string text = "\033[H";
  const size_t count = std::min<size_t>(lines.size(), size.ws_row);
  // Each line is cleared before it is written, the last one with all that is below: at the last
  // column, clearing what follows would take its last letter.
  for (size_t i = 0; i < count; ++i) {
    absl::StrAppend(&text, i > 0 ? "\n" : "", i + 1 < count ? "\033[K" : "\033[J",
                    lines[i].substr(0, size.ws_col));
  }
  std::cout << text << std::flush;
}

LiveScreen::Event LiveScreen::TakeSignal() const {
  signalfd_siginfo signal = {};
  const bool taken = read(signals_, &signal, sizeof(signal)) == sizeof(signal);
  return taken && signal.ssi_signo == SIGWINCH ? Event::kResized : Event::kQuit;
}

LiveScreen::Event LiveScreen::Wait(absl::Time deadline) {
  // A descriptor below 0 is passed over: without a terminal there are no keys.
  pollfd sources[] = {{.fd = signals_, .events = POLLIN, .revents = 0},
                      {.fd = before_ ? STDIN_FILENO : -1, .events = POLLIN, .revents = 0}};
  while (true) {
    const absl::Duration left = std::max(deadline - absl::Now(), absl::ZeroDuration());
    const int64_t left_ms = absl::ToInt64Milliseconds(absl::Ceil(left, absl::Milliseconds(1)));
    const int ready = poll(sources, std::size(sources), static_cast<int>(left_ms));
    if (ready == 0) return Event::kTimeout;
    if (ready < 0 && errno == EINTR) continue;  // stopped and continued
    if (ready < 0) return Event::kQuit;
    if (sources[0].revents != 0) return TakeSignal();
    if (TakeQuitKey()) return Event::kQuit;
  }
}

}  // namespace oscarkv::cli
