// Writes pages to the archive, behind everybody's back: pins a few, verifies them, writes them in
// one batch. Those that somebody waits for go first.
#ifndef OSCARKV_SERVER_CORE_ARCHIVE_WRITER_H_
#define OSCARKV_SERVER_CORE_ARCHIVE_WRITER_H_

#include <cstdint>
#include <thread>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"

#include "server/core/page_store.h"

namespace oscarkv {

// For one thread. The store, which has an archive, must outlive it.
class ArchiveWriter {
 public:
  explicit ArchiveWriter(PageStore& store) : store_(store) {}
  // Writes what somebody waits for, and tells them; then the next batch. False when nothing waited.
  // `error`, if not null, is what the device said to the last page that failed.
  bool Step(absl::Status* error = nullptr);

 private:
  bool WriteNext(absl::Status* error);

  PageStore& store_;
};

// An ArchiveWriter on a thread of its own, from construction to destruction.
class ArchiveWorker {
 public:
  // `on_error` is called on that thread when writing begins to fail, and with OK when it works
  // again. The store must outlive the worker.
  ArchiveWorker(PageStore& store, absl::AnyInvocable<void(const absl::Status&)> on_error);
  // Pages that still wait are not written; who waits for them is told kUnavailable.
  ~ArchiveWorker();

 private:
  void Run();

  PageStore& store_;
  absl::AnyInvocable<void(const absl::Status&)> on_error_;
  std::thread thread_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_ARCHIVE_WRITER_H_
