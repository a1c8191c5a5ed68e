/* SPDX-License-Identifier: MIT */
/*
 * ep/ll_state.c - the order of low-latency phases: two operations of a kind may be between SEND and
 * RECV, RECVs come in the order of their SENDs, and a handle has one operation at a time.
 */
#include "config.h"

#include "core/error.h"
#include "ep/ll_state.h"

#define SEND MOEEP_LL_SEND
#define RECV MOEEP_LL_RECV

int moeep_ll_phases(int32_t phase)
{
	return phase == MOEEP_PHASE_BOTH ? SEND | RECV : phase == MOEEP_PHASE_SEND ? SEND : RECV;
}

static uint64_t next_dispatch(const struct moeep_buffer *buffer)
{
	return (atomic_load_explicit(&buffer->ll_epoch, memory_order_relaxed) + 1) &
	       MOEEP_EPOCH_MASK;
}

/* The RECV of an epoch comes after that of the epoch before. */
static int check_order(uint64_t epoch, uint64_t received)
{
	if (epoch != ((received + 1) & MOEEP_EPOCH_MASK)) {
		return moeep_fail(
			MOEEP_ERR_STATE,
			"RECV out of order: another handle's SEND came before this one's");
	}
	return MOEEP_OK;
}

int moeep_ll_check_dispatch(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
			    int phases)
{
	uint64_t next = next_dispatch(buffer);

	if (phases & SEND) {
		if (((next - buffer->ll_recv_epoch) & MOEEP_EPOCH_MASK) > MOEEP_SLOTS) {
			return moeep_fail(MOEEP_ERR_STATE,
					  "%d LL dispatches are between SEND and RECV already",
					  MOEEP_SLOTS);
		}
		if (handle->kind == MOEEP_ROUTE_LL_SENT || handle->combine_open) {
			return moeep_fail(MOEEP_ERR_STATE,
					  "the handle has an operation between SEND and RECV");
		}
	} else if (handle->kind != MOEEP_ROUTE_LL_SENT) {
		return moeep_fail(MOEEP_ERR_STATE, "RECV without a SEND of this handle");
	}
	if (phases & RECV) {
		return check_order(phases & SEND ? next : handle->route, buffer->ll_recv_epoch);
	}
	return MOEEP_OK;
}

void moeep_ll_note_dispatch_send(struct moeep_buffer *buffer, struct moeep_handle *handle,
				 const moeep_ll_dispatch_args_t *args)
{
	uint64_t epoch = next_dispatch(buffer);

	atomic_store_explicit(&buffer->ll_epoch, epoch, memory_order_relaxed);
	handle->kind = MOEEP_ROUTE_LL_SENT;
	handle->route = epoch;
	handle->row_layout = MOEEP_ROWS_EXPERT_MAJOR;
	handle->topk = args->topk;
	handle->num_tokens = args->num_tokens;
	handle->weighted = args->topk_weights != NULL;
	handle->ll_dtype = args->dtype;
	handle->ll_quant = args->quant;
}

void moeep_ll_note_dispatch_recv(struct moeep_buffer *buffer, struct moeep_handle *handle,
				 const moeep_ll_dispatch_args_t *args)
{
	handle->kind = MOEEP_ROUTE_LL;
	handle->ll_capacity = args->capacity;
	buffer->ll_recv_epoch = handle->route;
}

int moeep_ll_check_combine(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
			   int phases)
{
	uint64_t next = (buffer->ll_cepoch + 1) & MOEEP_EPOCH_MASK;

	if (phases & SEND) {
		if (handle->kind != MOEEP_ROUTE_LL) {
			return moeep_fail(MOEEP_ERR_STATE,
					  "the handle has no complete LL dispatch");
		}
		if (handle->combine_open) {
			return moeep_fail(MOEEP_ERR_STATE,
					  "the handle has a combine between SEND and RECV");
		}
		if (((next - buffer->ll_crecv_epoch) & MOEEP_EPOCH_MASK) > MOEEP_SLOTS) {
			return moeep_fail(MOEEP_ERR_STATE,
					  "%d LL combines are between SEND and RECV already",
					  MOEEP_SLOTS);
		}
	} else if (!handle->combine_open) {
		return moeep_fail(MOEEP_ERR_STATE, "RECV without a SEND of this handle");
	}
	if (phases & RECV) {
		return check_order(phases & SEND ? next : handle->combine_epoch,
				   buffer->ll_crecv_epoch);
	}
	return MOEEP_OK;
}

void moeep_ll_note_combine_send(struct moeep_buffer *buffer, struct moeep_handle *handle,
				const moeep_ll_combine_args_t *args)
{
	buffer->ll_cepoch = (buffer->ll_cepoch + 1) & MOEEP_EPOCH_MASK;
	handle->combine_epoch = buffer->ll_cepoch;
	handle->combine_open = true;
	handle->combine_dtype = args->dtype;
	handle->combine_unweighted = (args->flags & MOEEP_LL_COMBINE_UNWEIGHTED) != 0;
}

void moeep_ll_note_combine_recv(struct moeep_buffer *buffer, struct moeep_handle *handle)
{
	buffer->ll_crecv_epoch = handle->combine_epoch;
	handle->combine_open = false;
}
