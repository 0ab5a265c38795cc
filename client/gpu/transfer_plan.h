// How pages are cut into steps that fit a stage of device memory. Knows no device.
#ifndef OSCARKV_CLIENT_GPU_TRANSFER_PLAN_H_
#define OSCARKV_CLIENT_GPU_TRANSFER_PLAN_H_

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/codec/page_layout.h"

namespace oscarkv::client {

// The part of a namespace's pages that a transfer moves.
struct TransferPart {
  BlockRange layers;
  BlockRange heads;
};

// A run of pages of one encoding and a run of layers: staged, copied and coded as one.
struct TransferStep {
  Encoding encoding = Encoding::kPacked;
  uint32_t first_page = 0;  // of the transfer's pages
  uint32_t pages = 0;
  BlockRange layers;
  uint64_t offset = 0;  // of the step's layers in each page's bytes
  uint64_t bytes = 0;   // of the step's layers in each page

  uint64_t stage_bytes() const { return pages * bytes; }
};

// The layouts of a namespace's two encodings; borrowed.
struct PageLayouts {
  const PageLayout& wide;
  const PageLayout& packed;
  const PageLayout& of(Encoding encoding) const {
    return encoding == Encoding::kWide ? wide : packed;
  }
};

// kInvalidArgument when `part` lies outside the geometry.
absl::Status CheckPart(const TransferPart& part, const Geometry& geometry);

// The bytes of `layers` in a page of which `part` is held.
uint64_t PartBytes(const PageLayout& layout, const TransferPart& part, BlockRange layers);

// The largest piece that no plan cuts: one layer of one page, of whichever encoding.
uint64_t LargestPiece(const PageLayouts& layouts);

// Groups of layers, in order: the first one of `first_layers`, so that it is ready soon, each twice
// as long as the one before as long as that is less than `layers_at_once`, and the rest as many as
// are needed then, of about one length.
std::vector<BlockRange> LayerGroups(BlockRange layers, uint32_t first_layers,
                                    uint32_t layers_at_once);

// How many layers make a piece of a PACKED page that has `piece_bytes`; at least one.
uint32_t LayersOfPiece(const PageLayouts& layouts, const TransferPart& part, uint64_t piece_bytes);

// From one layer on, and a page of a group takes no more than a stage, whatever its encoding.
std::vector<BlockRange> GroupsThatFit(const PageLayouts& layouts, const TransferPart& part,
                                      BlockRange layers, uint32_t layers_at_once,
                                      uint64_t stage_bytes);

// For fetches: steps of one layer group after another, so that the first layers of all pages come
// first. A group is cut further where a stage of `stage_bytes` does not take it for one page.
// `stage_bytes` is at least LargestPiece.
std::vector<TransferStep> PlanByLayers(const PageLayouts& layouts,
                                       std::span<const Encoding> encodings,
                                       const TransferPart& part, std::span<const BlockRange> groups,
                                       uint64_t stage_bytes);

// For pushes: steps of whole pages, as many as fit, one page after another where a stage does not
// take one.
std::vector<TransferStep> PlanByPages(const PageLayouts& layouts,
                                      std::span<const Encoding> encodings, uint64_t stage_bytes);

// A block of a page.
struct BlockPlace {
  uint32_t layer = 0;
  uint32_t head = 0;
};

// A step and where its status words begin, [pages][layers.count][heads.count].
struct StepWords {
  TransferStep step;
  uint64_t first_word = 0;
};

// For each of `pages` pages the first block, in the order of the steps, whose word has a bit of
// `mask`; nothing where no word has.
std::vector<std::optional<BlockPlace>> FirstMarked(std::span<const StepWords> steps,
                                                   std::span<const uint32_t> words,
                                                   BlockRange heads, uint32_t pages, uint32_t mask);

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_GPU_TRANSFER_PLAN_H_
