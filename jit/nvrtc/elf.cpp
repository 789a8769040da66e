// SPDX-License-Identifier: Apache-2.0
#include "jit/nvrtc/elf.hpp"

#include <fmt/format.h>

#include <cstring>
#include <elf.h>
#include <fstream>
#include <iterator>
#include <vector>

namespace epjit::jit {
namespace {

constexpr std::size_t max_note_bytes = 1 << 20;

bool read_at(std::ifstream& in, std::uint64_t offset, void* to, std::size_t bytes) {
    in.clear();
    in.seekg(static_cast<std::streamoff>(offset));
    in.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
    return in.good();
}

std::optional<std::string> find_build_id(std::span<const unsigned char> notes) {
    const auto align = [](std::size_t n) { return (n + 3) & ~std::size_t{3}; };
    while (notes.size() >= sizeof(Elf64_Nhdr)) {
        Elf64_Nhdr header;
        std::memcpy(&header, notes.data(), sizeof header);
        const std::size_t name_at = sizeof header;
        const std::size_t value_at = name_at + align(header.n_namesz);
        const std::size_t end = value_at + align(header.n_descsz);
        if (value_at + header.n_descsz > notes.size()) {
            return std::nullopt;
        }
        if (header.n_type == NT_GNU_BUILD_ID && header.n_namesz == 4 && header.n_descsz > 0 &&
            std::memcmp(notes.data() + name_at, "GNU", 4) == 0) {
            std::string hex;
            for (const unsigned char byte : notes.subspan(value_at, header.n_descsz)) {
                fmt::format_to(std::back_inserter(hex), "{:02x}", byte);
            }
            return hex;
        }
        if (end >= notes.size()) {
            return std::nullopt;
        }
        notes = notes.subspan(end);
    }
    return std::nullopt;
}

}  // namespace

bool is_elf(std::span<const std::byte> image) noexcept {
    return image.size() >= sizeof(Elf64_Ehdr) && std::memcmp(image.data(), ELFMAG, SELFMAG) == 0;
}

std::optional<std::string> elf_build_id(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    Elf64_Ehdr header;
    if (!read_at(in, 0, &header, sizeof header) || std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 ||
        header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB ||
        header.e_phentsize != sizeof(Elf64_Phdr)) {
        return std::nullopt;
    }
    for (std::size_t i = 0; i < header.e_phnum; ++i) {
        Elf64_Phdr segment;
        if (!read_at(in, header.e_phoff + i * sizeof segment, &segment, sizeof segment)) {
            return std::nullopt;
        }
        if (segment.p_type != PT_NOTE || segment.p_filesz > max_note_bytes) {
            continue;
        }
        std::vector<unsigned char> notes(segment.p_filesz);
        if (!read_at(in, segment.p_offset, notes.data(), notes.size())) {
            return std::nullopt;
        }
        if (auto id = find_build_id(notes)) {
            return id;
        }
    }
    return std::nullopt;
}

std::string file_identity(const std::string& path) {
    if (const auto id = elf_build_id(path)) {
        return "build-id:" + *id;
    }
    std::ifstream in(path, std::ios::binary);
    if (!in.is_open()) {
        return {};
    }
    const std::string bytes{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    return bytes.empty() ? std::string{} : "xxh3:" + hash_text(bytes).hex();
}

}  // namespace epjit::jit
