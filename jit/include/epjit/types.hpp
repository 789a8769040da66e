// SPDX-License-Identifier: Apache-2.0
// The library's vocabulary: element types, layouts, modes, reductions, exchanges, and views of caller memory.
#pragma once

#include "epjit/export.hpp"

#include <cstdint>
#include <optional>
#include <string_view>

struct CUstream_st;
struct ncclComm;

namespace epjit {

/// A CUDA stream (`CUstream`, `cudaStream_t`); null is the context's default stream. The host exchange ignores it.
using stream_t = CUstream_st*;

enum class dtype : std::uint8_t { bf16, fp16, f32, fp8_e4m3 };

/// Scales of fp8 rows, one for each group of 128 elements, the last group short: ceil(H/128) a row.
enum class scale_type : std::uint8_t { none, f32, ue8m0 };

/// Element type of expert ids.
enum class id_type : std::uint8_t { i16, i32, u32, i64 };

/// `dense`: ids [T,K], -1 drops; `sparse`: a u8 map [T,E]; `slots`: dense ids that name expert slots, so that the
/// caller chooses among replicas.
enum class routing_form : std::uint8_t { dense, sparse, slots };

/// `expert_major`: rows contiguous per slot, segments padded to an alignment; `flat`: one row per token and rank, with
/// local ids and weights beside it; `masked`: [L, capacity, H] and counts.
enum class layout : std::uint8_t { expert_major, flat, masked };

/// `exact`: the host learns the counts and outputs are sized exactly; `fixed` ("static" in text): nothing is read
/// back, outputs have the caller's capacity, the calls can be captured in a graph.
enum class mode : std::uint8_t { exact, fixed };

/// Declared order of combine's sum: see `exchange::combine`.
enum class reduction : std::uint8_t { per_rank, per_host, per_row };

/// Where routing weights are applied, once.
enum class weighting : std::uint8_t { none, input, experts, combine };

/// What happens to rows beyond the capacity: the tail in (slot, source rank, token) order is dropped and counted, or
/// the operation reports an error at the next host call; memory beyond the capacity is never written.
enum class overflow : std::uint8_t { fail, drop };

/// How the ranks of an exchange come to a plan; equal on every rank. `counts`: each counts its own tokens, counts and
/// lines go to the ranks they are for; `gathered`: every rank's ids go to all as i16, [token bound, K] each, and each
/// rank makes the plan of them. Both make the same plan. `automatic`: gathered where few tokens make it the faster one.
enum class plan_source : std::uint8_t { automatic, counts, gathered };

/// The way rows travel.
enum class exchange_kind : std::uint8_t { automatic, host, loopback, lsa, sendrecv, dense, hybrid };

/// Rows of caller memory. `row_stride` is in elements; 0 means `columns`. fp8 rows carry `scales`.
struct tensor_view {
    void* data = nullptr;
    dtype type = dtype::bf16;
    std::int64_t rows = 0;
    std::int64_t columns = 0;
    std::int64_t row_stride = 0;
    void* scales = nullptr;  ///< [rows, ceil(columns/128)]
    scale_type scale = scale_type::none;
    std::int64_t scale_row_stride = 0;  ///< in scales; 0 means ceil(columns/128)
};

/// Bytes of one element.
constexpr std::int64_t size_of(dtype t) noexcept {
    return t == dtype::f32 ? 4 : t == dtype::fp8_e4m3 ? 1 : 2;
}
/// Bytes of one id.
constexpr std::int64_t size_of(id_type t) noexcept {
    return t == id_type::i16 ? 2 : t == id_type::i64 ? 8 : 4;
}
/// Bytes of one scale, 0 for `none`.
constexpr std::int64_t size_of(scale_type t) noexcept {
    return t == scale_type::f32 ? 4 : t == scale_type::ue8m0 ? 1 : 0;
}

/// The names used on the command line, in JSON and in messages: "bf16", "expert_major", "static", "auto", ...
EPJIT_API std::string_view name(dtype) noexcept;
EPJIT_API std::string_view name(scale_type) noexcept;
EPJIT_API std::string_view name(id_type) noexcept;
EPJIT_API std::string_view name(routing_form) noexcept;
EPJIT_API std::string_view name(layout) noexcept;
EPJIT_API std::string_view name(mode) noexcept;
EPJIT_API std::string_view name(reduction) noexcept;
EPJIT_API std::string_view name(weighting) noexcept;
EPJIT_API std::string_view name(overflow) noexcept;
EPJIT_API std::string_view name(plan_source) noexcept;
EPJIT_API std::string_view name(exchange_kind) noexcept;

/// The value of a name, hyphen and underscore alike; empty when unknown. `Enum` is one of the enums above.
template <class Enum>
EPJIT_API std::optional<Enum> parse(std::string_view text) noexcept;

}  // namespace epjit
