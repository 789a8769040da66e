// SPDX-License-Identifier: Apache-2.0
#include "epjit/types.hpp"

#include <array>

namespace epjit {
namespace {

template <class Enum>
struct names;

#define EPJIT_NAMES(Enum, ...)                                                       \
    template <>                                                                      \
    struct names<Enum> {                                                             \
        static constexpr auto values = std::to_array<std::string_view>(__VA_ARGS__); \
    }

EPJIT_NAMES(dtype, {"bf16", "fp16", "f32", "fp8"});
EPJIT_NAMES(scale_type, {"none", "f32", "ue8m0"});
EPJIT_NAMES(id_type, {"i16", "i32", "u32", "i64"});
EPJIT_NAMES(routing_form, {"dense", "sparse", "slots"});
EPJIT_NAMES(layout, {"expert_major", "flat", "masked"});
EPJIT_NAMES(mode, {"exact", "static"});
EPJIT_NAMES(reduction, {"per_rank", "per_host", "per_row"});
EPJIT_NAMES(weighting, {"none", "input", "experts", "combine"});
EPJIT_NAMES(overflow, {"fail", "drop"});
EPJIT_NAMES(plan_source, {"auto", "counts", "gathered"});
EPJIT_NAMES(exchange_kind, {"auto", "host", "loopback", "lsa", "sendrecv", "dense", "hybrid"});
#undef EPJIT_NAMES

template <class Enum>
std::string_view name_of(Enum value) noexcept {
    const auto index = static_cast<std::size_t>(value);
    return index < names<Enum>::values.size() ? names<Enum>::values[index] : "?";
}

bool same(std::string_view a, std::string_view b) noexcept {
    if (a.size() != b.size()) {
        return false;
    }
    for (std::size_t i = 0; i < a.size(); ++i) {
        if ((a[i] == '-' ? '_' : a[i]) != (b[i] == '-' ? '_' : b[i])) {
            return false;
        }
    }
    return true;
}

}  // namespace

template <class Enum>
std::optional<Enum> parse(std::string_view text) noexcept {
    for (std::size_t i = 0; i < names<Enum>::values.size(); ++i) {
        if (same(text, names<Enum>::values[i])) {
            return static_cast<Enum>(i);
        }
    }
    return std::nullopt;
}

#define EPJIT_DEFINE(Enum)                       \
    std::string_view name(Enum value) noexcept { \
        return name_of(value);                   \
    }                                            \
    template std::optional<Enum> parse<Enum>(std::string_view) noexcept

EPJIT_DEFINE(dtype);
EPJIT_DEFINE(scale_type);
EPJIT_DEFINE(id_type);
EPJIT_DEFINE(routing_form);
EPJIT_DEFINE(layout);
EPJIT_DEFINE(mode);
EPJIT_DEFINE(reduction);
EPJIT_DEFINE(weighting);
EPJIT_DEFINE(overflow);
EPJIT_DEFINE(plan_source);
EPJIT_DEFINE(exchange_kind);
#undef EPJIT_DEFINE

}  // namespace epjit
