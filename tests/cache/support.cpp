// SPDX-License-Identifier: Apache-2.0
#include "tests/cache/support.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <grp.h>
#include <random>
#include <sstream>
#include <stdexcept>
#include <sys/wait.h>
#include <thread>

namespace epjit::cache::test {

namespace fs = std::filesystem;

temp_dir::temp_dir() {
    const char* base = std::getenv("TMPDIR");
    if (base == nullptr || base[0] != '/') {
        base = ::access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";  // thousands of fsyncs: memory, if there is some
    }
    path = std::string(base) + "/epjit_cache_test_XXXXXX";
    if (::mkdtemp(path.data()) == nullptr) {
        throw std::runtime_error("mkdtemp failed");
    }
}

temp_dir::~temp_dir() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
}

std::vector<std::byte> random_bytes(std::size_t count, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<std::byte> bytes(count);
    std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<std::byte>(random() & 0xff); });
    return bytes;
}

std::string read_file(const std::string& path) {
    std::stringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
}

void write_file(const std::string& path, const std::string& text) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

std::vector<std::string> files_below(const std::string& path, const std::string& part) {
    std::vector<std::string> found;
    std::error_code ignored;
    for (const auto& item : fs::recursive_directory_iterator(path, ignored)) {
        if (item.is_regular_file(ignored) && item.path().filename().string().find(part) != std::string::npos) {
            found.push_back(item.path().string());
        }
    }
    std::sort(found.begin(), found.end());
    return found;
}

void set_mtime(const std::string& path, std::int64_t seconds_ago) {
    timespec now{};
    ::clock_gettime(CLOCK_REALTIME, &now);
    now.tv_sec -= seconds_ago;
    const timespec times[2] = {now, now};
    if (::utimensat(AT_FDCWD, path.c_str(), times, AT_SYMLINK_NOFOLLOW) != 0) {
        throw std::runtime_error("utimensat failed");
    }
}

jit::compiler_identity compiler_a() {
    return {jit::hash_text("build a"), "NVRTC 13.0.88"};
}
jit::compiler_identity compiler_b() {
    return {jit::hash_text("build b"), "NVRTC 12.8.93"};
}

jit::compile_job job(int n, const std::string& arch, const std::string& templates) {
    jit::compile_job made;
    made.spec.kind = jit::kernel_kind::plan;
    made.spec.arch = *jit::target_arch::parse(arch);
    made.spec.num_experts = made.spec.num_slots = 8 * (n + 1);
    made.spec.num_ranks = 8;
    made.spec.topk = 8;
    made.spec.threads = 512;
    jit::field_hasher key;
    key.add(jit::describe(made.spec)).add(templates);
    made.key = key.finish();
    return made;
}

std::vector<jit::compile_job> jobs(int count) {
    std::vector<jit::compile_job> all;
    for (int n = 0; n < count; ++n) {
        all.push_back(job(n));
    }
    return all;
}

jit::artifact make_artifact(const jit::compile_job& of, const jit::compiler_identity& compiler,
                            std::size_t cubin_bytes) {
    jit::artifact made;
    made.key = of.key;
    made.compiler = compiler;
    made.spec = jit::describe(of.spec);
    made.arch = of.spec.arch.text();
    made.kernels = {{"plan_kernel", "_Z11plan_kernelv", 40, 1024, 0}, {"scan_kernel", "_Z11scan_kernelv", 32, 0, 8}};
    std::uint64_t seed = jit::digest_hash{}(of.key) ^ jit::digest_hash{}(compiler.id);
    made.cubin = random_bytes(cubin_bytes, seed);
    made.source = "#include \"plan/plan.cuh\"\n// " + made.spec + "\n";
    made.options = "--gpu-architecture=" + made.arch + " --std=c++20";
    made.log = "ptxas info    : Used 40 registers\n";
    made.library_version = "0.1.0";
    made.template_digest = jit::hash_text("templates").hex();
    made.compile_ms = 21.5;
    made.spill_exception = "scan keeps a row in registers";
    return made;
}

void log_lines::receive(void* user, log_level level, std::string_view line) {
    auto& self = *static_cast<log_lines*>(user);
    const std::scoped_lock lock(self.mutex_);
    self.lines_.emplace_back(level, line);
}

std::vector<std::string> log_lines::at(log_level level) const {
    const std::scoped_lock lock(mutex_);
    std::vector<std::string> found;
    for (const auto& [at, line] : lines_) {
        if (at == level) {
            found.push_back(line);
        }
    }
    return found;
}

