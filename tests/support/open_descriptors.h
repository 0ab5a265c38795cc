// How many descriptors this process has open: a test that hands some around sees that none is left.
#ifndef OSCARKV_TESTS_SUPPORT_OPEN_DESCRIPTORS_H_
#define OSCARKV_TESTS_SUPPORT_OPEN_DESCRIPTORS_H_

#include <algorithm>
#include <cstddef>
#include <filesystem>

namespace oscarkv::testing {

inline size_t OpenDescriptors() {
  const std::filesystem::directory_iterator open("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(open), end(open)));
}

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_SUPPORT_OPEN_DESCRIPTORS_H_
