// SPDX-License-Identifier: Apache-2.0
// How the bytes of a row are shared out to the units that travel as packets.
#include "low_latency/packet_layout.cuh"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace epjit::templates {
namespace {

using testing::Each;

/// Hidden sizes whose rows end in the middle of a unit, of a piece and of a group of 32 units.
constexpr int hidden_sizes[] = {1, 7, 16, 24, 100, 128, 767, 768, 769, 2048, 2880, 4096, 7168};

template <i32 Packets>
void expect_every_byte_once(const packet_record<Packets>& record) {
    std::vector<int> seen(static_cast<std::size_t>(record.row_bytes));
    for (int unit = 0; unit < record.units(); ++unit) {
        const unit_bytes<Packets> at = record.bytes_of(unit);
        for (int word = 0; word < payload_words(Packets); ++word) {
            for (int byte = 0; byte < 4 && at.word(word) + byte < record.row_bytes; ++byte) {
                ++seen[static_cast<std::size_t>(at.word(word) + byte)];
            }
        }
    }
    EXPECT_THAT(seen, Each(1)) << record.row_bytes << " bytes, units of " << Packets;
}

TEST(packet_units, hold_every_byte_of_a_row_once) {
    for (const int hidden : hidden_sizes) {
        for (const element type : {element::bf16, element::f32, element::fp8_e4m3}) {
            expect_every_byte_once(row_record_of(hidden, type, group_scale::none, 8));
            expect_every_byte_once(sum_record_of(hidden, type));
        }
    }
}

/// Pieces of a unit as they are read and written: bytes, and where they lie.
template <i32 Packets>
std::vector<std::pair<int, int>> pieces_of(const unit_bytes<Packets>& at) {
    std::vector<std::pair<int, int>> pieces;
    for (int n = 0; n + 1 < Packets; ++n) {
        pieces.emplace_back(16, at.wide(n));
    }
    pieces.emplace_back(8, at.eight());
    pieces.emplace_back(4, at.four());
    return pieces;
}

template <i32 Packets>
void expect_whole_pieces(const packet_record<Packets>& record) {
    for (int unit = 0; unit < record.units(); ++unit) {
        int word = 0;
        for (const auto& [bytes, first] : pieces_of(record.bytes_of(unit))) {
            EXPECT_EQ(first % bytes, 0) << unit;
            EXPECT_TRUE(first >= record.row_bytes || first + bytes <= record.row_bytes) << unit;
            for (int n = 0; n < bytes; n += 4) {
                EXPECT_EQ(record.bytes_of(unit).word(word++), first + n) << unit;
            }
        }
        EXPECT_EQ(word, payload_words(Packets));
    }
}

TEST(packet_units, of_rows_of_whole_vectors_have_whole_pieces) {
    for (const int hidden : {8, 16, 24, 128, 768, 776, 2048, 2880, 4096, 7168}) {
        expect_whole_pieces(row_record_of(hidden, element::bf16, group_scale::none, 8));
        expect_whole_pieces(sum_record_of(hidden, element::bf16));
    }
}

TEST(packet_units, of_neighbouring_threads_touch_neighbouring_bytes) {
    const row_record record = row_record_of(7168, element::bf16, group_scale::none, 8);
    for (int unit = 0; unit + 1 < record.units(); ++unit) {
        if (unit % 32 != 31) {
            const auto pieces = pieces_of(record.bytes_of(unit)), next = pieces_of(record.bytes_of(unit + 1));
            for (std::size_t n = 0; n < pieces.size(); ++n) {
                EXPECT_EQ(next[n].second, pieces[n].second + pieces[n].first) << unit;
            }
        }
    }
}

TEST(packet_units, beyond_the_last_lie_behind_the_row) {
    const row_record record = row_record_of(7168, element::bf16, group_scale::none, 8);
    for (int unit = record.units(); unit < record.units() + 96; ++unit) {
        for (int word = 0; word < payload_words(row_record::unit_packets); ++word) {
            EXPECT_GE(record.bytes_of(unit).word(word), record.row_bytes) << unit;
        }
    }
}

TEST(packet_units, carry_all_but_one_word) {
    EXPECT_EQ(payload_words(1), 3);
    EXPECT_EQ(payload_words(2), 7);
    EXPECT_EQ(payload_words(4), 15);
    // 14 KiB in units of 28 and of 60 bytes.
    EXPECT_EQ(sum_record_of(7168, element::bf16).bytes(), 512 * 32);
    EXPECT_EQ(row_record_of(7168, element::bf16, group_scale::none, 8).bytes(), 239 * 64 + 3 * 16);
}

/// Memory that holds nothing is zero, and every packet looks at its own part of the tag.
TEST(packet_tags, are_never_zero_in_any_packet) {
    for (const u32 step : {1u, 0x7fu, 0x80u, 0x7fffu, 0x8000u, 0xffffffffu, 0u}) {
        for (int part = 0; part < 2; ++part) {
            EXPECT_NE(packet_tag(2, step) >> 16 * part & 0xffff, 0u) << step;
        }
        for (int part = 0; part < 4; ++part) {
            EXPECT_NE(packet_tag(4, step) >> 8 * part & 0xff, 0u) << step;
        }
    }
    EXPECT_EQ(packet_tag(1, 5), 5u);
}

TEST(packet_tags, tell_one_use_of_an_area_from_the_next) {
    for (const int packets : {1, 2, 4}) {
        for (const u32 step : {1u, 0x7fu, 0x80u, 0x7fffu, 0xffffffffu}) {
            EXPECT_NE(packet_tag(packets, step), packet_tag(packets, step + 2)) << packets << ' ' << step;
        }
    }
}

}  // namespace
}  // namespace epjit::templates
