/* SPDX-License-Identifier: MIT */
/* High-throughput combine of flat rows: the ordered FP32 sum, bit for bit. */
#include "config.h"

#include "t/op/ht.h"

static void check(int num_ranks, bool processes, int dtype, bool bias, bool send_weights,
		  enum payload payload, enum op_routing routing)
{
	struct ht_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 3 * num_ranks,
				.topk = 6,
				.hidden = 104,
				.dtype = dtype == MOEEP_FP16 ? MOEEP_FP8_E4M3 : 0,
				.routing = routing,
				.payload = payload,
				.seed = op_seed() + (uint64_t)num_ranks,
			},
		.combine_dtype = dtype,
		.send_weights = send_weights,
		.bias = bias,
	};

	if (c.spec.dtype == MOEEP_FP8_E4M3) {
		c.spec.hidden = 112;
	}
	op_tokens_vary(&c.spec, 24);
	ht_check(&c, processes, bias ? "combine with bias" : "combine");
}

/* The default dtype; capacities that leave room behind the rows. */
static void plain(int num_ranks, bool processes)
{
	struct ht_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 17,
				.topk = 8,
				.hidden = 64,
				.weights = true,
				.seed = op_seed() + (uint64_t)num_ranks,
				.payload = PAYLOAD_BITS,
			},
		.send_weights = true,
		.max_topk = 12,
	};

	op_tokens_vary(&c.spec, 20);
	for (int r = 0; r < num_ranks; r++) {
		c.rank[r].capacity = r % 2 ? 0 : 20 * num_ranks;
	}
	ht_check(&c, processes, "combine, default dtype");
}

static void wide(int num_ranks, bool processes, int64_t hidden, int dtype, int64_t chunk_bytes)
{
	struct ht_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 8,
				.topk = 4,
				.hidden = hidden,
				.payload = PAYLOAD_BITS,
				.seed = op_seed(),
			},
		.combine_dtype = dtype,
		.bias = true,
		.chunk_bytes = chunk_bytes,
		.chunks = 2,
	};

	op_tokens_vary(&c.spec, hidden > 1000 ? 6 : 100);
	ht_check(&c, processes, "combine in chunks");
}

/* Some ranks add a bias, some do not: it is each rank's own. */
static int mixed_body(int rank, moeep_comm_t *comm, void *arg)
{
	struct ht_case c = *(const struct ht_case *)arg;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;

	c.in.group.input = ((const struct ht_case *)arg)->in.input;
	c.bias = rank % 2 == 0;
	RANK_DO(ht_open(&c, comm, &buffer, &handle));
	RANK_DO(ht_dispatch(&c, rank, comm, buffer, handle, 0));
	for (int i = 0; i < 3; i++) {
		RANK_DO(ht_combine(&c, rank, comm, buffer, handle));
		c.bias = !c.bias;
	}
	return ht_close(buffer, handle);
}

static void mixed(bool processes)
{
	static struct ht_case c;

	c = (struct ht_case){
		.spec =
			{
				.num_ranks = 4,
				.num_experts = 9,
				.topk = 3,
				.hidden = 40,
				.routing = ROUTE_MASKED,
				.seed = op_seed(),
			},
	};
	op_tokens_vary(&c.spec, 15);
	ht_case_make(&c);
	ranks_run(&(struct ranks_config){.num_ranks = 4, .processes = processes}, mixed_body, &c,
		  "bias on some ranks, combine three times");
	ht_case_free(&c);
}

int main(void)
{
	static const int dtypes[] = {MOEEP_BF16, MOEEP_FP16, MOEEP_FP32};

	ranks_begin();
	for (int i = 0; i < op_num_sizes; i++) {
		if (op_use_size(op_sizes[i])) {
			plain(op_sizes[i], false);
			plain(op_sizes[i], true);
		}
	}
	for (int i = 0; i < COUNT_OF(dtypes); i++) {
		check(2, false, dtypes[i], true, true, PAYLOAD_NUMBERS, ROUTE_DISTINCT);
		check(3, true, dtypes[i], true, false, PAYLOAD_SPECIAL, ROUTE_MASKED);
		check(5, false, dtypes[i], false, true, PAYLOAD_SPECIAL, ROUTE_ANY);
		check(8, true, dtypes[i], true, true, PAYLOAD_NUMBERS, ROUTE_MASKED);
	}
	check(4, false, MOEEP_BF16, true, true, PAYLOAD_SPECIAL, ROUTE_NONE);
	check(4, true, MOEEP_BF16, false, true, PAYLOAD_SPECIAL, ROUTE_NONE);
	wide(2, false, 7168, MOEEP_BF16, 0);
	wide(3, true, 7168, MOEEP_BF16, 5000);
	wide(3, false, 1000, MOEEP_FP32, 16);
	wide(4, true, 24, MOEEP_FP16, 48);
	mixed(false);
	mixed(true);
	return tap_done();
}
