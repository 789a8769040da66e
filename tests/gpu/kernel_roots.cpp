// SPDX-License-Identifier: Apache-2.0
#include "tests/gpu/environment.hpp"

namespace epjit::tests {

const std::map<std::string, std::string>& kernel_roots() {
    static const std::map<std::string, std::string> roots = {
        {"plan_kernel", "plan/plan_kernel.cuh"},
        {"scatter_kernel", "rows/scatter_kernel.cuh"},
        {"scatter_bulk_kernel", "rows/scatter_bulk_kernel.cuh"},
        {"gather_kernel", "rows/gather_kernel.cuh"},
        {"weight_gradient_kernel", "rows/weight_gradient_kernel.cuh"},
    };
    return roots;
}

}  // namespace epjit::tests
