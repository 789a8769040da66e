// SPDX-License-Identifier: Apache-2.0
#include "c99_layer.h"

#include "epjit/epjit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RANKS = 4, HIDDEN = 20, EXPERTS = 8, TOPK = 2, TOKENS = 5, ROWS = RANKS * TOKENS * TOPK };

/// What all ranks own.
typedef struct layer {
    epjit_runtime* runtime;
    epjit_communicator* communicator;
    epjit_exchange* exchange;
    epjit_plan* plan;
    float x[RANKS][TOKENS][HIDDEN], out[RANKS][TOKENS][HIDDEN], rows[RANKS][ROWS][HIDDEN], weights[RANKS][TOKENS][TOPK];
    int32_t ids[RANKS][TOKENS][TOPK];
} layer;

static char failure[512];

static const char* failed(const char* what) {
    snprintf(failure, sizeof failure, "%s: %s", what, epjit_last_error());
    return failure;
}

static epjit_tensor tensor(float* data, int64_t rows) {
    epjit_tensor t = {0};
    t.data = data;
    t.type = EPJIT_DTYPE_F32;
    t.rows = rows;
    t.columns = HIDDEN;
    return t;
}

static const char* make_exchange(layer* l) {
    epjit_runtime_options options;
    epjit_exchange_config config;
    if (epjit_runtime_options_init(&options, sizeof options) != EPJIT_OK) {
        return failed("runtime options");
    }
    options.cache_path = "";
    if (epjit_runtime_create(&options, &l->runtime) != EPJIT_OK) {
        return failed("runtime");
    }
    if (epjit_communicator_host(l->runtime, RANKS, &l->communicator) != EPJIT_OK) {
        return failed("communicator");
    }
    if (epjit_exchange_config_init(&config, sizeof config) != EPJIT_OK) {
        return failed("exchange config");
    }
    config.hidden = HIDDEN;
    config.num_experts = EXPERTS;
    config.topk = TOPK;
    config.max_tokens_per_rank = TOKENS;
    config.input_type = config.dispatch_type = config.combine_type = EPJIT_DTYPE_F32;
    return epjit_exchange_create(l->communicator, &config, &l->exchange) == EPJIT_OK ? NULL : failed("exchange");
}

static const char* make_plan(layer* l) {
    epjit_plan_options options;
    epjit_plan_args args[RANKS];
    memset(args, 0, sizeof args);
    for (int r = 0; r < RANKS; ++r) {
        args[r].struct_size = sizeof args[r];
        args[r].num_tokens = TOKENS;
        args[r].routing = l->ids[r];
    }
    if (epjit_plan_options_init(&options, sizeof options) != EPJIT_OK) {
        return failed("plan options");
    }
    options.ids = EPJIT_ID_I32;
    return epjit_make_plan(l->exchange, args, RANKS, &options, NULL, &l->plan) == EPJIT_OK ? NULL : failed("plan");
}

static const char* move_rows(layer* l) {
    epjit_dispatch_args dispatch[RANKS];
    epjit_combine_args combine[RANKS];
    memset(dispatch, 0, sizeof dispatch);
    memset(combine, 0, sizeof combine);
    for (int r = 0; r < RANKS; ++r) {
        dispatch[r].struct_size = sizeof dispatch[r];
        dispatch[r].input = tensor(&l->x[r][0][0], TOKENS);
        dispatch[r].output = tensor(&l->rows[r][0][0], ROWS);
        combine[r].struct_size = sizeof combine[r];
        combine[r].rows = dispatch[r].output;
        combine[r].weights = &l->weights[r][0][0];
        combine[r].output = tensor(&l->out[r][0][0], TOKENS);
    }
    if (epjit_dispatch(l->exchange, l->plan, dispatch, RANKS, NULL, NULL) != EPJIT_OK) {
        return failed("dispatch");
    }
    // Expert e multiplies by e + 1; rank r holds the experts 2 r and 2 r + 1.
    for (int r = 0; r < RANKS; ++r) {
        epjit_plan_view view;
        view.struct_size = sizeof view;
        if (epjit_plan_get_view(l->plan, r, &view) != EPJIT_OK) {
            return failed("view");
        }
        for (int slot = 0; slot < view.num_slots; ++slot) {
            for (int32_t i = view.offsets[slot]; i < view.offsets[slot] + view.counts[slot]; ++i) {
                for (int h = 0; h < HIDDEN; ++h) {
                    l->rows[r][i][h] *= (float)(r * EXPERTS / RANKS + slot + 1);
                }
            }
        }
    }
    return epjit_combine(l->exchange, l->plan, combine, RANKS, NULL, NULL) == EPJIT_OK ? NULL : failed("combine");
}

static const char* check(const layer* l) {
    for (int r = 0; r < RANKS; ++r) {
        for (int t = 0; t < TOKENS; ++t) {
            const float factor =
                0.75F * (float)(l->ids[r][t][0] + 1) + 0.25F * (float)(l->ids[r][t][1] + 1);  // exact in f32
            for (int h = 0; h < HIDDEN; ++h) {
                if (l->out[r][t][h] != factor * l->x[r][t][h]) {
                    snprintf(failure, sizeof failure, "rank %d token %d element %d is %g", r, t, h,
                             (double)l->out[r][t][h]);
                    return failure;
                }
            }
        }
    }
    return NULL;
}

const char* epjit_test_c99_layer(void) {
    layer* l = calloc(1, sizeof *l);
    const char* problem = l != NULL ? NULL : "no memory";
    if (problem == NULL) {
        for (int r = 0; r < RANKS; ++r) {
            for (int t = 0; t < TOKENS; ++t) {
                l->ids[r][t][0] = (r + t) % EXPERTS;
                l->ids[r][t][1] = (r + t + 3) % EXPERTS;
                l->weights[r][t][0] = 0.75F;
                l->weights[r][t][1] = 0.25F;
                for (int h = 0; h < HIDDEN; ++h) {
                    l->x[r][t][h] = (float)(100 * r + 10 * t + h);
                }
            }
        }
        problem = make_exchange(l);
        problem = problem != NULL ? problem : make_plan(l);
        problem = problem != NULL ? problem : move_rows(l);
        problem = problem != NULL ? problem : check(l);
        epjit_plan_destroy(l->plan);
        epjit_exchange_destroy(l->exchange);
        epjit_communicator_destroy(l->communicator);
        epjit_runtime_destroy(l->runtime);
    }
    free(l);
    return problem;
}
