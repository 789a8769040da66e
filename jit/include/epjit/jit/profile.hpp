// SPDX-License-Identifier: Apache-2.0
// Tuning profiles: JSON files that say which knobs a shape gets on which machine (docs/operations.md has the format),
// and what an exchange takes from them. Needs no GPU.
#pragma once

#include "epjit/jit/knobs.hpp"
#include "epjit/types.hpp"

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace epjit::jit {

/// How the GPUs of a host reach each other's memory.
enum class link_kind : std::uint8_t { none, pcie, nvlink };
std::string_view name(link_kind) noexcept;  ///< "none", "pcie", "nvlink"

/// An exchange on a machine, as a profile sees it. In an entry empty fields and zeros stand for any.
struct tuning_key {
    std::string gpu;                      ///< the driver's name of it, "NVIDIA H200"
    std::optional<target_arch> arch;      ///< sm_90a
    std::optional<link_kind> link;        ///< none: one GPU
    std::int32_t ranks = 0;               ///< on a host
    std::int32_t hidden = 0;              ///< H
    std::int32_t experts = 0;             ///< E
    std::int32_t topk = 0;                ///< K
    std::optional<dtype> input;           ///< the caller's rows
    std::optional<dtype> dispatch;        ///< dispatched rows
    std::optional<scale_type> scales;     ///< of them
    std::optional<dtype> combine;         ///< rows given to combine
    std::optional<epjit::layout> layout;  ///< of a plan
    std::int32_t tokens = 0;              ///< most of a rank in a call; a power of two, the call's class

    friend bool operator==(const tuning_key&, const tuning_key&) = default;
};

/// Calls of so many tokens are tuned as one: the power of two at or above `tokens`, 1 for none.
std::int32_t token_class(std::int32_t tokens) noexcept;

/// Medians in microseconds, with the entry's knobs and with the cost model's; 0: not measured.
struct tuning_times {
    double dispatch_us = 0, combine_us = 0, cost_model_dispatch_us = 0, cost_model_combine_us = 0;
    friend bool operator==(const tuning_times&, const tuning_times&) = default;
};

struct profile_entry {
    tuning_key key;
    knobs values;
    tuning_times measured;
    friend bool operator==(const profile_entry&, const profile_entry&) = default;
};

/// No two entries have the same key.
struct profile {
    std::string source;  ///< "built-in" or the file
    std::vector<profile_entry> entries;
};

/// @throws config_error: file, field, value and what is accepted; unsupported_error for a version that is newer.
profile load_profile(const std::string& path);
/// The same from text; `origin` names it in messages.
profile parse_profile(std::string_view json, std::string_view origin);
/// The file's text: parse_profile() gives the same entries.
std::string profile_text(std::span<const profile_entry> entries);
/// What ships with the library.
const profile& builtin_profile();

/// `fresh` in the place of the entry with its key, else at the end.
void merge_entry(profile& into, const profile_entry& fresh);

/// An entry of a profile may serve the exchange `of`, whose layout and tokens are left out of it.
bool serves(const tuning_key& entry, const tuning_key& of) noexcept;

/// What an exchange takes of profiles: the same bytes on every rank. All values are 32 bits, none is padding.
class tuned_knobs {
   public:
    enum class source : std::int32_t { cost_model, built_in, file };

    /// Knobs of programs: of the first entry for calls of so many tokens as the exchange may have.
    [[nodiscard]] knobs programs() const noexcept { return programs_; }
    [[nodiscard]] source programs_from() const noexcept { return programs_from_; }
    /// Knobs of a call's launches, none of them 0 but dispatch_senders, dispatch_chunk and window_dispatch.
    /// `tokens` is the bound of the call. No allocation.
    [[nodiscard]] const knobs& launches(layout rows, std::int32_t tokens) const noexcept {
        return at(rows, tokens).values;
    }
    [[nodiscard]] source launches_from(layout rows, std::int32_t tokens) const noexcept {
        return at(rows, tokens).from;
    }
    /// Not the cost model's alone.
    [[nodiscard]] bool tuned() const noexcept { return num_cases_ > 1; }
    /// These knobs for every call: what a tuner forces.
    static tuned_knobs always(const knobs& values) noexcept;

   private:
    friend tuned_knobs choose_knobs(const tuning_key&, std::span<const profile* const>);
    static constexpr std::int32_t max_cases = 96;
    struct choice {
        std::int32_t layout = -1;  ///< -1: any
        std::int32_t tokens = 0;   ///< class; 0: any
        source from = source::cost_model;
        knobs values = cost_model_launches();
    };
    [[nodiscard]] const choice& at(layout rows, std::int32_t tokens) const noexcept;

    knobs programs_;
    source programs_from_ = source::cost_model;
    std::int32_t num_cases_ = 1;
    std::array<choice, max_cases> cases_{};  ///< the first that fits counts; the last fits every call
};
static_assert(sizeof(tuned_knobs) == 4 * (16 + 2 + 96 * 19));

/// "the cost model", "the built-in profile", "the profile".
std::string_view name(tuned_knobs::source) noexcept;

/// Of the first profile that has an entry for a call, the entry with most fields; of those equal in number the one with
/// the earlier fields of tuning_key. `of` is the exchange: its tokens are the most of a rank, its layout is not looked
/// at.
tuned_knobs choose_knobs(const tuning_key& of, std::span<const profile* const> profiles);

}  // namespace epjit::jit
