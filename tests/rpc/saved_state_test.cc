// What outlives a server: which settings are saved, and what comes back of what was saved.
#include "server/rpc/saved_state.h"

#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/base/sha256.h"
#include "kernels/codec/transform_file.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

using ::testing::HasSubstr;

class MemoryCatalog final : public Catalog {
 public:
  std::vector<CatalogEntry> Entries() const override {
    std::vector<CatalogEntry> entries;
    for (const auto& [name, contents] : contents_)
      entries.push_back({name.first, name.second, contents.size()});
    return entries;
  }
  bool Has(CatalogKind kind, std::string_view name) const override {
    return contents_.contains({kind, std::string(name)});
  }
  CatalogStats Stats() const override { return {}; }
  absl::Status Save(CatalogKind kind, std::string_view name, std::string_view contents) override {
    if (!failure.ok()) return failure;
    ++saves;
    contents_[{kind, std::string(name)}] = std::string(contents);
    return absl::OkStatus();
  }
  absl::Status Remove(CatalogKind kind, std::string_view name) override {
    contents_.erase({kind, std::string(name)});
    return failure;
  }
  absl::StatusOr<std::string> Load(CatalogKind kind, std::string_view name,
                                   uint64_t bytes_max) override {
    const auto found = contents_.find({kind, std::string(name)});
    if (found == contents_.end()) return absl::NotFoundError("no");
    if (found->second.size() > bytes_max) return absl::ResourceExhaustedError("large");
    return found->second;
  }
  std::vector<std::string> TakeComplaints() override { return {}; }

  absl::Status failure;
  int saves = 0;

 private:
  std::map<std::pair<CatalogKind, std::string>, std::string> contents_;
};

class SavedStateTest : public ::testing::Test {
 protected:
  static v1::OpenNamespaceRequest Request(uint64_t ttl_ms = 0) {
    v1::OpenNamespaceRequest request;
    request.mutable_spec()->set_model("m");
    request.mutable_spec()->mutable_codec()->add_bits()->set_k(2);
    request.set_page_ttl_ms(ttl_ms);
    return request;
  }
  static Geometry Small() {
    return {.layers = 1, .kv_heads = 1, .k_head_dim = 16, .v_head_dim = 16, .page_tokens = 16};
  }
  static Namespace SpaceWith(const std::string& transform_hash) {
    NamespaceSpec spec;
    spec.model = std::string(1, 'm');
    spec.geometry = Small();
    spec.codec.transform_hash = transform_hash;
    return Namespace::Create(spec, 0).value();
  }
  // The requests by which a server that starts anew opens its namespaces.
  std::vector<v1::OpenNamespaceRequest> Restored() {
    std::vector<v1::OpenNamespaceRequest> requests;
    SavedState(&catalog_, logger_).Restore(transforms_, [&](const v1::OpenNamespaceRequest& open) {
      requests.push_back(open);
      return opens_;
    });
    return requests;
  }

  const std::string fingerprint_ = std::string(32, 'f');
  const Logger logger_{LogLevel::kError, LogFormat::kText};
  MemoryCatalog catalog_;
  TransformRegistry transforms_{1000};
  absl::Status opens_;
};

TEST_F(SavedStateTest, SettingsThatALaterRequestLeavesOutStay) {
  SavedState state(&catalog_, logger_);
  state.SaveNamespace(fingerprint_, Request(7));
  state.SaveNamespace(fingerprint_, Request());
  EXPECT_EQ(catalog_.saves, 1);
  state.SaveNamespace(fingerprint_, Request(8));
  EXPECT_EQ(catalog_.saves, 2);
  const auto restored = Restored();
  ASSERT_EQ(restored.size(), 1u);
  EXPECT_EQ(restored[0].page_ttl_ms(), 8u);
  EXPECT_TRUE(restored[0].create());
  EXPECT_EQ(restored[0].expected_fingerprint(), fingerprint_);
  EXPECT_EQ(restored[0].spec().codec().bits_size(), 1);
}

TEST_F(SavedStateTest, WhatWasRestoredIsNotSavedAgain) {
  SavedState(&catalog_, logger_).SaveNamespace(fingerprint_, Request(7));
  SavedState state(&catalog_, logger_);
  state.Restore(transforms_, [](const v1::OpenNamespaceRequest&) { return absl::OkStatus(); });
  state.SaveNamespace(fingerprint_, Request());
  EXPECT_EQ(catalog_.saves, 1);
}

