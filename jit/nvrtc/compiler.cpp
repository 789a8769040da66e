// SPDX-License-Identifier: Apache-2.0
#include "epjit/jit/compiler.hpp"

#include "epjit/error.hpp"
#include "jit/nvrtc/elf.hpp"
#include "jit/nvrtc/library.hpp"
#include "jit/nvrtc/log_parser.hpp"
#include "jit/program/program.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <ctime>
#include <mutex>
#include <thread>

namespace epjit::jit {
namespace {

using clock = std::chrono::steady_clock;

double thread_cpu_ms() noexcept {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) * 1e-6;
}

/// Why a compile should stop; asked by NVRTC from its own depths, possibly from several threads.
struct flow_control {
    clock::time_point end;
    bool bounded = false;
    const std::function<bool()>* cancelled = nullptr;
    std::atomic<bool> timed_out{false};
    std::atomic<bool> was_cancelled{false};

    static int poll(void* payload, void*) noexcept {
        auto& self = *static_cast<flow_control*>(payload);
        // NVRTC wants consistent answers: once stopped, stopped.
        if (self.timed_out || self.was_cancelled) {
            return 1;
        }
        if (self.cancelled != nullptr && *self.cancelled && (*self.cancelled)()) {
            self.was_cancelled = true;
        } else if (self.bounded && clock::now() >= self.end) {
            self.timed_out = true;
        }
        return self.timed_out || self.was_cancelled ? 1 : 0;
    }
};

std::vector<target_arch> list_targets(const nvrtc::library& lib) {
    std::vector<int> numbers;
    int count = 0;
    if (lib.calls.get_num_supported_archs != nullptr && lib.calls.get_supported_archs != nullptr &&
        lib.calls.get_num_supported_archs(&count) == nvrtc::success && count > 0) {
        numbers.resize(static_cast<std::size_t>(count));
        if (lib.calls.get_supported_archs(numbers.data()) != nvrtc::success) {
            numbers.clear();
        }
    }
    const int version = lib.major * 100 + lib.minor;
    if (numbers.empty()) {
        numbers = {80};
    }
    std::vector<target_arch> targets;
    for (const int number : numbers) {
        const auto add = [&](char suffix) { targets.push_back({static_cast<std::uint16_t>(number), suffix}); };
        add(0);
        if (number >= 90 && version >= 1200) {
            add('a');  // features of this architecture only
        }
        if (number >= 100 && version >= 1209) {
            add('f');  // features of its family
        }
    }
    return targets;
}

class nvrtc_compiler final : public compiler {
   public:
    nvrtc_compiler(nvrtc::library lib, template_set templates)
        : lib_(std::move(lib)), templates_(std::move(templates)), targets_(list_targets(lib_)) {}

    [[nodiscard]] const compiler_identity& identity() const noexcept override { return lib_.identity; }
    [[nodiscard]] std::vector<target_arch> targets() const override { return targets_; }

    artifact compile(const compile_job& job, std::chrono::milliseconds deadline) override {
        return compile_one(job, deadline, nullptr);
    }

    void compile_all(std::span<const compile_job> jobs, int parallelism, std::chrono::milliseconds deadline,
                     const std::function<void(std::size_t, artifact*, std::exception_ptr)>& done,
                     const std::function<bool()>& cancelled) override;

   private:
    artifact compile_one(const compile_job& job, std::chrono::milliseconds deadline,
                         const std::function<bool()>* cancelled) const;
    void check_target(const target_arch& arch) const;

    nvrtc::library lib_;
    template_set templates_;
    std::vector<target_arch> targets_;
};

/// One NVRTC program from creation to destruction.
class program_run {
   public:
    program_run(const nvrtc::library& lib, const variant_spec& spec, const program& text,
                std::vector<std::string> options)
        : lib_(lib), spec_(spec), text_(text), options_(std::move(options)) {}
    ~program_run() {
        if (handle_ != nullptr) {
            lib_.calls.destroy_program(&handle_);
        }
    }
    program_run(const program_run&) = delete;
    program_run& operator=(const program_run&) = delete;

