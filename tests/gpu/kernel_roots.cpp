// SPDX-License-Identifier: Apache-2.0
#include "tests/gpu/environment.hpp"

namespace epjit::tests {

const std::map<std::string, std::string>& kernel_roots() {
    static const std::map<std::string, std::string> roots = {
        {"ll_combine_kernel", "low_latency/ll_combine_kernel.cuh"},
        {"ll_dispatch_kernel", "low_latency/ll_dispatch_kernel.cuh"},
        {"combine_kernel", "exchange/combine_kernel.cuh"},
        {"direct_dispatch_kernel", "exchange/direct_kernel.cuh"},
        {"dispatch_kernel", "exchange/dispatch_kernel.cuh"},
        {"exchange_plan_kernel", "plan/exchange_plan_kernel.cuh"},
        {"gathered_plan_kernel", "plan/gathered_plan_kernel.cuh"},
        {"plan_kernel", "plan/plan_kernel.cuh"},
        {"return_rows_kernel", "exchange/helpers.cuh"},
        {"window_lines_kernel", "exchange/helpers.cuh"},
        {"send_weights_kernel", "exchange/helpers.cuh"},
        {"sync_kernel", "exchange/sync_kernel.cuh"},
        {"scatter_kernel", "rows/scatter_kernel.cuh"},
        {"scatter_bulk_kernel", "rows/scatter_bulk_kernel.cuh"},
        {"gather_kernel", "rows/gather_kernel.cuh"},
        {"weight_gradient_kernel", "rows/weight_gradient_kernel.cuh"},
    };
    return roots;
}

}  // namespace epjit::tests
