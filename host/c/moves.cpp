// SPDX-License-Identifier: Apache-2.0
// Dispatch, combine and weight gradients in C.
#include "epjit/epjit.h"
#include "epjit/exchange.hpp"
#include "host/c/convert.hpp"
#include "host/c/guard.hpp"
#include "host/c/handles.hpp"
#include "host/c/structs.hpp"

using namespace epjit::host::c;

namespace {

/// One call of the C++ interface: `call` is an exchange's member that takes a plan, argument structs, options and a
/// stream.
template <class Args, class Options, class CArgs, class COptions>
epjit_status move_rows(void (epjit::exchange::*call)(const epjit::plan&, std::span<const Args>, const Options&,
                                                     epjit::stream_t),
                       epjit_exchange* exchange, const epjit_plan* plan, const CArgs* ranks, uint32_t num_ranks,
                       const COptions* options, epjit_stream stream) noexcept {
    return guarded([&] {
        epjit::exchange& e = not_null(exchange, "exchange").object;
        const epjit::plan& p = not_null(plan, "plan").object;
        const converted<Args> args(ranks, num_ranks, [](const CArgs& a) { return to_cpp(a); });
        const Options o = options != nullptr ? to_cpp(read_struct(options, to_c(Options{}))) : Options{};
        (e.*call)(p, args.span(), o, stream);
    });
}

}  // namespace

epjit_status epjit_dispatch_options_init(epjit_dispatch_options* options, size_t struct_size) {
    return guarded([&] { init_struct(options, struct_size, to_c(epjit::dispatch_options{})); });
}

epjit_status epjit_combine_options_init(epjit_combine_options* options, size_t struct_size) {
    return guarded([&] { init_struct(options, struct_size, to_c(epjit::combine_options{})); });
}

epjit_status epjit_dispatch(epjit_exchange* exchange, const epjit_plan* plan, const epjit_dispatch_args* ranks,
                            uint32_t num_ranks, const epjit_dispatch_options* options, epjit_stream stream) {
    return move_rows(&epjit::exchange::dispatch, exchange, plan, ranks, num_ranks, options, stream);
}

epjit_status epjit_dispatch_send(epjit_exchange* exchange, const epjit_plan* plan, const epjit_dispatch_args* ranks,
                                 uint32_t num_ranks, const epjit_dispatch_options* options, epjit_stream stream) {
    return move_rows(&epjit::exchange::dispatch_send, exchange, plan, ranks, num_ranks, options, stream);
}

epjit_status epjit_dispatch_receive(epjit_exchange* exchange, const epjit_plan* plan, const epjit_dispatch_args* ranks,
                                    uint32_t num_ranks, const epjit_dispatch_options* options, epjit_stream stream) {
    return move_rows(&epjit::exchange::dispatch_receive, exchange, plan, ranks, num_ranks, options, stream);
}

epjit_status epjit_combine(epjit_exchange* exchange, const epjit_plan* plan, const epjit_combine_args* ranks,
                           uint32_t num_ranks, const epjit_combine_options* options, epjit_stream stream) {
    return move_rows(&epjit::exchange::combine, exchange, plan, ranks, num_ranks, options, stream);
}

epjit_status epjit_combine_send(epjit_exchange* exchange, const epjit_plan* plan, const epjit_combine_args* ranks,
                                uint32_t num_ranks, const epjit_combine_options* options, epjit_stream stream) {
    return move_rows(&epjit::exchange::combine_send, exchange, plan, ranks, num_ranks, options, stream);
}

epjit_status epjit_combine_receive(epjit_exchange* exchange, const epjit_plan* plan, const epjit_combine_args* ranks,
                                   uint32_t num_ranks, const epjit_combine_options* options, epjit_stream stream) {
    return move_rows(&epjit::exchange::combine_receive, exchange, plan, ranks, num_ranks, options, stream);
}

epjit_status epjit_weight_gradients(epjit_exchange* exchange, const epjit_plan* plan,
                                    const epjit_weight_gradient_args* ranks, uint32_t num_ranks, epjit_stream stream) {
    return guarded([&] {
        epjit::exchange& e = not_null(exchange, "exchange").object;
        const epjit::plan& p = not_null(plan, "plan").object;
        const converted<epjit::weight_gradient_args> args(
            ranks, num_ranks, [](const epjit_weight_gradient_args& a) { return to_cpp(a); });
        e.weight_gradients(p, args.span(), stream);
    });
}
