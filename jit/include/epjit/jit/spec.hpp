// SPDX-License-Identifier: Apache-2.0
// The value that names what to compile. One spec = one key = one NVRTC program = one cubin = one cache entry.
#pragma once

#include "epjit/jit/hash.hpp"
#include "epjit/types.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace epjit::jit {

class template_set;

/// What a program does; each may hold several kernels.
enum class kernel_kind : std::uint8_t {
    plan,                  ///< routing -> plan (preprocessing and scan)
    permute_dispatch,      ///< token rows -> expert rows: permute on one rank, dispatch on the ranks one GPU drives
    unpermute_combine,     ///< expert rows -> token rows: unpermute on one rank, combine on the ranks one GPU drives
    weight_gradient,       ///< backward: gradients of the routing weights
    exchange_plan,         ///< one real rank's part of a plan
    exchange_helpers,      ///< steps between real ranks, weights and rows on their way
    exchange_dispatch,     ///< a whole dispatch through windows
    exchange_combine,      ///< a whole combine through windows
    low_latency_dispatch,  ///< the same of few tokens, in packets that announce themselves
    low_latency_combine,
    gathered_plan,    ///< one real rank's plan from all ranks' routing
    direct_dispatch,  ///< a whole dispatch straight into the outputs that peers lend
};
/// "plan", "permute+dispatch", "unpermute+combine", "weight_gradient", "exchange_plan", "exchange_helpers",
/// "exchange_dispatch", "exchange_combine", "low_latency_dispatch", "low_latency_combine",
/// "gathered_plan", "direct_dispatch".
std::string_view name(kernel_kind) noexcept;

/// A real GPU target such as sm_90a; suffix is 'a', 'f' or 0.
struct target_arch {
    std::uint16_t number = 90;
    char suffix = 0;

    [[nodiscard]] std::string text() const;  ///< "sm_90a"
    static std::optional<target_arch> parse(std::string_view text) noexcept;
    friend auto operator<=>(const target_arch&, const target_arch&) = default;
};

/// Fields that do not matter to a kind are zero, so that equal programs have equal specs: build one with the
/// functions of variants.hpp. Token counts, capacities, alignments, layouts, id widths, reductions, SM counts and
/// time limits are run-time arguments and not here.
struct variant_spec {
    kernel_kind kind = kernel_kind::plan;
    exchange_kind exchange = exchange_kind::automatic;  ///< where a kind differs between exchanges
    target_arch arch;
    dtype input = dtype::bf16;
    dtype output = dtype::bf16;
    scale_type scales = scale_type::none;
    bool sparse = false;
    std::int32_t hidden = 0;
    std::int32_t num_experts = 0;
    std::int32_t num_slots = 0;
    std::int32_t num_ranks = 0;  ///< plan: R; others: ranks that the arguments hold, 8, 32 or 64
    std::int32_t topk = 0;
    // Tuning knobs.
    std::int32_t threads = 0;
    std::int32_t stages = 0;  ///< rows of a block in shared memory
    std::int32_t movers = 0;  ///< warps that share the stages, of exchange_combine teams; 0: by their number

    friend auto operator<=>(const variant_spec&, const variant_spec&) = default;
};

/// The spec as one readable line, "plan sm_90a E=256 S=256 R=8 K=8 dense threads=512": stored with the artifact and
/// compared by `explain` to say what differs from the nearest entry.
std::string describe(const variant_spec& spec);

/// First level of the key (design contract 1): spec, digest of every template byte the program includes, options.
digest variant_key(const variant_spec& spec, const template_set& templates);

}  // namespace epjit::jit
