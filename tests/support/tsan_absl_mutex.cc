// Linked into every program of the tsan preset. ThreadSanitizer cannot see into the distribution's
// Abseil, which is not instrumented, so it would take everything that an absl::Mutex guards, or an
// absl::Notification orders, for a race. These definitions come before the library's (the dynamic
// linker prefers the program's), tell ThreadSanitizer which lock is taken or given back, and call
// the library's.
//
// Conditions of Await run in whichever thread unlocks, inside the library's call; what happens in
// there is under the real lock, so it is not looked at.
#include <dlfcn.h>

#include <cstring>
#include <string>

#include "absl/base/config.h"
#include "absl/base/options.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}

namespace {

#define OSCARKV_TSAN_TEXT_(x) #x
#define OSCARKV_TSAN_TEXT(x) OSCARKV_TSAN_TEXT_(x)

// The library's function: `rest` is the mangled name after the namespaces.
template <typename Function>
Function* Library(const char* rest) {
  std::string name = "_ZN";
  std::string tail = rest;
  if (tail[0] == 'K') {  // a const member
    name += 'K';
    tail.erase(0, 1);
  }
  name += "4absl";
#if ABSL_OPTION_USE_INLINE_NAMESPACE == 1
  const char* inner = OSCARKV_TSAN_TEXT(ABSL_OPTION_INLINE_NAMESPACE_NAME);
  name += std::to_string(std::strlen(inner)) + inner;
#endif
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, (name + tail).c_str()));
}

// Keeps ThreadSanitizer from looking at memory while the library works.
class Unseen {
 public:
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};

template <typename Function, typename... Arguments>
auto CallUnseen(Function* function, Arguments... arguments) {
  const Unseen unseen;
  return function(arguments...);
}

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  static auto* const library = Library<void(Mutex*)>("5Mutex4LockEv");
  CallUnseen(library, this);
  __tsan_acquire(this);
}
bool Mutex::TryLock() {
  static auto* const library = Library<bool(Mutex*)>("5Mutex7TryLockEv");
  const bool locked = CallUnseen(library, this);
  if (locked) __tsan_acquire(this);
  return locked;
}
void Mutex::Unlock() {
  static auto* const library = Library<void(Mutex*)>("5Mutex6UnlockEv");
  __tsan_release(this);
  CallUnseen(library, this);
}
void Mutex::ReaderLock() {
  static auto* const library = Library<void(Mutex*)>("5Mutex10ReaderLockEv");
  CallUnseen(library, this);
  __tsan_acquire(this);
}
void Mutex::ReaderUnlock() {
  static auto* const library = Library<void(Mutex*)>("5Mutex12ReaderUnlockEv");
  __tsan_release(this);
  CallUnseen(library, this);
}
void Mutex::Await(const Condition& condition) {
  static auto* const library =
      Library<void(Mutex*, const Condition*)>("5Mutex5AwaitERKNS0_9ConditionE");
  __tsan_release(this);
  CallUnseen(library, this, &condition);
  __tsan_acquire(this);
}
void Mutex::LockWhen(const Condition& condition) {
  static auto* const library =
      Library<void(Mutex*, const Condition*)>("5Mutex8LockWhenERKNS0_9ConditionE");
  CallUnseen(library, this, &condition);
  __tsan_acquire(this);
}
bool Mutex::AwaitWithTimeout(const Condition& condition, absl::Duration timeout) {
  static auto* const library = Library<bool(Mutex*, const Condition*, absl::Duration)>(
      "5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  __tsan_release(this);
  const bool met = CallUnseen(library, this, &condition, timeout);
  __tsan_acquire(this);
  return met;
}
bool Mutex::AwaitWithDeadline(const Condition& condition, absl::Time deadline) {
  static auto* const library = Library<bool(Mutex*, const Condition*, absl::Time)>(
      "5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE");
  __tsan_release(this);
  const bool met = CallUnseen(library, this, &condition, deadline);
  __tsan_acquire(this);
  return met;
}

void CondVar::Wait(Mutex* mutex) {
  static auto* const library = Library<void(CondVar*, Mutex*)>("7CondVar4WaitEPNS0_5MutexE");
  __tsan_release(mutex);
  CallUnseen(library, this, mutex);
  __tsan_acquire(mutex);
}
bool CondVar::WaitWithTimeout(Mutex* mutex, absl::Duration timeout) {
  static auto* const library = Library<bool(CondVar*, Mutex*, absl::Duration)>(
      "7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
  __tsan_release(mutex);
  const bool expired = CallUnseen(library, this, mutex, timeout);
  __tsan_acquire(mutex);
  return expired;
}
bool CondVar::WaitWithDeadline(Mutex* mutex, absl::Time deadline) {
  static auto* const library = Library<bool(CondVar*, Mutex*, absl::Time)>(
      "7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  __tsan_release(mutex);
  const bool expired = CallUnseen(library, this, mutex, deadline);
  __tsan_acquire(mutex);
  return expired;
}

void Notification::Notify() {
  static auto* const library = Library<void(Notification*)>("12Notification6NotifyEv");
  __tsan_release(this);
  CallUnseen(library, this);
}
void Notification::WaitForNotification() const {
  static auto* const library =
      Library<void(const Notification*)>("K12Notification19WaitForNotificationEv");
  CallUnseen(library, this);
  __tsan_acquire(const_cast<Notification*>(this));
}

ABSL_NAMESPACE_END
}  // namespace absl
