// SPDX-License-Identifier: Apache-2.0
// Exchanges and plans in C.
#include "epjit/exchange.hpp"

#include "epjit/epjit.h"
#include "host/c/convert.hpp"
#include "host/c/enumerations.hpp"
#include "host/c/guard.hpp"
#include "host/c/handles.hpp"
#include "host/c/structs.hpp"

#include <utility>

using namespace epjit::host::c;

namespace {

epjit_exchange_config default_config() {
    return to_c(epjit::exchange_config{});
}

}  // namespace

epjit_status epjit_exchange_config_init(epjit_exchange_config* config, size_t struct_size) {
    return guarded([&] { init_struct(config, struct_size, default_config()); });
}

epjit_status epjit_plan_options_init(epjit_plan_options* options, size_t struct_size) {
    return guarded([&] { init_struct(options, struct_size, to_c(epjit::plan_options{})); });
}

epjit_status epjit_exchange_create(epjit_communicator* communicator, const epjit_exchange_config* config,
                                   epjit_exchange** out) {
    return guarded([&] {
        not_null(out, "out") = nullptr;
        not_null(communicator, "communicator");
        const epjit::exchange_config c = to_cpp(read_struct(config, default_config()));
        *out = new epjit_exchange{communicator->log, epjit::exchange(communicator->object, c)};
    });
}

void epjit_exchange_destroy(epjit_exchange* exchange) {
    delete exchange;
}

epjit_status epjit_exchange_prepare(epjit_exchange* exchange) {
    return guarded([&] { not_null(exchange, "exchange").object.prepare(); });
}

epjit_status epjit_exchange_check(const epjit_exchange* exchange) {
    return guarded([&] { not_null(exchange, "exchange").object.check(); });
}

epjit_status epjit_exchange_get_info(const epjit_exchange* exchange, epjit_exchange_info* out) {
    return guarded([&] {
        const epjit::exchange& e = not_null(exchange, "exchange").object;
        epjit_exchange_info info{};
        info.kind = static_cast<epjit_exchange_kind>(e.kind());
        info.workspace_bytes = e.workspace_bytes();
        write_struct(out, info);
    });
}

epjit_status epjit_exchange_get_config(const epjit_exchange* exchange, epjit_exchange_config* out) {
    return guarded([&] { write_struct(out, to_c(not_null(exchange, "exchange").object.config())); });
}

epjit_status epjit_exchange_worst_case_rows(const epjit_exchange* exchange, int32_t driven,
                                            const epjit_plan_options* options, int64_t* rows) {
    return guarded([&] {
        const epjit::exchange& e = not_null(exchange, "exchange").object;
        not_null(rows, "rows") = e.worst_case_rows(driven, plan_options_of(options));
    });
}

epjit_status epjit_exchange_window_output(const epjit_exchange* exchange, int32_t driven, int32_t lane,
                                          epjit_tensor* out) {
    return guarded(
        [&] { not_null(out, "out") = to_c(not_null(exchange, "exchange").object.window_output(driven, lane)); });
}

epjit_status epjit_make_plan(epjit_exchange* exchange, const epjit_plan_args* ranks, uint32_t num_ranks,
                             const epjit_plan_options* options, epjit_stream stream, epjit_plan** plan) {
    return guarded([&] {
        epjit_plan*& made = not_null(plan, "plan");
        epjit::exchange& e = not_null(exchange, "exchange").object;
        const converted<epjit::plan_args> args(ranks, num_ranks, [](const epjit_plan_args& a) { return to_cpp(a); });
        const epjit::plan_options o = plan_options_of(options);
        if (made != nullptr) {
            made->object = e.make_plan(args.span(), o, stream, std::move(made->object));
        } else {
            made = new epjit_plan{exchange->log, e.make_plan(args.span(), o, stream)};
        }
    });
}

void epjit_plan_destroy(epjit_plan* plan) {
    delete plan;
}

epjit_status epjit_plan_get_view(const epjit_plan* plan, int32_t driven, epjit_plan_view* out) {
    return guarded([&] {
        const epjit::plan_view seen = not_null(plan, "plan").object.view(driven);
        epjit_plan_view v{};
        v.num_slots = seen.num_slots;
        v.counts = seen.counts;
        v.offsets = seen.offsets;
        v.num_rows = seen.num_rows;
        v.host_counts = seen.host_counts;
        v.rows = seen.rows;
        write_struct(out, v);
    });
}

epjit_status epjit_plan_get_status(const epjit_plan* plan, epjit_plan_status* out) {
    return guarded([&] {
        const epjit::plan_status seen = not_null(plan, "plan").object.status();
        epjit_plan_status s{};
        s.bad_ids = seen.bad_ids;
        s.duplicate_ids = seen.duplicate_ids;
        s.excess_ids = seen.excess_ids;
        s.dropped_rows = seen.dropped_rows;
        write_struct(out, s);
    });
}
