// SPDX-License-Identifier: Apache-2.0
// Names, values and sizes of the enumerations, and the proof that C and C++ number them alike.
#include "host/c/enumerations.hpp"

#include "epjit/epjit.h"
#include "epjit/error.hpp"
#include "epjit/log.hpp"
#include "epjit/readiness.hpp"
#include "epjit/residency.hpp"
#include "epjit/runtime.hpp"
#include "host/c/guard.hpp"

#include <fmt/format.h>

#include <optional>
#include <string_view>

namespace epjit::host::c {
namespace {

template <class Enum>
constexpr bool same(std::int32_t c, Enum value) {
    return c == static_cast<std::int32_t>(value);
}
constexpr bool same_status(epjit_status c, error_kind kind) {
    return c == static_cast<std::int32_t>(kind) + 1;
}
static_assert(EPJIT_OK == 0 && same_status(EPJIT_ERROR_INTERNAL, error_kind::internal) &&
              same_status(EPJIT_ERROR_CONFIG, error_kind::config) &&
              same_status(EPJIT_ERROR_UNSUPPORTED, error_kind::unsupported) &&
              same_status(EPJIT_ERROR_COMPILE, error_kind::compile) &&
              same_status(EPJIT_ERROR_CACHE, error_kind::cache) &&
              same_status(EPJIT_ERROR_OFFLINE_MISS, error_kind::offline_miss) &&
              same_status(EPJIT_ERROR_LIBRARY, error_kind::library) &&
              same_status(EPJIT_ERROR_CUDA, error_kind::cuda) && same_status(EPJIT_ERROR_NCCL, error_kind::nccl) &&
              same_status(EPJIT_ERROR_TIMEOUT, error_kind::timeout) &&
              same_status(EPJIT_ERROR_CAPACITY, error_kind::capacity) &&
              same_status(EPJIT_ERROR_CANCELLED, error_kind::cancelled));
static_assert(same(EPJIT_DTYPE_BF16, dtype::bf16) && same(EPJIT_DTYPE_FP16, dtype::fp16) &&
              same(EPJIT_DTYPE_F32, dtype::f32) && same(EPJIT_DTYPE_FP8_E4M3, dtype::fp8_e4m3));
static_assert(same(EPJIT_SCALE_NONE, scale_type::none) && same(EPJIT_SCALE_F32, scale_type::f32) &&
              same(EPJIT_SCALE_UE8M0, scale_type::ue8m0));
static_assert(same(EPJIT_ID_I16, id_type::i16) && same(EPJIT_ID_I32, id_type::i32) &&
              same(EPJIT_ID_U32, id_type::u32) && same(EPJIT_ID_I64, id_type::i64));
static_assert(same(EPJIT_ROUTING_DENSE, routing_form::dense) && same(EPJIT_ROUTING_SPARSE, routing_form::sparse) &&
              same(EPJIT_ROUTING_SLOTS, routing_form::slots));
static_assert(same(EPJIT_LAYOUT_EXPERT_MAJOR, layout::expert_major) && same(EPJIT_LAYOUT_FLAT, layout::flat) &&
              same(EPJIT_LAYOUT_MASKED, layout::masked));
static_assert(same(EPJIT_MODE_EXACT, mode::exact) && same(EPJIT_MODE_STATIC, mode::fixed));
static_assert(same(EPJIT_REDUCTION_PER_RANK, reduction::per_rank) &&
              same(EPJIT_REDUCTION_PER_HOST, reduction::per_host) && same(EPJIT_REDUCTION_PER_ROW, reduction::per_row));
static_assert(same(EPJIT_WEIGHTING_NONE, weighting::none) && same(EPJIT_WEIGHTING_INPUT, weighting::input) &&
              same(EPJIT_WEIGHTING_EXPERTS, weighting::experts) && same(EPJIT_WEIGHTING_COMBINE, weighting::combine));
static_assert(same(EPJIT_OVERFLOW_FAIL, overflow::fail) && same(EPJIT_OVERFLOW_DROP, overflow::drop));
static_assert(same(EPJIT_PLAN_SOURCE_AUTO, plan_source::automatic) &&
              same(EPJIT_PLAN_SOURCE_COUNTS, plan_source::counts) &&
              same(EPJIT_PLAN_SOURCE_GATHERED, plan_source::gathered));
static_assert(same(EPJIT_EXCHANGE_AUTO, exchange_kind::automatic) && same(EPJIT_EXCHANGE_HOST, exchange_kind::host) &&
              same(EPJIT_EXCHANGE_LOOPBACK, exchange_kind::loopback) && same(EPJIT_EXCHANGE_LSA, exchange_kind::lsa) &&
              same(EPJIT_EXCHANGE_SENDRECV, exchange_kind::sendrecv) &&
              same(EPJIT_EXCHANGE_DENSE, exchange_kind::dense) && same(EPJIT_EXCHANGE_HYBRID, exchange_kind::hybrid));
static_assert(same(EPJIT_LOG_ERROR, log_level::error) && same(EPJIT_LOG_WARN, log_level::warn) &&
              same(EPJIT_LOG_INFO, log_level::info) && same(EPJIT_LOG_DEBUG, log_level::debug));
static_assert(same(EPJIT_USE_CONSTANT, tensor_use::constant) && same(EPJIT_USE_PER_STEP, tensor_use::per_step) &&
              same(EPJIT_USE_OUTPUT, tensor_use::output) && same(EPJIT_USE_STATE, tensor_use::state));
static_assert(same(EPJIT_RESIDENCE_NONE, residence::none) && same(EPJIT_RESIDENCE_REPLICATED, residence::replicated) &&
              same(EPJIT_RESIDENCE_STACKED, residence::stacked));
static_assert(same(EPJIT_READINESS_NONE, readiness_stage::none) &&
              same(EPJIT_READINESS_PREPARE, readiness_stage::prepare) &&
              same(EPJIT_READINESS_CAPTURE, readiness_stage::capture) &&
              same(EPJIT_READINESS_INSTANTIATE, readiness_stage::instantiate) &&
              same(EPJIT_READINESS_REPLAY, readiness_stage::replay) &&
              same(EPJIT_READINESS_VERIFY, readiness_stage::verify));

constexpr const char* unknown = "?";

template <class Enum>
const char* name_of(std::int32_t value) noexcept {
    if (value < 0 || value > 255) {
        return unknown;
    }
    const std::string_view text = name(static_cast<Enum>(value));
    return is_name(text) ? text.data() : unknown;  // names are literals: they end with a nul
}

const char* status_name(std::int32_t value) noexcept {
    if (value == EPJIT_OK) {
        return "ok";
    }
    return value < EPJIT_OK || value > EPJIT_ERROR_CANCELLED ? unknown : name(static_cast<error_kind>(value - 1));
}

const char* level_name(std::int32_t value) noexcept {
    constexpr const char* names[] = {"error", "warn", "info", "debug"};
    return value < EPJIT_LOG_ERROR || value > EPJIT_LOG_DEBUG ? unknown : names[value];
}

const char* any_name(epjit_enumeration enumeration, std::int32_t value) noexcept {
    switch (enumeration) {
        case EPJIT_ENUM_STATUS: return status_name(value);
        case EPJIT_ENUM_DTYPE: return name_of<dtype>(value);
        case EPJIT_ENUM_SCALE_TYPE: return name_of<scale_type>(value);
        case EPJIT_ENUM_ID_TYPE: return name_of<id_type>(value);
        case EPJIT_ENUM_ROUTING_FORM: return name_of<routing_form>(value);
        case EPJIT_ENUM_LAYOUT: return name_of<layout>(value);
        case EPJIT_ENUM_MODE: return name_of<mode>(value);
        case EPJIT_ENUM_REDUCTION: return name_of<reduction>(value);
        case EPJIT_ENUM_WEIGHTING: return name_of<weighting>(value);
        case EPJIT_ENUM_OVERFLOW: return name_of<overflow>(value);
        case EPJIT_ENUM_EXCHANGE_KIND: return name_of<exchange_kind>(value);
        case EPJIT_ENUM_LOG_LEVEL: return level_name(value);
        case EPJIT_ENUM_TENSOR_USE: return name_of<tensor_use>(value);
        case EPJIT_ENUM_RESIDENCE: return name_of<residence>(value);
        case EPJIT_ENUM_READINESS_STAGE: return name_of<readiness_stage>(value);
        case EPJIT_ENUM_PLAN_SOURCE: return name_of<plan_source>(value);
        default: return unknown;
    }
}

bool same_text(std::string_view a, std::string_view b) noexcept {
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

std::int32_t value_of(epjit_enumeration enumeration, std::string_view text) {
    std::string names;
    for (std::int32_t value = 0; any_name(enumeration, value) != std::string_view(unknown); ++value) {
        if (same_text(any_name(enumeration, value), text)) {
            return value;
        }
        names += fmt::format("{}{}", value == 0 ? "" : ", ", any_name(enumeration, value));
    }
    if (names.empty()) {
        throw config_error(fmt::format("enumeration {} is unknown", enumeration), "use an EPJIT_ENUM_ constant");
    }
    throw config_error(fmt::format("'{}' is no value of this enumeration", text), fmt::format("use one of {}", names));
}

}  // namespace

void fail_value(const char* field, std::int32_t value) {
    throw config_error(fmt::format("{} is {}, outside its enumeration", field, value),
                       "use the constants of epjit/epjit.h");
}

}  // namespace epjit::host::c

using namespace epjit::host::c;

const char* epjit_name(epjit_enumeration enumeration, int32_t value) {
    return any_name(enumeration, value);
}

epjit_status epjit_parse(epjit_enumeration enumeration, const char* text, int32_t* value) {
    return guarded([&] { not_null(value, "value") = value_of(enumeration, &not_null(text, "text")); });
}

int64_t epjit_size_of(epjit_enumeration enumeration, int32_t value) {
    if (any_name(enumeration, value) == std::string_view(unknown)) {
        return -1;
    }
    switch (enumeration) {
        case EPJIT_ENUM_DTYPE: return epjit::size_of(static_cast<epjit::dtype>(value));
        case EPJIT_ENUM_ID_TYPE: return epjit::size_of(static_cast<epjit::id_type>(value));
        case EPJIT_ENUM_SCALE_TYPE: return epjit::size_of(static_cast<epjit::scale_type>(value));
        default: return -1;
    }
}

const char* epjit_version(void) {
    return epjit::runtime::version().data();
}
