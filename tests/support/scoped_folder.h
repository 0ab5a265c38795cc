// A folder of its own for a test, removed with everything in it.
#ifndef OSCARKV_TESTS_SUPPORT_SCOPED_FOLDER_H_
#define OSCARKV_TESTS_SUPPORT_SCOPED_FOLDER_H_

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

namespace oscarkv::testing {

class ScopedFolder {
 public:
  enum class Where { kDisk, kMemory };  // in memory where the machine has such a file system

  explicit ScopedFolder(Where where = Where::kDisk) {
    const bool memory = where == Where::kMemory && std::filesystem::is_directory("/dev/shm");
    const std::filesystem::path base = memory ? "/dev/shm" : std::filesystem::temp_directory_path();
    std::string name = (base / "oscarkv-XXXXXX").string();
    if (mkdtemp(name.data()) != nullptr) path_ = name;
  }
  ~ScopedFolder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  ScopedFolder(const ScopedFolder&) = delete;
  ScopedFolder& operator=(const ScopedFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_SUPPORT_SCOPED_FOLDER_H_
