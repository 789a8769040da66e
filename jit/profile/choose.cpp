// SPDX-License-Identifier: Apache-2.0
#include "epjit/jit/profile.hpp"

#include <algorithm>
#include <bit>
#include <tuple>

namespace epjit::jit {
namespace {

/// A bit for each field that an entry names, the earlier fields higher.
std::uint32_t named_fields(const tuning_key& key) noexcept {
    const bool fields[] = {!key.gpu.empty(),       key.arch.has_value(),    key.link.has_value(),
                           key.ranks != 0,         key.hidden != 0,         key.experts != 0,
                           key.topk != 0,          key.input.has_value(),   key.dispatch.has_value(),
                           key.scales.has_value(), key.combine.has_value(), key.layout.has_value(),
                           key.tokens != 0};
    std::uint32_t bits = 0;
    for (const bool named : fields) {
        bits = bits << 1 | (named ? 1U : 0U);
    }
    return bits;
}

template <class Value>
bool fits(const std::optional<Value>& entry, const std::optional<Value>& of) noexcept {
    return !entry || entry == of;
}
bool fits(std::int32_t entry, std::int32_t of) noexcept {
    return entry == 0 || entry == of;
}

}  // namespace

std::int32_t token_class(std::int32_t tokens) noexcept {
    constexpr std::int32_t most = 1 << 30;
    return tokens >= most ? most
                          : static_cast<std::int32_t>(std::bit_ceil(static_cast<std::uint32_t>(std::max(1, tokens))));
}

bool serves(const tuning_key& entry, const tuning_key& of) noexcept {
    return (entry.gpu.empty() || entry.gpu == of.gpu) && fits(entry.arch, of.arch) && fits(entry.link, of.link) &&
           fits(entry.ranks, of.ranks) && fits(entry.hidden, of.hidden) && fits(entry.experts, of.experts) &&
           fits(entry.topk, of.topk) && fits(entry.input, of.input) && fits(entry.dispatch, of.dispatch) &&
           fits(entry.scales, of.scales) && fits(entry.combine, of.combine);
}

const tuned_knobs::choice& tuned_knobs::at(layout rows, std::int32_t tokens) const noexcept {
    const std::int32_t wanted = token_class(tokens);
    for (std::int32_t i = 0; i < num_cases_ - 1; ++i) {
        const choice& c = cases_[static_cast<std::size_t>(i)];
        if ((c.layout < 0 || c.layout == static_cast<std::int32_t>(rows)) && (c.tokens == 0 || c.tokens == wanted)) {
            return c;
        }
    }
    return cases_[static_cast<std::size_t>(num_cases_ - 1)];
}

tuned_knobs tuned_knobs::always(const knobs& values) noexcept {
    tuned_knobs k;
    k.programs_ = values.of_programs();
    k.programs_from_ = source::file;
    k.num_cases_ = 2;
    k.cases_[0].from = source::file;
    k.cases_[0].values = filled(values.of_launches(), cost_model_launches());
    return k;
}

std::string_view name(tuned_knobs::source from) noexcept {
    switch (from) {
        case tuned_knobs::source::cost_model: return "the cost model";
        case tuned_knobs::source::built_in: return "the built-in profile";
        case tuned_knobs::source::file: return "the profile";
    }
    return "?";
}

tuned_knobs choose_knobs(const tuning_key& of, std::span<const profile* const> profiles) {
    tuned_knobs made;
    const std::int32_t most = token_class(of.tokens);
    std::int32_t count = 0;
    bool have_programs = false;
    for (const profile* p : profiles) {
        std::vector<const profile_entry*> found;
        for (const profile_entry& entry : p->entries) {
            // Calls of the exchange have no more tokens than it.
            if (serves(entry.key, of) && entry.key.tokens <= most) {
                found.push_back(&entry);
            }
        }
        const auto rank = [](const profile_entry* e) {
            const std::uint32_t named = named_fields(e->key);
            return std::tuple(-std::popcount(named), ~named, e->key.layout);
        };
        std::stable_sort(found.begin(), found.end(),
                         [&](const profile_entry* a, const profile_entry* b) { return rank(a) < rank(b); });
        const auto from = p == &builtin_profile() ? tuned_knobs::source::built_in : tuned_knobs::source::file;
        for (const profile_entry* entry : found) {
            if (!have_programs && (entry->key.tokens == 0 || entry->key.tokens == most)) {
                have_programs = true;
                made.programs_ = entry->values.of_programs();
                made.programs_from_ = entry->values.has_programs() ? from : tuned_knobs::source::cost_model;
            }
            if (count < tuned_knobs::max_cases - 1) {
                tuned_knobs::choice& c = made.cases_[static_cast<std::size_t>(count++)];
                c.layout = entry->key.layout ? static_cast<std::int32_t>(*entry->key.layout) : -1;
                c.tokens = entry->key.tokens;
                c.from = from;
                c.values = filled(entry->values.of_launches(), cost_model_launches());
            }
        }
    }
    made.num_cases_ = count + 1;
    return made;
}

}  // namespace epjit::jit
