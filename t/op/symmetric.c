/* SPDX-License-Identifier: MIT */
/* Rows in symmetric memory: written and read in place, by ranks with it and ranks without. */
#include "config.h"

#include <string.h>

#include "t/device.h"
#include "t/op/ht.h"

static const char *const kinds[] = {"ordinary", "symmetric", "registered", "slot"};

/* kind: of every rank, or -1 for all kinds mixed. */
static void check(int num_ranks, bool processes, int row_layout, int kind, int64_t hidden)
{
	struct ht_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 3 * num_ranks + 1,
				.topk = 4,
				.hidden = hidden,
				.weights = true,
				.routing = ROUTE_MASKED,
				.payload = PAYLOAD_NUMBERS,
				.seed = op_seed() + (uint64_t)num_ranks,
			},
		.row_layout = row_layout,
		.weighted = row_layout == MOEEP_ROWS_EXPERT_MAJOR,
		.send_weights = true,
		.bias = true,
	};

	op_tokens_vary(&c.spec, hidden > 1000 ? 8 : 40);
	for (int r = 0; r < num_ranks; r++) {
		struct ht_rank *rank = &c.rank[r];

		rank->memory = kind >= 0
				       ? (enum op_memory)kind
				       : (enum op_memory)(r % (op_can_register(processes) ? 3 : 2));
		rank->alignment = 1 + r % 3;
		rank->capacity = r % 2 ? 0 : 40 * 4 * num_ranks + 7;
		rank->flags = r % 3 ? MOEEP_DISPATCH_ZERO_PADDING : 0;
	}
	ht_check(&c, processes, kind >= 0 ? kinds[kind] : "mixed memory");
}

/* One piece of memory for everything, at odd places of it, over and over. */
static int reuse_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ht_case *c = arg;
	size_t row_bytes = (size_t)c->spec.hidden * 2;
	size_t bytes = (size_t)c->side[rank].rows.count * row_bytes, room = 4 * bytes + 8192;
	struct op_block block;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;

	RANK_DO(ht_open(c, comm, &buffer, &handle));
	RANK_DO(op_block_make(&block, comm, OP_SYMMETRIC, 1u << OP_SYMMETRIC, room));
	rank_check((uintptr_t)block.memory % 4096 == 0, "memory is not aligned: %p", block.memory);
	RANK_DO(op_block_pull(&block));
	for (size_t i = 0; i < room; i++) {
		if (!rank_check(block.host[i] == 0, "byte %zu of new memory is 0x%02x", i,
				block.host[i])) {
			break;
		}
	}
	for (int round = 0; round < 8; round++) {
		/* Never twice the same place, and ranks do not agree on them. */
		size_t at =
			(size_t)((round * 5 + rank * 3) % 16) * 16 + (size_t)(round % 3) * bytes;
		struct ht_dispatch d;
		struct ht_combine m;
		int rc;

		RANK_DO(ht_dispatch_begin(&d, c, rank, comm,
					  round % 2 ? MOEEP_DISPATCH_CACHED : 0));
		memset(block.host, round, room);
		RANK_DO(op_block_push(&block));
		d.args.recv_x = (unsigned char *)block.memory + at;
		rank_ok(op_dispatch(buffer, handle, &d.args, NULL));
		RANK_DO(op_block_pull(&block));
		memcpy(d.output[HT_X].got.data, block.host + at, bytes);
		for (size_t i = 0; i < room; i++) {
			bool inside = i >= at && i < at + bytes;

			if (!inside &&
			    !rank_check(block.host[i] == round,
					"byte %zu was written, rows are at %zu", i, at)) {
				break;
			}
		}
		ht_dispatch_end(&d, MOEEP_OK);
		RANK_DO(ht_combine_begin(&m, c, rank, comm));
		memcpy(block.host + at, c->side[rank].x, bytes);
		RANK_DO(op_block_push(&block));
		m.args.x = (unsigned char *)block.memory + at;
		rc = op_combine(buffer, handle, &m.args, NULL);
		/* x is this rank's again, also if others are late. */
		memset(block.host + at, 0x5b, bytes);
		RANK_DO(op_block_push(&block));
		ht_combine_end(&m, rc);
	}
	RANK_DO(ht_close(buffer, handle));
	op_block_free(&block, comm);
	return 0;
}

