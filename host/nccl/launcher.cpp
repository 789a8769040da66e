// SPDX-License-Identifier: Apache-2.0
#include "host/nccl/launcher.hpp"

#include "epjit/error.hpp"
#include "host/nccl/creation.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <string_view>

namespace epjit::host {
namespace {

constexpr std::int32_t max_port = 65535;
/// From MASTER_PORT to the port of NCCL's bootstrap.
constexpr std::int32_t port_distance = 1017;
constexpr std::int32_t default_master_port = 29500;

/// Names of a launcher's variables. Null where it has none.
struct launcher_names {
    const char* launcher;
    const char* rank;
    const char* size;
    const char* local_rank;
    const char* local_size;
    const char* num_hosts;
    const char* job;  ///< differs between jobs on one host
};

constexpr launcher_names launchers[] = {
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", nullptr, nullptr},
    {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE", nullptr, "PMIX_NAMESPACE"},
    {"Slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", nullptr, "SLURM_NNODES", "SLURM_JOB_ID"},
};

class environment {
   public:
    explicit environment(const variable_reader& read) : read_(read) {}

    [[nodiscard]] const char* text(const char* name) const {
        const char* value = name != nullptr ? read_(name) : nullptr;
        return value != nullptr && *value != '\0' ? value : nullptr;
    }

    [[nodiscard]] std::optional<std::int32_t> number(const char* name, std::int32_t least, std::int32_t most) const {
        const char* value = text(name);
        if (value == nullptr) {
            return std::nullopt;
        }
        const std::string_view digits = value;
        std::int32_t parsed = 0;
        const auto [end, failure] = std::from_chars(digits.data(), digits.data() + digits.size(), parsed);
        if (failure != std::errc{} || end != digits.data() + digits.size() || parsed < least || parsed > most) {
            throw config_error(fmt::format("{}={}: not a number from {} to {}", name, value, least, most),
                               fmt::format("correct {}, which the launcher sets", name));
        }
        return parsed;
    }

   private:
    const variable_reader& read_;
};

std::int32_t port_of_job(const environment& env, const launcher_names& names) {
    const char* job = env.text(names.job);
    if (job == nullptr) {
        return default_master_port;
    }
    std::uint32_t hash = 2166136261U;  // FNV-1a: the same on every host
    for (const char c : std::string_view(job)) {
        hash = (hash ^ static_cast<unsigned char>(c)) * 16777619U;
    }
    return 20000 + static_cast<std::int32_t>(hash % 10000);  // below the ports that systems give out by themselves
}

std::int32_t bootstrap_port(const environment& env, const launcher_names& names) {
    if (const auto chosen = env.number("EPJIT_BOOTSTRAP_PORT", 1, max_port)) {
        return *chosen;
    }
    const std::int32_t master = env.number("MASTER_PORT", 1, max_port).value_or(port_of_job(env, names));
    return master + port_distance <= max_port ? master + port_distance : master - port_distance;
}

std::string master_address(const environment& env, const launcher_names& names, const launcher_place& place) {
    if (const char* given = env.text("MASTER_ADDR")) {
        // NCCL takes the first address of a name, which may be ::1, where rank 0 need not listen.
        return std::string_view(given) == "localhost" ? "127.0.0.1" : given;
    }
    const bool one_host = place.size == 1 || env.number(names.local_size, 1, 1 << 20) == place.size ||
                          env.number(names.num_hosts, 1, 1 << 20) == 1;
    if (!one_host) {
        throw config_error(fmt::format("{} started {} ranks on several hosts and says no address of rank 0's host",
                                       place.launcher, place.size),
                           "set MASTER_ADDR to rank 0's host on every rank (and MASTER_PORT to a free port there)");
    }
    return "127.0.0.1";
}

launcher_place read_place(const environment& env, const launcher_names& names) {
    constexpr std::int32_t most = 1 << 20;
    launcher_place place;
    place.launcher = names.launcher;
    const auto rank = env.number(names.rank, 0, most);
    const auto size = env.number(names.size, 1, most);
    if (!rank || !size) {
        throw config_error(
            fmt::format("{} is set and {} is not", rank ? names.rank : names.size, rank ? names.size : names.rank),
            fmt::format("set both, as {} does", names.launcher));
    }
    if (*rank >= *size) {
        throw config_error(fmt::format("{}={} with {}={}", names.rank, *rank, names.size, *size),
                           "a rank is below the number of ranks");
    }
    place.rank = *rank;
    place.size = *size;
    place.local_rank = env.number(names.local_rank, 0, most).value_or(*rank);
    place.address = master_address(env, names, place);
    place.port = bootstrap_port(env, names);
    return place;
}

/// Sets a variable for its lifetime.
class scoped_variable {
   public:
    scoped_variable(const char* name, const std::string& value) : name_(name) { setenv(name, value.c_str(), 1); }
    ~scoped_variable() { unsetenv(name_); }
    scoped_variable(const scoped_variable&) = delete;
    scoped_variable& operator=(const scoped_variable&) = delete;

   private:
    const char* name_;
};

}  // namespace

launcher_place read_launcher(const variable_reader& read) {
    const environment env(read);
    for (const launcher_names& names : launchers) {
        if (env.text(names.rank) != nullptr || env.text(names.size) != nullptr) {
            return read_place(env, names);
        }
    }
    throw config_error("no launcher's variables are set: neither RANK and WORLD_SIZE, nor those of Open MPI or Slurm",
                       "start one process per GPU with torchrun, mpirun or srun, or set RANK, WORLD_SIZE, LOCAL_RANK, "
                       "MASTER_ADDR and MASTER_PORT");
}

void with_bootstrap_id(const nccl_api& api, const launcher_place& place,
                       const std::function<void(const nccl_unique_id&)>& use) {
    static std::mutex environment_mutex;  // the environment is the process's
    const std::lock_guard lock(environment_mutex);
    std::optional<scoped_variable> variable;
    if (const char* given = std::getenv("NCCL_COMM_ID"); given == nullptr || *given == '\0') {
        const bool ipv6 = place.address.find(':') != std::string::npos && place.address.front() != '[';
        variable.emplace("NCCL_COMM_ID", ipv6 ? fmt::format("[{}]:{}", place.address, place.port)
                                              : fmt::format("{}:{}", place.address, place.port));
    }
    use(make_unique_id(api));
}

}  // namespace epjit::host
