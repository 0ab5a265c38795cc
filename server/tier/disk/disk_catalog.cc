#include "server/tier/disk/disk_catalog.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <optional>
#include <system_error>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

#include "kernels/base/checksum.h"
#include "kernels/base/status_macros.h"
#include "server/tier/disk/disk_directory.h"

namespace oscarkv {
namespace {

constexpr absl::string_view kUnfinished = ".new";
constexpr uint64_t kPieceBytes = 1 << 20;  // read or written at once
constexpr size_t kComplaintsMax = 100;

struct Prefix {
  CatalogKind kind;
  absl::string_view text;
};
constexpr Prefix kPrefixes[] = {{CatalogKind::kNamespace, "namespace-"},
                                {CatalogKind::kTransformSet, "transforms-"}};

std::string FileName(CatalogKind kind, std::string_view name) {
  const auto prefix = std::ranges::find(kPrefixes, kind, &Prefix::kind);
  return absl::StrCat(prefix->text,
                      absl::BytesToHexString(absl::string_view(name.data(), name.size())));
}

// Nothing when the file is none of ours.
std::optional<std::pair<CatalogKind, std::string>> ParseFileName(const std::string& file) {
  for (const Prefix& prefix : kPrefixes) {
    absl::string_view digits = file;
    std::string name;
    if (!absl::ConsumePrefix(&digits, prefix.text) || digits.size() != 2 * kCatalogNameBytes)
      continue;
    name = absl::HexStringToBytes(digits);
    if (FileName(prefix.kind, name) == file) return std::pair(prefix.kind, name);
  }
  return std::nullopt;
}

uint64_t FileBytes(uint64_t contents) { return kDiskBlockBytes + RoundUpToIo(contents); }

}  // namespace

DiskCatalog::DiskCatalog(DiskCatalogOptions options, BlockIo& io)
    : options_(std::move(options)), io_(io) {
  absl::MutexLock lock(&mutex_);
  Scan();
}

void DiskCatalog::Scan() {
  std::error_code ignored;  // a folder that cannot be listed has no files to offer
  for (const auto& entry : std::filesystem::directory_iterator(options_.path, ignored)) {
    const std::string file = entry.path().filename().string();
    absl::string_view finished = file;
    if (absl::ConsumeSuffix(&finished, kUnfinished) &&
        ParseFileName(std::string(finished)).has_value()) {
      unlink(entry.path().c_str());
      continue;
    }
    const auto name = ParseFileName(file);
    if (!name.has_value()) continue;
    const DiskFile opened(open(entry.path().c_str(), O_RDONLY | O_CLOEXEC));
    struct stat info {};
    if (!opened.is_open() || fstat(opened.descriptor(), &info) != 0) {
      Complain(file, IoError(errno, "open"));
      continue;
    }
    File& found = files_[*name];
    found.file_bytes = RoundUpToIo(static_cast<uint64_t>(info.st_size));
    bytes_ += found.file_bytes;
    auto header = ReadHeader(*name, opened.descriptor(), static_cast<uint64_t>(info.st_size));
    found.sound = header.ok();
    if (header.ok())
      found.header = *std::move(header);
    else
      Complain(file, header.status());
  }
}

absl::StatusOr<CatalogFileHeader> DiskCatalog::ReadHeader(const Name& name, int file,
                                                          uint64_t file_bytes) {
  if (file_bytes < kDiskBlockBytes) {
    return absl::DataLossError(
        absl::StrCat("has ", file_bytes, " bytes, and a header has ", kDiskBlockBytes));
  }
  const AlignedBuffer block(kDiskBlockBytes);
  IoRequest read{.kind = IoKind::kRead, .file = file, .data = block.bytes()};
  io_.Run({&read, 1});
  OSCARKV_RETURN_IF_ERROR(read.status);
  OSCARKV_ASSIGN_OR_RETURN(CatalogFileHeader header,
                           DecodeCatalogFile(block.bytes().first<kDiskBlockBytes>()));
  if (header.id != options_.id) return absl::FailedPreconditionError("is of another directory");
  if (header.kind != static_cast<uint8_t>(name.first) || header.name != name.second)
    return absl::DataLossError("has another file's header");
  // Before anybody takes memory for it.
  if (FileBytes(header.bytes) != file_bytes) {
    return absl::DataLossError(
        absl::StrCat("has ", file_bytes, " bytes, expected ", FileBytes(header.bytes)));
  }
  return header;
}

std::vector<CatalogEntry> DiskCatalog::Entries() const {
  absl::MutexLock lock(&mutex_);
  std::vector<CatalogEntry> entries;
  for (const auto& [name, file] : files_)
    if (file.sound) entries.push_back({name.first, name.second, file.header.bytes});
  return entries;
}

bool DiskCatalog::Has(CatalogKind kind, std::string_view name) const {
  absl::MutexLock lock(&mutex_);
  const auto found = files_.find(Name(kind, name));
  return found != files_.end() && found->second.sound;
}

CatalogStats DiskCatalog::Stats() const {
  absl::MutexLock lock(&mutex_);
  const auto entries =
      std::ranges::count_if(files_, [](const auto& file) { return file.second.sound; });
  return {.entries = static_cast<uint64_t>(entries),
          .bytes = bytes_,
          .skipped = skipped_,
          .failed_writes = failed_writes_};
}

std::vector<std::string> DiskCatalog::TakeComplaints() {
  absl::MutexLock lock(&mutex_);
  return std::exchange(complaints_, {});
}

void DiskCatalog::Complain(const std::string& file, const absl::Status& status) {
  ++skipped_;
  if (complaints_.size() < kComplaintsMax)
    complaints_.push_back(absl::StrCat(file, ": ", status.message()));
}

std::string DiskCatalog::PathOf(const Name& name) const {
  return absl::StrCat(options_.path, "/", FileName(name.first, name.second));
}

absl::StatusOr<std::string> DiskCatalog::Load(CatalogKind kind, std::string_view name,
                                              uint64_t bytes_max) {
  absl::MutexLock turn(&save_mutex_);
  const Name key(kind, name);
  CatalogFileHeader header;
  {
    absl::MutexLock lock(&mutex_);
    const auto found = files_.find(key);
    if (found == files_.end() || !found->second.sound)
      return absl::NotFoundError(absl::StrCat(FileName(kind, name), ": not there"));
    header = found->second.header;
  }
  if (header.bytes > bytes_max) {
    return absl::ResourceExhaustedError(absl::StrCat(FileName(kind, name), ": has ", header.bytes,
                                                     " bytes, at most ", bytes_max, " are taken"));
  }
  absl::StatusOr<std::string> contents = ReadContents(key, header);
  if (contents.ok()) return contents;
  absl::MutexLock lock(&mutex_);
  files_[key].sound = false;
  Complain(FileName(kind, name), contents.status());
  return Annotate(contents.status(), FileName(kind, name));
}

absl::StatusOr<std::string> DiskCatalog::ReadContents(const Name& name,
                                                      const CatalogFileHeader& header) {
  const DiskFile file(open(PathOf(name).c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.is_open()) return IoError(errno, "open");
  std::string contents(header.bytes, '\0');
  const AlignedBuffer piece(std::min(kPieceBytes, RoundUpToIo(header.bytes)));
  for (uint64_t at = 0; at < header.bytes; at += kPieceBytes) {
    const uint64_t bytes = std::min(kPieceBytes, header.bytes - at);
    IoRequest read{.kind = IoKind::kRead,
                   .file = file.descriptor(),
                   .offset = kDiskBlockBytes + at,
                   .data = piece.bytes().first(RoundUpToIo(bytes))};
    io_.Run({&read, 1});
    OSCARKV_RETURN_IF_ERROR(read.status);
    std::memcpy(contents.data() + at, piece.bytes().data(), bytes);
  }
  if (Crc32c(AsBytes(contents)) != header.crc)
    return absl::DataLossError("checksum does not match");
  return contents;
}

absl::Status DiskCatalog::Remove(CatalogKind kind, std::string_view name) {
  absl::MutexLock turn(&save_mutex_);
  const Name key(kind, name);
  {
    absl::MutexLock lock(&mutex_);
    if (!files_.contains(key)) return absl::OkStatus();
  }
  if (unlink(PathOf(key).c_str()) != 0 && errno != ENOENT)
    return Annotate(IoError(errno, "unlink"), FileName(kind, name));
  {
    absl::MutexLock lock(&mutex_);
    const auto found = files_.find(key);
    bytes_ -= found->second.file_bytes;
    files_.erase(found);
  }
  return SyncFolder();
}

absl::Status DiskCatalog::Save(CatalogKind kind, std::string_view name, std::string_view contents) {
  if (name.size() != kCatalogNameBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a name of ", name.size(), " bytes, expected ", kCatalogNameBytes));
  }
  absl::MutexLock turn(&save_mutex_);
  const uint64_t file_bytes = FileBytes(contents.size());
  {
    absl::MutexLock lock(&mutex_);
    // The one that it replaces stays until it is whole.
    if (file_bytes > options_.bytes_max - std::min(bytes_, options_.bytes_max)) {
      ++failed_writes_;
      return absl::ResourceExhaustedError(absl::StrCat(FileName(kind, name), ": takes ", file_bytes,
                                                       " bytes, and ", bytes_, " of ",
                                                       options_.bytes_max, " are taken"));
    }
  }
  const Name key(kind, name);
  const CatalogFileHeader header{.id = options_.id,
                                 .kind = static_cast<uint8_t>(kind),
                                 .bytes = contents.size(),
                                 .crc = Crc32c(AsBytes(contents)),
                                 .name = key.second};
  const std::string path = PathOf(key);
  const std::string unfinished = absl::StrCat(path, kUnfinished);
  absl::Status status = Write(unfinished, header, contents);
  if (status.ok() && std::rename(unfinished.c_str(), path.c_str()) != 0)
    status = IoError(errno, "rename");
  if (status.ok()) {
    absl::MutexLock lock(&mutex_);
    File& file = files_[key];
    bytes_ = bytes_ - file.file_bytes + file_bytes;
    file = {file_bytes, true, header};
  } else {
    unlink(unfinished.c_str());
  }
  if (status.ok()) status = SyncFolder();
  if (status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  ++failed_writes_;
  return Annotate(status, FileName(kind, name));
}

absl::Status DiskCatalog::SyncFolder() const {
  const DiskFile folder(open(options_.path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.is_open() && fsync(folder.descriptor()) == 0) return absl::OkStatus();
  return IoError(errno, "fsync of the directory");
}

absl::Status DiskCatalog::Write(const std::string& path, const CatalogFileHeader& header,
                                std::string_view contents) {
  const DiskFile file(open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, kDiskFileMode));
  if (!file.is_open()) return IoError(errno, "open");
  OSCARKV_RETURN_IF_ERROR(io_.Allocate(file.descriptor(), FileBytes(contents.size())));
  const AlignedBuffer piece(kPieceBytes);
  const auto write = [&](uint64_t offset, uint64_t bytes) {
    IoRequest request{.kind = IoKind::kWrite,
                      .file = file.descriptor(),
                      .offset = offset,
                      .data = piece.bytes().first(bytes)};
    io_.Run({&request, 1});
    return request.status;
  };
  EncodeCatalogFile(header, piece.bytes().first<kDiskBlockBytes>());
  OSCARKV_RETURN_IF_ERROR(write(0, kDiskBlockBytes));
  for (uint64_t at = 0; at < contents.size(); at += kPieceBytes) {
    const std::string_view part = contents.substr(at, kPieceBytes);
    const MutableByteView padded = piece.bytes().first(RoundUpToIo(part.size()));
    std::ranges::copy(AsBytes(part), padded.begin());
    std::ranges::fill(padded.subspan(part.size()), std::byte{0});
    OSCARKV_RETURN_IF_ERROR(write(kDiskBlockBytes + at, padded.size()));
  }
  return io_.Sync(file.descriptor());
}

}  // namespace oscarkv