/* x begins in symmetric memory and would go on behind its end. A device finds out, and the comm
 * ends. */
static int short_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ht_case *c = arg;
	size_t row_bytes = (size_t)c->spec.hidden * 2;
	size_t bytes = (size_t)c->side[rank].rows.count * row_bytes;
	struct op_block block;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;
	struct ht_dispatch d;
	moeep_combine_args_t args = {.size = sizeof(args)};
	moeep_launch_t launch = {.size = sizeof(launch), .stream = MOEEP_STREAM_BUFFER};

	RANK_DO(ht_open(c, comm, &buffer, &handle));
	RANK_DO(op_block_make(&block, comm, OP_SYMMETRIC, 1u << OP_SYMMETRIC, bytes + 8192));
	RANK_DO(ht_dispatch_begin(&d, c, rank, comm, 0));
	args.out = util_alloc(((size_t)c->spec.tokens[rank] + 1) * row_bytes);
	RANK_TRY(moeep_event_create(comm, 0, &launch.done_event));
	ht_dispatch_end(&d, op_dispatch(buffer, handle, &d.args, NULL));
	args.x = (unsigned char *)block.memory + bytes + 8192 - row_bytes;
	RANK_TRY(moeep_combine(buffer, handle, &args, &launch));
	rank_is(moeep_event_wait(launch.done_event, 20000), MOEEP_ERR_INVALID);
	rank_check(strstr(moeep_error_detail(), "symmetric memory that ends after 1 rows") != NULL,
		   "the detail is: %s", moeep_error_detail());
	rank_is(moeep_comm_barrier(comm), MOEEP_ERR_INVALID);
	RANK_TRY(moeep_event_destroy(launch.done_event));
	RANK_DO(ht_close(buffer, handle));
	util_free(args.out);
	op_block_free(&block, comm);
	return 0;
}

/* What is symmetric memory and what is not; freed and made again, in any order. */
static int blocks_body(int rank, moeep_comm_t *comm, void *arg)
{
	void *block[4] = {NULL}, *own = util_alloc(4 * 5000);
	moeep_comm_info_t info = {.size = sizeof(info)};

	(void)arg;
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < 4; i++) {
			size_t bytes = (size_t)((rank + i) % 4) * 5000;

			block[i] = own;
			RANK_TRY(moeep_mem_alloc(comm, bytes, 0, &block[i]));
			rank_check(!block[i] == (bytes == 0), "%zu bytes gave %p", bytes, block[i]);
			if (bytes > 0) {
				memset(own, rank, bytes);
				RANK_TRY(device_copy(block[i], own, bytes));
				rank_is(moeep_mem_is_symmetric(comm, block[i], bytes), 1);
				rank_is(moeep_mem_is_symmetric(comm, (char *)block[i] + 100,
							       bytes - 100),
					1);
			}
		}
		rank_is(moeep_mem_is_symmetric(comm, own, 8192), 0);
		for (int i = 0; i < 4; i++) {
			RANK_TRY(moeep_mem_free(comm, block[(i * 3 + rank + round) % 4]));
		}
		RANK_TRY(moeep_comm_query(comm, &info));
		rank_check(info.symmetric_bytes == 0, "%llu bytes are left",
			   (unsigned long long)info.symmetric_bytes);
	}
	rank_is(moeep_mem_free(comm, NULL), MOEEP_OK);
	rank_is(moeep_mem_free(comm, own), MOEEP_ERR_INVALID);
	util_free(own);
	return 0;
}

