// What every back end of block I/O keeps. A back end's test registers it with a factory.
#ifndef OSCARKV_TESTS_TIER_DISK_BLOCK_IO_CONTRACT_H_
#define OSCARKV_TESTS_TIER_DISK_BLOCK_IO_CONTRACT_H_

#include <functional>
#include <memory>
#include <string>

#include "server/tier/disk/block_io.h"

namespace oscarkv::testing {

struct IoUnderTest {
  std::string name;
  // Null where the machine does not have it: the tests are skipped, and say so.
  std::function<std::unique_ptr<BlockIo>()> make;
};

int RegisterBlockIoContract(const IoUnderTest& io);

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_TIER_DISK_BLOCK_IO_CONTRACT_H_
