/* SPDX-License-Identifier: MIT */
/*
 * moe_layer.c - a Mixture-of-Experts layer, forward and backward, over four ranks.
 *
 *	p = softmax(x GATE)		a score for each expert
 *	out = sum of p_e * y_e		over the TOPK experts e with the highest scores
 *	y_e = tanh(x EXPERT_e)		computed by the rank that holds expert e
 *
 * Each rank is a thread, so that the program runs by itself; in processes the calls are the same.
 * At the end all results are compared with the layer computed in one place, token by token.
 *
 *	cc moe_layer.c $(pkg-config --cflags --libs moeep) -lm -pthread && ./a.out
 */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include <moeep/moeep.h>

enum {
	RANKS = 4,
	EXPERTS = 6, /* two ranks hold two of them, the others one */
	TOPK = 3,
	HIDDEN = 32,
	MAX_TOKENS = 48,
	ALIGNMENT = 4, /* each expert's rows start at a multiple, as grouped GEMMs like it */
	/* Every choice of every rank on one rank, and the padding: always enough. */
	CAPACITY = RANKS * MAX_TOKENS * TOPK + EXPERTS * (ALIGNMENT - 1)
};

/* The layer's parameters. Every rank has the gate; of the experts it uses its own alone. */
static float gate_matrix[HIDDEN][EXPERTS];
static float expert_matrix[EXPERTS][HIDDEN][HIDDEN];

static moeep_unique_id_t unique_id;

struct rank {
	/* This rank's tokens. */
	_Alignas(16) float x[MAX_TOKENS][HIDDEN];
	_Alignas(16) float out[MAX_TOKENS][HIDDEN];
	_Alignas(16) float dout[MAX_TOKENS][HIDDEN]; /* gradient of the loss by out, given */
	_Alignas(16) float dx[MAX_TOKENS][HIDDEN];
	int64_t topk_idx[MAX_TOKENS][TOPK];
	float topk_weights[MAX_TOKENS][TOPK];
	float dtopk_weights[MAX_TOKENS][TOPK];

	/* Rows of any rank's tokens, at this rank's experts. */
	_Alignas(16) float rows[CAPACITY][HIDDEN];
	_Alignas(16) float y[CAPACITY][HIDDEN];
	_Alignas(16) float dy[CAPACITY][HIDDEN];
	_Alignas(16) float drows[CAPACITY][HIDDEN];
	float row_weights[CAPACITY];
	float drow_weights[CAPACITY];
	int32_t per_expert[EXPERTS];
	int32_t offsets[EXPERTS + 1];
	int64_t num_rows;
	float dexpert[EXPERTS][HIDDEN][HIDDEN];

	int rank;
	int first_expert;
	int local_experts;
	int64_t num_tokens;
	moeep_comm_t *comm;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;
	pthread_t thread;
};

static struct rank ranks[RANKS];

/* A failure of one rank ends the whole program here, as its ranks are threads. */
static void check(int result, const char *what)
{
	if (result != MOEEP_OK) {
		fprintf(stderr, "%s: %s: %s\n", what, moeep_strerror(result), moeep_error_detail());
		exit(1);
	}
}

/* Numbers from -1 to 1 that anybody can compute again. */
static float noise(uint32_t a, uint32_t b, uint32_t c)
{
	uint32_t h = a * 0x9e3779b1u ^ b * 0x85ebca77u ^ c * 0xc2b2ae3du;

	h = (h ^ (h >> 15)) * 0x2c1b3c6du;
	h = (h ^ (h >> 12)) * 0x297a2d39u;
	h ^= h >> 15;
	return (float)(int32_t)h / 2147483648.0f;
}

/* The TOPK experts with the highest scores, and the scores as their weights. */
static void gate(const float *x, int64_t *topk_idx, float *topk_weights)
{
	float p[EXPERTS];
	float sum = 0;

	for (int e = 0; e < EXPERTS; e++) {
		p[e] = 0;
		for (int h = 0; h < HIDDEN; h++) {
			p[e] += x[h] * gate_matrix[h][e];
		}
		p[e] = expf(p[e]);
		sum += p[e];
	}
	for (int k = 0; k < TOPK; k++) {
		int best = 0;

		for (int e = 1; e < EXPERTS; e++) {
			if (p[e] > p[best]) {
				best = e;
			}
		}
		topk_idx[k] = best;
		topk_weights[k] = p[best] / sum;
		p[best] = -1; /* taken */
	}
}

static void expert(int e, const float *x, float *y)
{
	for (int j = 0; j < HIDDEN; j++) {
		float sum = 0;

		for (int h = 0; h < HIDDEN; h++) {
			sum += x[h] * expert_matrix[e][h][j];
		}
		y[j] = tanhf(sum);
	}
}

