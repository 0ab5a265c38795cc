// What every tier keeps. A tier's test registers it with a factory.
#ifndef OSCARKV_TESTS_TIER_TIER_CONTRACT_H_
#define OSCARKV_TESTS_TIER_TIER_CONTRACT_H_

#include <functional>
#include <memory>
#include <string>

#include "server/core/tier.h"

namespace oscarkv::testing {

struct TierUnderTest {
  std::string name;
  // A tier of 1 MiB or a little less.
  std::function<std::unique_ptr<Tier>()> make;
};

int RegisterTierContract(const TierUnderTest& tier);

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_TIER_TIER_CONTRACT_H_
