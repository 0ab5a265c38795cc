#include "tests/model/model_flags.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "gtest/gtest.h"

namespace oscarkv::testing {
namespace {

bool Takes(const ModelFlag& flag, absl::string_view text) {
  if (!absl::ConsumePrefix(&text, absl::StrCat("--", flag.name))) return false;
  if (flag.number != nullptr)
    return absl::ConsumePrefix(&text, "=") && absl::SimpleAtoi(text, flag.number);
  *flag.on = *flag.on || text.empty();
  return text.empty();
}

}  // namespace

int RunModelTests(int argc, char** argv, std::initializer_list<ModelFlag> flags) {
  ::testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    if (std::any_of(flags.begin(), flags.end(),
                    [&](const ModelFlag& flag) { return Takes(flag, argv[i]); }))
      continue;
    std::string usage = std::filesystem::path(argv[0]).filename();
    for (const ModelFlag& flag : flags)
      absl::StrAppend(&usage, " [--", flag.name, flag.number == nullptr ? "]" : "=N]");
    std::fprintf(stderr, "usage: %s; found %s\n", usage.c_str(), argv[i]);
    return 2;
  }
  return RUN_ALL_TESTS();
}

}  // namespace oscarkv::testing
