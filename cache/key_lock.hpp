// SPDX-License-Identifier: Apache-2.0
// Locks between processes: one byte of a never-unlinked file for each key, entry in use, and the eviction. Locks only
// save work; correctness rests on rename and checksums. The kernel frees them with the last descriptor.
#pragma once

#include "cache/file_ops.hpp"
#include "epjit/jit/hash.hpp"

#include <cstdint>
#include <map>

namespace epjit::cache::detail {

enum class lock_result { acquired, busy, unsupported };

/// Byte of the lock file that stands for what.
enum class lock_area : std::uint64_t {
    eviction = 0,                      ///< one byte in all
    compile = std::uint64_t{1} << 60,  ///< held while a key is compiled
    use = std::uint64_t{2} << 60,      ///< shared, held by every process that was served the entry
};
std::int64_t lock_offset(lock_area area, const jit::digest& key, const jit::digest& compiler) noexcept;

/// An open lock file. Every instance has an open file description of its own, so that two stores of one process, and a
/// parent and its forked child, exclude each other. Not thread-safe.
class lock_file {
   public:
    /// `root`: the layer. When the file cannot be opened every lock is `unsupported`.
    lock_file(file_ops& ops, int root);

    /// Never waits. Where the file system has no locks (ENOLCK, ENOSYS, EINVAL) an exclusive lock falls back to a name
    /// that only this machine sees, so that a key is still compiled once a node; `unsupported` when that fails too.
    lock_result try_lock(std::int64_t offset, bool exclusive);
    void unlock(std::int64_t offset) noexcept;

   private:
    lock_result try_node_lock(std::int64_t offset);
    file_ops& ops_;
    unique_fd fd_;
    std::map<std::int64_t, unique_fd> node_locks_;
    std::uint64_t device_ = 0, inode_ = 0;
};

}  // namespace epjit::cache::detail
