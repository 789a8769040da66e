// SPDX-License-Identifier: Apache-2.0
// The one place that decides which variants exist: `warm`, `prepare()`, `run`, `bench` and `explain` all use it.
#pragma once

#include "epjit/jit/model.hpp"
#include "epjit/jit/profile.hpp"
#include "epjit/jit/spec.hpp"

#include <cstdint>
#include <span>
#include <vector>

namespace epjit::jit {

/// Builders of canonical specs: fields that do not matter are zeroed, knobs are the cost model's (see with_knobs).
/// @throws config_error when a value is out of the library's bounds.
variant_spec plan_spec(target_arch arch, std::int32_t num_experts, std::int32_t num_slots, std::int32_t num_ranks,
                       std::int32_t topk, bool sparse);
/// One real rank's part of a plan, for every exchange between real ranks.
variant_spec exchange_plan_spec(target_arch arch, std::int32_t num_experts, std::int32_t num_slots,
                                std::int32_t num_ranks, std::int32_t topk, bool sparse);
/// The same from all ranks' routing.
variant_spec gathered_plan_spec(target_arch arch, std::int32_t num_experts, std::int32_t num_slots,
                                std::int32_t num_ranks, std::int32_t topk, bool sparse);
/// The small kernels between real ranks: steps, weights, rows on their way back.
variant_spec exchange_helpers_spec(target_arch arch, std::int32_t num_ranks, std::int32_t topk);
/// A whole dispatch, or combine, of one real rank through windows. Rows that pass through untouched; `stages` of a
/// dispatch is 0 where bulk copies cannot move them: then there is no such program.
variant_spec exchange_dispatch_spec(target_arch arch, std::int32_t num_ranks, std::int32_t hidden, std::int32_t topk,
                                    dtype type, scale_type scales);
/// A whole dispatch straight into the outputs that the ranks lend; where there is such a program as above.
variant_spec direct_dispatch_spec(target_arch arch, std::int32_t num_ranks, std::int32_t hidden, std::int32_t topk,
                                  dtype type, scale_type scales);
variant_spec exchange_combine_spec(target_arch arch, std::int32_t num_ranks, std::int32_t hidden, std::int32_t topk,
                                   dtype type);
/// The same of few tokens, for every R.
variant_spec low_latency_dispatch_spec(target_arch arch, std::int32_t hidden, std::int32_t topk, dtype type,
                                       scale_type scales);
variant_spec low_latency_combine_spec(target_arch arch, std::int32_t hidden, std::int32_t topk, dtype type);
/// permute and dispatch on the ranks one GPU drives. `output` differs from `input` only for the fused quantiser
/// (fp8_e4m3 with `scales`); an fp8 input passes through with `scales`. Runs of up to 8, 32 and 64 ranks share a
/// program.
variant_spec scatter_spec(target_arch arch, exchange_kind exchange, std::int32_t num_ranks, std::int32_t hidden,
                          std::int32_t topk, dtype input, dtype output, scale_type scales);
/// unpermute and combine, likewise. `type` is bf16, fp16 or f32.
variant_spec gather_spec(target_arch arch, exchange_kind exchange, std::int32_t num_ranks, std::int32_t hidden,
                         std::int32_t topk, dtype type);
/// Weight gradients of `type` rows; one program for every exchange.
variant_spec weight_gradient_spec(target_arch arch, std::int32_t num_ranks, std::int32_t hidden, std::int32_t topk,
                                  dtype type);

/// `base`: what a forward run of the model needs (`--set default`); `all` adds sparse routing, other exchanges, dtypes.
enum class variant_set { base, all };

/// What to list variants for.
struct variant_request {
    model_shape model;
    std::vector<std::int32_t> ranks;  ///< each R of interest
    std::vector<target_arch> archs;
    variant_set set = variant_set::base;
    /// Entries of profiles: programs that runs with their knobs load are listed beside the cost model's.
    std::vector<profile_entry> tuned{};
};

/// Every variant of the request, each once, in a stable order.
std::vector<variant_spec> list_variants(const variant_request& request);

/// The variants one run loads: a subset of list_variants for the same model, R, arch and profiles.
struct run_request {
    std::int32_t hidden = 0, num_experts = 0, num_slots = 0, topk = 0, num_ranks = 1;
    target_arch arch;
    exchange_kind exchange = exchange_kind::loopback;  ///< `host` needs none
    routing_form routing = routing_form::dense;
    dtype input = dtype::bf16;  ///< the caller's rows
    dtype wire = dtype::bf16;   ///< dispatched rows; fp8_e4m3 with scales quantises
    scale_type scales = scale_type::none;
    dtype combine = dtype::bf16;
    bool backward = false;     ///< weight gradients too
    bool low_latency = false;  ///< calls of few tokens have kernels of their own
    bool windows = false;      ///< outputs are lent: rows may go straight to their places
    knobs programs{};          ///< tuned_knobs::programs()
};
std::vector<variant_spec> run_variants(const run_request& request);

}  // namespace epjit::jit
