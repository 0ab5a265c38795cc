// The device's attention over pages beside fp64 arithmetic on the same codes.
#include "kernels/attention/attend.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/codec/oscar/format.h"
#include "kernels/device/buffer.h"
#include "kernels/device/status.h"
#include "kernels/device/stream.h"
#include "tests/codec/page_testing.h"
#include "tests/gpu/gpu_cache.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

using device::DeviceBuffer;
using ::testing::HasSubstr;

constexpr uint32_t kPool = 12;  // pages of each encoding that requests share
constexpr uint32_t kLayer = 1;
constexpr uint32_t kHeads = 2;

enum class Pages { kPacked, kWide, kMixed };

struct Case {
  uint32_t dim = 128;
  uint32_t ratio = 4;
  uint32_t new_tokens = 1;
  uint32_t page_tokens = 64;
  Pages pages = Pages::kMixed;
  std::vector<uint32_t> lengths = {1, 7, 64, 319, 320, 321, 1500};
  float query_gain = 1.0f;
  DType dtype = DType::kBf16;
  ParamsDType params = ParamsDType::kFp16;
};

std::string Describe(const Case& c) {
  std::string text =
      "dim " + std::to_string(c.dim) + " ratio " + std::to_string(c.ratio) + " new " +
      std::to_string(c.new_tokens) + " page " + std::to_string(c.page_tokens) + " pages " +
      std::to_string(static_cast<int>(c.pages)) + " dtype " + std::string(DTypeName(c.dtype)) +
      (c.params == ParamsDType::kFp32 ? " fp32 params" : "") + " lengths";
  for (uint32_t length : c.lengths) text += " " + std::to_string(length);
  return text;
}

Geometry GeometryOf(const Case& c) {
  return {.layers = 2,
          .kv_heads = kHeads,
          .k_head_dim = c.dim,
          .v_head_dim = c.dim,
          .page_tokens = c.page_tokens,
          .dtype = c.dtype};
}

CodecSpec Spec(ParamsDType params = ParamsDType::kFp16) {
  CodecSpec spec;
  spec.params = params;
  spec.transform_hash = std::string(32, 't');
  return spec;
}

// Keys' matrices are far from orthogonal and have offsets; values' are rotations with offsets.
std::shared_ptr<const TransformSet> Transforms(const Geometry& geometry) {
  std::vector<LayerTransform> layers(geometry.layers);
  uint64_t seed = 1;
  for (LayerTransform& layer : layers) {
    layer.k_method = layer.v_method = "random";
    for (uint32_t head = 0; head < geometry.kv_heads; ++head) {
      layer.k.push_back(RandomBalanced(geometry.k_head_dim, 10.0, seed++));
      layer.v.push_back(RandomRotation(geometry.v_head_dim, seed++));
      for (uint32_t i = 0; i < geometry.v_head_dim; ++i)
        layer.v.back().offset[i] = 0.25f * static_cast<float>((i + seed) % 5) - 0.5f;
    }
  }
  return std::make_shared<const TransformSet>(
      OrDie(TransformSet::Create(std::move(layers), geometry.kv_heads)));
}

// A page and its rows of kLayer in the model's basis.
struct Page {
  Encoding encoding;
  Bytes bytes;
  std::vector<double> k[kHeads];  // [page_tokens][dim]
  std::vector<double> v[kHeads];
  double k_norm[kHeads] = {};  // greatest sum of magnitudes of a key in the transformed basis
};

std::vector<double> DecodeRows(const SideLayout& side, const Case& c, Encoding encoding,
                               const std::byte* block, const SideTransform& transform,
                               double& norm) {
  const uint32_t tokens = c.page_tokens;
  const uint32_t dim = side.dim;
  std::vector<double> rows(size_t{tokens} * dim);
  std::vector<double> y(dim);
  for (uint32_t token = 0; token < tokens; ++token) {
    const std::byte* row = block + side.rows_offset + token * side.row_bytes;
    double* x = rows.data() + size_t{token} * dim;
    if (encoding == Encoding::kWide) {
      for (uint32_t i = 0; i < dim; ++i) x[i] = double{LoadElement(row + size_t{2} * i, c.dtype)};
      continue;
    }
    const ScaleZero params =
        LoadParams(block + side.params_offset + size_t{token} * side.params_row_bytes, 0, c.params);
    double sum = 0.0;
    for (uint32_t i = 0; i < dim; ++i) {
      y[i] = (double{static_cast<float>(LoadCode(row, i, dim, 2))} - double{params.zero}) *
             double{params.scale};
      sum += std::abs(y[i]);
    }
    norm = std::max(norm, sum);
    for (uint32_t j = 0; j < dim; ++j) x[j] = double{transform.offset[j]};
    for (uint32_t i = 0; i < dim; ++i) {
      for (uint32_t j = 0; j < dim; ++j) x[j] += y[i] * double{transform.inverse[i * dim + j]};
    }
  }
  return rows;
}

