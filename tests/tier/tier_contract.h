// What every tier keeps. A tier's test registers it with a factory.
#ifndef OSCARKV_TESTS_TIER_TIER_CONTRACT_H_
#define OSCARKV_TESTS_TIER_TIER_CONTRACT_H_

#include <functional>
#include <memory>
#include <string>

#include "server/core/tier.h"

namespace oscarkv::testing {

// Each makes a tier of 1 MiB or a little less. What is asked of all tiers is asked of both kinds;
// of a CopiedTier also what its transfers do.
int RegisterTierContract(const std::string& name,
                         const std::function<std::unique_ptr<MappedTier>()>& make);
int RegisterCopiedTierContract(const std::string& name,
                               const std::function<std::unique_ptr<CopiedTier>()>& make);

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_TIER_TIER_CONTRACT_H_
