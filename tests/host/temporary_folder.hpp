// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>

namespace epjit::tests {

/// A folder of its own, removed with everything in it.
class temporary_folder {
   public:
    temporary_folder() {
        std::string pattern = (std::filesystem::temp_directory_path() / "epjit-test-XXXXXX").string();
        if (mkdtemp(pattern.data()) == nullptr) {
            throw std::runtime_error("cannot make " + pattern);
        }
        root_ = pattern;
    }
    ~temporary_folder() {
        std::error_code ignored;
        std::filesystem::remove_all(root_, ignored);
    }
    temporary_folder(const temporary_folder&) = delete;
    temporary_folder& operator=(const temporary_folder&) = delete;
    [[nodiscard]] std::string path(const std::string& name) const { return root_ + "/" + name; }

   private:
    std::string root_;
};

}  // namespace epjit::tests