// Pages that many tests share.
struct Pool {
  Geometry geometry;
  std::shared_ptr<const TransformSet> transforms;
  std::unique_ptr<PageCodec> cpu;
  std::vector<Page> packed;
  std::vector<Page> wide;

  explicit Pool(const Case& c) : geometry(GeometryOf(c)), transforms(Transforms(geometry)) {
    cpu = OrDie(MakePageCodec(CodecBackend::kCpu, geometry, Spec(c.params), transforms));
    EngineCache source(EngineLayout::kTokenMajor, geometry, c.dtype, kPool * c.page_tokens);
    source.FillGaussian(7);
    for (uint32_t page = 0; page < kPool; ++page) {
      std::vector<int64_t> slots(c.page_tokens);
      for (uint32_t i = 0; i < c.page_tokens; ++i) slots[i] = int64_t{page * c.page_tokens + i};
      for (Encoding encoding : {Encoding::kPacked, Encoding::kWide}) {
        Page made{.encoding = encoding,
                  .bytes = EncodePage(*cpu, encoding, source, slots).bytes,
                  .k = {},
                  .v = {}};
        const PageLayout& layout = cpu->layout(encoding);
        const BlockLayout& block = layout.block(kLayer);
        for (uint32_t head = 0; head < kHeads; ++head) {
          const std::byte* bytes = made.bytes.data() + layout.block_offset(kLayer, head);
          double v_norm = 0.0;
          made.k[head] = DecodeRows(block.k, c, encoding, bytes, transforms->k(kLayer, head),
                                    made.k_norm[head]);
          made.v[head] =
              DecodeRows(block.v, c, encoding, bytes, transforms->v(kLayer, head), v_norm);
        }
        (encoding == Encoding::kPacked ? packed : wide).push_back(std::move(made));
      }
    }
  }

  // With all rows from `tokens` on made NaN.
  Bytes Cut(const Page& page, uint32_t tokens) const {
    Bytes bytes = page.bytes;
    const PageLayout& layout = cpu->layout(page.encoding);
    for (uint32_t layer = 0; layer < geometry.layers; ++layer) {
      for (uint32_t head = 0; head < kHeads; ++head) {
        std::byte* block = bytes.data() + layout.block_offset(layer, head);
        for (const SideLayout* side : {&layout.block(layer).k, &layout.block(layer).v}) {
          for (uint32_t token = tokens; token < geometry.page_tokens; ++token) {
            std::fill_n(block + side->rows_offset + token * side->row_bytes, side->row_bytes,
                        std::byte{0xff});
            std::fill_n(block + side->params_offset + token * side->params_row_bytes,
                        side->params_row_bytes, std::byte{0xff});
          }
        }
      }
    }
    return bytes;
  }
};

const Pool& PoolFor(const Case& c) {
  static auto* pools =
      new std::vector<std::pair<std::pair<Geometry, ParamsDType>, std::unique_ptr<Pool>>>;
  const std::pair<Geometry, ParamsDType> wanted(GeometryOf(c), c.params);
  for (const auto& [which, pool] : *pools) {
    if (which.first == wanted.first && which.second == wanted.second) return *pool;
  }
  pools->emplace_back(wanted, std::make_unique<Pool>(c));
  return *pools->back().second;
}

struct Place {
  const Page* page;
  uint32_t position;
  uint32_t tokens;
};

struct Outcome {
  std::vector<double> output;  // [requests][new_tokens][q_heads][dim]
  std::vector<double> log_sum_exp;
  std::vector<double> log_sum_exp_bound;  // of what attend.h says; only of what is expected
};

// A batch on the device and what it must come to.
struct Batch {
  Case c;
  const Pool& pool;
  uint32_t q_heads;
  std::unique_ptr<cuda::Attention> attention;
  std::vector<std::vector<Place>> places;
  std::vector<std::byte> queries;
  std::vector<DeviceBuffer> memory;
  DeviceBuffer output;
  DeviceBuffer log_sum_exp;
  DeviceBuffer workspace;
  cuda::AttendBatch batch;