TEST_F(SavedStateTest, WhatCouldNotBeSavedIsTriedAgain) {
  SavedState state(&catalog_, logger_);
  const Namespace space = SpaceWith("");
  catalog_.failure = absl::ResourceExhaustedError("full");
  state.SaveNamespace(space.fingerprint(), Request());
  EXPECT_THAT(state.EnsureSaved(space, transforms_),
              StatusIs(absl::StatusCode::kResourceExhausted));
  catalog_.failure = absl::OkStatus();
  EXPECT_OK(state.EnsureSaved(space, transforms_));
  EXPECT_EQ(Restored().size(), 1u);
  EXPECT_OK(state.EnsureSaved(space, transforms_));
  EXPECT_EQ(catalog_.saves, 1);
}

TEST_F(SavedStateTest, ANamespaceIsSavedWithItsTransformSetOrNotAtAll) {
  SavedState state(&catalog_, logger_);
  const TransformSet set = MakeIdentityTransformSet(Small(), 0.0f, 0.0f).value();
  const std::string file = SerializeTransformFile(set, "{}");
  const std::string hash = Sha256Of(AsBytes(file));
  const Namespace space = SpaceWith(hash);
  state.SaveNamespace(space.fingerprint(), Request());
  EXPECT_THAT(state.EnsureSaved(space, transforms_),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("not been uploaded")));
  TransformRegistry transforms(1 << 20);
  TransformUpload upload(transforms);
  ASSERT_OK(upload.Append(file));
  ASSERT_OK(transforms.Add(hash, upload));
  catalog_.failure = absl::ResourceExhaustedError("full");
  EXPECT_THAT(state.EnsureSaved(space, transforms), StatusIs(absl::StatusCode::kResourceExhausted));
  catalog_.failure = absl::OkStatus();
  EXPECT_OK(state.EnsureSaved(space, transforms));
  EXPECT_TRUE(catalog_.Has(CatalogKind::kTransformSet, hash));
}

TEST_F(SavedStateTest, ContentsThatAreNoneArePassedOver) {
  ASSERT_OK(catalog_.Save(CatalogKind::kNamespace, fingerprint_, "\xff garbage"));
  ASSERT_OK(catalog_.Save(CatalogKind::kNamespace, std::string(32, 'l'),
                          std::string((1 << 20) + 1, ' ')));
  ASSERT_OK(catalog_.Save(CatalogKind::kTransformSet, std::string(32, 'x'), "not the hash's"));
  ASSERT_OK(catalog_.Save(CatalogKind::kTransformSet, std::string(32, 'y'),
                          std::string(2000, 'y')));  // more than there is room for
  const std::string no_set = "the hash is right, the file is none";
  ASSERT_OK(catalog_.Save(CatalogKind::kTransformSet, Sha256Of(AsBytes(no_set)), no_set));
  EXPECT_TRUE(Restored().empty());
  EXPECT_EQ(transforms_.bytes(), 0u);
}

TEST_F(SavedStateTest, ANamespaceThatCannotBeOpenedStaysOnDisk) {
  SavedState(&catalog_, logger_).SaveNamespace(fingerprint_, Request());
  opens_ = absl::ResourceExhaustedError("as many as there may be");
  EXPECT_EQ(Restored().size(), 1u);
  opens_ = absl::OkStatus();
  EXPECT_EQ(Restored().size(), 1u);
}

TEST_F(SavedStateTest, WithoutACatalogNothingHappens) {
  SavedState state(nullptr, logger_);
  state.Restore(transforms_, [](const v1::OpenNamespaceRequest&) { return absl::OkStatus(); });
  state.SaveNamespace(fingerprint_, Request());
  state.SaveTransformSet(fingerprint_, "x");
  EXPECT_THAT(state.EnsureSaved(SpaceWith(""), transforms_),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("no disk tier")));
}

TEST_F(SavedStateTest, TransformSetThatWasRemovedStaysAway) {
  SavedState state(&catalog_, logger_);
  const std::string hash(32, 'h');
  state.SaveTransformSet(hash, "a file");
  ASSERT_TRUE(catalog_.Has(CatalogKind::kTransformSet, hash));
  EXPECT_OK(state.RemoveTransformSet(hash));
  EXPECT_FALSE(catalog_.Has(CatalogKind::kTransformSet, hash));
  EXPECT_OK(state.RemoveTransformSet(hash));
  catalog_.failure = absl::UnavailableError("the device");
  EXPECT_FALSE(state.RemoveTransformSet(hash).ok());
}

}  // namespace
}  // namespace oscarkv::testing
