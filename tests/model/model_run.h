// How a model is run: clients of one world, seed after seed.
#ifndef OSCARKV_TESTS_MODEL_MODEL_RUN_H_
#define OSCARKV_TESTS_MODEL_MODEL_RUN_H_

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "tests/model/world.h"

namespace oscarkv::testing {

using SeenCounts = std::map<std::string, uint64_t>;

template <typename SomeClient>
using Clients = std::vector<std::unique_ptr<SomeClient>>;

// Space adds up, with what the clients hold of it.
template <typename SomeClient>
void CheckSpaceOf(World& world, const Clients<SomeClient>& clients, size_t leases) {
  size_t puts = 0;
  size_t copies = 0;
  for (const auto& client : clients) {
    puts += client->open_puts();
    copies += client->held_copies();
  }
  world.CheckSpace(puts, leases, copies);
}

// All clients go: then nothing is held. What happened is added to `seen`.
template <typename SomeClient>
void EndAll(World& world, const Clients<SomeClient>& clients, SeenCounts* seen) {
  world.AddTo(seen);
  (*seen)["restarts"] += world.restarts();
  for (const auto& client : clients) {
    (*seen)["pages checked"] += client->pages_checked();
    (*seen)["copies checked"] += client->copies_checked();
    client->LetGoOfAll();
    client->CloseSession();
  }
  world.CheckNothingHeld();
}

struct ModelArguments {
  uint64_t seed = 0;   // 0: some, at random
  uint64_t seeds = 0;  // so many, from that one on
  uint64_t turns = 0;  // of a run
};

// Runs Run(seed), turn by turn, for the seed that is named or for many. `turn`: what a turn is
// called. Prints what happened when one seed is run.
template <typename Run>
void RunSeeds(const ModelArguments& arguments, const char* turn, SeenCounts* seen) {
  const bool one = arguments.seed != 0;
  const uint64_t first = one ? arguments.seed : 1 + std::random_device{}() % 1'000'000;
  const uint64_t runs = one ? 1 : arguments.seeds;
  std::printf("[    seeds ] %" PRIu64 " of %" PRIu64 " %ss from --seed=%" PRIu64 "\n", runs,
              arguments.turns, turn, first);
  std::fflush(stdout);
  for (uint64_t seed = first; seed < first + runs; ++seed) {
    SCOPED_TRACE(absl::StrCat("--seed=", seed, ": ", Profile::Of(seed).Describe()));
    Run run(seed);
    for (uint64_t i = 0; i < arguments.turns; ++i) {
      run.Turn();
      if (::testing::Test::HasFailure())
        FAIL() << "at " << turn << " " << i << " of --seed=" << seed;
    }
    run.End(seen);
    if (::testing::Test::HasFailure()) FAIL() << "at the end of --seed=" << seed;
  }
  if (!one) return;
  for (const auto& [name, count] : *seen) std::printf("%10" PRIu64 " %s\n", count, name.c_str());
}

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_MODEL_MODEL_RUN_H_