/* From dy, the gradient by y: add that by the expert's matrix, and give that by x. */
static void expert_backward(int e, const float *x, const float *y, const float *dy,
			    float dexpert[HIDDEN][HIDDEN], float *dx)
{
	for (int h = 0; h < HIDDEN; h++) {
		dx[h] = 0;
		for (int j = 0; j < HIDDEN; j++) {
			float dz = dy[j] * (1 - y[j] * y[j]);

			dexpert[h][j] += x[h] * dz;
			dx[h] += expert_matrix[e][h][j] * dz;
		}
	}
}

static void forward(struct rank *r)
{
	for (int64_t t = 0; t < r->num_tokens; t++) {
		gate(r->x[t], r->topk_idx[t], r->topk_weights[t]);
	}

	/* Each token's row to its experts, one row for each choice, grouped by expert. */
	moeep_dispatch_args_t dispatch = {
		.size = sizeof(dispatch),
		.dtype = MOEEP_FP32,
		.num_tokens = r->num_tokens,
		.x = r->x,
		.topk_idx = r->topk_idx,
		.topk_weights = &r->topk_weights[0][0],
		.row_layout = MOEEP_ROWS_EXPERT_MAJOR,
		.expert_alignment = ALIGNMENT,
		.capacity = CAPACITY,
		.recv_x = r->rows,
		.recv_topk_weights = r->row_weights,
		.num_recv = &r->num_rows,
		.recv_per_expert = r->per_expert,
		.recv_expert_offsets = r->offsets,
	};
	check(moeep_dispatch(r->buffer, r->handle, &dispatch, NULL), "dispatch");

	for (int e = 0; e < r->local_experts; e++) {
		for (int32_t i = r->offsets[e]; i < r->offsets[e] + r->per_expert[e]; i++) {
			expert(r->first_expert + e, r->rows[i], r->y[i]);
		}
	}

	/* The weighted sum of the experts' rows back to the token's rank. */
	moeep_combine_args_t combine = {
		.size = sizeof(combine),
		.flags = MOEEP_COMBINE_WEIGHTED,
		.dtype = MOEEP_FP32,
		.x = r->y,
		.out = r->out,
	};
	check(moeep_combine(r->buffer, r->handle, &combine, NULL), "combine");
}

static void backward(struct rank *r)
{
	/* The gradient of combine is a dispatch: dout goes where the token's row went. */
	moeep_dispatch_args_t dispatch = {
		.size = sizeof(dispatch),
		.flags = MOEEP_DISPATCH_CACHED,
		.dtype = MOEEP_FP32,
		.x = r->dout,
		.capacity = CAPACITY,
		.recv_x = r->dy,
	};
	check(moeep_dispatch(r->buffer, r->handle, &dispatch, NULL), "cached dispatch");

	for (int e = 0; e < r->local_experts; e++) {
		for (int32_t i = r->offsets[e]; i < r->offsets[e] + r->per_expert[e]; i++) {
			/* out = ... + weight * y + ... */
			r->drow_weights[i] = 0;
			for (int h = 0; h < HIDDEN; h++) {
				r->drow_weights[i] += r->dy[i][h] * r->y[i][h];
				r->dy[i][h] *= r->row_weights[i];
			}
			expert_backward(r->first_expert + e, r->rows[i], r->y[i], r->dy[i],
					r->dexpert[e], r->drows[i]);
		}
	}

	/* The gradient of dispatch is a combine. The gradients by the weights travel with it. */
	moeep_combine_args_t combine = {
		.size = sizeof(combine),
		.dtype = MOEEP_FP32,
		.x = r->drows,
		.topk_weights = r->drow_weights,
		.out = r->dx,
		.out_topk_weights = &r->dtopk_weights[0][0],
	};
	check(moeep_combine(r->buffer, r->handle, &combine, NULL), "combine of gradients");

	/* From dtopk_weights on, the gate's own backward is a matter of this rank alone. */
}

static void *rank_main(void *argument)
{
	struct rank *r = argument;
	/* Left open, it would be a GPU where there is one; these arrays are the host's. */
	moeep_comm_config_t comm = {
		.size = sizeof(comm),
		.id = &unique_id,
		.backend = MOEEP_BACKEND_HOST,
	};
	moeep_buffer_config_t config = {
		.size = sizeof(config),
		.modes = MOEEP_MODE_HT,
		.num_experts = EXPERTS,
		.max_topk = TOPK,
		.dtype = MOEEP_FP32,
		.hidden = HIDDEN,
		.ht_max_tokens = MAX_TOKENS,
	};

	check(moeep_comm_create(r->rank, RANKS, &comm, &r->comm), "comm");
	check(moeep_buffer_create(r->comm, &config, &r->buffer), "buffer");
	check(moeep_handle_create(r->buffer, NULL, &r->handle), "handle");
	check(moeep_expert_range(EXPERTS, RANKS, r->rank, &r->first_expert, &r->local_experts),
	      "expert range");
	forward(r);
	backward(r);
	check(moeep_handle_destroy(r->handle), "handle's end");
	check(moeep_buffer_destroy(r->buffer), "buffer's end");
	check(moeep_comm_destroy(r->comm), "comm's end");
	return NULL;
}

