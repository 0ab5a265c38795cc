// Runs a fuzz target without libFuzzer: every file of the corpus, then seeded mutations of them, so
// that every build and every compiler exercises the target. Usage: x_fuzz CORPUS_FOLDER [--seed=N]
// [--runs=N]
#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Input = std::vector<uint8_t>;

std::vector<Input> ReadCorpus(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<Input> corpus;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return corpus;
}

// One to four random edits: flip a bit, set a byte, cut the end, repeat a part, write an extreme
// integer.
Input Mutate(Input input, std::mt19937_64& random) {
  const auto below = [&](size_t bound) {
    return static_cast<size_t>(random() % std::max<size_t>(bound, 1));
  };
  for (size_t edits = 1 + below(4); edits > 0; --edits) {
    if (input.empty()) input.push_back(static_cast<uint8_t>(random()));
    const size_t at = below(input.size());
    switch (below(5)) {
      case 0:
        input[at] = static_cast<uint8_t>(input[at] ^ (1u << below(8)));
        break;
      case 1:
        input[at] = static_cast<uint8_t>(random());
        break;
      case 2:
        input.resize(at);
        break;
      case 3: {
        const Input part(input.begin() + static_cast<std::ptrdiff_t>(at), input.end());
        input.insert(input.end(), part.begin(),
                     part.begin() + static_cast<std::ptrdiff_t>(below(part.size()) + 0));
        break;
      }
      default: {
        const uint64_t extremes[] = {
            0, 1, 0x7fffffffu, 0xffffffffu, ~uint64_t{0}, uint64_t{1} << 63};
        const uint64_t value = extremes[below(6)];
        for (size_t i = 0; i < 8 && at + i < input.size(); ++i)
          input[at + i] = static_cast<uint8_t>(value >> (8 * i));
      }
    }
  }
  return input;
}

bool ParseFlag(std::string_view argument, std::string_view name, uint64_t* value) {
  if (!argument.starts_with(name)) return false;
  argument.remove_prefix(name.size());
  return std::from_chars(argument.data(), argument.data() + argument.size(), *value).ec ==
         std::errc();
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t seed = 1;
  uint64_t runs = 20000;
  std::vector<Input> corpus = {Input{}};
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (ParseFlag(argument, "--seed=", &seed) || ParseFlag(argument, "--runs=", &runs)) continue;
    for (Input& input : ReadCorpus(argument)) corpus.push_back(std::move(input));
  }
  for (const Input& input : corpus) LLVMFuzzerTestOneInput(input.data(), input.size());
  std::mt19937_64 random(seed);
  for (uint64_t run = 0; run < runs; ++run) {
    const Input input = Mutate(corpus[random() % corpus.size()], random);
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::printf("%zu corpus inputs and %llu mutations of them (seed %llu): no crash\n", corpus.size(),
              static_cast<unsigned long long>(runs), static_cast<unsigned long long>(seed));
  return 0;
}
