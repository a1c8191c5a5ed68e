/* SPDX-License-Identifier: MIT */
/* tools/perf_calls.c - single calls of one rank: prepared, timed, checked. */
#include <config.h>

#include <string.h>

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

int rank_rows(struct rank *r, int64_t call, struct routing_rows *rows)
{
	bool ht = r->mode == MOEEP_MODE_HT;

	if (routing_rows_make(r->routing, rank_variant(r, call), r->rank,
			      ht ? perf_ht_layout(r->o) : ROWS_CAPACITY,
			      ht ? r->o->alignment : r->capacity, rows)) {
		return rank_fail(r, "memory", "the list of expected rows");
	}
	return 0;
}

void rank_prepare(struct rank *r, const struct perf_case *c, int64_t call, struct prepared *p)
{
	const void *combine_x = r->block[r->combine_block].base;
	int variant = rank_variant(r, call);

	p->c = c;
	p->variant = variant;
	p->handle = r->handle[variant];
	if (c->mode == MOEEP_MODE_LL && c->op == PERF_DISPATCH) {
		rank_ll_args(r, call, VIEW_CALL, &p->ll_dispatch);
	} else if (c->mode == MOEEP_MODE_LL) {
		p->ll_combine = (moeep_ll_combine_args_t){
			.size = sizeof(p->ll_combine),
			.dtype = r->o->combine_dtype,
			.capacity = r->capacity,
			.x = combine_x,
			.out = r->block[BLOCK_OUT].base,
		};
	} else if (c->op == PERF_DISPATCH) {
		rank_ht_args(r, call, r->o->cached && r->routed[variant], VIEW_CALL, &p->dispatch);
	} else {
		p->combine = (moeep_combine_args_t){
			.size = sizeof(p->combine),
			.flags = r->o->row_layout == MOEEP_ROWS_FLAT ? 0 : MOEEP_COMBINE_WEIGHTED,
			.dtype = r->o->combine_dtype,
			.x = combine_x,
			.out = r->block[BLOCK_OUT].base,
		};
	}
}

const char *rank_call_name(const struct perf_case *c)
{
	if (c->mode == MOEEP_MODE_LL) {
		return c->op == PERF_DISPATCH ? "moeep_ll_dispatch" : "moeep_ll_combine";
	}
	return c->op == PERF_DISPATCH ? "moeep_dispatch" : "moeep_combine";
}

int rank_look(struct rank *r, const struct perf_case *c, int result)
{
	return result ? rank_fail_call(r, rank_call_name(c), result) : 0;
}

int rank_issue(struct rank *r, struct prepared *p, int phase, const moeep_launch_t *launch)
{
	int rc;

	if (p->c->mode == MOEEP_MODE_LL && p->c->op == PERF_DISPATCH) {
		p->ll_dispatch.phase = phase;
		rc = moeep_ll_dispatch(r->buffer, p->handle, &p->ll_dispatch, launch);
	} else if (p->c->mode == MOEEP_MODE_LL) {
		p->ll_combine.phase = phase;
		rc = moeep_ll_combine(r->buffer, p->handle, &p->ll_combine, launch);
	} else if (p->c->op == PERF_DISPATCH) {
		rc = moeep_dispatch(r->buffer, p->handle, &p->dispatch, launch);
	} else {
		rc = moeep_combine(r->buffer, p->handle, &p->combine, launch);
	}
	if (rc == 0 && p->c->op == PERF_DISPATCH) {
		r->routed[p->variant] = true;
	}
	return rc;
}

/* With the host backend: the call is complete when it returns. */
static int host_step(struct rank *r, const struct perf_case *c, int64_t call,
		     uint64_t ns[PERF_MAX_PHASES])
{
	int phases = perf_phases(r->o, c);
	struct prepared p;

	rank_prepare(r, c, call, &p);
	for (int phase = 0; phase < phases; phase++) {
		uint64_t start;
		int rc;

		/* Also between the phases: RECV then finds what the peers sent. */
		if (rank_barrier(r)) {
			return 1;
		}
		start = rank_now_ns();
		rc = rank_issue(r, &p, perf_phase(phases, phase), NULL);
		ns[phase] = rank_now_ns() - start;
		if (rank_look(r, c, rc)) {
			return 1;
		}
	}
	return 0;
}

int rank_step(struct rank *r, const struct perf_case *c, int64_t call, uint64_t ns[PERF_MAX_PHASES])
{
	uint64_t one[1][PERF_MAX_PHASES] = {{0}};
	int rc;

	ns[1] = 0;
	if (!r->device) {
		return host_step(r, c, call, ns);
	}
	rc = rank_stream_calls(r, c, call, 1, one);
	memcpy(ns, one[0], sizeof(one[0]));
	return rc;
}

int rank_route_all(struct rank *r)
{
	struct perf_case dispatch = {.mode = r->mode, .op = PERF_DISPATCH};
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
	if (rank_rows(r, call, &rows)) {
		return 1;
	}
	if (c->mode == MOEEP_MODE_LL) {
		capacity *= rows.experts;
	}
	payload_fill_combine(r->o, r->rank, &rows, r->block[r->combine_block].host, capacity);
	routing_rows_free(&rows);
	return rank_block_upload(r, r->combine_block);
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

	if (rank_fetch(r, c)) {
		return 1;
	}
	if (c->op == PERF_COMBINE) {
		rc = check_combine(&check, ht, r->block[BLOCK_OUT].host);
		return rc ? rank_fail(r, "memory", "a row to compare with") : 0;
	}
	if (rank_rows(r, call, &rows)) {
		return 1;
	}
	if (ht) {
		rank_ht_args(r, call, false, VIEW_HOST, &dispatch);
		rc = check_ht_dispatch(&check, &rows, &dispatch);
	} else {
		rank_ll_args(r, call, VIEW_HOST, &ll);
		rc = check_ll_dispatch(&check, &rows, &ll);
	}
	routing_rows_free(&rows);
	return rc ? rank_fail(r, "memory", "a row to compare with") : 0;
}
