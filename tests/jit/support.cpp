// SPDX-License-Identifier: Apache-2.0
#include "tests/jit/support.hpp"

#include "epjit/error.hpp"
#include "templates/embedded.hpp"

#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <stdlib.h>

namespace epjit::jit::tests {

namespace fs = std::filesystem;

scratch_folder::scratch_folder() {
    std::string pattern = (fs::temp_directory_path() / "epjit_jit_XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) {
        throw std::runtime_error("mkdtemp failed");
    }
    path_ = pattern;
}

scratch_folder::~scratch_folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
}

std::string scratch_folder::write(std::string_view name, std::string_view text) const {
    const fs::path file = fs::path(path_) / name;
    fs::create_directories(file.parent_path());
    std::ofstream out(file, std::ios::binary);
    out.write(text.data(), static_cast<std::streamsize>(text.size()));
    if (!out.flush()) {
        throw std::runtime_error("cannot write " + file.string());
    }
    return file.string();
}

void write_tiny_templates(const scratch_folder& folder) {
    for (const auto& file : templates::embedded_files()) {
        if (file.name.find("_layout.cuh") != std::string_view::npos || file.name == "base/types.cuh") {
            folder.write(file.name, file.text);
        }
    }
    folder.write("plan/plan.cuh", R"(#include "plan/plan_layout.cuh"
namespace epjit::templates {
template <plan_config Config>
__global__ void plan_kernel(const __grid_constant__ plan_args<Config.num_ranks> args) {
    __shared__ i32 counts[Config.num_experts];
    counts[threadIdx.x % Config.num_experts] = args.ranks[threadIdx.x % Config.num_ranks].num_tokens;
    __syncthreads();
    args.slot_counts[threadIdx.x] = counts[(threadIdx.x + 1) % Config.num_experts] + Config.topk;
}
}
)");
    // Programs of which only the names matter here: one file each that launches nothing.
    const std::pair<const char*, const char*> others[] = {{"plan/exchange_plan.cuh", "plan/plan_layout.cuh"},
                                                          {"exchange/exchange.cuh", "exchange/helpers_layout.cuh"},
                                                          {"exchange/direct.cuh", "exchange/dispatch_layout.cuh"},
                                                          {"exchange/dispatch.cuh", "exchange/dispatch_layout.cuh"},
                                                          {"plan/gathered_plan.cuh", "plan/gathered_plan_layout.cuh"},
                                                          {"low_latency/dispatch.cuh", "low_latency/packet_layout.cuh"},
                                                          {"low_latency/combine.cuh", "low_latency/packet_layout.cuh"},
                                                          {"exchange/combine.cuh", "exchange/dispatch_layout.cuh"}};
    for (const auto& [root, layout] : others) {
        folder.write(root, std::string("#include \"") + layout + "\"\n");
    }
    folder.write("rows/scatter.cuh", R"(#include "rows/rows_layout.cuh"
namespace epjit::templates {
template <scatter_config Config>
__global__ void scatter_kernel(const __grid_constant__ scatter_args<Config.num_ranks> args) {
    args.ranks[0].local_ids[threadIdx.x] = Config.hidden;
}
template <scatter_config Config>
__global__ void scatter_bulk_kernel(const __grid_constant__ scatter_args<Config.num_ranks> args) {
    args.ranks[0].local_ids[threadIdx.x] = Config.stages;
}
}
)");
    folder.write("rows/gather.cuh", R"(#include "rows/rows_layout.cuh"
namespace epjit::templates {
template <gather_config Config>
__global__ void gather_kernel(const __grid_constant__ gather_args<Config.num_ranks> args) {
    static_cast<float*>(args.ranks[0].output)[threadIdx.x] = Config.hidden;
}
}
)");
    folder.write("rows/weight_gradient.cuh", R"(#include "rows/rows_layout.cuh"
namespace epjit::templates {
template <gather_config Config>
__global__ void weight_gradient_kernel(const __grid_constant__ gather_args<Config.num_ranks> args) {
    static_cast<float*>(args.ranks[0].output)[threadIdx.x] = Config.topk;
}
}
)");
}

template_set tiny_templates() {
    const scratch_folder folder;
    write_tiny_templates(folder);
    return template_set::from_directory(folder.path());
}

std::shared_ptr<compiler> real_compiler(const template_set& templates, std::string& reason) {
    try {
        return open_nvrtc({}, templates);
    } catch (const library_error& e) {
        reason = e.what();
        return nullptr;
    }
}

scoped_env::scoped_env(const char* name, const char* value) : name_(name) {
    const char* old = getenv(name);
    had_ = old != nullptr;
    old_ = had_ ? old : "";
    if (value != nullptr) {
        setenv(name, value, 1);
    } else {
        unsetenv(name);
    }
}

scoped_env::~scoped_env() {
    if (had_) {
        setenv(name_.c_str(), old_.c_str(), 1);
    } else {
        unsetenv(name_.c_str());
    }
}

}  // namespace epjit::jit::tests
