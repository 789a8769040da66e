// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "epjit/jit/artifact.hpp"
#include "epjit/jit/spec.hpp"
#include "epjit/jit/templates.hpp"
#include "epjit/log.hpp"

#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace epjit::jit {

/// A variant to compile, with its key already computed.
struct compile_job {
    variant_spec spec;
    digest key;
};

/// Turns specs into artifacts. Thread-safe.
class compiler {
   public:
    virtual ~compiler() = default;
    [[nodiscard]] virtual const compiler_identity& identity() const noexcept = 0;
    /// Targets the loaded compiler knows.
    [[nodiscard]] virtual std::vector<target_arch> targets() const = 0;
    /// @throws compile_error, timeout_error (deadline), unsupported_error (target unknown). Never returns an
    /// empty cubin.
    virtual artifact compile(const compile_job& job, std::chrono::milliseconds deadline) = 0;
    /// Compiles many in parallel, as far as that helps; `done` is called for each, from any thread but never
    /// concurrently, with either an artifact or the exception. One failure does not stop the others;
    /// `cancelled` (may be null) is polled.
    virtual void compile_all(std::span<const compile_job> jobs, int parallelism, std::chrono::milliseconds deadline,
                             const std::function<void(std::size_t index, artifact*, std::exception_ptr)>& done,
                             const std::function<bool()>& cancelled) = 0;
};

struct nvrtc_options {
    std::string library;  ///< explicit path (EPJIT_NVRTC_LIBRARY), else searched
    logger log;
};

/// Opens NVRTC: explicit path, CUDA_HOME/CUDA_PATH, the active Python environment's wheels, soname, usual
/// folders.
/// @throws library_error that lists every place tried.
std::shared_ptr<compiler> open_nvrtc(const nvrtc_options& options, const template_set& templates);

/// Where NVRTC was found and what it is, for `doctor`.
struct nvrtc_report {
    std::string path;                ///< links resolved
    std::string version;             ///< "13.0"
    std::string builtins_path;       ///< empty when none was found
    std::string description;         ///< as in artifacts: version and the start of the build-id
    std::vector<std::string> tried;  ///< places that failed before, each with why
};

/// Opens NVRTC as open_nvrtc does and says what it found. @throws library_error that lists every place tried.
nvrtc_report probe_nvrtc(const nvrtc_options& options);

}  // namespace epjit::jit
