// SPDX-License-Identifier: Apache-2.0
// How the bytes of a row are shared out to the units that travel as packets.
#include "low_latency/packet_layout.cuh"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace epjit::templates {
namespace {

using testing::Each;

/// Hidden sizes whose rows end in the middle of a unit, of a piece and of a group of 32 units.
constexpr int hidden_sizes[] = {1, 7, 16, 24, 100, 128, 767, 768, 769, 2048, 2880, 4096, 7168};

void expect_every_byte_once(const packet_record& record) {
    std::vector<int> seen(static_cast<std::size_t>(record.row_bytes));
    for (int unit = 0; unit < record.units(); ++unit) {
        const unit_bytes at = record.bytes_of(unit);
        for (int piece = 0; piece < packet_words; ++piece) {
            for (int byte = 0; byte < record.piece_bytes(); ++byte) {
                const int place = at.first + piece * at.stride + byte;
                if (place < record.row_bytes) {
                    ++seen[static_cast<std::size_t>(place)];
                }
            }
        }
    }
    EXPECT_THAT(seen, Each(1)) << record.row_bytes << " bytes, units of " << record.unit_packets;
}

TEST(packet_units, hold_every_byte_of_a_row_once) {
    for (const int hidden : hidden_sizes) {
        for (const element type : {element::bf16, element::f32, element::fp8_e4m3}) {
            expect_every_byte_once(row_record(hidden, type, group_scale::none, 8));
            expect_every_byte_once(sum_record(hidden, type));
        }
    }
}

TEST(packet_units, of_rows_touch_neighbouring_bytes_in_a_warp) {
    const packet_record record = row_record(7168, element::bf16, group_scale::none, 8);
    for (int unit = 0; unit + 1 < record.units(); ++unit) {
        if (unit % 32 != 31) {
            EXPECT_EQ(record.bytes_of(unit + 1).first, record.bytes_of(unit).first + record.piece_bytes()) << unit;
        }
    }
}

TEST(packet_units, beyond_the_last_lie_behind_the_row) {
    const packet_record record = row_record(7168, element::bf16, group_scale::none, 8);
    for (int unit = record.units(); unit < record.units() + 96; ++unit) {
        const unit_bytes at = record.bytes_of(unit);
        for (int piece = 0; piece < packet_words; ++piece) {
            EXPECT_GE(at.first + piece * at.stride, record.row_bytes) << unit;
        }
    }
}

}  // namespace
}  // namespace epjit::templates
