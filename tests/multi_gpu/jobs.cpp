// SPDX-License-Identifier: Apache-2.0
#include "tests/multi_gpu/jobs.hpp"

#include "tests/gpu/environment.hpp"

#include <fmt/format.h>

#include <exception>

namespace epjit::tests {

void job_report::fail(std::string text) {
    constexpr std::size_t most = 10;
    if (failures.size() < most) {
        failures.push_back(std::move(text));
    }
    ++counts["failures"];
}

void job_report::add(const job_report& other) {
    failures.insert(failures.end(), other.failures.begin(), other.failures.end());
    for (const auto& [name, n] : other.counts) {
        counts[name] += n;
    }
    for (const auto& [kernel, n] : other.launches) {
        launches[kernel] += n;
    }
}

job find_job(const std::string& name) {
    static const std::map<std::string, job> jobs = {
        {"property", property_job},
        {"stress", stress_job},
        {"create_destroy", create_destroy_job},
        {"graph", graph_job},
        {"packet_tags", packet_tags_job},
        {"overflow", overflow_job},
        {"hot_path", hot_path_job},
        {"plan_sources", plan_sources_job},
        {"long_prompts", long_prompts_job},
    };
    const auto found = jobs.find(name);
    return found != jobs.end() ? found->second : nullptr;
}

job_report run_job(job work, rank_world& world, const job_settings& settings) {
    job_report report;
    try {
        work(world, settings, report);
    } catch (const std::exception& e) {
        report.fail(fmt::format("rank {}: {}", world.rank(), e.what()));
    }
    report.launches = launches_by_kernel(world.rt());
    return report;
}

}  // namespace epjit::tests
