// SPDX-License-Identifier: Apache-2.0
#include "tools/run/npy.hpp"

#include "epjit/error.hpp"
#include "tests/host/temporary_folder.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <fstream>
#include <numeric>
#include <string>

namespace epjit {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using tests::temporary_folder;

void write_raw(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
}

std::string npy(int major, const std::string& dictionary, const std::string& data) {
    std::string header = dictionary + "\n";
    std::string out = "\x93NUMPY";
    out += static_cast<char>(major);
    out += '\0';
    const std::size_t length_bytes = major == 1 ? 2 : 4;
    for (std::size_t i = 0; i < length_bytes; ++i) {
        out += static_cast<char>(header.size() >> (8 * i) & 0xff);
    }
    return out + header + data;
}

std::string message_of(const std::string& path) {
    try {
        tools::read_ids_npy(path);
    } catch (const config_error& e) {
        return e.what();
    }
    return "no error";
}

TEST(npy, integers_written_are_read_back) {
    const temporary_folder folder;
    const std::vector<std::int64_t> values{0, -1, 7, 1'000'000'000'000, -5, 2};
    for (const std::vector<std::int64_t>& shape : {std::vector<std::int64_t>{2, 3}, {3, 1, 2}, {6, 1}}) {
        tools::write_npy(folder.path("a.npy"), shape, values);
        const tools::id_array ids = tools::read_ids_npy(folder.path("a.npy"));
        EXPECT_EQ(ids.shape, shape);
        EXPECT_EQ(ids.type, id_type::i64);
        ASSERT_EQ(ids.data.size(), 48u);
        EXPECT_EQ(std::memcmp(ids.data.data(), values.data(), 48), 0);
    }
    tools::write_npy(folder.path("empty.npy"), std::array<std::int64_t, 2>{0, 4}, std::span<const std::int64_t>());
    EXPECT_THAT(tools::read_ids_npy(folder.path("empty.npy")).shape, ElementsAre(0, 4));
}

TEST(npy, data_starts_at_a_multiple_of_64_after_the_header) {
    const temporary_folder folder;
    const std::array<float, 3> values{1.5f, -2.0f, 0.25f};
    tools::write_npy(folder.path("f.npy"), std::array<std::int64_t, 1>{3}, values);
    std::ifstream in(folder.path("f.npy"), std::ios::binary);
    const std::string bytes(std::istreambuf_iterator<char>(in), {});
    ASSERT_EQ(bytes.size() % 64, 12u);
    EXPECT_EQ(bytes[bytes.size() - 13], '\n');
    EXPECT_THAT(bytes, HasSubstr("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }"));
    EXPECT_EQ(std::memcmp(bytes.data() + bytes.size() - 12, values.data(), 12), 0);
}

TEST(npy, every_id_width_and_header_version_is_read) {
    const temporary_folder folder;
    const std::pair<const char*, id_type> types[] = {
        {"<i2", id_type::i16}, {"<i4", id_type::i32}, {"<u4", id_type::u32}, {"<i8", id_type::i64}};
    for (const auto& [descr, type] : types) {
        for (const int major : {1, 2, 3}) {
            const std::string header =
                "{'descr': '" + std::string(descr) + "', 'fortran_order': False, 'shape': (1, 2), }";
            write_raw(folder.path("a.npy"),
                      npy(major, header, std::string(static_cast<std::size_t>(2 * size_of(type)), '\1')));
            const tools::id_array ids = tools::read_ids_npy(folder.path("a.npy"));
            EXPECT_EQ(ids.type, type);
            EXPECT_THAT(ids.shape, ElementsAre(1, 2));
        }
    }
}

TEST(npy, a_bad_file_is_an_error_that_names_it_and_says_what_is_wrong) {
    const temporary_folder folder;
    const std::string path = folder.path("bad.npy");
    const auto refused = [&](const std::string& bytes, const char* why) {
        write_raw(path, bytes);
        EXPECT_THAT(message_of(path), HasSubstr(why));
        EXPECT_THAT(message_of(path), HasSubstr(path));
    };
    const std::string data(64, '\0');
    EXPECT_THAT(message_of(folder.path("missing.npy")), HasSubstr("No such file"));
    refused("", "is not a .npy file");
    refused("PK\3\4 a zip file", "is not a .npy file");
    refused(npy(9, "{}", ""), "version 9");
    refused("\x93NUMPY\1", "is not a .npy file");
    refused(std::string("\x93NUMPY\1\0\xff\xff{'descr'", 17), "ends after");
    refused(npy(1, "{'fortran_order': False, 'shape': (2, 2), }", data), "no 'descr'");
    refused(npy(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }", data), "'<f4'");
    refused(npy(1, "{'descr': '>i8', 'fortran_order': False, 'shape': (2, 2), }", data), "'>i8'");
    refused(npy(1, "{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (2, 2), }", data), "not a plain type");
    refused(npy(1, "{'descr': '<i8', 'fortran_order': True, 'shape': (2, 2), }", data), "Fortran");
    refused(npy(1, "{'descr': '<i8', 'fortran_order': False, 'shape': (8,), }", data), "shape (8)");
    refused(npy(1, "{'descr': '<i8', 'fortran_order': False, 'shape': (), }", data), "shape ()");
    refused(npy(1, "{'descr': '<i8', 'fortran_order': False, 'shape': (2, -2), }", data), "malformed");
    refused(npy(1, "{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999999999, 2), }", data), "larger");
    refused(npy(1, "{'descr': '<i8', 'fortran_order': False, 'shape': (2147483647, 2147483647), }", data), "more than");
    refused(npy(1, "{'descr': '<i8', 'fortran_order': False, 'shape': (400000, 400), }", data), "ends after 64 of");
    refused(npy(1, "{'descr': '<i8', 'fortran_order': False, 'shape': (3, 3), }", data), "ends after 64 of 72");
}

TEST(npy, a_file_cut_anywhere_or_with_any_byte_changed_never_does_worse_than_an_error) {
    const temporary_folder folder;
    const std::string path = folder.path("cut.npy");
    const std::string whole =
        npy(1, "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 4), }", std::string(32, '\2'));
    for (std::size_t length = 0; length < whole.size(); ++length) {
        write_raw(path, whole.substr(0, length));
        EXPECT_THROW(tools::read_ids_npy(path), config_error) << length;
    }
    for (std::size_t at = 0; at < whole.size() - 32; ++at) {
        std::string changed = whole;
        changed[at] = static_cast<char>(changed[at] ^ 0x15);
        write_raw(path, changed);
        try {
            const tools::id_array ids = tools::read_ids_npy(path);
            const auto elements =
                std::accumulate(ids.shape.begin(), ids.shape.end(), std::int64_t{1}, std::multiplies<>());
            EXPECT_EQ(ids.data.size(), static_cast<std::size_t>(elements * size_of(ids.type)));
        } catch (const config_error&) {
        }
    }
}

TEST(npy, writing_where_one_cannot_is_an_error_that_names_the_file) {
    try {
        tools::write_npy("/proc/nothing/x.npy", std::array<std::int64_t, 1>{1}, std::array<float, 1>{1});
        FAIL();
    } catch (const config_error& e) {
        EXPECT_THAT(e.what(), HasSubstr("/proc/nothing/x.npy"));
    }
}

}  // namespace
}  // namespace epjit
