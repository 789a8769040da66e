// SPDX-License-Identifier: Apache-2.0
#include "tools/worker/protocol.hpp"

#include "epjit/error.hpp"

#include <cerrno>
#include <cstring>
#include <type_traits>
#include <unistd.h>

namespace epjit::tools {
namespace {

constexpr char artifact_tag = 'A';
constexpr char failure_tag = 'E';
constexpr char compile_failure_tag = 'C';

class writer {
   public:
    template <class T>
    requires std::is_trivially_copyable_v<T> writer& value(const T& v) {
        bytes_.append(reinterpret_cast<const char*>(&v), sizeof v);
        return *this;
    }
    writer& text(std::string_view t) {
        value(static_cast<std::uint32_t>(t.size()));
        bytes_.append(t);
        return *this;
    }
    std::string take() { return std::move(bytes_); }

   private:
    std::string bytes_;
};

class reader {
   public:
    explicit reader(std::string_view bytes) : bytes_(bytes) {}
    template <class T>
    requires std::is_trivially_copyable_v<T> T value() {
        T v{};
        std::memcpy(static_cast<void*>(&v), take(sizeof v).data(), sizeof v);
        return v;
    }
    std::string text() { return std::string(take(value<std::uint32_t>())); }

   private:
    std::string_view take(std::size_t count) {
        if (count > bytes_.size()) {
            throw error(error_kind::internal, "a message of a compile worker was cut short");
        }
        const auto part = bytes_.substr(0, count);
        bytes_.remove_prefix(count);
        return part;
    }
    std::string_view bytes_;
};

std::exception_ptr rebuild(error_kind kind, const std::string& message, const std::string& remedy) {
    switch (kind) {
        case error_kind::config: return std::make_exception_ptr(config_error(message, remedy));
        case error_kind::unsupported: return std::make_exception_ptr(unsupported_error(message, remedy));
        case error_kind::library: return std::make_exception_ptr(library_error(message, remedy));
        case error_kind::timeout: return std::make_exception_ptr(timeout_error(message, remedy));
        default: return std::make_exception_ptr(error(kind, message, remedy));
    }
}

}  // namespace

std::string encode_request(const compile_request& request) {
    return writer().value(request.job.spec).value(request.job.key).value(request.deadline_ms).take();
}

compile_request decode_request(std::string_view frame) {
    reader in(frame);
    compile_request request;
    request.job.spec = in.value<jit::variant_spec>();
    request.job.key = in.value<jit::digest>();
    request.deadline_ms = in.value<std::int64_t>();
    return request;
}

std::string encode_artifact(const jit::artifact& a) {
    writer out;
    out.value(artifact_tag).value(a.key).value(a.compiler.id).text(a.compiler.description).text(a.spec).text(a.arch);
    out.value(static_cast<std::uint32_t>(a.kernels.size()));
    for (const jit::kernel_info& k : a.kernels) {
        out.text(k.name).text(k.lowered).value(k.registers).value(k.shared_bytes).value(k.spill_bytes);
    }
    out.text({reinterpret_cast<const char*>(a.cubin.data()), a.cubin.size()});
    out.text(a.source).text(a.options).text(a.log).text(a.library_version).text(a.template_digest);
    return out.value(a.compile_ms).text(a.spill_exception).take();
}

std::string encode_failure(const std::exception_ptr& failure) {
    try {
        std::rethrow_exception(failure);
    } catch (const compile_error& e) {
        return writer()
            .value(compile_failure_tag)
            .text(e.message())
            .text(e.log())
            .text(e.options())
            .text(e.source())
            .take();
    } catch (const error& e) {
        return writer().value(failure_tag).value(e.kind()).text(e.message()).text(e.remedy()).take();
    } catch (const std::exception& e) {
        return writer().value(failure_tag).value(error_kind::internal).text(e.what()).text("").take();
    }
}

std::variant<jit::artifact, std::exception_ptr> decode_reply(std::string_view frame) {
    reader in(frame);
    const char tag = in.value<char>();
    if (tag == compile_failure_tag) {
        const std::string message = in.text(), log = in.text(), options = in.text(), source = in.text();
        return std::make_exception_ptr(compile_error(message, log, options, source));
    }
    if (tag == failure_tag) {
        const auto kind = in.value<error_kind>();
        const std::string message = in.text(), remedy = in.text();
        return rebuild(kind, message, remedy);
    }
    if (tag != artifact_tag) {
        throw error(error_kind::internal, "a compile worker sent a message that is not of its protocol");
    }
    jit::artifact a;
    a.key = in.value<jit::digest>();
    a.compiler.id = in.value<jit::digest>();
    a.compiler.description = in.text();
    a.spec = in.text();
    a.arch = in.text();
    a.kernels.resize(in.value<std::uint32_t>());
    for (jit::kernel_info& k : a.kernels) {
        k.name = in.text();
        k.lowered = in.text();
        k.registers = in.value<std::uint32_t>();
        k.shared_bytes = in.value<std::uint32_t>();
        k.spill_bytes = in.value<std::uint32_t>();
    }
    const std::string cubin = in.text();
    a.cubin.resize(cubin.size());
    std::memcpy(a.cubin.data(), cubin.data(), cubin.size());
    a.source = in.text();
    a.options = in.text();
    a.log = in.text();
    a.library_version = in.text();
    a.template_digest = in.text();
    a.compile_ms = in.value<double>();
    a.spill_exception = in.text();
    return a;
}

bool write_frame(int descriptor, std::string_view frame) {
    const auto length = static_cast<std::uint32_t>(frame.size());
    std::string bytes(reinterpret_cast<const char*>(&length), sizeof length);
    bytes.append(frame);
    for (std::size_t done = 0; done < bytes.size();) {
        const ssize_t n = ::write(descriptor, bytes.data() + done, bytes.size() - done);
        if (n > 0) {
            done += static_cast<std::size_t>(n);
        } else if (n < 0 && errno != EINTR) {
            return false;
        }
    }
    return true;
}

std::optional<std::string> read_frame(int descriptor) {
    std::string buffer;
    for (;;) {
        if (auto frame = take_frame(buffer)) {
            return frame;
        }
        // Never beyond the frame: what follows belongs to the next call.
        std::uint32_t length = 0;
        std::size_t want = sizeof length - std::min(sizeof length, buffer.size());
        if (want == 0) {
            std::memcpy(&length, buffer.data(), sizeof length);
            want = sizeof length + length - buffer.size();
        }
        const std::size_t at = buffer.size();
        buffer.resize(at + want);
        const ssize_t n = ::read(descriptor, buffer.data() + at, want);
        buffer.resize(at + static_cast<std::size_t>(n > 0 ? n : 0));
        if (n == 0 || (n < 0 && errno != EINTR)) {
            return std::nullopt;
        }
    }
}

std::optional<std::string> take_frame(std::string& buffer) {
    std::uint32_t length = 0;
    if (buffer.size() < sizeof length) {
        return std::nullopt;
    }
    std::memcpy(&length, buffer.data(), sizeof length);
    if (buffer.size() - sizeof length < length) {
        return std::nullopt;
    }
    std::string frame = buffer.substr(sizeof length, length);
    buffer.erase(0, sizeof length + length);
    return frame;
}

}  // namespace epjit::tools
