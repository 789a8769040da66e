// SPDX-License-Identifier: Apache-2.0
#include "cache/pack.hpp"

#include "cache/state.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <cerrno>
#include <cstring>
#include <set>

namespace epjit::cache {
namespace detail {
namespace {

[[noreturn]] void fail(const std::string& file, const std::string& why, std::string remedy = {}) {
    throw cache_error(fmt::format("cache pack {}: {}", file, why), std::move(remedy));
}

/// XXH3-128 of a stream.
class stream_hash {
   public:
    stream_hash() : state_(XXH3_createState()) {
        if (state_ == nullptr) {
            throw std::bad_alloc();
        }
        XXH3_128bits_reset(state_);
    }
    ~stream_hash() { XXH3_freeState(state_); }
    stream_hash(const stream_hash&) = delete;
    stream_hash& operator=(const stream_hash&) = delete;
    void add(const void* bytes, std::size_t count) { XXH3_128bits_update(state_, bytes, count); }
    [[nodiscard]] jit::digest finish() const {
        XXH128_canonical_t canonical;
        XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_));
        jit::digest d;
        std::memcpy(d.bytes.data(), canonical.digest, sizeof canonical.digest);
        return d;
    }

   private:
    XXH3_state_t* state_;
};

class pack_writer {
   public:
    pack_writer(const std::string& file, int fd) : file_(file), fd_(fd) {
        raw(pack_magic, sizeof pack_magic);
        number<std::uint64_t>(pack_version);
    }
    void entry(std::span<const std::byte> bytes) {
        number<std::uint64_t>(bytes.size());
        raw(bytes.data(), bytes.size());
        ++count_;
    }
    jit::digest finish() {
        number<std::uint64_t>(0);
        number<std::uint64_t>(count_);
        const jit::digest sum = hash_.finish();
        raw(sum.bytes.data(), sum.bytes.size());
        return sum;
    }
    [[nodiscard]] std::uint64_t count() const noexcept { return count_; }

   private:
    template <class T>
    void number(T value) {
        raw(&value, sizeof value);
    }
    void raw(const void* from, std::size_t bytes) {
        hash_.add(from, bytes);
        const auto* at = static_cast<const char*>(from);
        while (bytes > 0) {
            const ssize_t wrote = ::write(fd_, at, bytes);
            if (wrote < 0 && errno == EINTR) {
                continue;
            }
            if (wrote <= 0) {
                fail(file_, fmt::format("writing failed: {}", errno_text(wrote == 0 ? EIO : errno)),
                     "free space, or name another file");
            }
            at += wrote;
            bytes -= static_cast<std::size_t>(wrote);
        }
    }
    const std::string& file_;
    int fd_;
    stream_hash hash_;
    std::uint64_t count_ = 0;
};

class pack_reader {
   public:
    pack_reader(const std::string& file, int fd) : file_(file), fd_(fd) {
        char magic[sizeof pack_magic];
        raw(magic, sizeof magic);
        if (std::memcmp(magic, pack_magic, sizeof magic) != 0) {
            fail(file_, "it is not a pack of `epjit cache export`");
        }
        if (const auto version = number(); version != pack_version) {
            fail(file_, fmt::format("pack version {}, this library reads version {}", version, pack_version));
        }
    }
    /// False after the last one.
    bool next(std::vector<std::byte>& bytes) {
        const std::uint64_t size = number();
        if (size == 0) {
            return false;
        }
        if (size > max_entry_bytes) {
            fail(file_, fmt::format("it is damaged: an entry of {} bytes", size));
        }
        bytes.resize(static_cast<std::size_t>(size));
        raw(bytes.data(), bytes.size());
        ++count_;
        return true;
    }
    jit::digest finish() {
        if (number() != count_) {
            fail(file_, "it is damaged: the number of entries is another than stated");
        }
        const jit::digest sum = hash_.finish();
        jit::digest stated;
        raw(stated.bytes.data(), stated.bytes.size());
        if (stated != sum) {
            fail(file_, "it is damaged: its checksum does not match");
        }
        return sum;
    }

