/* SPDX-License-Identifier: MIT */
/* tools/perf_calls.c - single calls of one rank: prepared, timed, checked. */
#include <config.h>

#include "payload.h"
#include "perf_rank.h"

static struct check check_of(const struct rank *r, int64_t call, struct check_result *result)
{
	struct check check = {
		.options = r->o,
		.routing = r->routing,
		.rank = r->rank,
		.variant = rank_variant(r, call),
		.copy = (int)(call % r->copies),
		.result = result,
	};

	return check;
}

static int rows_of(struct rank *r, int64_t call, struct routing_rows *rows)
{
	bool ht = r->mode == MOEEP_MODE_HT;

	if (routing_rows_make(r->routing, rank_variant(r, call), r->rank,
			      ht ? perf_ht_layout(r->o) : ROWS_CAPACITY,
			      ht ? r->o->alignment : r->capacity, rows)) {
		return rank_fail(r, "memory", "the list of expected rows");
	}
	return 0;
}

static int ht_step(struct rank *r, const struct perf_case *c, int64_t call, bool cached,
		   uint64_t ns[PERF_MAX_PHASES])
{
	moeep_handle_t *handle = r->handle[rank_variant(r, call)];
	moeep_combine_args_t combine = {
		.size = sizeof(combine),
		.flags = r->o->row_layout == MOEEP_ROWS_FLAT ? 0 : MOEEP_COMBINE_WEIGHTED,
		.dtype = r->o->combine_dtype,
		.x = r->combine_x,
		.out = r->block[BLOCK_OUT].base,
	};
	moeep_dispatch_args_t dispatch;
	uint64_t start;
	int rc;

	rank_ht_args(r, call, cached, &dispatch);
	if (rank_barrier(r)) {
		return 1;
	}
	start = rank_now_ns();
	if (c->op == PERF_DISPATCH) {
		rc = moeep_dispatch(r->buffer, handle, &dispatch, NULL);
	} else {
		rc = moeep_combine(r->buffer, handle, &combine, NULL);
	}
	ns[0] = rank_now_ns() - start;
	if (rc) {
		return rank_fail_call(
			r, c->op == PERF_DISPATCH ? "moeep_dispatch" : "moeep_combine", rc);
	}
	return 0;
}

static int ll_step(struct rank *r, const struct perf_case *c, int64_t call,
		   uint64_t ns[PERF_MAX_PHASES])
{
	moeep_handle_t *handle = r->handle[rank_variant(r, call)];
	moeep_ll_combine_args_t combine = {
		.size = sizeof(combine),
		.dtype = r->o->combine_dtype,
		.capacity = r->capacity,
		.x = r->combine_x,
		.out = r->block[BLOCK_OUT].base,
	};
	moeep_ll_dispatch_args_t dispatch;
	int phases = r->o->phases ? 2 : 1;

	rank_ll_args(r, call, &dispatch);
	for (int phase = 0; phase < phases; phase++) {
		uint64_t start;
		int rc;

		/* Also between the phases: RECV then finds what the peers sent. */
		if (rank_barrier(r)) {
			return 1;
		}
		dispatch.phase = !r->o->phases ? MOEEP_PHASE_BOTH
				 : phase == 0  ? MOEEP_PHASE_SEND
					       : MOEEP_PHASE_RECV;
		combine.phase = dispatch.phase;
		start = rank_now_ns();
		if (c->op == PERF_DISPATCH) {
			rc = moeep_ll_dispatch(r->buffer, handle, &dispatch, NULL);
		} else {
			rc = moeep_ll_combine(r->buffer, handle, &combine, NULL);
		}
		ns[phase] = rank_now_ns() - start;
		if (rc) {
			return rank_fail_call(r,
					      c->op == PERF_DISPATCH ? "moeep_ll_dispatch"
								     : "moeep_ll_combine",
					      rc);
		}
	}
	return 0;
}

int rank_step(struct rank *r, const struct perf_case *c, int64_t call, uint64_t ns[PERF_MAX_PHASES])
{
	bool cached = r->o->cached && r->routed[rank_variant(r, call)];
	int rc;

	ns[1] = 0;
	rc = c->mode == MOEEP_MODE_HT ? ht_step(r, c, call, cached, ns) : ll_step(r, c, call, ns);
	if (rc == 0 && c->op == PERF_DISPATCH) {
		r->routed[rank_variant(r, call)] = true;
	}
	return rc;
}

int rank_route_all(struct rank *r)
{
	struct perf_case dispatch = {r->mode, PERF_DISPATCH, 0};
	uint64_t ns[PERF_MAX_PHASES];

	for (int v = 0; v < r->routing->shape.variants; v++) {
		if (!r->routed[v] && rank_step(r, &dispatch, v, ns)) {
			return 1;
		}
	}
	return 0;
}

int rank_fill(struct rank *r, const struct perf_case *c, int64_t call)
{
	int64_t capacity = r->capacity;
	struct routing_rows rows;

	if (c->op == PERF_DISPATCH) {
		return 0;
	}
	if (rows_of(r, call, &rows)) {
		return 1;
	}
	if (c->mode == MOEEP_MODE_LL) {
		capacity *= rows.experts;
	}
	payload_fill_combine(r->o, r->rank, &rows, r->combine_x, capacity);
	routing_rows_free(&rows);
	return 0;
}

int rank_check_call(struct rank *r, const struct perf_case *c, int64_t call,
		    struct check_result *result)
{
	bool ht = c->mode == MOEEP_MODE_HT;
	struct check check = check_of(r, call, result);
	moeep_ll_dispatch_args_t ll;
	moeep_dispatch_args_t dispatch;
	struct routing_rows rows;
	int rc;

	if (c->op == PERF_COMBINE) {
		rc = check_combine(&check, ht, r->block[BLOCK_OUT].base);
		return rc ? rank_fail(r, "memory", "a row to compare with") : 0;
	}
	if (rows_of(r, call, &rows)) {
		return 1;
	}
	if (ht) {
		rank_ht_args(r, call, false, &dispatch);
		rc = check_ht_dispatch(&check, &rows, &dispatch);
	} else {
		rank_ll_args(r, call, &ll);
		rc = check_ll_dispatch(&check, &rows, &ll);
	}
	routing_rows_free(&rows);
	return rc ? rank_fail(r, "memory", "a row to compare with") : 0;
}
