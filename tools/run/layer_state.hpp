// SPDX-License-Identifier: Apache-2.0
// What a layer at work holds; private to layer.cpp and layer_state.cpp.
#pragma once

#include "epjit/error.hpp"
#include "host/exchange/exchange_state.hpp"
#include "tools/run/layer.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace epjit::tools {
namespace detail {

inline constexpr std::size_t guard_bytes = 256;
inline constexpr unsigned char poison = 0xa5;

/// An output with poisoned contents and a guard behind it.
struct guarded {
    std::byte* data = nullptr;
    std::size_t bytes = 0;
    std::string name;
    std::size_t guard = guard_bytes;  ///< bytes behind it that nobody writes
};

/// One rank's tensors in the exchange's memory.
struct rank_tensors {
    void* routing = nullptr;
    float* weights = nullptr;
    std::byte *input = nullptr, *input_scales = nullptr, *gradient = nullptr, *expert_rows = nullptr;
    float* row_gradients = nullptr;
    std::uint64_t* slot_tokens = nullptr;  ///< [S], or null
    guarded rows, scales, row_source, row_weights, local_ids, local_weights, result, weight_gradients;
    std::int64_t num_rows = 0;
};

tensor_view view_of(const reference::problem& p, void* data, dtype type, std::int64_t rows, std::int64_t stride);

}  // namespace detail

struct layer::state {
    state(exchange& ex, memory_space& space, const reference::problem& job, layer_options o)
        : exchange_(ex),
          memory(space),
          job_(&job),
          options(std::move(o)),
          first(ex.state().config.first_driven),
          tensors(static_cast<std::size_t>(ex.state().config.num_driven)) {
        forget();
    }
    void forget() {
        seen = {};
        seen.first_rank = first;
        seen.ranks.resize(tensors.size());
        fetched = false;
    }

    [[nodiscard]] const reference::problem& job() const { return *job_; }
    [[nodiscard]] const reference::rank_input& input_of(std::size_t i) const {
        return job().inputs[static_cast<std::size_t>(first) + i];
    }
    [[nodiscard]] bool flat() const { return job().layout == layout::flat; }

    void poll() const {
        if (options.cancel != nullptr && options.cancel->load()) {
            throw error(error_kind::cancelled, "run was interrupted");
        }
    }

    detail::guarded make_output(std::size_t bytes, std::string name, std::size_t shift = 0) {
        auto* const base = static_cast<std::byte*>(memory.allocate(bytes + shift + detail::guard_bytes));
        detail::guarded g{base + shift, bytes, std::move(name)};
        all.push_back(g);
        return g;
    }

    /// The first bytes of memory that the exchange lends, `room` of them in all.
    detail::guarded borrow_output(void* data, std::size_t bytes, std::size_t room, std::string name) {
        detail::guarded g{static_cast<std::byte*>(data), bytes, std::move(name)};
        g.guard = std::min(g.guard, room - std::min(room, bytes));
        all.push_back(g);
        return g;
    }
    void borrow_rows(std::size_t i, const std::string& whose);

    void poison_outputs() {
        for (const detail::guarded& g : all) {
            memory.fill(g.data, detail::poison, g.bytes + g.guard);
        }
    }

    /// Rows that start where the options say.
    std::byte* place_rows(const reference::bytes& rows, dtype type) {
        if (options.misalignment == 0) {
            return memory.place(std::span<const std::byte>(rows));
        }
        const auto shift = static_cast<std::size_t>(options.misalignment * size_of(type));
        auto* const base = static_cast<std::byte*>(memory.allocate(rows.size() + shift));
        memory.upload(base + shift, rows.data(), rows.size());
        return base + shift;
    }

    void allocate_outputs(std::size_t i);
    void clear_tokens();
    void issue_plan();
    void fill_dispatch_arguments();
    void fill_combine_arguments();
    void fetch_dispatched();
    void check_guards();

    template <class T>
    std::vector<T> fetch(const detail::guarded& g) {
        return memory.fetch(reinterpret_cast<const T*>(g.data), g.bytes / sizeof(T));
    }

    exchange& exchange_;
    memory_space& memory;
    const reference::problem* job_;
    const layer_options options;
    const std::int32_t first;
    std::vector<detail::rank_tensors> tensors;
    std::vector<detail::guarded> all;
    std::vector<plan_args> plan_arguments;
    std::vector<dispatch_args> dispatch_arguments;
    epjit::dispatch_options dispatch_choices;
    std::vector<combine_args> combine_arguments;
    epjit::combine_options combine_choices;
    std::vector<std::size_t> plan_marks, dispatch_marks, combine_marks;
    plan plan_;
    std::uint64_t plans = 0;        ///< added to slot_tokens so far
    std::uint64_t graph_plans = 0;  ///< that a replay adds
    reference::observation seen;
    bool fetched = false;  ///< `seen` holds what the last dispatch gave
};

}  // namespace epjit::tools
