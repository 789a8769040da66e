// SPDX-License-Identifier: Apache-2.0
// Opening a directory only when nobody else could have put something there.
#pragma once

#include "cache/file_ops.hpp"

#include <string>

namespace epjit::cache::detail {

/// What a cache directory must be: ours and writable by nobody else; `read` also takes one of root.
enum class dir_rule { written, read };

struct opened_dir {
    unique_fd fd;
    bool missing = false;    ///< it is not there; `problem` says so as well
    std::string problem;     ///< why there is no fd
    std::string remedy;      ///< a command or a setting that mends it
    std::string unwritable;  ///< there is an fd, but nothing can be written: why
    std::string mend_unwritable;
};

/// `path` absolute. Every directory on the way must belong to root or the user and not be writable by others unless
/// it is sticky; links on the way are followed when their owner is root or the user, a link in the last place is not.
/// `create` makes what is missing, 0700 under any umask.
opened_dir open_checked(file_ops& ops, const std::string& path, dir_rule rule, bool create);

/// A sub-directory by its name, not a link, with the same owner and mode rules; -1 and errno otherwise (EPERM when the
/// rules are broken). `create` makes it 0700.
unique_fd open_sub(file_ops& ops, int root, const char* name, dir_rule rule, bool create);

/// Whether owner and mode are what `rule` asks of a file or directory.
bool is_ours(file_ops& ops, const struct stat& status, dir_rule rule) noexcept;

}  // namespace epjit::cache::detail
