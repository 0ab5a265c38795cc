#include "client/gpu/transfer_plan.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"

namespace oscarkv::client {
namespace {

// Calls `run(first, count)` for each maximal run of pages of one encoding.
template <typename Run>
void ForEachRun(std::span<const Encoding> encodings, Run&& run) {
  for (size_t first = 0; first < encodings.size();) {
    size_t end = first + 1;
    while (end < encodings.size() && encodings[end] == encodings[first]) ++end;
    run(static_cast<uint32_t>(first), static_cast<uint32_t>(end - first));
    first = end;
  }
}

// How many of `layers`, from its first on, one page has within `stage_bytes`; at least one.
uint32_t LayersThatFit(const PageLayout& layout, const TransferPart& part, BlockRange layers,
                       uint64_t stage_bytes) {
  uint32_t count = layers.count;
  while (count > 1 && PartBytes(layout, part, {layers.first, count}) > stage_bytes) --count;
  return count;
}

// Steps of the pages first..first+count-1 over `layers`.
void AddSteps(const PageLayout& layout, const TransferPart& part, BlockRange layers, uint32_t first,
              uint32_t count, uint64_t stage_bytes, std::vector<TransferStep>* steps) {
  const uint64_t bytes = PartBytes(layout, part, layers);
  const auto pages_max = static_cast<uint32_t>(std::max<uint64_t>(stage_bytes / bytes, 1));
  const BlockRange before{part.layers.first, layers.first - part.layers.first};
  // Steps of about one size: a short last one would leave the copy engine idle.
  const uint32_t turns = (count + pages_max - 1) / pages_max;
  for (uint32_t turn = 0; turn < turns; ++turn) {
    const uint32_t begin = static_cast<uint32_t>(uint64_t{count} * turn / turns);
    const uint32_t end = static_cast<uint32_t>(uint64_t{count} * (turn + 1) / turns);
    steps->push_back({.encoding = layout.encoding(),
                      .first_page = first + begin,
                      .pages = end - begin,
                      .layers = layers,
                      .offset = PartBytes(layout, part, before),
                      .bytes = bytes});
  }
}

}  // namespace

absl::Status CheckPart(const TransferPart& part, const Geometry& geometry) {
  const auto check = [](const char* what, BlockRange range, uint32_t count) {
    if (range.count > 0 && range.first < count && range.count <= count - range.first)
      return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(what, " ", range.first, " + ", range.count,
                                                   " do not lie within 0..", count - 1));
  };
  OSCARKV_RETURN_IF_ERROR(check("layers", part.layers, geometry.layers));
  return check("heads", part.heads, geometry.kv_heads);
}

uint64_t PartBytes(const PageLayout& layout, const TransferPart& part, BlockRange layers) {
  return layout.range_bytes(layers, part.heads);
}

uint64_t LargestPiece(const PageLayouts& layouts) {
  const Geometry& geometry = layouts.wide.geometry();
  uint64_t largest = 0;
  for (uint32_t layer = 0; layer < geometry.layers; ++layer) {
    for (const PageLayout* layout : {&layouts.wide, &layouts.packed})
      largest = std::max(largest, layout->range_bytes({layer, 1}, {0, geometry.kv_heads}));
  }
  return largest;
}

std::vector<BlockRange> LayerGroups(BlockRange layers, uint32_t first_layers,
                                    uint32_t layers_at_once) {
  std::vector<BlockRange> groups;
  uint32_t first = layers.first;
  const uint32_t end = layers.first + layers.count;
  for (uint32_t count = first_layers; count < layers_at_once && count < end - first; count *= 2) {
    groups.push_back({first, count});
    first += count;
  }
  for (uint32_t turns = (end - first + layers_at_once - 1) / layers_at_once; turns > 0; --turns) {
    groups.push_back({first, (end - first + turns - 1) / turns});
    first += groups.back().count;
  }
  return groups;
}

