// Being another user for a moment, and giving files to one: what root can do, so that tests of who
// may what run as root only.
#ifndef OSCARKV_TESTS_SUPPORT_UNIX_USER_H_
#define OSCARKV_TESTS_SUPPORT_UNIX_USER_H_

#include <sys/types.h>
#include <unistd.h>

namespace oscarkv::testing {

inline constexpr uid_t kNobody = 65534;

inline bool IsRoot() { return geteuid() == 0; }

// The whole process acts as `uid` while it lives.
class ActingAs {
 public:
  explicit ActingAs(uid_t uid) : done_(seteuid(uid) == 0) {}
  ~ActingAs() {
    if (done_) done_ = seteuid(getuid()) == 0;
  }
  ActingAs(const ActingAs&) = delete;
  ActingAs& operator=(const ActingAs&) = delete;

  bool done() const { return done_; }

 private:
  bool done_;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_SUPPORT_UNIX_USER_H_
