// SPDX-License-Identifier: Apache-2.0
#include "cache/entry.hpp"

#include "epjit/error.hpp"

#include <fmt/format.h>

#include <cstring>
#include <limits>

namespace epjit::cache::detail {
namespace {

constexpr std::size_t checksum_bytes = sizeof(jit::digest::bytes);
constexpr std::string_view extension = ".epjit";

class writer {
   public:
    void raw(const void* from, std::size_t bytes) {
        const auto* at = static_cast<const std::byte*>(from);
        out_.insert(out_.end(), at, at + bytes);
    }
    template <class T>
    void number(T value) {
        raw(&value, sizeof value);
    }
    /// `Length` is u32 in the head, u64 in the body.
    template <class Length>
    void block(const void* from, std::size_t bytes) {
        if (bytes > std::numeric_limits<Length>::max()) {
            throw cache_error(fmt::format("a field of {} bytes is too long for a cache entry", bytes));
        }
        number(static_cast<Length>(bytes));
        raw(from, bytes);
    }
    void text(std::string_view value) { block<std::uint32_t>(value.data(), value.size()); }
    void checksum() {
        const jit::digest sum = jit::hash_bytes(out_);
        raw(sum.bytes.data(), sum.bytes.size());
    }
    std::vector<std::byte>& bytes() noexcept { return out_; }

   private:
    std::vector<std::byte> out_;
};

/// Reads forward, never beyond the end: a read that does not fit sets `ok` to false for good and gives zeros.
class reader {
   public:
    explicit reader(std::span<const std::byte> bytes) : left_(bytes) {}
    template <class T>
    T number() {
        T value{};
        if (const auto from = take(sizeof value); !from.empty()) {
            std::memcpy(&value, from.data(), sizeof value);
        }
        return value;
    }
    template <class Length>
    std::span<const std::byte> block() {
        return take(number<Length>());
    }
    template <class Length = std::uint32_t>
    std::string text() {
        const auto from = block<Length>();
        return {reinterpret_cast<const char*>(from.data()), from.size()};
    }
    [[nodiscard]] bool ok() const noexcept { return ok_; }
    [[nodiscard]] std::size_t left() const noexcept { return left_.size(); }

