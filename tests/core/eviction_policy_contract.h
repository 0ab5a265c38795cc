// What every eviction policy keeps, whatever order it prefers. A policy's test registers it:
//
//   RegisterEvictionPolicyContract({"lru", [] { return std::make_unique<LruPolicy>(); }});
#ifndef OSCARKV_TESTS_CORE_EVICTION_POLICY_CONTRACT_H_
#define OSCARKV_TESTS_CORE_EVICTION_POLICY_CONTRACT_H_

#include <functional>
#include <memory>
#include <string>

#include "server/core/eviction_policy.h"

namespace oscarkv::testing {

struct PolicyUnderTest {
  std::string name;
  std::function<std::unique_ptr<EvictionPolicy>()> make;
};

// Call before RUN_ALL_TESTS: from a namespace-scope initialiser of the test's file.
int RegisterEvictionPolicyContract(const PolicyUnderTest& policy);

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_CORE_EVICTION_POLICY_CONTRACT_H_
