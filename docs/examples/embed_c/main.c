// SPDX-License-Identifier: Apache-2.0
// One MoE layer in C: route, dispatch the tokens to their experts, run the experts, combine, check.
// Alone, four ranks on the CPU and, where there is a GPU, four virtual ranks on it. Under torchrun, mpirun or srun
// every process is a rank on its own GPU.
#include "memory.h"

#include <epjit/epjit.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DRIVEN = 64, HIDDEN = 64, EXPERTS = 8, TOPK = 2, TOKENS = 3 };
enum result { DONE, FAILED, SKIPPED };

/// What the ranks of this process work on. `x` to `rows` are device memory (host exchange: ordinary).
typedef struct layer {
    const memory* memory;
    epjit_communicator_info who;
    epjit_exchange* exchange;
    epjit_plan* plan;
    int64_t num_rows[MAX_DRIVEN];
    void *x[MAX_DRIVEN], *ids[MAX_DRIVEN], *weights[MAX_DRIVEN], *out[MAX_DRIVEN], *rows[MAX_DRIVEN];
} layer;

/// Says what the library said where a call failed.
static int ok(epjit_status status, const char* call) {
    if (status != EPJIT_OK) {
        fprintf(stderr, "%s: %s error: %s\n", call, epjit_name(EPJIT_ENUM_STATUS, status), epjit_last_error());
    }
    return status == EPJIT_OK;
}

/// f32 rows of H.
static epjit_tensor tensor(void* data, int64_t rows) {
    epjit_tensor t = {0};
    t.data = data;
    t.type = EPJIT_DTYPE_F32;
    t.rows = rows;
    t.columns = HIDDEN;
    return t;
}

/// Token t of rank r goes to the experts (r + t) and (r + t + 3) modulo 8, with weights 3/4 and 1/4.
static int expert_of(int rank, int token, int k) {
    return (rank + token + 3 * k) % EXPERTS;
}

/// Memory of driven rank `i` and what it starts with: token t of rank r is a row of the constant t + r + 1.
static int make_tokens(layer* l, int i) {
    const memory* const m = l->memory;
    const int rank = l->who.first_driven + i;
    float x[TOKENS][HIDDEN], weights[TOKENS][TOPK];
    int64_t ids[TOKENS][TOPK];
    for (int t = 0; t < TOKENS; ++t) {
        for (int k = 0; k < TOPK; ++k) {
            ids[t][k] = expert_of(rank, t, k);
            weights[t][k] = k == 0 ? 0.75F : 0.25F;
        }
        for (int h = 0; h < HIDDEN; ++h) {
            x[t][h] = (float)(t + rank + 1);
        }
    }
    l->x[i] = m->allocate(sizeof x);
    l->out[i] = m->allocate(sizeof x);
    l->ids[i] = m->allocate(sizeof ids);
    l->weights[i] = m->allocate(sizeof weights);
    return l->x[i] != NULL && l->out[i] != NULL && l->ids[i] != NULL && l->weights[i] != NULL &&
           m->write(l->x[i], x, sizeof x) && m->write(l->ids[i], ids, sizeof ids) &&
           m->write(l->weights[i], weights, sizeof weights);
}

/// Who goes where, in this step. Exact mode, the default: the host knows then how many rows each rank receives.
static int make_plan(layer* l) {
    epjit_plan_args args[MAX_DRIVEN];
    memset(args, 0, sizeof args);
    for (int i = 0; i < l->who.num_driven; ++i) {
        args[i].struct_size = sizeof args[i];
        args[i].routing = l->ids[i];
        args[i].num_tokens = TOKENS;
    }
    if (!ok(epjit_make_plan(l->exchange, args, (uint32_t)l->who.num_driven, NULL, NULL, &l->plan), "plan")) {
        return 0;
    }
    for (int i = 0; i < l->who.num_driven; ++i) {
        epjit_plan_view view;
        view.struct_size = sizeof view;
        if (!ok(epjit_plan_get_view(l->plan, i, &view), "view")) {
            return 0;
        }
        l->num_rows[i] = view.rows;
        l->rows[i] = l->memory->allocate((size_t)view.rows * HIDDEN * sizeof(float));
        if (l->rows[i] == NULL) {
            return 0;
        }
    }
    return 1;
}

