// SPDX-License-Identifier: Apache-2.0
// A libnvrtc for tests: the real exports, a made-up cubin, and misbehaviour on demand. Read at every compile:
//   EPJIT_FAKE_NVRTC_MODE       ok (default) | fail | crash | hang | hang_hard | empty
//                               hang ends when the flow callback asks for it; hang_hard only with the
//                               process; empty reports success and an empty cubin, as NVRTC does after a
//                               failure
//   EPJIT_FAKE_NVRTC_MATCH      the mode holds only for programs whose name, source or options contain this
//   text EPJIT_FAKE_NVRTC_ONCE       a file: the mode holds only for the one compile that manages to create
//   it EPJIT_FAKE_NVRTC_COUNT      a file: every compile appends "<pid> <program> <arch>\n" in one write
//   EPJIT_FAKE_NVRTC_DELAY_MS   every compile takes that long first
//   EPJIT_FAKE_NVRTC_REGISTERS, EPJIT_FAKE_NVRTC_SPILL_BYTES, EPJIT_FAKE_NVRTC_SHARED_BYTES  what the log
//   states EPJIT_FAKE_NVRTC_CUBIN_BYTES  size of the cubin, default 4096
// Kernels are the added name expressions (lowered as _Z...), else every __global__ function of the source
// (lowered as its own name). Equal input gives an equal cubin.
#include <algorithm>
#include <cctype>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <iterator>
#include <map>
#include <string>
#include <unistd.h>
#include <vector>

#define FAKE_API extern "C" __attribute__((visibility("default")))

