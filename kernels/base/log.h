// Structured logs: one line an event, as text for people or as JSON for machines.
#ifndef OSCARKV_KERNELS_BASE_LOG_H_
#define OSCARKV_KERNELS_BASE_LOG_H_

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace oscarkv {

enum class LogLevel { kDebug, kInfo, kWarning, kError };
std::optional<LogLevel> ParseLogLevel(
    std::string_view name);  // "debug", "info", "warning", "error"

enum class LogFormat { kText, kJson };

// Writes to the error stream. Thread-safe: lines do not mix.
class Logger {
 public:
  using Field = std::pair<std::string_view, std::string>;

  Logger(LogLevel level, LogFormat format) : level_(level), format_(format) {}

  bool enabled(LogLevel level) const { return level >= level_; }
  void Log(LogLevel level, std::string_view message,
           std::initializer_list<Field> fields = {}) const;

 private:
  const LogLevel level_;
  const LogFormat format_;
  mutable absl::Mutex mutex_;  // held while a line is written
};

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_BASE_LOG_H_
