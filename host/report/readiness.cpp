// SPDX-License-Identifier: Apache-2.0
#include "host/report/readiness.hpp"

#include <fmt/format.h>

#include <exception>
#include <utility>

namespace epjit {

std::string_view name(readiness_stage stage) noexcept {
    switch (stage) {
        case readiness_stage::none: return "none";
        case readiness_stage::prepare: return "prepare";
        case readiness_stage::capture: return "capture";
        case readiness_stage::instantiate: return "instantiate";
        case readiness_stage::replay: return "replay";
        case readiness_stage::verify: return "verify";
    }
    return "unknown";
}

namespace host {

readiness_record run_probe(std::string where, readiness_probe& probe) noexcept {
    readiness_record record;
    record.where = std::move(where);
    readiness& seen = record.seen;
    readiness_stage stage = readiness_stage::prepare;
    try {
        probe.prepare();
        stage = readiness_stage::capture;
        probe.capture();
        seen.captured = true;
        stage = readiness_stage::instantiate;
        probe.instantiate();
        seen.instantiated = true;
        stage = readiness_stage::replay;
        probe.replay();
        seen.replayed = true;
        stage = readiness_stage::verify;
        record.failure = probe.verify();
        seen.verified = record.failure.empty();
        seen.failed_at = seen.verified ? readiness_stage::none : stage;
    } catch (const std::exception& problem) {
        seen.failed_at = stage;
        record.failure = problem.what();
    } catch (...) {
        seen.failed_at = stage;
        record.failure = "an exception of an unknown type";
    }
    return record;
}

std::vector<blocker> blockers_of(const readiness_record& record) {
    struct evidence {
        const char* id;
        bool seen;
        readiness_stage stage;
    };
    const readiness& seen = record.seen;
    const evidence needed[] = {{"capture_not_seen", seen.captured, readiness_stage::capture},
                               {"instantiation_not_seen", seen.instantiated, readiness_stage::instantiate},
                               {"replay_not_seen", seen.replayed, readiness_stage::replay},
                               {"result_not_verified", seen.verified, readiness_stage::verify}};
    std::vector<blocker> blockers;
    for (const evidence& e : needed) {
        if (e.seen) {
            continue;
        }
        std::string why;
        if (seen.failed_at == readiness_stage::none) {
            why = "never tried on this machine";
        } else if (seen.failed_at < e.stage && !blockers.empty()) {
            why = fmt::format("not reached: {} failed", name(seen.failed_at));
        } else {
            why = fmt::format("{} failed: {}", name(seen.failed_at), record.failure);
        }
        blockers.push_back({e.id, record.where, std::move(why)});
    }
    if (blockers.empty() && !seen.ready()) {
        blockers.push_back(
            {"failure_recorded", record.where, fmt::format("{} failed: {}", name(seen.failed_at), record.failure)});
    }
    return blockers;
}

}  // namespace host
}  // namespace epjit