static int dispatch(layer* l) {
    epjit_dispatch_args args[MAX_DRIVEN];
    memset(args, 0, sizeof args);
    for (int i = 0; i < l->who.num_driven; ++i) {
        args[i].struct_size = sizeof args[i];
        args[i].input = tensor(l->x[i], TOKENS);
        args[i].output = tensor(l->rows[i], l->num_rows[i]);
    }
    return ok(epjit_dispatch(l->exchange, l->plan, args, (uint32_t)l->who.num_driven, NULL, NULL), "dispatch");
}

static int combine(layer* l) {
    epjit_combine_args args[MAX_DRIVEN];
    memset(args, 0, sizeof args);
    for (int i = 0; i < l->who.num_driven; ++i) {
        args[i].struct_size = sizeof args[i];
        args[i].rows = tensor(l->rows[i], l->num_rows[i]);
        args[i].weights = l->weights[i];
        args[i].output = tensor(l->out[i], TOKENS);
    }
    return ok(epjit_combine(l->exchange, l->plan, args, (uint32_t)l->who.num_driven, NULL, NULL), "combine");
}

/// Expert e multiplies its rows by e + 1. Here on the CPU; an engine launches its own kernels on the plan's counts.
static int run_experts(layer* l) {
    for (int i = 0; i < l->who.num_driven; ++i) {
        epjit_plan_view view;
        view.struct_size = sizeof view;
        if (!ok(epjit_plan_get_view(l->plan, i, &view), "view")) {
            return 0;
        }
        const size_t bytes = (size_t)view.rows * HIDDEN * sizeof(float);
        float* const rows = malloc(bytes != 0 ? bytes : 1);
        if (rows == NULL || !l->memory->read(rows, l->rows[i], bytes)) {
            free(rows);
            return 0;
        }
        // By default the first E mod R ranks hold one expert more than the others; rows lie by slot, in one piece each.
        const int rank = l->who.first_driven + i, each = EXPERTS / l->who.num_ranks, more = EXPERTS % l->who.num_ranks;
        const int first = rank * each + (rank < more ? rank : more);
        float* row = rows;
        for (int slot = 0; slot < view.num_slots; ++slot) {
            for (int n = 0; n < view.host_counts[slot] * HIDDEN; ++n) {
                *row++ *= (float)(first + slot + 1);
            }
        }
        const int written = l->memory->write(l->rows[i], rows, bytes);
        free(rows);
        if (!written) {
            return 0;
        }
    }
    return 1;
}

/// Output elements that are not 3/4 (e1 + 1) x + 1/4 (e2 + 1) x, every term of which is exact in f32; -1: unreadable.
static int count_wrong(const layer* l) {
    int wrong = 0;
    for (int i = 0; i < l->who.num_driven; ++i) {
        const int rank = l->who.first_driven + i;
        float out[TOKENS][HIDDEN];
        if (!l->memory->read(out, l->out[i], sizeof out)) {
            return -1;
        }
        for (int t = 0; t < TOKENS; ++t) {
            const float factor =
                0.75F * (float)(expert_of(rank, t, 0) + 1) + 0.25F * (float)(expert_of(rank, t, 1) + 1);
            for (int h = 0; h < HIDDEN; ++h) {
                wrong += out[t][h] != factor * (float)(t + rank + 1);
            }
        }
    }
    return wrong;
}

static int run_steps(layer* l) {
    for (int i = 0; i < l->who.num_driven; ++i) {
        if (!make_tokens(l, i)) {
            return 0;
        }
    }
    return make_plan(l) && dispatch(l) && run_experts(l) && combine(l);
}

