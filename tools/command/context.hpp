// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "epjit/cache/store.hpp"
#include "epjit/log.hpp"
#include "epjit/runtime.hpp"
#include "host/runtime/settings.hpp"
#include "tools/command/parse.hpp"

#include <nlohmann/json_fwd.hpp>

#include <optional>
#include <string>
#include <string_view>

namespace epjit::tools {

/// The statuses of the process.
enum exit_status : int {
    exit_done = 0,
    exit_check_failed = 1,
    exit_usage = 2,
    exit_missing = 3,
    exit_interrupted = 130
};

/// What every command is given.
struct context {
    invocation call;
    host::settings env;  ///< the EPJIT_ variables
    logger log;
    bool json = false;
    std::optional<std::string> cache_dir;  ///< --cache-dir

    /// Options of a store; `strict` holds only together with --cache-dir.
    [[nodiscard]] cache::store_options store_options(bool strict) const;
    /// Options of a runtime with this command line's choices; they point into this object.
    [[nodiscard]] epjit::runtime_options runtime_options() const;
};

/// Everything for stdout goes through these two; `write_status` tells at the end whether it arrived.
void print(std::string_view text);
void print_json(const nlohmann::ordered_json& value);
/// exit_check_failed when stdout could not be written, else `status`.
int write_status(int status);

/// Status for an exception of this kind (design, "The command line").
int status_of(error_kind kind) noexcept;

/// {"kind","message","remedy"} of the current exception.
nlohmann::ordered_json error_json(const std::exception_ptr& failure);
/// A failure's kind, message and remedy; kind internal for exceptions that are not the library's.
struct failure_text {
    error_kind kind = error_kind::internal;
    std::string message, remedy;
};
failure_text describe_failure(const std::exception_ptr& failure);

/// An error with an exit status of its own.
class command_error : public error {
   public:
    command_error(exit_status status, error_kind kind, const std::string& message, std::string remedy)
        : error(kind, message, std::move(remedy)), status_(status) {}
    [[nodiscard]] exit_status status() const noexcept { return status_; }

   private:
    exit_status status_;
};

/// The store of `warm` and `cache`: with --cache-dir, a directory that cannot be used is a command_error of exit_usage.
/// `create`: a missing directory is made.
std::unique_ptr<cache::store> open_strict_store(const context& ctx, bool create);

/// Each command: its exit status. Errors are thrown.
int warm_command(context& ctx);
int cache_command(context& ctx);
int inspect_command(context& ctx);
int models_command(context& ctx);
int explain_command(context& ctx);
int doctor_command(context& ctx);
int run_command(context& ctx);
int bench_command(context& ctx);
int tune_command(context& ctx);
int completion_command(context& ctx);

/// At most 50 lines; of the whole program when `command` is null.
std::string help_text(const command_info* command);
/// @throws config_error for an unknown shell.
std::string completion_script(std::string_view shell);

/// The program: parses, runs, reports errors.
int main_command(int argc, char** argv);

}  // namespace epjit::tools
