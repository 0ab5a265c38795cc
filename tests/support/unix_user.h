// Being another user for a moment, and giving files to one: what root can do, so that tests of who
// may what run as root only.
#ifndef OSCARKV_TESTS_SUPPORT_UNIX_USER_H_
#define OSCARKV_TESTS_SUPPORT_UNIX_USER_H_

#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

namespace oscarkv::testing {

inline constexpr uid_t kNobody = 65534;

inline bool IsRoot() { return geteuid() == 0; }

// This thread, and no other, acts as `uid` while it lives.
class ActingAs {
 public:
  explicit ActingAs(uid_t uid) : done_(Become(uid)) {}
  ~ActingAs() {
    if (done_) done_ = Become(getuid());
  }
  ActingAs(const ActingAs&) = delete;
  ActingAs& operator=(const ActingAs&) = delete;

  bool done() const { return done_; }

 private:
  // The C library's seteuid would take all threads along.
  static bool Become(uid_t uid) { return syscall(SYS_setresuid, -1, uid, -1) == 0; }

  bool done_;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_SUPPORT_UNIX_USER_H_
