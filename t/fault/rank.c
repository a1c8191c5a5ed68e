/* SPDX-License-Identifier: MIT */
/* A rank of a case: it is struck, or looks closely at how its call failed. */
#include "config.h"

#include "t/fault/fault.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void fault_fail(struct fault_rank *r, const char *fmt, ...)
{
	struct fault_slot *slot = r->slot;
	char text[400];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	slot->failures++;
	if (slot->used + strlen(text) + 2 <= sizeof(slot->text)) {
		slot->used += (size_t)snprintf(slot->text + slot->used,
					       sizeof(slot->text) - slot->used, "%s\n", text);
	}
}

bool fault_is(struct fault_rank *r, int got, int want, const char *call)
{
	return fault_check(r, got == want, "%s: %d (%s), not %d: %s", call, got,
			   moeep_strerror(got), want, moeep_error_detail());
}

void fault_clock(struct fault_rank *r)
{
	r->call_ns = fault_now_ns();
}

/* Until a word of that slot is set, at most 20 s. */
static bool await_word(struct fault_rank *r, int rank, bool (*set)(struct fault_slot *))
{
	for (int i = 0; i < 20000 * fault_slowness(); i++) {
		if (set(&r->shared->slot[rank])) {
			return true;
		}
		fault_sleep_ms(1);
	}
	fault_fail(r, "rank %d does not come so far", rank);
	return false;
}

static bool is_ready(struct fault_slot *slot)
{
	return atomic_load(&slot->ready) != 0;
}

static bool is_struck(struct fault_slot *slot)
{
	return atomic_load(&slot->struck_ns) != 0;
}

static bool has_given_up(struct fault_slot *slot)
{
	return atomic_load(&slot->given_up) != 0;
}

void fault_ready(struct fault_rank *r)
{
	atomic_store(&r->slot->ready, 1);
}

void fault_await_ready(struct fault_rank *r)
{
	for (int rank = 0; rank < r->num_ranks; rank++) {
		if (rank != r->rank && fault_survives(r->fault, rank)) {
			await_word(r, rank, is_ready);
		}
	}
}

void fault_await_struck(struct fault_rank *r)
{
	await_word(r, r->fault->victim, is_struck);
	/* It was noted before it happened. */
	fault_sleep_ms(30);
}

bool fault_wait_given_up(struct fault_rank *r, int rank)
{
	return await_word(r, rank, has_given_up);
}

bool fault_strike(struct fault_rank *r)
{
	atomic_store(&r->slot->struck_ns, fault_now_ns());
	switch (r->fault->fate) {
	case FATE_DIES:
		kill(getpid(), SIGKILL);
		break;
	case FATE_STOPS:
		kill(getpid(), SIGSTOP);
		break;
	case FATE_LATE:
		for (int rank = 0; rank < r->num_ranks; rank++) {
			if (fault_survives(r->fault, rank)) {
				fault_wait_given_up(r, rank);
			}
		}
		break;
	case FATE_LEAVES:
		fault_free(r);
		return true;
	case FATE_ABORTS:
		break;
	}
	return false;
}

/* What the survivors' result and text follow from. */
static struct fault_want resolve(const struct fault_case *fault)
{
	struct fault_want want = fault->want;

	if (want.result == 0) {
		switch (fault->fate) {
		case FATE_DIES:
		case FATE_LEAVES:
			want.result = MOEEP_ERR_PEER_LOST;
			break;
		case FATE_STOPS:
		case FATE_LATE:
			want.result = MOEEP_ERR_TIMEOUT;
			break;
		case FATE_ABORTS:
			want.result = MOEEP_ERR_ABORTED;
			break;
		}
	}
	if (want.peer_plus_one == 0 && fault->fate != FATE_ABORTS) {
		want.peer_plus_one = fault->victim + 1;
	}
	if (!want.text && fault->fate == FATE_LEAVES) {
		want.text = "has left the group";
	}
	return want;
}

static void check_report(struct fault_rank *r, const struct fault_want *want)
{
	moeep_error_report_t *report = &r->slot->report;
	int64_t missing;

	report->size = sizeof(*report);
	fault_check(r, moeep_comm_async_error(r->comm, report) == want->result,
		    "async_error is not the call's result");
	if (r->fault->unreported) {
		return;
	}
	missing = (int64_t)(report->expected - report->seen);
	fault_check(r, report->result == want->result, "report.result is %d", report->result);
	fault_check(r, report->operation == want->operation, "report.operation is %s, not %s",
		    moeep_op_name(report->operation), moeep_op_name(want->operation));
	fault_check(r, want->peer_plus_one < 0 || report->peer == want->peer_plus_one - 1,
		    "report.peer is %d, not %d", report->peer, want->peer_plus_one - 1);
	fault_check(r, want->epoch == 0 || report->epoch == want->epoch,
		    "report.epoch is %llu, not %llu", (unsigned long long)report->epoch,
		    (unsigned long long)want->epoch);
	if (want->result != MOEEP_ERR_ABORTED) {
		fault_check(r, report->epoch > 0 && missing > 0,
			    "report.epoch is %llu, expected 0x%llx, seen 0x%llx",
			    (unsigned long long)report->epoch, (unsigned long long)report->expected,
			    (unsigned long long)report->seen);
		fault_check(r, fault_survives(r->fault, report->rank), "report.rank is %d",
			    report->rank);
	}
	if (want->expected) {
		fault_check(r, report->expected == want->expected && report->seen == want->seen,
			    "expected is 0x%llx, not 0x%llx; seen is 0x%llx, not 0x%llx",
			    (unsigned long long)report->expected,
			    (unsigned long long)want->expected, (unsigned long long)report->seen,
			    (unsigned long long)want->seen);
	}
}