uint32_t LayersOfPiece(const PageLayouts& layouts, const TransferPart& part, uint64_t piece_bytes) {
  uint32_t count = 1;
  while (count < part.layers.count &&
         PartBytes(layouts.packed, part, {part.layers.first, count}) < piece_bytes)
    ++count;
  return count;
}

std::vector<BlockRange> GroupsThatFit(const PageLayouts& layouts, const TransferPart& part,
                                      BlockRange layers, uint32_t layers_at_once,
                                      uint64_t stage_bytes) {
  std::vector<BlockRange> groups;
  for (BlockRange rest : LayerGroups(layers, /*first_layers=*/1, layers_at_once)) {
    while (rest.count > 0) {
      const uint32_t count = std::min(LayersThatFit(layouts.wide, part, rest, stage_bytes),
                                      LayersThatFit(layouts.packed, part, rest, stage_bytes));
      groups.push_back({rest.first, count});
      rest = {rest.first + count, rest.count - count};
    }
  }
  return groups;
}

std::vector<TransferStep> PlanByLayers(const PageLayouts& layouts,
                                       std::span<const Encoding> encodings,
                                       const TransferPart& part, std::span<const BlockRange> groups,
                                       uint64_t stage_bytes) {
  std::vector<TransferStep> steps;
  for (const BlockRange group : groups) {
    ForEachRun(encodings, [&](uint32_t first, uint32_t count) {
      const PageLayout& layout = layouts.of(encodings[first]);
      for (uint32_t done = 0; done < group.count;) {
        const BlockRange rest{group.first + done, group.count - done};
        const BlockRange layers{rest.first, LayersThatFit(layout, part, rest, stage_bytes)};
        AddSteps(layout, part, layers, first, count, stage_bytes, &steps);
        done += layers.count;
      }
    });
  }
  return steps;
}

std::vector<TransferStep> PlanByPages(const PageLayouts& layouts,
                                      std::span<const Encoding> encodings, uint64_t stage_bytes) {
  const Geometry& geometry = layouts.wide.geometry();
  const TransferPart whole{{0, geometry.layers}, {0, geometry.kv_heads}};
  std::vector<TransferStep> steps;
  ForEachRun(encodings, [&](uint32_t first, uint32_t count) {
    const PageLayout& layout = layouts.of(encodings[first]);
    if (layout.page_bytes() <= stage_bytes) {
      AddSteps(layout, whole, whole.layers, first, count, stage_bytes, &steps);
      return;
    }
    for (uint32_t page = first; page < first + count; ++page) {
      for (uint32_t layer = 0; layer < geometry.layers;) {
        const BlockRange rest{layer, geometry.layers - layer};
        const BlockRange layers{layer, LayersThatFit(layout, whole, rest, stage_bytes)};
        AddSteps(layout, whole, layers, page, 1, stage_bytes, &steps);
        layer += layers.count;
      }
    }
  });
  return steps;
}

std::vector<std::optional<BlockPlace>> FirstMarked(std::span<const StepWords> steps,
                                                   std::span<const uint32_t> words,
                                                   BlockRange heads, uint32_t pages,
                                                   uint32_t mask) {
  std::vector<std::optional<BlockPlace>> marked(pages);
  for (const auto& [step, first_word] : steps) {
    const uint64_t blocks = uint64_t{step.layers.count} * heads.count;
    const std::span<const uint32_t> of_step = words.subspan(first_word, step.pages * blocks);
    // All at once first: nearly always there is nothing, in hundreds of thousands of words.
    if ((std::reduce(of_step.begin(), of_step.end(), 0u, std::bit_or<>()) & mask) == 0) continue;
    for (uint64_t i = 0; i < of_step.size(); ++i) {
      if ((of_step[i] & mask) == 0) continue;
      std::optional<BlockPlace>& place = marked[step.first_page + i / blocks];
      if (place) continue;
      const auto block = static_cast<uint32_t>(i % blocks);
      place =
          BlockPlace{step.layers.first + block / heads.count, heads.first + block % heads.count};
    }
  }
  return marked;
}

}  // namespace oscarkv::client