   private:
    std::span<const std::byte> take(std::uint64_t bytes) {
        if (!ok_ || bytes > left_.size()) {
            ok_ = false;
            return {};
        }
        const auto front = left_.first(static_cast<std::size_t>(bytes));
        left_ = left_.subspan(static_cast<std::size_t>(bytes));
        return front;
    }
    std::span<const std::byte> left_;
    bool ok_ = true;
};

constexpr std::size_t min_kernel_bytes = 5 * sizeof(std::uint32_t);

void write_metadata(writer& out, const jit::artifact& value) {
    out.text(value.compiler.description);
    out.text(value.spec);
    out.text(value.arch);
    out.text(value.library_version);
    out.text(value.template_digest);
    out.text(value.spill_exception);
    for (const auto& kernel : value.kernels) {
        out.text(kernel.name);
        out.text(kernel.lowered);
        out.number(kernel.registers);
        out.number(kernel.shared_bytes);
        out.number(kernel.spill_bytes);
    }
}

bool read_metadata(reader& in, std::uint32_t num_kernels, jit::artifact& value) {
    value.compiler.description = in.text();
    value.spec = in.text();
    value.arch = in.text();
    value.library_version = in.text();
    value.template_digest = in.text();
    value.spill_exception = in.text();
    if (!in.ok() || num_kernels > in.left() / min_kernel_bytes) {
        return false;
    }
    value.kernels.resize(num_kernels);
    for (auto& kernel : value.kernels) {
        kernel.name = in.text();
        kernel.lowered = in.text();
        kernel.registers = in.number<std::uint32_t>();
        kernel.shared_bytes = in.number<std::uint32_t>();
        kernel.spill_bytes = in.number<std::uint32_t>();
    }
    return in.ok() && in.left() == 0;
}

bool checksum_holds(std::span<const std::byte> covered, const std::byte* stored) {
    const jit::digest sum = jit::hash_bytes(covered);
    return std::memcmp(sum.bytes.data(), stored, checksum_bytes) == 0;
}

/// Empty when the fixed part fits a file of `file_bytes`.
std::string check_header(const entry_header& header, std::uint64_t file_bytes) {
    if (std::memcmp(header.magic, entry_magic, sizeof entry_magic) != 0) {
        return "it does not begin with the entry magic";
    }
    if (header.version != entry_version || header.header_bytes != sizeof(entry_header)) {
        return fmt::format("format version {} with a header of {} bytes, this library reads version {} with {}",
                           header.version, header.header_bytes, entry_version, sizeof(entry_header));
    }
    if (header.total_bytes != file_bytes) {
        return fmt::format("it has {} bytes and states {}", file_bytes, header.total_bytes);
    }
    if (header.head_bytes < sizeof(entry_header) || header.head_bytes > file_bytes - 2 * checksum_bytes ||
        header.reserved != 0) {
        return "its header contradicts itself";
    }
    return {};
}

}  // namespace

std::vector<std::byte> encode_entry(const jit::artifact& value, std::int64_t created_ns) {
    if (value.cubin.empty()) {
        throw cache_error("an artifact with an empty cubin is a failed compile and is not stored");
    }
    entry_header header{};
    std::memcpy(header.magic, entry_magic, sizeof entry_magic);
    header.version = entry_version;
    header.header_bytes = sizeof(entry_header);
    std::memcpy(header.key, value.key.bytes.data(), sizeof header.key);
    std::memcpy(header.compiler, value.compiler.id.bytes.data(), sizeof header.compiler);
    header.created_ns = created_ns;
    header.compile_ms = std::bit_cast<std::uint64_t>(value.compile_ms);
    header.num_kernels = static_cast<std::uint32_t>(value.kernels.size());
    header.cubin_bytes = value.cubin.size();

    writer out;
    out.bytes().reserve(sizeof header + value.cubin.size() + value.source.size() + value.log.size() +
                        value.options.size() + 2048);
    out.raw(&header, sizeof header);
    write_metadata(out, value);
    header.head_bytes = out.bytes().size();
    header.total_bytes = header.head_bytes + checksum_bytes + 4 * sizeof(std::uint64_t) + value.source.size() +
                         value.options.size() + value.log.size() + value.cubin.size() + checksum_bytes;
    if (header.total_bytes > max_entry_bytes) {
        throw cache_error(fmt::format("an artifact of {} bytes is too large for the cache, at most {}",
                                      header.total_bytes, max_entry_bytes));
    }
    std::memcpy(out.bytes().data(), &header, sizeof header);
    out.checksum();
    out.block<std::uint64_t>(value.source.data(), value.source.size());
    out.block<std::uint64_t>(value.options.data(), value.options.size());
    out.block<std::uint64_t>(value.log.data(), value.log.size());
    out.block<std::uint64_t>(value.cubin.data(), value.cubin.size());
    out.checksum();
    return std::move(out.bytes());
}

std::optional<decoded_entry> decode_head(std::span<const std::byte> bytes, std::uint64_t file_bytes, std::string& why,
                                         std::uint64_t* need) {
    if (file_bytes < sizeof(entry_header) + 2 * checksum_bytes || bytes.size() < sizeof(entry_header)) {
        why = fmt::format("{} bytes are too few for an entry", file_bytes);
        return std::nullopt;
    }
    entry_header header;
    std::memcpy(&header, bytes.data(), sizeof header);
    why = check_header(header, file_bytes);
    if (!why.empty()) {
        return std::nullopt;
    }
    if (bytes.size() < header.head_bytes + checksum_bytes) {
        if (need != nullptr) {
            *need = header.head_bytes + checksum_bytes;
        }
        why = "its head is cut";
        return std::nullopt;
    }
    const auto head = bytes.first(static_cast<std::size_t>(header.head_bytes));
    if (!checksum_holds(head, bytes.data() + header.head_bytes)) {
        why = "the checksum of its head does not match";
        return std::nullopt;
    }
    decoded_entry entry;
    std::memcpy(entry.value.key.bytes.data(), header.key, sizeof header.key);
    std::memcpy(entry.value.compiler.id.bytes.data(), header.compiler, sizeof header.compiler);
    entry.value.compile_ms = std::bit_cast<double>(header.compile_ms);
    entry.created_ns = header.created_ns;
    entry.total_bytes = header.total_bytes;
    reader in(head.subspan(sizeof header));
    if (!read_metadata(in, header.num_kernels, entry.value)) {
        why = "its metadata does not fit its head";
        return std::nullopt;
    }
    return entry;
}

std::optional<decoded_entry> decode_entry(std::span<const std::byte> bytes, std::string& why) {
    auto entry = decode_head(bytes, bytes.size(), why);
    if (!entry) {
        return std::nullopt;
    }
    const auto covered = bytes.first(bytes.size() - checksum_bytes);
    if (!checksum_holds(covered, covered.data() + covered.size())) {
        why = "its checksum does not match";
        return std::nullopt;
    }
    entry_header header;
    std::memcpy(&header, bytes.data(), sizeof header);
    reader in(covered.subspan(static_cast<std::size_t>(header.head_bytes) + checksum_bytes));
    entry->value.source = in.text<std::uint64_t>();
    entry->value.options = in.text<std::uint64_t>();
    entry->value.log = in.text<std::uint64_t>();
    const auto cubin = in.block<std::uint64_t>();
    if (!in.ok() || in.left() != 0 || cubin.empty() || cubin.size() != header.cubin_bytes) {
        why = "its body does not fit its length";
        return std::nullopt;
    }
    entry->value.cubin.assign(cubin.begin(), cubin.end());
    return entry;
}

std::string entry_name(const jit::digest& key, const jit::digest& compiler) {
    return fmt::format("{}-{}{}", key.hex(), compiler.hex(), extension);
}

std::optional<parsed_name> parse_entry_name(std::string_view name) noexcept {
    constexpr std::size_t hex = 32;
    if (name.size() != 2 * hex + 1 + extension.size() || name[hex] != '-' || !name.ends_with(extension)) {
        return std::nullopt;
    }
    const auto key = jit::digest::from_hex(name.substr(0, hex));
    const auto compiler = jit::digest::from_hex(name.substr(hex + 1, hex));
    if (!key || !compiler) {
        return std::nullopt;
    }
    return parsed_name{*key, *compiler};
}

}  // namespace epjit::cache::detail