  template <typename T>
  T* Put(const std::vector<T>& host) {
    memory.push_back(Copy(host));
    return memory.back().as<T>();
  }
  template <typename T>
  static DeviceBuffer Copy(const std::vector<T>& host) {
    return OrDie(DeviceBuffer::CopyOf(std::span(host)));
  }

  explicit Batch(Case of) : c(std::move(of)), pool(PoolFor(c)), q_heads(kHeads * c.ratio) {
    attention =
        OrDie(cuda::Attention::Create(pool.geometry, Spec(c.params), *pool.transforms, q_heads));
    std::mt19937 random(11);
    std::vector<std::byte*> on_device[2];
    for (const Page& page : pool.packed) on_device[0].push_back(Put(page.bytes));
    for (const Page& page : pool.wide) on_device[1].push_back(Put(page.bytes));
    std::vector<cuda::AttendPage> table;
    std::vector<uint32_t> first{0};
    for (uint32_t length : c.lengths) {
      std::vector<Place> of_request;
      std::vector<cuda::AttendPage> entries;
      for (uint32_t position = 0; position < length; position += c.page_tokens) {
        const uint32_t tokens = std::min(c.page_tokens, length - position);
        const bool outer = position == 0 || position + 2 * c.page_tokens > length;
        const bool wide = c.pages == Pages::kWide || (c.pages == Pages::kMixed && outer);
        const uint32_t number = static_cast<uint32_t>(random() % kPool);
        const Page& page = wide ? pool.wide[number] : pool.packed[number];
        std::byte* bytes = on_device[wide ? 1 : 0][number];
        if (tokens < c.page_tokens) bytes = Put(pool.Cut(page, tokens));
        of_request.push_back({&page, position, tokens});
        entries.push_back({.bytes = bytes,
                           .position = position,
                           .tokens = static_cast<uint16_t>(tokens),
                           .encoding = page.encoding});
      }
      std::shuffle(entries.begin(), entries.end(), random);
      table.insert(table.end(), entries.begin(), entries.end());
      first.push_back(static_cast<uint32_t>(table.size()));
      places.push_back(std::move(of_request));
    }
    table.emplace_back();  // so that it is never empty
    const auto requests = static_cast<uint32_t>(c.lengths.size());
    const size_t rows = size_t{requests} * c.new_tokens * q_heads;
    std::normal_distribution<float> normal(0.0f, c.query_gain);
    queries.resize(rows * c.dim * 2);
    for (size_t i = 0; i < rows * c.dim; ++i)
      StoreElement(queries.data() + 2 * i, c.dtype, normal(random));
    output = Copy(Bytes(queries.size(), std::byte{0xff}));
    log_sum_exp = Copy(std::vector<float>(rows, NAN));
    workspace = Copy(Bytes(attention->WorkspaceBytes(requests, c.new_tokens), std::byte{0xff}));
    batch = {.layer = kLayer,
             .requests = requests,
             .new_tokens = c.new_tokens,
             .softmax_scale = 1.0f / std::sqrt(static_cast<float>(c.dim)),
             .pages = Put(table),
             .first_page = Put(first),
             .lengths = Put(c.lengths),
             .queries = Put(queries),
             .output = output.data(),
             .log_sum_exp = log_sum_exp.as<float>()};
    OrDie(attention->InitWorkspace(workspace.data(), workspace.size(), nullptr));
    OrDie(device::ToStatus(cudaDeviceSynchronize(), "clearing counters"));
  }

  absl::Status Enqueue(cudaStream_t stream) const {
    return attention->Attend(batch, workspace.data(), workspace.size(), stream);
  }

  Outcome Read() const {
    Bytes bytes(queries.size());
    OrDie(output.CopyTo(bytes));
    std::vector<float> sums(log_sum_exp.size() / sizeof(float));
    OrDie(log_sum_exp.CopyTo(std::as_writable_bytes(std::span(sums))));
    Outcome outcome;
    for (size_t i = 0; i < bytes.size(); i += 2)
      outcome.output.push_back(double{LoadElement(bytes.data() + i, c.dtype)});
    outcome.log_sum_exp.assign(sums.begin(), sums.end());
    return outcome;
  }

  Outcome Run() const {
    const auto stream = OrDie(device::Stream::Create());
    EXPECT_OK(Enqueue(stream.get()));
    EXPECT_OK(stream.Synchronize());
    return Read();
  }

