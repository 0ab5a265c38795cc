// Brings back what a page extends, so that the page can be put: a prefix that only the archive has
// is in memory again before it is extended.
#ifndef OSCARKV_SERVER_CORE_PARENT_LOADER_H_
#define OSCARKV_SERVER_CORE_PARENT_LOADER_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "server/core/page_store.h"

namespace oscarkv {

// Of one put, for which PageStore::ParentIsArchived. What has come stays while the loader does:
// begin the put before it goes. Used by one thread at a time, one that may wait for a device. The
// store must outlive it.
class ParentLoader {
 public:
  // What is read for one put at most: a sequence of a million tokens in pages of 64, in a part of
  // the memory, so that a put never drives out all that others use.
  static constexpr size_t kPagesMax = 1 << 14;
  static constexpr double kShareMax = 0.5;

  ParentLoader(PageStore& store, const Namespace& space, std::string_view parent);

  // Reads the next few pages, root first. Whether there is more to read.
  bool Step();
  uint64_t bytes_left() const { return bytes_left_; }  // of pages, to be read
  // It ended because room is being made: WIDE pages are being re-encoded. The put is to come again.
  bool busy() const { return busy_; }

 private:
  // False: there is nothing to read any more; the outcome is counted.
  bool End(ParentLoad outcome);

  PageStore& store_;
  const Namespace& space_;
  const std::string parent_;
  std::vector<ArchivedAncestor> left_;  // the next one last
  uint64_t bytes_left_ = 0;
  bool too_long_ = false;
  bool busy_ = false;
  PinnedPage last_;  // that came: with it stays what it extends
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_PARENT_LOADER_H_
