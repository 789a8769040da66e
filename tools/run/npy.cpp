// SPDX-License-Identifier: Apache-2.0
#include "tools/run/npy.hpp"

#include "epjit/error.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <string_view>
#include <utility>

namespace epjit::tools {
namespace {

constexpr std::string_view magic("\x93NUMPY", 6);
constexpr std::size_t max_header_bytes = 1 << 20;

struct file_closer {
    void operator()(std::FILE* f) const noexcept { std::fclose(f); }
};
using file_handle = std::unique_ptr<std::FILE, file_closer>;

[[noreturn]] void refuse(const std::string& path, const std::string& why, std::string remedy = {}) {
    if (remedy.empty()) {
        remedy = "save it with numpy.save(file, ids.astype(numpy.int64)), shape [T,K] or [R,T,K]";
    }
    throw config_error(fmt::format("{}: {}", path, why), std::move(remedy));
}

file_handle open_file(const std::string& path, const char* how) {
    file_handle f(std::fopen(path.c_str(), how));
    if (f == nullptr) {
        refuse(path, fmt::format("cannot be opened: {}", std::strerror(errno)), "check the path and its permissions");
    }
    return f;
}

void read_exactly(const std::string& path, std::FILE* f, void* out, std::size_t bytes, const char* what) {
    const std::size_t got = std::fread(out, 1, bytes, f);
    if (got != bytes) {
        refuse(path, fmt::format("ends after {} of {} bytes of its {}", got, bytes, what), "write the file again");
    }
}

/// The text after `'key':` in the header's dictionary.
std::string_view value_of(const std::string& path, std::string_view header, std::string_view key) {
    for (const char quote : {'\'', '"'}) {
        const std::string wanted = fmt::format("{0}{1}{0}", quote, key);
        const std::size_t at = header.find(wanted);
        if (at == std::string_view::npos) {
            continue;
        }
        std::size_t from = header.find(':', at + wanted.size());
        if (from != std::string_view::npos) {
            from = header.find_first_not_of(" \t", from + 1);
        }
        if (from != std::string_view::npos) {
            return header.substr(from);
        }
    }
    refuse(path, fmt::format("its npy header has no '{}'", key));
}

id_type parse_descr(const std::string& path, std::string_view header) {
    std::string_view text = value_of(path, header, "descr");
    const char quote = text.front();
    const std::size_t end = quote == '\'' || quote == '"' ? text.find(quote, 1) : std::string_view::npos;
    if (end == std::string_view::npos) {
        refuse(path, "its dtype is not a plain type (structured arrays hold no ids)");
    }
    text = text.substr(1, end - 1);
    static constexpr std::array<std::pair<std::string_view, id_type>, 4> known{
        {{"<i2", id_type::i16}, {"<i4", id_type::i32}, {"<u4", id_type::u32}, {"<i8", id_type::i64}}};
    for (const auto& [name, type] : known) {
        if (text == name) {
            return type;
        }
    }
    refuse(path, fmt::format("holds elements of type '{}'; expert ids are '<i2', '<i4', '<u4' or '<i8'", text));
}

std::vector<std::int64_t> parse_shape(const std::string& path, std::string_view header) {
    std::string_view text = value_of(path, header, "shape");
    const std::size_t end = text.find(')');
    if (text.front() != '(' || end == std::string_view::npos) {
        refuse(path, "the shape in its npy header is not a tuple");
    }
    text = text.substr(1, end - 1);
    std::vector<std::int64_t> shape;
    std::int64_t number = -1;  // none read yet
    for (const char c : text) {
        if (c >= '0' && c <= '9') {
            number = (number < 0 ? 0 : number) * 10 + (c - '0');
            if (number > std::numeric_limits<std::int32_t>::max()) {
                refuse(path, fmt::format("a dimension of its shape ({}) is larger than 2^31 - 1", text));
            }
        } else if (c == ',') {
            if (number < 0) {
                refuse(path, fmt::format("its shape ({}) is malformed", text));
            }
            shape.push_back(number);
            number = -1;
        } else if (c != ' ') {
            refuse(path, fmt::format("its shape ({}) is malformed", text));
        }
    }
    if (number >= 0) {
        shape.push_back(number);
    }
    return shape;
}

void write_file(const std::string& path, std::string_view descr, std::span<const std::int64_t> shape, const void* data,
                std::size_t count, std::size_t element_bytes) {
    std::string dims;
    for (const std::int64_t d : shape) {
        dims += fmt::format("{},{}", d, shape.size() == 1 ? "" : " ");
    }
    std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", descr, dims);
    // Magic, version and length take 10 bytes; data starts at a multiple of 64, after a newline.
    const std::size_t padded = (10 + header.size() + 1 + 63) / 64 * 64 - 10;
    header.resize(padded - 1, ' ');
    header += '\n';
    const std::array<unsigned char, 4> prefix{1, 0, static_cast<unsigned char>(padded & 0xff),
                                              static_cast<unsigned char>(padded >> 8)};
    file_handle f = open_file(path, "wb");
    bool good = std::fwrite(magic.data(), 1, magic.size(), f.get()) == magic.size();
    good = good && std::fwrite(prefix.data(), 1, prefix.size(), f.get()) == prefix.size();
    good = good && std::fwrite(header.data(), 1, header.size(), f.get()) == header.size();
    good = good && (count == 0 || std::fwrite(data, element_bytes, count, f.get()) == count);
    good = std::fclose(f.release()) == 0 && good;
    if (!good) {
        refuse(path, fmt::format("could not be written: {}", std::strerror(errno)),
               "free space, or choose another directory");
    }
}

std::size_t elements_of(std::span<const std::int64_t> shape) {
    std::size_t count = 1;
    for (const std::int64_t d : shape) {
        count *= static_cast<std::size_t>(d);
    }
    return count;
}

}  // namespace

id_array read_ids_npy(const std::string& path) {
    const file_handle f = open_file(path, "rb");
    std::array<char, 8> start{};
    if (std::fread(start.data(), 1, start.size(), f.get()) != start.size() ||
        std::string_view(start.data(), magic.size()) != magic) {
        refuse(path, "is not a .npy file (its first bytes are not \\x93NUMPY)");
    }
    const int major = start[6];
    if (major < 1 || major > 3) {
        refuse(path, fmt::format("is of npy version {}.{}; 1.0 to 3.0 are read", major, static_cast<int>(start[7])));
    }
    std::array<unsigned char, 4> length{};
    read_exactly(path, f.get(), length.data(), major == 1 ? 2 : 4, "header length");
    const std::size_t header_bytes =
        length[0] | std::size_t{length[1]} << 8 | std::size_t{length[2]} << 16 | std::size_t{length[3]} << 24;
    if (header_bytes > max_header_bytes) {
        refuse(path, fmt::format("claims a header of {} bytes", header_bytes));
    }
    std::string header(header_bytes, '\0');
    read_exactly(path, f.get(), header.data(), header.size(), "header");
    id_array ids;
    ids.type = parse_descr(path, header);
    ids.shape = parse_shape(path, header);
    if (value_of(path, header, "fortran_order").substr(0, 5) != "False") {
        refuse(path, "is in Fortran order", "save numpy.ascontiguousarray(ids)");
    }
    if (ids.shape.size() != 2 && ids.shape.size() != 3) {
        refuse(path, fmt::format("has shape ({}); [T,K] or [R,T,K] is needed", fmt::join(ids.shape, ", ")));
    }
    double elements = 1;  // checked before it is trusted
    for (const std::int64_t d : ids.shape) {
        elements *= static_cast<double>(d);
    }
    if (elements > std::numeric_limits<std::int32_t>::max()) {
        refuse(path, fmt::format("has shape ({}), more than 2^31 - 1 ids", fmt::join(ids.shape, ", ")),
               "route fewer tokens");
    }
    // The file's own length bounds the allocation, whatever the header claims.
    const std::size_t bytes = elements_of(ids.shape) * static_cast<std::size_t>(size_of(ids.type));
    const long at = std::ftell(f.get());
    if (at >= 0 && std::fseek(f.get(), 0, SEEK_END) == 0) {
        const long end = std::ftell(f.get());
        if (end >= at && static_cast<std::size_t>(end - at) < bytes) {
            refuse(path, fmt::format("ends after {} of {} bytes of its data", end - at, bytes), "write the file again");
        }
        std::fseek(f.get(), at, SEEK_SET);
    }
    ids.data.resize(bytes);
    read_exactly(path, f.get(), ids.data.data(), ids.data.size(), "data");
    return ids;
}

void write_npy(const std::string& path, std::span<const std::int64_t> shape, std::span<const float> values) {
    write_file(path, "<f4", shape, values.data(), values.size(), sizeof(float));
}

void write_npy(const std::string& path, std::span<const std::int64_t> shape, std::span<const std::int64_t> values) {
    write_file(path, "<i8", shape, values.data(), values.size(), sizeof(std::int64_t));
}

}  // namespace epjit::tools
