#include "kernels/base/fault_point.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace oscarkv {
namespace {

std::vector<std::string>& Seen() {
  static std::vector<std::string> seen;
  return seen;
}

TEST(FaultPointTest, TellsTheHandlerWhichPlaceItIsAndNobodyWithoutOne) {
  FaultPoint("before");
  SetFaultHandler([](std::string_view point) { Seen().emplace_back(point); });
  FaultPoint("one");
  FaultPoint("another");
  SetFaultHandler(nullptr);
  FaultPoint("after");
  EXPECT_EQ(Seen(), (std::vector<std::string>{"one", "another"}));
}

}  // namespace
}  // namespace oscarkv