jit::artifact fake_compiler::compile(const jit::compile_job& of, std::chrono::milliseconds) {
    ++compiles;
    const int now = ++concurrent;
    for (int most = most_concurrent; now > most && !most_concurrent.compare_exchange_weak(most, now);) {
    }
    if (!count_file_.empty()) {
        const std::string line = of.key.hex() + "\n";
        const int fd = ::open(count_file_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
        if (fd < 0 || ::write(fd, line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
            std::abort();
        }
        ::close(fd);
    }
    if (before) {
        before();
    }
    std::this_thread::sleep_for(delay);
    --concurrent;
    if (failing.contains(of.key)) {
        throw compile_error("plan.cu(12): error: identifier \"x\" is undefined", "the whole log", "-std", "the source");
    }
    jit::artifact made = make_artifact(of, identity_, cubin_bytes);
    if (empty.contains(of.key)) {
        made.cubin.clear();
    }
    return made;
}

void fake_compiler::compile_all(std::span<const jit::compile_job> all, int parallelism,
                                std::chrono::milliseconds deadline,
                                const std::function<void(std::size_t, jit::artifact*, std::exception_ptr)>& done,
                                const std::function<bool()>& cancelled) {
    std::atomic<std::size_t> next{0};
    std::mutex mutex;
    const auto work = [&] {
        for (std::size_t i = next++; i < all.size() && !(cancelled && cancelled()); i = next++) {
            std::exception_ptr failure;
            jit::artifact made;
            try {
                made = compile(all[i], deadline);
            } catch (...) {
                failure = std::current_exception();
            }
            const std::scoped_lock lock(mutex);
            done(i, failure ? nullptr : &made, failure);
        }
    };
    std::vector<std::thread> threads;
    for (std::size_t i = 1; i < std::min(static_cast<std::size_t>(parallelism), all.size()); ++i) {
        threads.emplace_back(work);
    }
    work();
    for (auto& thread : threads) {
        thread.join();
    }
}

store_options options_for(std::vector<std::string> layers, log_lines* log) {
    store_options options;
    options.layers = std::move(layers);
    if (log != nullptr) {
        options.log = log->get();
    }
    return options;
}

store_options options_for(const std::string& path, log_lines* log) {
    return options_for(std::vector{path}, log);
}

bool failing_ops::inject(const char* name) noexcept {
    if (call != name) {
        return false;
    }
    if (const int at = ++seen_; nth != 0 && at != nth) {
        return false;
    }
    ++hits;
    errno = code;
    return true;
}

int failing_ops::openat(int dir, const char* name, int flags, mode_t mode) noexcept {
    const bool temp = (flags & O_EXCL) != 0 && detail::is_temp_name(name);
    return (!only_writes || temp) && inject("openat") ? -1 : file_ops::openat(dir, name, flags, mode);
}
int failing_ops::mkdirat(int dir, const char* name, mode_t mode) noexcept {
    return inject("mkdirat") ? -1 : file_ops::mkdirat(dir, name, mode);
}
ssize_t failing_ops::read(int fd, void* to, std::size_t bytes) noexcept {
    return inject("read") ? -1 : file_ops::read(fd, to, bytes);
}
ssize_t failing_ops::write(int fd, const void* from, std::size_t bytes) noexcept {
    if (cut_.exchange(false)) {
        errno = code;
        return -1;
    }
    if (!inject("write")) {
        return file_ops::write(fd, from, bytes);
    }
    if (!short_write) {
        return -1;
    }
    cut_ = code != 0;
    return file_ops::write(fd, from, bytes / 2);
}
int failing_ops::fsync(int fd) noexcept {
    return inject("fsync") ? -1 : file_ops::fsync(fd);
}
int failing_ops::close(int fd) noexcept {
    if (inject("close")) {
        file_ops::close(fd);  // as Linux does: the descriptor is gone whatever close says
        errno = code;
        return -1;
    }
    return file_ops::close(fd);
}
int failing_ops::renameat(int from_dir, const char* from, int to_dir, const char* to) noexcept {
    return inject("renameat") ? -1 : file_ops::renameat(from_dir, from, to_dir, to);
}
int failing_ops::unlinkat(int dir, const char* name, int flags) noexcept {
    return inject("unlinkat") ? -1 : file_ops::unlinkat(dir, name, flags);
}
int failing_ops::fstat(int fd, struct stat* out) noexcept {
    return inject("fstat") ? -1 : file_ops::fstat(fd, out);
}
int failing_ops::fstatat(int dir, const char* name, struct stat* out, int flags) noexcept {
    return inject("fstatat") ? -1 : file_ops::fstatat(dir, name, out, flags);
}
int failing_ops::fchmod(int fd, mode_t mode) noexcept {
    return inject("fchmod") ? -1 : file_ops::fchmod(fd, mode);
}
int failing_ops::futimens(int fd, const timespec* times) noexcept {
    return inject("futimens") ? -1 : file_ops::futimens(fd, times);
}
int failing_ops::set_lock(int fd, struct flock* lock) noexcept {
    return lock->l_type != F_UNLCK && inject("lock") ? -1 : file_ops::set_lock(fd, lock);
}

int run_unprivileged(const std::function<int()>& body) {
    const pid_t child = ::fork();
    if (child == 0) {
        if (::geteuid() == 0 && (::setgroups(0, nullptr) != 0 || ::setgid(12345) != 0 || ::setuid(12345) != 0)) {
            ::_exit(99);
        }
        int status = 98;
        try {
            status = body();
        } catch (const std::exception& e) {
            fmt::print(stderr, "child: {}\n", e.what());
        }
        ::_exit(status);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace epjit::cache::test