  Outcome Expected() const {
    Outcome outcome;
    size_t row = 0;
    for (size_t request = 0; request < c.lengths.size(); ++request) {
      for (uint32_t token = 0; token < c.new_tokens; ++token) {
        for (uint32_t q_head = 0; q_head < q_heads; ++q_head, ++row)
          AddExpected(places[request], c.lengths[request] + token, q_head, row, outcome);
      }
    }
    return outcome;
  }

  // The greatest sum of magnitudes that an element of the transformed query is made of.
  double Reach(const std::vector<double>& query, uint32_t head) const {
    const SideTransform& transform = pool.transforms->k(kLayer, head);
    double greatest = 0.0;
    for (uint32_t i = 0; i < c.dim; ++i) {
      double sum = 0.0;
      for (uint32_t j = 0; j < c.dim; ++j)
        sum += std::abs(double{transform.inverse[i * c.dim + j]} * query[j]);
      greatest = std::max(greatest, sum);
    }
    return greatest;
  }

  // Positions before `seen_end` - (new_tokens - 1) are seen.
  void AddExpected(const std::vector<Place>& of_request, uint32_t seen_end, uint32_t q_head,
                   size_t row, Outcome& outcome) const {
    const uint32_t head = q_head / c.ratio;
    std::vector<double> logits;
    std::vector<const double*> values;
    double top = -HUGE_VAL;
    double k_norm = 0.0;
    std::vector<double> query(c.dim);
    for (uint32_t d = 0; d < c.dim; ++d)
      query[d] = double{LoadElement(queries.data() + (row * c.dim + d) * 2, c.dtype)};
    for (const Place& place : of_request) {
      k_norm = std::max(k_norm, place.page->k_norm[head]);
      for (uint32_t i = 0; i < place.tokens; ++i) {
        if (place.position + i + c.new_tokens > seen_end) break;
        double dot = 0.0;
        for (uint32_t d = 0; d < c.dim; ++d)
          dot += query[d] * place.page->k[head][size_t{i} * c.dim + d];
        logits.push_back(dot * double{batch.softmax_scale});
        values.push_back(&place.page->v[head][size_t{i} * c.dim]);
        top = std::max(top, logits.back());
      }
    }
    double total = 0.0;
    std::vector<double> sum(c.dim, 0.0);
    for (size_t i = 0; i < logits.size(); ++i) {
      const double p = std::exp(logits[i] - top);
      total += p;
      for (uint32_t d = 0; d < c.dim; ++d) sum[d] += p * values[i][d];
    }
    for (double x : sum) outcome.output.push_back(total > 0.0 ? x / total : 0.0);
    outcome.log_sum_exp.push_back(top + std::log(total));
    outcome.log_sum_exp_bound.push_back(0x1.0p-14 + 0x1.0p-13 * double{batch.softmax_scale} *
                                                        k_norm * Reach(query, head));
  }
};