static int registered_body(int rank, moeep_comm_t *comm, void *arg)
{
	int nodes[RANKS_MAX];
	/* A rank that is alone on its node shares with nobody. */
	bool threads = *(const bool *)arg || nodes_deal(3, nodes) == 3;
	size_t bytes = 10000 + (size_t)rank * 16;
	char *own = util_alloc(bytes);

	if (!threads) {
		rank_is(moeep_mem_register(comm, own, bytes, 0), MOEEP_ERR_UNSUPPORTED);
		rank_check(moeep_error_detail()[0] != '\0', "no cause is told");
		rank_is(moeep_mem_is_symmetric(comm, own, bytes), 0);
		util_free(own);
		return 0;
	}
	RANK_TRY(moeep_mem_register(comm, own, bytes, 0));
	rank_is(moeep_mem_is_symmetric(comm, own, bytes), 1);
	rank_is(moeep_mem_is_symmetric(comm, own, bytes + 1), 0);
	RANK_TRY(moeep_comm_barrier(comm));
	RANK_TRY(moeep_mem_deregister(comm, own));
	rank_is(moeep_mem_is_symmetric(comm, own, bytes), 0);
	rank_is(moeep_mem_deregister(comm, own), MOEEP_ERR_INVALID);
	util_free(own);
	return 0;
}

static void reuse(int num_ranks, bool processes, int (*body)(int, moeep_comm_t *, void *),
		  const char *name)
{
	struct ht_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 2 * num_ranks,
				.topk = 2,
				.hidden = 48,
				.seed = op_seed(),
			},
	};

	op_tokens_vary(&c.spec, 25);
	ht_case_make(&c);
	ranks_run(&(struct ranks_config){.num_ranks = num_ranks, .processes = processes}, body, &c,
		  "%s", name);
	ht_case_free(&c);
}

static void registered(int num_ranks, int row_layout, int64_t hidden)
{
	bool threads = true;

	if (!op_can_register(false)) {
		tap_skip(2, "ranks are processes, and only threads can register memory");
		return;
	}
	check(num_ranks, false, row_layout, OP_REGISTERED, hidden);
	ranks_run(&(struct ranks_config){.num_ranks = num_ranks}, registered_body, &threads,
		  "memory of thread ranks is registered");
}

int main(void)
{
	bool processes = false;

	ranks_begin();
	for (int i = 0; i < op_num_sizes; i++) {
		int num_ranks = op_sizes[i];

		if (!op_use_size(num_ranks)) {
			continue;
		}
		check(num_ranks, false, MOEEP_ROWS_FLAT, OP_SYMMETRIC, 72);
		check(num_ranks, true, MOEEP_ROWS_FLAT, OP_SYMMETRIC, 72);
		check(num_ranks, false, MOEEP_ROWS_EXPERT_MAJOR, -1, 32);
		check(num_ranks, true, MOEEP_ROWS_EXPERT_MAJOR, -1, 32);
		check(num_ranks, i % 2, MOEEP_ROWS_FLAT, -1, 40);
		check(num_ranks, !(i % 2), MOEEP_ROWS_EXPERT_MAJOR, OP_SYMMETRIC, 40);
		reuse(num_ranks, i % 2, reuse_body, "one symmetric memory, many places");
		ranks_run(&(struct ranks_config){.num_ranks = num_ranks, .processes = i % 2},
			  blocks_body, NULL, "symmetric memory comes and goes");
		registered(num_ranks, i % 2 ? MOEEP_ROWS_FLAT : MOEEP_ROWS_EXPERT_MAJOR, 24);
	}
	check(2, true, MOEEP_ROWS_FLAT, OP_SYMMETRIC, 7168);
	registered(3, MOEEP_ROWS_FLAT, 7168);
	if (device_mode() != DEVICE_NONE) {
		reuse(3, false, short_body, "symmetric memory that ends too early");
		tap_skip(1, "memory of processes cannot be registered: the host backend's rule");
		return tap_done();
	}
	ranks_run(&(struct ranks_config){.num_ranks = 3, .processes = true}, registered_body,
		  &processes, "memory of processes cannot be registered");
	return tap_done();
}
