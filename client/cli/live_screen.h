// A terminal that one program draws on until a key ends it.
#ifndef OSCARKV_CLIENT_CLI_LIVE_SCREEN_H_
#define OSCARKV_CLIENT_CLI_LIVE_SCREEN_H_

#include <termios.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace oscarkv::cli {

// Uses the alternate screen without echo or cursor; the destructor puts everything back. Blocks
// SIGINT, SIGTERM, SIGHUP and SIGWINCH for the threads that are started from then on, and takes
// them as events. One at a time; not thread-safe.
class LiveScreen {
 public:
  enum class Event { kQuit, kResized, kTimeout };

  // kFailedPrecondition when the output stream is no terminal.
  static absl::StatusOr<std::unique_ptr<LiveScreen>> Open();
  ~LiveScreen();
  LiveScreen(const LiveScreen&) = delete;
  LiveScreen& operator=(const LiveScreen&) = delete;

  // Fills the screen; lines and columns that have no room are left out.
  void Draw(const std::vector<std::string>& lines);
  // Waits for q, Ctrl-C, a signal, or `deadline`.
  Event Wait(absl::Time deadline);

 private:
  LiveScreen() = default;
  Event TakeSignal() const;

  std::optional<termios> before_;  // of the input stream, when that is a terminal
  int signals_ = -1;
};

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_LIVE_SCREEN_H_
