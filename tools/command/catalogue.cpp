// SPDX-License-Identifier: Apache-2.0
#include "tools/command/catalogue.hpp"

#include <array>

namespace epjit::tools {
namespace {

constexpr std::array<option_info, 4> globals{{
    {"--json", "", "print one JSON object on stdout instead of tables"},
    {"--cache-dir", "DIR", "use this cache directory and no other"},
    {"--version", "", "print the version"},
    {"--help", "", "print help, also of one command"},
}};

constexpr option_info model{"--model", "NAME", "a built-in shape, see `epjit models` (qwen3-30b-a3b)"};
constexpr option_info config{"--config", "FILE", "or a Hugging Face config.json"};
constexpr option_info exchange{"--exchange", "auto|host|loopback|lsa|sendrecv|dense|hybrid",
                               "the way rows travel (auto)"};
constexpr option_info ranks{"--ranks", "N", "ranks in the exchange (GPUs of this machine, else 8)"};
constexpr option_info tokens{"--tokens", "T", "tokens on each rank (256)"};
constexpr option_info routing{"--routing", "uniform|zipf|grouped|one-rank", "which experts the tokens choose (uniform)",
                              false, "FILE.npy"};
constexpr option_info layout{"--layout", "expert_major|flat|masked", "how dispatched rows lie (expert_major)"};
constexpr option_info dtype{"--dtype", "bf16|fp16|f32|fp8", "of dispatched rows (the model's)"};
constexpr option_info reduction{"--reduction", "per_rank|per_host|per_row", "order of combine's sum (per_rank)"};
constexpr option_info mode{"--mode", "exact|static", "exact counts on the host, or nothing read back (exact)"};
constexpr option_info plan_source{"--plan-source", "auto|counts|gathered",
                                  "what ranks tell each other for a plan (auto)"};
constexpr option_info staging{"--staging-bytes", "N", "lsa: bound on the memory for rows on their way (0: automatic)"};
constexpr option_info seed{"--seed", "N", "of routing and data (1)"};
constexpr option_info iterations{"--iters", "N", "repeat without a synchronisation between (1)"};
constexpr option_info graph{"--graph", "", "capture the calls in a CUDA graph and replay it"};
constexpr option_info window{"--window", "", "dispatch into outputs that the exchange lends"};
constexpr option_info low_latency{"--low-latency", "", "lsa: few tokens, sent as packets (ll_max_tokens_per_rank)"};

constexpr std::array<option_info, 8> warm_options{{
    model,
    config,
    {"--ranks", "N", "world sizes to compile for (GPUs of this machine, else 8)", true},
    {"--arch", "SM", "targets such as sm_90a (this machine's GPUs, else sm_90a)", true},
    {"--set", "default|all", "what a forward run needs, or every form of it (default)"},
    {"--profile", "FILE", "compile a tuning profile's variants as well (EPJIT_PROFILE)"},
    {"--jobs", "N", "compile this many variants at once (CPUs)"},
    {"--only", "TEXT", "of the set, only variants whose description begins so"},
}};

constexpr std::array<argument_info, 2> cache_arguments{{
    {"list|verify|prune|path|export|import", "what to do"},
    {"FILE", "of export and import", false},
}};
constexpr std::array<option_info, 2> cache_options{{
    {"--max-bytes", "N", "prune: evict least recently used entries down to N bytes; K, M and G may follow"},
    {"--digest", "HEX", "import: refuse any pack but the one whose export printed this"},
}};

constexpr std::array<argument_info, 1> inspect_arguments{{
    {"KEY", "32 hex digits, or at least 6 that no other entry begins with"},
}};
constexpr std::array<option_info, 5> inspect_options{{
    {"--source", "", "the program given to the compiler"},
    {"--ptx", "", "the program compiled to PTX (needs NVRTC)"},
    {"--sass", "", "the disassembled cubin (needs nvdisasm or cuobjdump)"},
    {"--lines", "", "how many instructions come from which calls and lines (needs NVRTC and nvdisasm)"},
    {"--log", "", "the compiler's log"},
}};

constexpr std::array<option_info, 19> run_options{{
    exchange,
    model,
    config,
    ranks,
    tokens,
    routing,
    layout,
    dtype,
    reduction,
    mode,
    plan_source,
    staging,
    seed,
    iterations,
    graph,
    window,
    low_latency,
    {"--check", "", "compare every row with the reference"},
    {"--dump", "DIR", "write inputs, dispatched rows and results as .npy files"},
}};

constexpr std::array<option_info, 22> explain_options{{
    exchange,
    model,
    config,
    ranks,
    tokens,
    routing,
    layout,
    dtype,
    reduction,
    mode,
    plan_source,
    staging,
    seed,
    iterations,
    graph,
    window,
    low_latency,
    {"--arch", "SM", "the GPUs to explain for (this machine's, else sm_90a)"},
    {"--keys", "", "list the keys that the run would load"},
    {"--profile", "FILE", "a tuning profile (EPJIT_PROFILE)"},
    {"--hosts", "M", "hosts that the ranks are spread over (1)"},
    {"--link-gbps", "X", "bandwidth between hosts in GB/s for each GPU (50)"},
}};

constexpr std::array<option_info, 10> bench_options{{
    {"--suite", "jit|route|exchange|decode|all", "what to measure, several as exchange,decode (all)"},
    {"--exchange", "auto|lsa|sendrecv|dense|hybrid", "exchange, decode: only this one (auto: lsa, sendrecv, dense)"},
    {"--model", "NAME", "exchange, decode, rows of route: only this model's shape, see `epjit models`"},
    {"--tokens", "T", "exchange, decode, rows of route: only this number of tokens on each rank"},
    {"--ranks", "N", "exchange, decode: GPUs to use (all)"},
    {"--sms", "N", "exchange, decode: bound on the SMs of a call (0: automatic)"},
    {"--plan-source", "auto|counts|gathered", "exchange, decode: where plans come from (auto)"},
    {"--iters", "N", "exchange, decode: timed repetitions, after 50 (200)"},
    {"--quick", "", "exchange, decode: 10 repetitions after 3, to see that it works"},
    {"--html", "FILE", "write the tables as one self-contained page as well"},
}};

constexpr std::array<option_info, 9> tune_options{{
    model,
    config,
    {"--ranks", "N", "GPUs to use (all); 1 tunes permute and unpermute"},
    {"--tokens", "T", "tokens on each rank, one entry each (4096)", true},
    layout,
    {"--dtype", "bf16|fp8", "of dispatched rows (bf16)"},
    {"--out", "FILE", "profile to write into, entries of other shapes stay (EPJIT_PROFILE, else none)"},
    {"--budget", "SECONDS", "longest time over all, compiling included (120)"},
    {"--iters", "N", "repetitions of the last candidates (160)"},
}};

constexpr std::array<argument_info, 1> completion_arguments{{
    {"bash|zsh|fish", "the shell"},
}};

constexpr std::array<command_info, 10> all{{
    {"warm",
     "compile every kernel a model needs and keep it in the cache",
     "No GPU is needed. What is stored already is not compiled again; Ctrl-C leaves a valid cache.",
     {},
     warm_options,
     "epjit warm --model deepseek-v3 --ranks 8,16 --arch sm_90a,sm_100a\n"
     "epjit warm --config ./config.json --set all\n"
     "epjit warm --cache-dir /opt/epjit-cache    # in a container build"},
    {"run",
     "one MoE layer's dispatch and combine, checked with --check",
     "Runs on a GPU when there is one, else on the CPU (exchange `host`).",
     {},
     run_options,
     "epjit run --check\n"
     "epjit run --exchange host --model mixtral-8x7b --ranks 4 --tokens 64 --check\n"
     "epjit run --exchange loopback --routing zipf --layout flat --check"},
    {"cache", "what is stored: list, verify, prune, path, export, import",
     "verify checks every checksum and repairs nothing (exit 1 when an entry is bad).", cache_arguments, cache_options,
     "epjit cache list\n"
     "epjit cache prune --max-bytes 500M\n"
     "epjit cache export warm.epjit    # then, elsewhere: epjit cache import warm.epjit"},
    {"inspect", "one entry of the cache: kernels, source, PTX, SASS, log", "KEY is what `epjit cache list` shows.",
     inspect_arguments, inspect_options,
     "epjit inspect 3fa9c1\n"
     "epjit inspect 3fa9c1 --source"},
    {"models", "the built-in model shapes", "", {}, {}, "epjit models\nepjit models --json"},
    {"explain",
     "which exchange a run would take and why; --keys: what it loads",
     "Needs no GPU.",
     {},
     explain_options,
     "epjit explain --model deepseek-v3 --ranks 16 --hosts 2\n"
     "epjit explain --keys --exchange loopback --ranks 8"},
    {"doctor",
     "what is found on this machine, what is missing, how to mend it",
     "Looks at the driver, GPUs, NVRTC, NCCL and the cache, and says what stands between this machine and a verified\n"
     "run. Useful without a GPU.",
     {},
     {},
     "epjit doctor\nepjit doctor --json"},
    {"bench",
     "medians beside the floor measured in the same run",
     "Suite jit needs NVRTC and no GPU, route a GPU, exchange and decode two GPUs and NCCL.",
     {},
     bench_options,
     "epjit bench --suite jit\n"
     "epjit bench --suite route --json\n"
     "epjit bench --suite exchange --model deepseek-v3 --tokens 4096 --exchange lsa"},
    {"tune",
     "time a shape's knobs on this machine's GPUs, write a profile",
     "Successive halving: every candidate a few times, the better half again, and so on; results are compared. The\n"
     "profile is read through EPJIT_PROFILE. Several GPUs exchange through lsa, one permutes.",
     {},
     tune_options,
     "epjit tune --model deepseek-v3 --tokens 128,4096 --out h200.json\n"
     "EPJIT_LOG=info epjit tune --ranks 1 --budget 30     # says every measurement"},
    {"completion",
     "print a completion script for a shell",
     "",
     completion_arguments,
     {},
     "epjit completion bash > ~/.local/share/bash-completion/completions/epjit\n"
     "epjit completion zsh  > ~/.zfunc/_epjit\n"
     "epjit completion fish > ~/.config/fish/completions/epjit.fish"},
}};

}  // namespace

std::span<const command_info> commands() noexcept {
    return all;
}
std::span<const option_info> global_options() noexcept {
    return globals;
}

const command_info* find_command(std::string_view name) noexcept {
    for (const command_info& c : all) {
        if (c.name == name) {
            return &c;
        }
    }
    return nullptr;
}

}  // namespace epjit::tools
