// SPDX-License-Identifier: Apache-2.0
#include "host/exchange/validate.hpp"

#include "epjit/error.hpp"
#include "epjit/jit/model.hpp"
#include "host/exchange/layouts.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

namespace epjit::host {
namespace {

constexpr std::int64_t max_index = std::numeric_limits<std::int32_t>::max();

template <class... Args>
[[noreturn]] void refuse(const char* remedy, fmt::format_string<Args...> text, Args&&... args) {
    throw config_error(fmt::format(text, std::forward<Args>(args)...), remedy);
}

template <class Enum>
bool known(Enum value, Enum last) noexcept {
    return value <= last;
}

bool aligned(const void* pointer, std::int64_t bytes) noexcept {
    return reinterpret_cast<std::uintptr_t>(pointer) % static_cast<std::uintptr_t>(bytes) == 0;
}

/// What a tensor argument must be.
struct tensor_rule {
    const char* what;
    int rank;
    dtype type;
    std::int64_t columns;
    std::int64_t rows;  ///< that will be accessed
    bool exact_rows;    ///< the tensor has exactly that many
    scale_type scales;
};

void check_scales(const tensor_view& t, const tensor_rule& rule) {
    if (t.scale != rule.scales) {
        refuse("pass the scale type of the exchange's config", "{} of rank {} has scales '{}', the exchange has '{}'",
               rule.what, rule.rank, name(t.scale), name(rule.scales));
    }
    if (rule.scales == scale_type::none) {
        return;
    }
    if (t.scales == nullptr && rule.rows > 0) {
        refuse("pass device memory for [rows, ceil(H/128)] scales", "{} of rank {} has no scales", rule.what,
               rule.rank);
    }
    if (t.scale_row_stride != 0 && t.scale_row_stride < scale_groups(rule.columns)) {
        refuse("use 0 for contiguous scales", "{} of rank {} has scale_row_stride {}, a row has {} scales", rule.what,
               rule.rank, t.scale_row_stride, scale_groups(rule.columns));
    }
    if (!aligned(t.scales, size_of(rule.scales))) {
        refuse("align scales to their size", "{} of rank {} has scales at {}", rule.what, rule.rank, t.scales);
    }
}

void check_tensor(const tensor_view& t, const tensor_rule& rule) {
    if (t.type != rule.type) {
        refuse("pass rows of the dtype in the exchange's config", "{} of rank {} is {}, the exchange takes {}",
               rule.what, rule.rank, name(t.type), name(rule.type));
    }
    if (t.columns != rule.columns) {
        refuse("columns is the hidden size", "{} of rank {} has {} columns, H is {}", rule.what, rule.rank, t.columns,
               rule.columns);
    }
    if (rule.exact_rows ? t.rows != rule.rows : t.rows < rule.rows) {
        refuse(rule.exact_rows ? "pass exactly the plan's tokens" : "size it by the plan's view or worst_case_rows",
               "{} of rank {} has {} rows, {} are needed", rule.what, rule.rank, t.rows, rule.rows);
    }
    if (t.rows > max_index) {
        refuse("split the batch", "{} of rank {} has {} rows, at most {} can be addressed", rule.what, rule.rank,
               t.rows, max_index);
    }
    if (t.row_stride != 0 && t.row_stride < t.columns) {
        refuse("row_stride is in elements; 0 means columns",
               "{} of rank {} has row_stride {}, less than its {} columns", rule.what, rule.rank, t.row_stride,
               t.columns);
    }
    if (t.data == nullptr && rule.rows > 0) {
        refuse("pass device memory (host exchange: ordinary memory)", "{} of rank {} is null but needs {} rows",
               rule.what, rule.rank, rule.rows);
    }
    if (!aligned(t.data, size_of(t.type))) {
        refuse("align rows to their element size", "{} of rank {} is at {}, not aligned to its {}-byte elements",
               rule.what, rule.rank, t.data, size_of(t.type));
    }
    check_scales(t, rule);
}

void check_count(std::size_t given, const resolved_config& config, const char* what) {
    if (given != static_cast<std::size_t>(config.num_driven)) {
        refuse("pass one struct per driven rank, in rank order",
               "{} got {} argument structs, the communicator drives {}", what, given, config.num_driven);
    }
}

void check_lane(const resolved_config& config, const plan_state& plan, std::int32_t lane, const char* what) {
    if (lane < 0 || lane >= config.config.lanes) {
        refuse("use a lane from 0 up, below exchange_config::lanes", "{} on lane {}, the exchange has {}", what, lane,
               config.config.lanes);
    }
    if (lane != plan.options.lane) {
        refuse("use the plan's lane", "{} on lane {} with a plan of lane {}", what, lane, plan.options.lane);
    }
}

void check_types(const exchange_config& c) {
    if (!known(c.input_type, dtype::fp8_e4m3) || !known(c.dispatch_type, dtype::fp8_e4m3) ||
        !known(c.combine_type, dtype::fp8_e4m3) || !known(c.scales, scale_type::ue8m0) ||
        !known(c.routing, routing_form::slots) || !known(c.kind, exchange_kind::hybrid)) {
        refuse("use the enumerators of epjit/types.hpp", "an enum of exchange_config has a value outside its range");
    }
    if (c.dispatch_type != c.input_type && c.dispatch_type != dtype::fp8_e4m3) {
        throw unsupported_error(
            fmt::format("dispatch cannot convert {} rows to {}", name(c.input_type), name(c.dispatch_type)),
            "use equal types, or dispatch_type fp8 to quantise on the way");
    }
    if (c.dispatch_type != c.input_type && c.scales == scale_type::none) {
        refuse("set scales to f32 or ue8m0", "quantising {} rows to fp8 needs scales, config.scales is none",
               name(c.input_type));
    }
    if (c.dispatch_type != dtype::fp8_e4m3 && c.scales != scale_type::none) {
        refuse("set scales to none", "config.scales is {} but {} rows carry no scales", name(c.scales),
               name(c.dispatch_type));
    }
    if (c.combine_type == dtype::fp8_e4m3) {
        throw unsupported_error("combine_type fp8: fp8 rows are not summed", "use bf16, fp16 or f32");
    }
}

}  // namespace

void validate_config(const exchange_config& c, std::int32_t num_ranks) {
    if (c.version != 1) {
        refuse("build against the headers of the library that is loaded",
               "exchange_config::version is {}, this library knows 1", c.version);
    }
    check_types(c);
    if (c.hidden < 1 || c.hidden > jit::max_hidden) {
        refuse("set hidden to the model's hidden size", "hidden is {}, outside 1 to {}", c.hidden, jit::max_hidden);
    }
    if (c.num_experts < 1 || c.num_experts > templates::max_experts) {
        refuse("set num_experts to the model's logical experts", "num_experts is {}, outside 1 to {}", c.num_experts,
               templates::max_experts);
    }
    if (c.topk < 1 || c.topk > templates::max_topk || c.topk > c.num_experts) {
        refuse(c.routing == routing_form::slots
                   ? "set topk to the model's experts per token; routing by slots chooses among an expert's copies, it "
                     "does not give a token more experts"
                   : "set topk to the model's experts per token",
               "topk is {}, outside 1 to min({}, {} experts)", c.topk, templates::max_topk, c.num_experts);
    }
    if (c.max_tokens_per_rank < 0) {
        refuse("set it to the largest T of any call", "max_tokens_per_rank is {}", c.max_tokens_per_rank);
    }
    if (c.ll_max_tokens_per_rank < 0 || c.ll_max_tokens_per_rank > c.max_tokens_per_rank) {
        refuse("use 0, or a bound up to max_tokens_per_rank", "ll_max_tokens_per_rank is {}, max_tokens_per_rank is {}",
               c.ll_max_tokens_per_rank, c.max_tokens_per_rank);
    }
    if (c.lanes < 1 || c.lanes > 2) {
        refuse("use 1, or 2 for two-batch overlap", "lanes is {}", c.lanes);
    }
    if (c.num_sms < 0) {
        refuse("use 0 for automatic", "num_sms is {}", c.num_sms);
    }
    if (c.expansion_sms < 0) {
        refuse("use 0 for a call within num_sms", "expansion_sms is {}", c.expansion_sms);
    }
    if (c.expansion_sms != 0 && c.num_sms == 0) {
        refuse("set num_sms too, which bounds the blocks that send", "expansion_sms is {}, num_sms 0", c.expansion_sms);
    }
    if (c.window_rows < 0) {
        refuse("use 0 for no window, or the rows that an output may need (see worst_case_rows)", "window_rows is {}",
               c.window_rows);
    }
    if (c.staging_bytes < 0) {
        refuse("use 0 for automatic", "staging_bytes is {}", c.staging_bytes);
    }
    if (c.staging_bytes != 0 && c.halves) {
        refuse("halves need memory for max_tokens_per_rank tokens: set one of the two",
               "staging_bytes is {} and halves is set", c.staging_bytes);
    }
    if ((c.memory.allocate == nullptr) != (c.memory.release == nullptr)) {
        refuse("set both hooks or neither", "memory_hooks has {} but not {}",
               c.memory.allocate != nullptr ? "allocate" : "release",
               c.memory.allocate != nullptr ? "release" : "allocate");
    }
    for (std::int32_t r = 0; c.rank_hosts != nullptr && r < num_ranks; ++r) {
        if (c.rank_hosts[r] < 0) {
            refuse("number hosts from 0", "rank_hosts[{}] is {}", r, c.rank_hosts[r]);
        }
    }
}

void validate_resolved(const resolved_config& config) {
    const std::int64_t entries =
        std::int64_t{config.num_ranks} * config.config.max_tokens_per_rank * config.config.topk;
    if (entries > max_index) {
        refuse("lower max_tokens_per_rank", "{} ranks x {} tokens x topk {} is {} rows, at most {} can be addressed",
               config.num_ranks, config.config.max_tokens_per_rank, config.config.topk, entries, max_index);
    }
}

std::int32_t local_slots(const resolved_config& config, int driven) noexcept {
    const std::int32_t rank = config.first_driven + driven;
    return config.placement.rank_first[rank + 1] - config.placement.rank_first[rank];
}

std::int64_t rows_needed(const resolved_config& config, const plan_state& plan, int driven) {
    if (plan.options.layout == layout::masked) {
        return std::int64_t{local_slots(config, driven)} * plan.ranks[driven].capacity;
    }
    return plan.options.mode == mode::exact ? plan.view(driven).rows : plan.ranks[driven].capacity;
}

std::int64_t worst_case_rows(const resolved_config& config, int driven, const plan_options& options) noexcept {
    const std::int64_t slots = local_slots(config, driven);
    const std::int64_t bound = options.token_bound != 0 ? options.token_bound : config.config.max_tokens_per_rank;
    const std::int64_t tokens = config.num_ranks * bound;
    if (slots == 0) {
        return 0;
    }
    if (options.layout == layout::flat) {
        return tokens;
    }
    if (options.layout == layout::masked) {
        return slots * tokens;
    }
    // A token names a slot once, so it has at most min(K, L) rows here; each used segment wastes at most alignment - 1.
    const std::int64_t rows = tokens * std::min<std::int64_t>(config.config.topk, slots);
    const std::int64_t padded = rows + std::min(rows, slots) * (options.alignment - 1);
    return padded / options.alignment * options.alignment;
}

void validate_plan_options(const resolved_config& config, const plan_options& o) {
    if (!known(o.mode, mode::fixed) || !known(o.layout, layout::masked) || !known(o.overflow, overflow::drop) ||
        !known(o.ids, id_type::i64) || !known(o.source, plan_source::gathered)) {
        refuse("use the enumerators of epjit/types.hpp", "an enum of plan_options has a value outside its range");
    }
    if (o.alignment < 1) {
        refuse("use 1 for no padding", "alignment is {}", o.alignment);
    }
    const std::int64_t padded =
        std::int64_t{config.num_ranks} * config.config.max_tokens_per_rank * config.config.topk +
        std::int64_t{config.placement.num_slots} * o.alignment;
    if (padded > max_index) {
        refuse("lower the alignment or max_tokens_per_rank",
               "alignment {} over {} slots makes up to {} rows, at most {} can be addressed", o.alignment,
               config.placement.num_slots, padded, max_index);
    }
    if (o.token_bound < 0 || o.token_bound > config.config.max_tokens_per_rank) {
        refuse("use 0 or a bound up to max_tokens_per_rank", "token_bound is {}, max_tokens_per_rank is {}",
               o.token_bound, config.config.max_tokens_per_rank);
    }
    if (o.lane < 0 || o.lane >= config.config.lanes) {
        refuse("use a lane from 0 up, below exchange_config::lanes", "lane is {}, the exchange has {}", o.lane,
               config.config.lanes);
    }
}

void validate_plan(const resolved_config& config, std::span<const plan_args> ranks, const plan_options& o) {
    check_count(ranks.size(), config, "make_plan");
    validate_plan_options(config, o);
    const std::int32_t bound = o.token_bound != 0 ? o.token_bound : config.config.max_tokens_per_rank;
    const std::int64_t id_bytes = config.config.routing == routing_form::sparse ? 1 : size_of(o.ids);
    for (int r = 0; r < static_cast<int>(ranks.size()); ++r) {
        const plan_args& a = ranks[r];
        // One of several real ranks is refused by the backend, so that the others learn of it.
        const bool alone = config.num_driven == config.num_ranks;
        if (a.num_tokens < 0 || (alone && a.num_tokens > bound)) {
            refuse("create the exchange with a larger max_tokens_per_rank, or raise token_bound",
                   "rank {} brings {} tokens, the bound is {}", r, a.num_tokens, bound);
        }
        if (a.num_tokens > 0 && a.routing == nullptr) {
            refuse("pass the ids or the map in device memory (host exchange: ordinary memory)",
                   "routing of rank {} is null but it has {} tokens", r, a.num_tokens);
        }
        if (!aligned(a.routing, id_bytes)) {
            refuse("align ids to their size", "routing of rank {} is at {}, ids are {} bytes", r, a.routing, id_bytes);
        }
        if (!aligned(a.slot_tokens, 8)) {
            refuse("align it to 8 bytes", "slot_tokens of rank {} is at {}", r,
                   static_cast<const void*>(a.slot_tokens));
        }
        const bool needs_capacity = o.layout == layout::masked || o.mode == mode::fixed;
        if (needs_capacity && a.capacity < (local_slots(config, r) > 0 ? 1 : 0)) {
            refuse(o.layout == layout::masked
                       ? "set plan_args::capacity to the rows per slot"
                       : "set plan_args::capacity to the rows of the output, see worst_case_rows",
                   "{} {} needs a capacity, rank {} has {}", name(o.mode), name(o.layout), r, a.capacity);
        }
        if (o.layout == layout::masked && std::int64_t{local_slots(config, r)} * a.capacity > max_index) {
            refuse("lower the capacity", "masked output of rank {}: {} slots x capacity {} exceeds {} rows", r,
                   local_slots(config, r), a.capacity, max_index);
        }
    }
}

void validate_dispatch(const resolved_config& config, const plan_state& plan, std::span<const dispatch_args> ranks,
                       const dispatch_options& options) {
    const exchange_config& c = config.config;
    check_count(ranks.size(), config, "dispatch");
    check_lane(config, plan, options.lane, "dispatch");
    const bool flat = plan.options.layout == layout::flat;
    if (options.weigh_input && flat) {
        refuse("weigh in the experts or use expert_major", "weigh_input on flat: one row serves several experts");
    }
    if (options.weigh_input && c.input_type == dtype::fp8_e4m3) {
        throw unsupported_error("weigh_input with rows that are fp8 already: they pass through untouched",
                                "weigh before quantising, or in combine");
    }
    bool need_weights = options.weigh_input;
    for (const dispatch_args& a : ranks) {
        need_weights |= a.row_weights != nullptr || a.local_weights != nullptr;
    }
    for (int r = 0; r < static_cast<int>(ranks.size()); ++r) {
        const dispatch_args& a = ranks[r];
        const std::int64_t tokens = plan.ranks[r].num_tokens;
        check_tensor(a.input, {"dispatch input", r, c.input_type, c.hidden, tokens, true,
                               c.input_type == dtype::fp8_e4m3 ? c.scales : scale_type::none});
        check_tensor(a.output,
                     {"dispatch output", r, c.dispatch_type, c.hidden, rows_needed(config, plan, r), false, c.scales});
        if (need_weights && a.weights == nullptr && tokens > 0) {
            refuse("pass routing weights from every rank", "weights of rank {} are null, but {} needs them", r,
                   options.weigh_input ? "weigh_input" : "a row_weights or local_weights output");
        }
        if (flat && a.row_weights != nullptr) {
            refuse("use local_weights", "row_weights of rank {} on flat: one row serves several experts", r);
        }
        if (!flat && (a.local_ids != nullptr || a.local_weights != nullptr)) {
            refuse("use row_weights", "local_ids and local_weights of rank {} exist on flat only, the plan is {}", r,
                   name(plan.options.layout));
        }
        if (!aligned(a.row_source, 8)) {
            refuse("align row_source to 8 bytes", "row_source of rank {} is at {}", r,
                   static_cast<const void*>(a.row_source));
        }
        if (!aligned(a.weights, 4) || !aligned(a.row_weights, 4) || !aligned(a.local_ids, 4) ||
            !aligned(a.local_weights, 4)) {
            refuse("align it to 4 bytes", "an f32 or i32 argument of rank {} is not aligned", r);
        }
    }
}

void validate_combine(const resolved_config& config, const plan_state& plan, std::span<const combine_args> ranks,
                      const combine_options& options) {
    const exchange_config& c = config.config;
    check_count(ranks.size(), config, "combine");
    check_lane(config, plan, options.lane, "combine");
    if (!known(options.reduction, reduction::per_row)) {
        refuse("use the enumerators of epjit/types.hpp", "reduction has a value outside its range");
    }
    const bool flat = plan.options.layout == layout::flat;
    if (flat && options.reduction == reduction::per_row) {
        refuse("use per_rank or per_host, or expert_major",
               "reduction per_row on flat: one row serves several experts");
    }
    for (int r = 0; r < static_cast<int>(ranks.size()); ++r) {
        const combine_args& a = ranks[r];
        if (flat && a.weights != nullptr) {
            refuse("apply the weights in the experts (local_weights), or use expert_major",
                   "combine weights of rank {} on flat: one row serves several experts", r);
        }
        check_tensor(a.rows, {"combine rows", r, c.combine_type, c.hidden, rows_needed(config, plan, r), false,
                              scale_type::none});
        check_tensor(a.output,
                     {"combine output", r, c.combine_type, c.hidden, plan.ranks[r].num_tokens, true, scale_type::none});
        if (!aligned(a.weights, 4)) {
            refuse("align it to 4 bytes", "weights of rank {} are at {}", r, static_cast<const void*>(a.weights));
        }
        if (options.weights_dispatched && a.weights == nullptr && plan.ranks[r].num_tokens > 0) {
            refuse("pass the weights that dispatch was given", "weights_dispatched, but weights of rank {} are null",
                   r);
        }
    }
    if (options.weights_dispatched && !plan.weights_dispatched) {
        refuse("give dispatch the weights, or leave weights_dispatched out",
               "weights_dispatched, but the plan's last dispatch was given none");
    }
}

bool brings_weights(const plan_state& plan, std::span<const dispatch_args> ranks) noexcept {
    for (std::size_t r = 0; r < ranks.size(); ++r) {
        if (ranks[r].weights == nullptr && plan.ranks[r].num_tokens > 0) {
            return false;
        }
    }
    return true;
}

void validate_weight_gradients(const resolved_config& config, const plan_state& plan,
                               std::span<const weight_gradient_args> ranks) {
    const exchange_config& c = config.config;
    check_count(ranks.size(), config, "weight_gradients");
    if (plan.options.layout == layout::flat) {
        refuse("use expert_major or masked", "weight_gradients on flat: one row serves several experts");
    }
    bool any = false, all = true;
    std::int64_t total_rows = 0;
    for (int r = 0; r < static_cast<int>(ranks.size()); ++r) {
        any |= ranks[r].row_gradients != nullptr;
        total_rows += rows_needed(config, plan, r);
    }
    for (int r = 0; r < static_cast<int>(ranks.size()); ++r) {
        const weight_gradient_args& a = ranks[r];
        const std::int64_t rows = rows_needed(config, plan, r);
        all &= a.row_gradients != nullptr || rows == 0;
        if (a.output == nullptr && plan.ranks[r].num_tokens > 0) {
            refuse("pass f32 [T,K], sparse [T,E]", "weight gradient output of rank {} is null", r);
        }
        if (!aligned(a.output, 4) || !aligned(a.row_gradients, 4)) {
            refuse("align it to 4 bytes", "an f32 argument of rank {} is not aligned", r);
        }
        if (!any && total_rows > 0) {
            check_tensor(a.rows, {"rows", r, c.combine_type, c.hidden, rows, false, scale_type::none});
            check_tensor(a.gradient,
                         {"gradient", r, c.combine_type, c.hidden, plan.ranks[r].num_tokens, true, scale_type::none});
        }
    }
    if (any && !all) {
        refuse("pass row_gradients from every rank, or rows and gradient from every rank",
               "some ranks pass row_gradients and others do not");
    }
}

}  // namespace epjit::host