namespace {

// Values of nvrtcResult.
enum result {
    success = 0,
    invalid_input = 3,
    invalid_program = 4,
    invalid_option = 5,
    compilation = 6,
    no_lowered_names = 9,
    name_not_valid = 10,
    cancelled = 16,
};

constexpr int archs[] = {75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121};

struct program {
    std::string name, source, options, arch, log, cubin;
    std::vector<std::string> expressions;
    std::map<std::string, std::string> lowered;
    int (*callback)(void*, void*) = nullptr;
    void* payload = nullptr;
    bool compiled = false;
};

program* of(void* handle) {
    return static_cast<program*>(handle);
}

std::string env(const char* name, const char* fallback = "") {
    const char* value = std::getenv(name);
    return value != nullptr ? value : fallback;
}

void sleep_ms(long ms) {
    timespec left{ms / 1000, (ms % 1000) * 1'000'000};
    while (nanosleep(&left, &left) != 0) {
    }
}

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

bool is_word(char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

/// Names of the __global__ functions: the last word before the parameter list, attributes with arguments
/// skipped.
std::vector<std::string> global_functions(const std::string& source) {
    std::vector<std::string> names;
    for (std::size_t at = source.find("__global__"); at != std::string::npos; at = source.find("__global__", at)) {
        at += std::strlen("__global__");
        std::string word;
        while (at < source.size() && source[at] != ';' && source[at] != '{') {
            if (is_word(source[at])) {
                word.clear();
                while (at < source.size() && is_word(source[at])) {
                    word += source[at++];
                }
            } else if (source[at] == '(') {
                if (word.rfind("__", 0) != 0) {
                    names.push_back(word);
                    break;
                }
                int depth = 0;
                do {
                    depth += source[at] == '(' ? 1 : source[at] == ')' ? -1 : 0;
                } while (++at < source.size() && depth > 0);
            } else {
                ++at;
            }
        }
    }
    return names;
}

/// "sm_90a" of "--gpu-architecture=sm_90a", "-arch=sm_90a" and the two-word forms.
std::string find_arch(int count, const char* const* options) {
    for (int i = 0; i < count; ++i) {
        const std::string option = options[i];
        const std::size_t equal = option.find('=');
        const std::string key = option.substr(0, equal);
        if (key == "--gpu-architecture" || key == "-arch") {
            return equal != std::string::npos ? option.substr(equal + 1) : i + 1 < count ? options[i + 1] : "";
        }
    }
    return "sm_75";
}

bool known_arch(const std::string& arch) {
    if (arch.rfind("sm_", 0) != 0 && arch.rfind("compute_", 0) != 0) {
        return false;
    }
    const int number = std::atoi(arch.c_str() + arch.find('_') + 1);
    for (const int known : archs) {
        if (known == number) {
            return true;
        }
    }
    return false;
}

bool wants_statistics(int count, const char* const* options) {
    for (int i = 0; i < count; ++i) {
        const std::string option = options[i];
        if (option == "-v" || option == "--verbose" || contains(option, "=-v") || contains(option, ",-v") ||
            contains(option, "=--verbose")) {
            return true;
        }
    }
    return false;
}

void count_compile(const program& p) {
    const std::string path = env("EPJIT_FAKE_NVRTC_COUNT");
    if (path.empty()) {
        return;
    }
    const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    const std::string line = std::to_string(getpid()) + " " + p.name + " " + p.arch + "\n";
    if (fd < 0 || write(fd, line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
        std::abort();  // a count that is lost would let a test pass wrongly
    }
    close(fd);
}

std::string mode_of(const program& p) {
    const std::string mode = env("EPJIT_FAKE_NVRTC_MODE", "ok");
    const std::string match = env("EPJIT_FAKE_NVRTC_MATCH");
    if (mode == "ok" || !(contains(p.name, match) || contains(p.source, match) || contains(p.options, match))) {
        return "ok";
    }
    const std::string once = env("EPJIT_FAKE_NVRTC_ONCE");
    if (!once.empty()) {
        const int fd = open(once.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0) {
            return "ok";
        }
        close(fd);
    }
    return mode;
}

std::uint64_t mix(std::uint64_t seed, const std::string& text) {
    for (const char c : text) {
        seed = (seed ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
    }
    return seed;
}

/// An ELF header for CUDA and then bytes that depend on all input.
std::string make_cubin(const program& p) {
    std::uint64_t state = mix(mix(mix(0xcbf29ce484222325ULL, p.source), p.options), p.name);
    for (const auto& expression : p.expressions) {
        state = mix(state, expression);
    }
    const std::size_t size =
        std::max<std::size_t>(64, std::strtoull(env("EPJIT_FAKE_NVRTC_CUBIN_BYTES", "4096").c_str(), nullptr, 10));
    std::string cubin(
        "\x7f"
        "ELF\x02\x01\x01\x41\x08",
        9);
    cubin.resize(64, '\0');
    cubin[16] = 2;                        // ET_EXEC
    cubin[18] = static_cast<char>(0xbe);  // EM_CUDA
    while (cubin.size() < size) {
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        cubin += static_cast<char>(state >> 56);
    }
    return cubin;
}

void write_statistics(program& p) {
    const std::string registers = env("EPJIT_FAKE_NVRTC_REGISTERS", "32");
    const std::string spill = env("EPJIT_FAKE_NVRTC_SPILL_BYTES", "0");
    const std::string shared = env("EPJIT_FAKE_NVRTC_SHARED_BYTES", "0");
    p.log += "ptxas info    : 0 bytes gmem\n";
    for (const auto& [name, symbol] : p.lowered) {
        p.log += "ptxas info    : Compiling entry function '" + symbol + "' for '" + p.arch + "'\n";
        p.log += "ptxas info    : Function properties for " + symbol + "\n";
        p.log +=
            "    " + spill + " bytes stack frame, " + spill + " bytes spill stores, " + spill + " bytes spill loads\n";
        p.log += "ptxas info    : Used " + registers + " registers, used 0 barriers, " +
                 (shared == "0" ? "" : shared + " bytes smem, ") + "352 bytes cmem[0]\n";
        p.log += "ptxas info    : Compile time = 1.000 ms\n";
    }
}

result hang(program& p, bool listen) {
    for (;;) {
        if (listen && p.callback != nullptr && p.callback(p.payload, nullptr) != 0) {
            return cancelled;
        }
        sleep_ms(5);
    }
}

int copy(const std::string& from, char* to) {
    std::memcpy(to, from.data(), from.size());
    return success;
}

}  // namespace

FAKE_API int nvrtcVersion(int* major, int* minor) {
    *major = 13;
    *minor = 0;
    return success;
}

FAKE_API int nvrtcGetNumSupportedArchs(int* count) {
    *count = static_cast<int>(std::size(archs));
    return success;
}

FAKE_API int nvrtcGetSupportedArchs(int* out) {
    std::memcpy(out, archs, sizeof archs);
    return success;
}

FAKE_API const char* nvrtcGetErrorString(int code) {
    switch (code) {
        case success: return "NVRTC_SUCCESS";
        case invalid_input: return "NVRTC_ERROR_INVALID_INPUT";
        case invalid_program: return "NVRTC_ERROR_INVALID_PROGRAM";
        case invalid_option: return "NVRTC_ERROR_INVALID_OPTION";
        case compilation: return "NVRTC_ERROR_COMPILATION";
        case no_lowered_names: return "NVRTC_ERROR_NO_LOWERED_NAMES_BEFORE_COMPILATION";
        case name_not_valid: return "NVRTC_ERROR_NAME_EXPRESSION_NOT_VALID";
        case cancelled: return "NVRTC_ERROR_CANCELLED";
        default: return "NVRTC_ERROR unknown";
    }
}

FAKE_API int nvrtcCreateProgram(void** out, const char* source, const char* name, int header_count,
                                const char* const* headers, const char* const*) {
    if (out == nullptr || source == nullptr) {
        return invalid_input;
    }
    auto* p = new program;
    p->source = source;
    p->name = name != nullptr ? name : "default_program";
    for (int i = 0; i < header_count; ++i) {
        p->source.append("\n").append(headers[i]);
    }
    *out = p;
    return success;
}

FAKE_API int nvrtcDestroyProgram(void** handle) {
    if (handle == nullptr || *handle == nullptr) {
        return invalid_program;
    }
    delete of(*handle);
    *handle = nullptr;
    return success;
}

FAKE_API int nvrtcAddNameExpression(void* handle, const char* expression) {
    of(handle)->expressions.emplace_back(expression);
    return success;
}

FAKE_API int nvrtcSetFlowCallback(void* handle, int (*callback)(void*, void*), void* payload) {
    of(handle)->callback = callback;
    of(handle)->payload = payload;
    return success;
}

FAKE_API int nvrtcCompileProgram(void* handle, int count, const char* const* options) {
    program& p = *of(handle);
    p.log.clear();
    p.options.clear();
    for (int i = 0; i < count; ++i) {
        p.options.append(options[i]).append(" ");
    }
    p.arch = find_arch(count, options);
    if (!known_arch(p.arch)) {
        p.log = "nvrtc: error: invalid value for --gpu-architecture (-arch)\n";
        return invalid_option;
    }
    count_compile(p);
    sleep_ms(std::atol(env("EPJIT_FAKE_NVRTC_DELAY_MS", "0").c_str()));
    const std::string mode = mode_of(p);
    if (mode == "crash") {
        raise(SIGSEGV);
    } else if (mode == "hang" || mode == "hang_hard") {
        return hang(p, mode == "hang");
    } else if (mode == "fail") {
        p.log = p.name + "(7): warning #177-D: variable \"unused\" was declared but never referenced\n\n" + p.name +
                "(12): error: identifier \"fake_missing\" is undefined\n      fake_missing(1);\n      ^\n\n"
                "1 error detected in the compilation of \"" +
                p.name + "\".\n";
        return compilation;
    }
    if (p.expressions.empty()) {
        for (const auto& name : global_functions(p.source)) {
            p.lowered[name] = name;
        }
    }
    for (const auto& expression : p.expressions) {
        std::string symbol;
        for (const char c : expression) {
            symbol += is_word(c) ? c : '_';
        }
        p.lowered[expression] = "_Z" + std::to_string(symbol.size()) + symbol + "v";
    }
    p.cubin = mode == "empty" ? "" : make_cubin(p);
    p.compiled = true;
    if (wants_statistics(count, options) && mode != "empty") {
        write_statistics(p);
    }
    return success;
}

FAKE_API int nvrtcGetLoweredName(void* handle, const char* expression, const char** lowered) {
    program& p = *of(handle);
    if (!p.compiled) {
        return no_lowered_names;
    }
    const auto at = p.lowered.find(expression);
    if (at == p.lowered.end()) {
        return name_not_valid;
    }
    *lowered = at->second.c_str();
    return success;
}

FAKE_API int nvrtcGetCUBINSize(void* handle, std::size_t* size) {
    *size = of(handle)->cubin.size();
    return success;
}
FAKE_API int nvrtcGetCUBIN(void* handle, char* out) {
    return copy(of(handle)->cubin, out);
}
FAKE_API int nvrtcGetProgramLogSize(void* handle, std::size_t* size) {
    *size = of(handle)->log.size() + 1;
    return success;
}
FAKE_API int nvrtcGetProgramLog(void* handle, char* out) {
    std::memcpy(out, of(handle)->log.c_str(), of(handle)->log.size() + 1);
    return success;
}
FAKE_API int nvrtcGetPTXSize(void* handle, std::size_t* size) {
    *size = of(handle)->cubin.empty() ? 1 : std::strlen(".version 9.0\n") + 1;
    return success;
}
FAKE_API int nvrtcGetPTX(void* handle, char* out) {
    std::strcpy(out, of(handle)->cubin.empty() ? "" : ".version 9.0\n");
    return success;
}