static enum result skipped(const char* title, const char* why) {
    printf("%s: skipped: %s\n", title, why);
    return SKIPPED;
}

/// A layer on any communicator: an exchange for the model's shape, then the steps.
static enum result run_layer(const char* title, epjit_communicator* comm, const memory* m) {
    layer l = {0};
    l.memory = m;
    l.who.struct_size = sizeof l.who;
    epjit_exchange_config config;
    enum result result = FAILED;
    if (ok(epjit_communicator_get_info(comm, &l.who), "info") &&
        ok(epjit_exchange_config_init(&config, sizeof config), "config")) {
        config.hidden = HIDDEN;
        config.num_experts = EXPERTS;
        config.topk = TOPK;
        config.max_tokens_per_rank = TOKENS;
        config.input_type = config.dispatch_type = config.combine_type = EPJIT_DTYPE_F32;
        epjit_status status = epjit_exchange_create(comm, &config, &l.exchange);
        if (status == EPJIT_OK) {
            status = epjit_exchange_prepare(l.exchange);  // compiles the model's kernels, or takes them from the cache
        }
        if (status == EPJIT_ERROR_LIBRARY || status == EPJIT_ERROR_UNSUPPORTED) {
            result = skipped(title, epjit_last_error());
        } else if (ok(status, "exchange") && run_steps(&l)) {
            const int wrong = count_wrong(&l);
            printf("%s: one layer over %d ranks, %d wrong values\n", title, (int)l.who.num_ranks, wrong);
            result = wrong == 0 ? DONE : FAILED;
        }
    }
    epjit_plan_destroy(l.plan);  // before its exchange
    for (int i = 0; i < l.who.num_driven; ++i) {
        m->release(l.x[i]);
        m->release(l.ids[i]);
        m->release(l.weights[i]);
        m->release(l.out[i]);
        m->release(l.rows[i]);
    }
    epjit_exchange_destroy(l.exchange);
    return result;
}

/// The layer if the communicator could be made; a machine that lacks something skips it.
static enum result run_if_made(const char* title, epjit_status status, epjit_communicator* comm, const memory* m) {
    if (status == EPJIT_ERROR_LIBRARY || status == EPJIT_ERROR_UNSUPPORTED) {
        return skipped(title, epjit_last_error());
    }
    const enum result result = ok(status, title) ? run_layer(title, comm, m) : FAILED;
    epjit_communicator_destroy(comm);
    return result;
}

static const char* first_set(const char* a, const char* b, const char* c) {
    const char* const names[] = {a, b, c};
    for (int i = 0; i < 3; ++i) {
        const char* const value = getenv(names[i]);
        if (value != NULL) {
            return value;
        }
    }
    return "0";
}

int main(void) {
    epjit_runtime* runtime = NULL;
    epjit_communicator* comm = NULL;
    epjit_status status = EPJIT_OK;
    const char* why = "";
    enum result first = DONE, second = DONE;
    printf("epjit %s\n", epjit_version());
    if (!ok(epjit_runtime_create(NULL, &runtime), "runtime")) {
        return 1;
    }
    if (atoi(first_set("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS")) > 1) {
        const int device = atoi(first_set("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"));
        const memory* const m = device_memory(device, &why);
        if (m == NULL) {
            first = skipped("launcher", why);
        } else {
            status = epjit_communicator_from_launcher(runtime, &comm);
            first = run_if_made("launcher", status, comm, m);
        }
    } else {
        status = epjit_communicator_host(runtime, 4, &comm);
        first = run_if_made("host", status, comm, ordinary_memory());
        const memory* const m = device_memory(0, &why);
        if (m == NULL) {
            second = skipped("loopback", why);
        } else {
            status = epjit_communicator_loopback(runtime, 4, 0, &comm);
            second = run_if_made("loopback", status, comm, m);
        }
    }
    epjit_runtime_destroy(runtime);
    return first == FAILED || second == FAILED ? 1 : 0;
}