    void create(const std::vector<std::pair<std::string_view, std::string_view>>& headers) {
        // The views come from std::string and end with a NUL.
        std::vector<const char*> names;
        std::vector<const char*> texts;
        for (const auto& [name, text] : headers) {
            names.push_back(name.data());
            texts.push_back(text.data());
        }
        expect(lib_.calls.create_program(&handle_, text_.source.c_str(), program_name, static_cast<int>(names.size()),
                                         texts.data(), names.data()),
               "nvrtcCreateProgram");
        for (const program_kernel& kernel : text_.kernels) {
            expect(lib_.calls.add_name_expression(handle_, kernel.expression.data()), "nvrtcAddNameExpression");
        }
    }

    void compile(flow_control& flow) {
        if (lib_.calls.set_flow_callback != nullptr) {
            expect(lib_.calls.set_flow_callback(handle_, &flow_control::poll, &flow), "nvrtcSetFlowCallback");
        }
        std::vector<const char*> options;
        for (const std::string& option : options_) {
            options.push_back(option.c_str());
        }
        const nvrtc::result result =
            lib_.calls.compile_program(handle_, static_cast<int>(options.size()), options.data());
        read_log();
        if (flow.was_cancelled) {
            throw error(error_kind::cancelled, fmt::format("compiling {} was cancelled", describe(spec_)));
        }
        if (flow.timed_out) {
            throw timeout_error(fmt::format("compiling {} passed its time limit and was stopped", describe(spec_)),
                                "raise EPJIT_COMPILE_TIMEOUT_MS");
        }
        expect(result, "nvrtcCompileProgram");
    }

    std::vector<std::byte> cubin() {
        std::size_t bytes = 0;
        expect(lib_.calls.get_cubin_size(handle_, &bytes), "nvrtcGetCUBINSize");
        std::vector<std::byte> image(bytes);
        if (bytes > 0) {
            expect(lib_.calls.get_cubin(handle_, reinterpret_cast<char*>(image.data())), "nvrtcGetCUBIN");
        }
        // After a failure some versions report success and give nothing; that must never reach a cache.
        if (!is_elf(image)) {
            fail(image.empty() ? "NVRTC reported success and gave an empty cubin"
                               : fmt::format("NVRTC reported success and gave {} bytes that are no cubin", bytes));
        }
        return image;
    }

    std::vector<kernel_info> kernels() {
        std::vector<kernel_info> list;
        for (const program_kernel& kernel : text_.kernels) {
            const char* lowered = nullptr;
            expect(lib_.calls.get_lowered_name(handle_, kernel.expression.data(), &lowered), "nvrtcGetLoweredName");
            kernel_info info;
            info.name = kernel.name;
            info.lowered = lowered != nullptr ? lowered : "";
            const auto resources = parse_resources(log_, info.lowered);
            if (!resources) {
                fail(fmt::format("the compiler's log states no registers for {}", kernel.name));
            }
            info.registers = resources->registers;
            info.shared_bytes = resources->shared_bytes;
            info.spill_bytes = resources->spill_bytes;
            list.push_back(std::move(info));
        }
        return list;
    }

    [[nodiscard]] const std::string& log() const { return log_; }
    [[nodiscard]] std::string options_text() const { return fmt::format("{}", fmt::join(options_, " ")); }

   private:
    void read_log() {
        std::size_t bytes = 0;
        if (lib_.calls.get_log_size(handle_, &bytes) == nvrtc::success && bytes > 1) {
            log_.resize(bytes);
            if (lib_.calls.get_log(handle_, log_.data()) != nvrtc::success) {
                log_.clear();
            }
            log_.resize(log_.find_last_not_of('\0') + 1);
        }
    }

    void expect(nvrtc::result result, const char* call) const {
        if (result == nvrtc::success) {
            return;
        }
        const char* text = lib_.calls.get_error_string(result);
        const std::string line = first_error_line(log_);
        fail(fmt::format("{} returned {} {}{}{}", call, result, text != nullptr ? text : "", line.empty() ? "" : ": ",
                         line));
    }

    [[noreturn]] void fail(const std::string& why) const {
        throw compile_error(fmt::format("compiling {} with {}: {}", describe(spec_), lib_.identity.description, why),
                            log_, options_text(), text_.source);
    }