/* After act(): did it fail as it should, and in time? */
static void check_failure(struct fault_rank *r, int rc, uint64_t begun, const char *detail)
{
	struct fault_want want = resolve(r->fault);
	struct fault_slot *slot = r->slot;
	uint64_t struck = atomic_load(&r->shared->slot[r->fault->victim].struck_ns);
	uint64_t now = fault_now_ns();
	int64_t limit = fault_timeout(r->fault) + FAULT_SLACK_MS * fault_slowness();

	if (want.any_result || (r->victim && r->fault->bare)) {
		/* One that comes back to a group that was never complete hears what is left. */
		want.result = rc == MOEEP_OK ? want.result : rc;
		want.text = NULL;
	}
	slot->result = rc;
	slot->call_ms = (int64_t)(now - begun) / 1000000;
	slot->notice_ms = (int64_t)(now - (struck > begun ? struck : begun)) / 1000000;
	atomic_store(&slot->given_up, 1);
	fault_check(r, rc == want.result, "the call gave %d (%s), not %d: %s", rc,
		    moeep_strerror(rc), want.result, detail);
	fault_check(r, !want.text || strstr(detail, want.text), "detail without \"%s\": %s",
		    want.text ? want.text : "", detail);
	if (r->victim && r->fault->fate != FATE_ABORTS) {
		/* It was told meanwhile. */
		limit = FAULT_SLACK_MS * fault_slowness();
		slot->call_ms = slot->notice_ms = 0;
	} else if (want.result != MOEEP_ERR_TIMEOUT && !want.any_result) {
		limit = FAULT_SLACK_MS * fault_slowness();
		fault_check(r, slot->notice_ms < limit, "noticed after %d ms",
			    (int)slot->notice_ms);
	}
	fault_check(r, slot->call_ms <= limit, "the call took %d ms", (int)slot->call_ms);
	if (r->comm) {
		check_report(r, &want);
		fault_check(r, strstr(detail, slot->report.message) || want.result != rc,
			    "the detail is not the report's message: %s", detail);
		if (want.result == MOEEP_ERR_TIMEOUT && slot->report.rank == r->rank) {
			fault_check(r, slot->call_ms >= fault_timeout(r->fault) - 20,
				    "gave up after %d ms", (int)slot->call_ms);
		}
		fault_sticky(r, want.result);
	}
}

void fault_rank_run(struct fault_rank *r)
{
	const struct fault_case *fault = r->fault;
	uint64_t begun;
	char detail[600];
	int rc = MOEEP_OK;

	if (!fault->bare) {
		rc = fault_join(r, 0, r->rank, r->num_ranks, fault_timeout(fault));
	}
	if (rc == MOEEP_OK && fault->prepare) {
		rc = fault->prepare(r);
	}
	if (rc == MOEEP_OK && !fault->bare) {
		/* So that all begin together. */
		rc = moeep_comm_barrier(r->comm);
	}
	if (!fault_ok(r, rc)) {
		moeep_comm_abort(r->comm, "the preparation failed");
		fault_free(r);
		return;
	}
	fault_clock(r);
	rc = fault->act(r);
	snprintf(detail, sizeof(detail), "%s", moeep_error_detail());
	if (fault->harmless) {
		fault_is(r, rc, MOEEP_OK, "the call");
		fault_check(r, !r->comm || moeep_comm_async_error(r->comm, NULL) == MOEEP_OK,
			    "async_error is not 0");
	} else if (!(r->victim && (fault->fate == FATE_LEAVES || fault->unaware))) {
		check_failure(r, rc, r->call_ns, detail);
	}
	begun = fault_now_ns();
	fault_free(r);
	r->slot->destroy_ms = (int64_t)(fault_now_ns() - begun) / 1000000;
	fault_check(r,
		    r->slot->destroy_ms <=
			    (fault->destroy_ms ? fault->destroy_ms : FAULT_DESTROY_MS) *
				    fault_slowness(),
		    "destruction took %d ms", (int)r->slot->destroy_ms);
	if (fault_survives(fault, r->rank)) {
		fault_again(r);
	}
	fault_ok(r, moeep_rendezvous_destroy(r->hosted));
	atomic_store(&r->slot->finished, 1);
}