// |found - expected| / |expected|; not finite when anything found is not.
double Relative(const std::vector<double>& found, const std::vector<double>& expected) {
  double difference = 0.0;
  double norm = 0.0;
  for (size_t i = 0; i < found.size(); ++i) {
    difference += (found[i] - expected[i]) * (found[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference / norm);
}

void ExpectClose(const Case& c, const Outcome& found, const Outcome& expected) {
  EXPECT_LE(Relative(found.output, expected.output), 3e-3) << Describe(c);
  // Request by request too: a short one's fault would drown among the others.
  const size_t each = found.output.size() / c.lengths.size();
  for (size_t request = 0; request < c.lengths.size(); ++request) {
    const auto part = [&](const std::vector<double>& all) {
      const auto begin = all.begin() + static_cast<std::ptrdiff_t>(request * each);
      return std::vector<double>(begin, begin + static_cast<std::ptrdiff_t>(each));
    };
    EXPECT_LE(Relative(part(found.output), part(expected.output)), 4e-3)
        << Describe(c) << " request " << request;
  }
  for (size_t i = 0; i < found.log_sum_exp.size(); ++i) {
    ASSERT_NEAR(found.log_sum_exp[i], expected.log_sum_exp[i], expected.log_sum_exp_bound[i])
        << Describe(c) << " row " << i;
  }
}

void AddOtherTypes(uint32_t dim, std::vector<Case>& cases) {
  for (uint32_t ratio : {4u, 8u, 12u}) {
    Case c{.dim = dim, .ratio = ratio, .new_tokens = 2, .lengths = {2, 63, 64, 65, 1000}};
    c.params = ParamsDType::kFp32;
    cases.push_back(c);
    c.dtype = DType::kFp16;
    cases.push_back(c);
    c.params = ParamsDType::kFp16;
    cases.push_back(c);
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (uint32_t dim : {128u, 64u, 256u}) {
    for (Pages pages : {Pages::kPacked, Pages::kWide, Pages::kMixed})
      cases.push_back({.dim = dim, .pages = pages});
    for (uint32_t ratio : {1u, 2u, 3u, 5u, 6u, 7u, 8u, 9u, 12u, 15u, 16u})
      cases.push_back({.dim = dim, .ratio = ratio, .lengths = {1, 200, 700}});
    for (uint32_t new_tokens = 2; new_tokens <= 8; ++new_tokens) {
      for (Pages pages : {Pages::kPacked, Pages::kWide, Pages::kMixed}) {
        cases.push_back({.dim = dim,
                         .ratio = new_tokens % 2 == 0 ? 4u : 6u,
                         .new_tokens = new_tokens,
                         .pages = pages,
                         .lengths = {8, 65, 66, 330}});
      }
    }
    for (uint32_t page_tokens : {8u, 16u, 24u, 32u, 128u}) {
      if (page_tokens * dim > 16384) continue;
      for (Pages pages : {Pages::kPacked, Pages::kMixed}) {
        cases.push_back({.dim = dim,
                         .page_tokens = page_tokens,
                         .pages = pages,
                         .lengths = {1, 15, 16, 17, 100, 777}});
      }
    }
    cases.push_back({.dim = dim, .ratio = 16, .new_tokens = 8, .lengths = {9, 500}});
    cases.push_back({.dim = dim, .pages = Pages::kPacked, .lengths = {4095, 20000}});
    AddOtherTypes(dim, cases);
    // Logits beyond what probabilities relative to the first tile's could hold.
    cases.push_back({.dim = dim, .lengths = {1000, 30}, .query_gain = 12.0f});
  }
  Case many;
  many.lengths.clear();
  for (uint32_t i = 0; i < 256; ++i) many.lengths.push_back(1 + i * 37 % 400);
  cases.push_back(many);
  cases.push_back({.lengths = {1, 30000, 17, 64, 5000, 5000}});
  return cases;
}

class AttendTest : public ::testing::TestWithParam<Case> {};

TEST_P(AttendTest, ComesToWhatFp64DoesOnTheSameCodes) {
  const Batch batch(GetParam());
  ExpectClose(GetParam(), batch.Run(), batch.Expected());
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttendTest, ::testing::ValuesIn(Cases()),
                         [](const auto& instance) { return std::to_string(instance.index); });

TEST(AttendTest, CanBeCapturedAndReplayedOnABatchThatHasChanged) {
  const Case first{.lengths = {100, 900}};
  const Case second{.lengths = {700, 300}};
  const Batch batch(first);
  const Batch other(second);
  const auto stream = OrDie(device::Stream::Create());
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ASSERT_EQ(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal), cudaSuccess);
  ASSERT_OK(batch.Enqueue(stream.get()));
  ASSERT_EQ(cudaStreamEndCapture(stream.get(), &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  for (int replay = 0; replay < 3; ++replay)
    ASSERT_EQ(cudaGraphLaunch(executable, stream.get()), cudaSuccess);
  ASSERT_OK(stream.Synchronize());
  ExpectClose(first, batch.Read(), batch.Expected());
  // The other batch's tables and queries over this one's.
  const auto copy = [&](const void* to, const void* from, size_t bytes) {
    ASSERT_EQ(cudaMemcpy(const_cast<void*>(to), from, bytes, cudaMemcpyDeviceToDevice),
              cudaSuccess);
  };
  copy(batch.batch.pages, other.batch.pages, (2 + 11 + 3) * sizeof(cuda::AttendPage));
  copy(batch.batch.first_page, other.batch.first_page, 3 * sizeof(uint32_t));
  copy(batch.batch.lengths, other.batch.lengths, 2 * sizeof(uint32_t));
  copy(batch.batch.queries, other.batch.queries, other.queries.size());
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);  // such copies wait for nothing
  ASSERT_EQ(cudaGraphLaunch(executable, stream.get()), cudaSuccess);
  ASSERT_OK(stream.Synchronize());
  ExpectClose(second, batch.Read(), other.Expected());
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

TEST(AttendTest, AWorkspaceServesBatchesOfAllSizesInTurn) {
  std::vector<uint32_t> many;
  for (uint32_t i = 0; i < 200; ++i) many.push_back(1 + i * 53 % 900);
  const Case large{.lengths = many};
  const Case small{.lengths = {5000}};
  const Batch first(large);
  const Batch second(small);
  const auto stream = OrDie(device::Stream::Create());
  for (int repeat = 0; repeat < 2; ++repeat) {
    ASSERT_OK(first.Enqueue(stream.get()));
    ASSERT_OK(second.attention->Attend(second.batch, first.workspace.data(), first.workspace.size(),
                                       stream.get()));
  }
  ASSERT_OK(stream.Synchronize());
  ExpectClose(large, first.Read(), first.Expected());
  ExpectClose(small, second.Read(), second.Expected());
}

TEST(AttendTest, GivesTheSameBitsEveryTime) {
  const Batch batch(Case{.lengths = {3000, 17, 600}});
  const Outcome once = batch.Run();
  for (int repeat = 0; repeat < 5; ++repeat) EXPECT_EQ(batch.Run().output, once.output);
}

TEST(AttendTest, APageHoldsNoMoreThanAPage) {
  const Case c{.lengths = {640}};
  const Batch batch(c);
  const Outcome once = batch.Run();
  std::vector<cuda::AttendPage> table(10);
  void* there = const_cast<cuda::AttendPage*>(batch.batch.pages);
  const size_t bytes = table.size() * sizeof(cuda::AttendPage);
  ASSERT_EQ(cudaMemcpy(table.data(), there, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
  for (cuda::AttendPage& page : table) page.tokens = 65535;
  ASSERT_EQ(cudaMemcpy(there, table.data(), bytes, cudaMemcpyHostToDevice), cudaSuccess);
  EXPECT_EQ(batch.Run().output, once.output);
}

TEST(AttendTest, ARequestWithoutPagesComesToZero) {
  const Case c{.pages = Pages::kPacked, .lengths = {0, 100, 0}};
  const Batch batch(c);
  const Outcome found = batch.Run();
  const Outcome expected = batch.Expected();
  EXPECT_LE(Relative(found.output, expected.output), 3e-3);
  EXPECT_EQ(found.output[0], 0.0);
  EXPECT_EQ(found.output.back(), 0.0);
  EXPECT_EQ(found.log_sum_exp[0], -HUGE_VAL);
}

TEST(AttendTest, RefusesShapesThatNoKernelWasBuiltFor) {
  const auto refused = [](const Geometry& geometry, const CodecSpec& spec, uint32_t q_heads) {
    const auto made =
        cuda::Attention::Create(geometry, spec, *RotationSet(geometry, 0.9f), q_heads);
    EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(made.status().message()), HasSubstr("there are 64, 128 and 256"));
  };
  const Geometry plain = GeometryOf({});
  Geometry geometry = plain;
  geometry.k_head_dim = geometry.v_head_dim = 96;
  refused(geometry, Spec(), 8);
  geometry = plain;
  geometry.page_tokens = 12;
  refused(geometry, Spec(), 8);
  refused(plain, Spec(), 3);
  refused(plain, Spec(), 34);
  CodecSpec spec = Spec();
  spec.bits = {{4, 2}};
  refused(plain, spec, 8);
  spec = Spec();
  spec.group = 32;
  refused(plain, spec, 8);
}

TEST(AttendTest, RefusesArgumentsOutOfRange) {
  Batch batch(Case{.lengths = {100}});
  const auto refused = [&](const char* why) {
    const absl::Status status = batch.Enqueue(nullptr);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  };
  const cuda::AttendBatch good = batch.batch;
  batch.batch.requests = 257;
  refused("requests must be 1..256");
  batch.batch = good;
  batch.batch.new_tokens = 9;
  refused("new tokens must be 1..8");
  batch.batch = good;
  batch.batch.layer = 2;
  refused("layer 2");
  batch.batch = good;
  batch.batch.queries = nullptr;
  refused("null");
  batch.batch = good;
  batch.batch.queries += 2;
  refused("pages, queries and output must be 16-byte aligned");
  batch.batch = good;
  batch.batch.lengths =
      reinterpret_cast<const uint32_t*>(reinterpret_cast<const std::byte*>(good.lengths) + 2);
  refused("first_page, lengths and log_sum_exp must be 4-byte aligned");
  batch.batch = good;
  batch.batch.requests = 200;
  refused("workspace");
}

}  // namespace
}  // namespace oscarkv::testing