    const nvrtc::library& lib_;
    const variant_spec& spec_;
    const program& text_;
    std::vector<std::string> options_;
    nvrtc::program_t handle_ = nullptr;
    std::string log_;
};

void nvrtc_compiler::check_target(const target_arch& arch) const {
    if (std::find(targets_.begin(), targets_.end(), arch) != targets_.end()) {
        return;
    }
    std::vector<std::string> known;
    for (const target_arch& target : targets_) {
        known.push_back(target.text());
    }
    throw unsupported_error(
        fmt::format("{} does not know {}; it knows {}", lib_.identity.description, arch.text(), fmt::join(known, " ")),
        "name another --arch or install an NVRTC that knows it");
}

artifact nvrtc_compiler::compile_one(const compile_job& job, std::chrono::milliseconds deadline,
                                     const std::function<bool()>* cancelled) const {
    check_target(job.spec.arch);
    const double start = thread_cpu_ms();
    flow_control flow;
    flow.cancelled = cancelled;
    flow.bounded = deadline > std::chrono::milliseconds::zero();
    if (flow.bounded) {
        flow.end = clock::now() + deadline;
    }
    const program text = make_program(job.spec);
    std::vector<std::string> options = text.options;
    if (lib_.major * 100 + lib_.minor >= 1209) {
        // From 12.9 on NVRTC may answer from the driver's cache, and then the log is empty.
        options.emplace_back("--no-cache");
    }
    program_run run(lib_, job.spec, text, std::move(options));
    run.create(templates_.closure(text.root));
    run.compile(flow);

    artifact made;
    made.key = job.key;
    made.compiler = lib_.identity;
    made.spec = describe(job.spec);
    made.arch = job.spec.arch.text();
    made.kernels = run.kernels();
    made.cubin = run.cubin();
    made.source = text.source;
    made.options = run.options_text();
    made.log = run.log();
    made.library_version = EPJIT_VERSION;
    made.template_digest = templates_.closure_digest(text.root).hex();
    made.compile_ms = thread_cpu_ms() - start;
    return made;
}

void nvrtc_compiler::compile_all(std::span<const compile_job> jobs, int parallelism, std::chrono::milliseconds deadline,
                                 const std::function<void(std::size_t, artifact*, std::exception_ptr)>& done,
                                 const std::function<bool()>& cancelled) {
    std::atomic<std::size_t> next{0};
    std::mutex report;
    std::exception_ptr broken;  // thrown by `done`: ends the run
    const auto work = [&] {
        for (std::size_t i = next++; i < jobs.size(); i = next++) {
            std::exception_ptr failure;
            artifact made;
            try {
                if (cancelled && cancelled()) {
                    throw error(error_kind::cancelled,
                                fmt::format("compiling {} was cancelled", describe(jobs[i].spec)));
                }
                made = compile_one(jobs[i], deadline, &cancelled);
            } catch (...) {
                failure = std::current_exception();
            }
            const std::lock_guard lock(report);
            if (broken) {
                return;
            }
            try {
                done(i, failure ? nullptr : &made, failure);
            } catch (...) {
                broken = std::current_exception();
                next = jobs.size();
            }
        }
    };
    const auto wanted = std::min<std::size_t>(jobs.size(), static_cast<std::size_t>(std::max(parallelism, 1)));
    {
        std::vector<std::jthread> helpers;
        try {
            while (helpers.size() + 1 < wanted) {
                helpers.emplace_back(work);
            }
        } catch (const std::system_error&) {
            // No more threads to be had: those that run, and this one, do the work.
        }
        work();
    }
    if (broken) {
        std::rethrow_exception(broken);
    }
}

}  // namespace

std::shared_ptr<compiler> open_nvrtc(const nvrtc_options& options, const template_set& templates) {
    nvrtc::library lib = nvrtc::open_library(options);
    if (options.log.enabled(log_level::debug)) {
        options.log.write(log_level::debug, fmt::format("{} from {}", lib.identity.description, lib.path));
    }
    return std::make_shared<nvrtc_compiler>(std::move(lib), templates);
}

}  // namespace epjit::jit