   private:
    std::uint64_t number() {
        std::uint64_t value = 0;
        raw(&value, sizeof value);
        return value;
    }
    void raw(void* to, std::size_t bytes) {
        auto* at = static_cast<char*>(to);
        for (std::size_t left = bytes; left > 0;) {
            const ssize_t got = ::read(fd_, at, left);
            if (got < 0 && errno == EINTR) {
                continue;
            }
            if (got <= 0) {
                fail(file_, got == 0 ? "it is damaged: it ends too early"
                                     : fmt::format("reading failed: {}", errno_text(errno)));
            }
            at += got;
            left -= static_cast<std::size_t>(got);
        }
        hash_.add(to, bytes);
    }
    const std::string& file_;
    int fd_;
    stream_hash hash_;
    std::uint64_t count_ = 0;
};

/// A temp file that disappears unless it was renamed.
struct temp_file {
    std::string path;
    ~temp_file() {
        if (!path.empty()) {
            ::unlink(path.c_str());
        }
    }
};

std::uint64_t write_pack(store_state& state, const std::string& file, jit::digest* digest) {
    temp_file temp{file + make_temp_name()};
    unique_fd fd(::open(temp.path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!fd) {
        fail(file, fmt::format("it cannot be created: {}", errno_text(errno)),
             "name a file in a directory you may write");
    }
    pack_writer out(file, fd.get());
    std::set<full_key> done;
    for (const auto& info : state.list()) {
        if (!done.emplace(info.key, info.compiler).second) {
            continue;  // the earlier layer is the one that would be read
        }
        auto result = state.layers[static_cast<std::size_t>(info.layer)]->read(location_of(info.key, info.compiler));
        if (result.status == read_status::hit) {
            out.entry(encode_entry(result.entry->value, result.entry->created_ns));
        } else {
            done.erase({info.key, info.compiler});
        }
    }
    const jit::digest sum = out.finish();
    if (::fsync(fd.get()) != 0 || ::close(fd.release()) != 0 || ::rename(temp.path.c_str(), file.c_str()) != 0) {
        fail(file, fmt::format("it could not be written: {}", errno_text(errno)), "free space, or name another file");
    }
    temp.path.clear();
    if (digest != nullptr) {
        *digest = sum;
    }
    return out.count();
}

decoded_entry decode_packed(const std::string& file, std::span<const std::byte> bytes) {
    std::string why;
    auto entry = decode_entry(bytes, why);
    if (!entry) {
        fail(file, "it holds a bad entry: " + why, "export it again");
    }
    return std::move(*entry);
}

std::uint64_t read_pack(store_state& state, const std::string& file, const jit::digest* expected) {
    unique_fd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat status {};
    if (!fd || ::fstat(fd.get(), &status) != 0) {
        fail(file, fmt::format("it cannot be opened: {}", errno_text(errno)));
    }
    if (!S_ISREG(status.st_mode)) {
        fail(file, "it is not a regular file");
    }
    if (state.written == nullptr) {
        state.warn_not_kept();
        fail(file, "there is no cache directory that could be written", "name one in EPJIT_CACHE_PATH or --cache-dir");
    }
    // Everything is proved before anything is stored.
    std::vector<std::byte> bytes;
    pack_reader check(file, fd.get());
    while (check.next(bytes)) {
        decode_packed(file, bytes);
    }
    const jit::digest sum = check.finish();
    if (expected != nullptr && sum != *expected) {
        fail(file, fmt::format("its digest is {} and {} was expected", sum.hex(), expected->hex()),
             "fetch the pack again from where the digest came from");
    }
    if (::lseek(fd.get(), 0, SEEK_SET) != 0) {
        fail(file, fmt::format("rewinding failed: {}", errno_text(errno)));
    }
    std::uint64_t count = 0;
    pack_reader in(file, fd.get());
    while (in.next(bytes)) {
        const decoded_entry entry = decode_packed(file, bytes);
        const auto& [key, compiler] = std::pair(entry.value.key, entry.value.compiler.id);
        const bool there = state.written->read(location_of(key, compiler)).status == read_status::hit;
        if (!there && !state.store_bytes(key, compiler, bytes)) {
            fail(
                file,
                fmt::format("entry {} could not be stored in {} after {} others", key.hex(), state.written_path, count),
                "the warning above says why");
        }
        ++count;
    }
    return count;
}

}  // namespace
}  // namespace detail

std::uint64_t store::export_to(const std::string& file, jit::digest* pack_digest) const {
    return detail::write_pack(*state_, file, pack_digest);
}

std::uint64_t store::import_from(const std::string& file, const jit::digest* expected) {
    return detail::read_pack(*state_, file, expected);
}

}  // namespace epjit::cache