/* The largest difference between n numbers of two arrays. */
static double difference(const float *a, const float *b, size_t n)
{
	double most = 0;

	for (size_t i = 0; i < n; i++) {
		/* Written so that a NaN counts as a difference. */
		if (!(fabs((double)a[i] - b[i]) <= most)) {
			most = isnan(a[i] - b[i]) ? INFINITY : fabs((double)a[i] - b[i]);
		}
	}
	return most;
}

/* The same layer without moeep: all experts at hand, one token after the other. */
static double dense(void)
{
	static float dexpert[EXPERTS][HIDDEN][HIDDEN];
	double most = 0;

	for (int i = 0; i < RANKS; i++) {
		const struct rank *r = &ranks[i];

		for (int64_t t = 0; t < r->num_tokens; t++) {
			float out[HIDDEN] = {0}, dx[HIDDEN] = {0}, dw[TOPK] = {0};
			int64_t choice[TOPK];
			float w[TOPK];

			gate(r->x[t], choice, w);
			for (int k = 0; k < TOPK; k++) {
				float y[HIDDEN], dy[HIDDEN], part[HIDDEN];

				expert((int)choice[k], r->x[t], y);
				for (int h = 0; h < HIDDEN; h++) {
					out[h] += w[k] * y[h];
					dw[k] += r->dout[t][h] * y[h];
					dy[h] = w[k] * r->dout[t][h];
				}
				expert_backward((int)choice[k], r->x[t], y, dy, dexpert[choice[k]],
						part);
				for (int h = 0; h < HIDDEN; h++) {
					dx[h] += part[h];
				}
			}
			most = fmax(most, difference(out, r->out[t], HIDDEN));
			most = fmax(most, difference(dx, r->dx[t], HIDDEN));
			most = fmax(most, difference(dw, r->dtopk_weights[t], TOPK));
		}
	}
	for (int i = 0; i < RANKS; i++) {
		for (int e = 0; e < ranks[i].local_experts; e++) {
			most = fmax(most, difference(&dexpert[ranks[i].first_expert + e][0][0],
						     &ranks[i].dexpert[e][0][0], HIDDEN * HIDDEN));
		}
	}
	return most;
}

int main(void)
{
	moeep_rendezvous_t *rendezvous;
	int64_t tokens = 0, rows = 0;
	double most;

	for (uint32_t h = 0; h < HIDDEN; h++) {
		for (uint32_t e = 0; e < EXPERTS; e++) {
			gate_matrix[h][e] = noise(1, h, e) / 2;
			for (uint32_t j = 0; j < HIDDEN; j++) {
				expert_matrix[e][h][j] = noise(2 + e, h, j) / 4;
			}
		}
	}
	check(moeep_rendezvous_create(NULL, &rendezvous, &unique_id), "rendezvous");
	for (int i = 0; i < RANKS; i++) {
		struct rank *r = &ranks[i];

		r->rank = i;
		r->num_tokens = MAX_TOKENS - 16 * i; /* 48, 32, 16 and none */
		for (uint32_t t = 0; t < r->num_tokens; t++) {
			for (uint32_t h = 0; h < HIDDEN; h++) {
				r->x[t][h] = noise(100 + (uint32_t)i, t, h);
				r->dout[t][h] = noise(200 + (uint32_t)i, t, h);
			}
		}
		if (pthread_create(&r->thread, NULL, rank_main, r) != 0) {
			fprintf(stderr, "cannot start a thread\n");
			return 1;
		}
	}
	for (int i = 0; i < RANKS; i++) {
		pthread_join(ranks[i].thread, NULL);
		tokens += ranks[i].num_tokens;
		rows += ranks[i].num_rows;
	}
	check(moeep_rendezvous_destroy(rendezvous), "rendezvous' end");

	most = dense();
	printf("%d ranks, %d experts, %lld tokens, %lld rows with padding\n", RANKS, EXPERTS,
	       (long long)tokens, (long long)rows);
	printf("largest difference from the dense layer, outputs and gradients: %.1e: %s\n", most,
	       most < 1e-4 ? "good" : "WRONG");
	return most < 1e-4 ? 0 : 1;
}
